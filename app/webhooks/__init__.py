"""Webhooks: who may be called (`address`), in which words (`body`), signed how (`sign`), by one attempt (`post`), and
when (`sender`). What there is to tell is in Redis: `workers.webhooks`."""
