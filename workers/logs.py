"""How the log of a process looks: one line an event, JSON or for people, those of RQ, uvicorn and others among them.

Owns what is never in a line: values of variables, which may be prompts, keys, or addresses with passwords.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog

_QUIET = ("rq", "uvicorn", "PIL", "urllib3", "httpx", "huggingface_hub", "filelock", "fsspec")
"""Libraries whose INFO is our business: they may warn."""


def configure_logs(log_format: Literal["json", "console"]) -> None:
    """Set up structlog and the standard library's logging to write to stderr. Once, at the start of the process."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    final: structlog.typing.Processor = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    if log_format == "json":
        # Without local variables: those hold prompts, and addresses with passwords.
        traceback = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared.append(structlog.processors.ExceptionRenderer(traceback))
        final = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # RQ sets the level of this one itself when it is imported.
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
