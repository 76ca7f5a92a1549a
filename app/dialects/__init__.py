"""The dialects, one file each: every module here is one and holds it as `DIALECT` (`app.dialect.Dialect`)."""
