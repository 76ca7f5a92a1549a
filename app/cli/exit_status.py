"""The exit statuses of the command line and of the processes it supervises."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_SETTINGS = 2
EXIT_UNREACHABLE = 3
EXIT_CANNOT_LISTEN = 4
EXIT_INTERRUPTED = 130
