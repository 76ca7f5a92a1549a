"""`python -m app.cli`: the command line without its script."""

import sys

from app.cli import main

sys.exit(main())
