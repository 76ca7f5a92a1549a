"""`python -m workers`: one worker process with the real engine.

Owns the order of starting up: settings, logs, torch, Redis, loop. Ends with the loop's exit code; a supervisor starts
it again after any other than 0.
"""

from __future__ import annotations

import os
import sys
import time

import redis
import structlog
from pydantic import ValidationError

from workers.assembly import WorkerParts, assemble
from workers.logs import configure_logs
from workers.settings import WorkerSettings

log = structlog.get_logger(__name__)

EXIT_USAGE = 64
_LONGEST_WAIT_S = 5.0


def main() -> int:
    """Run a worker until it is told to end."""
    try:
        settings = WorkerSettings()
    except ValidationError as error:
        print(f"The worker's settings cannot be used: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    configure_logs(settings.log_format)
    from workers.worker import Worker

    return Worker(_assemble(settings)).run()


def _assemble(settings: WorkerSettings) -> WorkerParts:
    """The parts around the real engine; torch is imported here. Waits until Redis is there."""
    # Threads that spin while they wait for each other cost tenfold as soon as anything else wants a core, and here the
    # API and Redis do (docs/performance.md). Read once, when torch loads its thread pool.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from models.device import choose_placement
    from models.engine import Engine, EngineSettings, step_table_of
    from models.shelf import Shelf

    limits = {"max_rows": settings.max_rows} if settings.max_rows else {}
    engine = Engine(EngineSettings(**limits))
    shelf = Shelf(settings.models, choose_placement(settings.device, settings.dtype), settings.memory_budget)
    wait_s = 0.1
    while True:
        try:
            return assemble(settings, engine, shelf, step_table_of)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            log.warning("Redis does not answer yet", error=str(error))
            time.sleep(wait_s)
            wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)


if __name__ == "__main__":
    sys.exit(main())
