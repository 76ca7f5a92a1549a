"""`python -m workers`: one worker process with the real engine.

Owns the order of starting up: settings, logs, torch, Redis, loop. Ends with the loop's exit code; a supervisor starts
it again after any other than 0.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import redis
import structlog
from pydantic import ValidationError

from workers.assembly import WorkerParts, assemble
from workers.logs import configure_logs
from workers.redis_backoff import is_away
from workers.settings import WorkerSettings
from workers.store import StoreUrlError

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.materials import Materials
    from models.request import PictureRequest
    from workers.io_pool import Uploads

log = structlog.get_logger(__name__)

_LONGEST_WAIT_S = 5.0


class Unusable(Exception):
    """Settings that no restart makes usable; the message says which."""


def main() -> int:
    """Run a worker until it is told to end."""
    from workers.worker import EXIT_USAGE, Worker

    try:
        settings = _read_settings()
        configure_logs(settings.log_format)
        parts = _assemble(settings)
    except Unusable as error:
        print(f"The worker's settings cannot be used: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    return Worker(parts).run()


def _read_settings() -> WorkerSettings:
    try:
        return WorkerSettings()
    except ValidationError as error:
        # Without the values: an address may hold a password.
        faults = (f"{'.'.join(map(str, fault['loc'])) or 'together'}: {fault['msg']}" for fault in error.errors())
        raise Unusable("; ".join(faults)) from error


def _assemble(settings: WorkerSettings) -> WorkerParts:
    """The parts around the real engine; torch is imported here. Waits until Redis is there."""
    # Threads that spin while they wait for each other cost tenfold as soon as anything else wants a core, as API and
    # Redis do; threads that sleep at once cost half the speed of an idle machine (docs/performance.md). This is in
    # between. It is read once, when torch loads its thread pool.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    from models.control_files import ControlFiles
    from models.device import choose_placement
    from models.engine import Engine, EngineSettings
    from models.lora_files import LoraFiles
    from models.prepare import Inputs, step_table_of
    from models.shelf import Shelf

    limits = {"max_rows": settings.max_rows} if settings.max_rows else {}
    try:
        placement = choose_placement(settings.device, settings.dtype)
    except (ValueError, RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise Unusable(f"device {settings.device!r}, dtype {settings.dtype!r}: {error}") from error
    engine = Engine(EngineSettings(**limits))
    shelf = Shelf(settings.models, placement, settings.memory_budget)
    loras, controlnets = LoraFiles(settings.lora_folder), ControlFiles(settings.controlnet_folder)

    def read_ahead(request: PictureRequest, checkpoint: Checkpoint, uploads: Uploads) -> tuple[Inputs, Materials]:
        step_table_of(request, checkpoint)
        nets = zip(controlnets.of(request, checkpoint), uploads.controls, strict=True)
        inputs = Inputs(uploads.image, uploads.mask, loras.of(request, checkpoint), tuple(nets), uploads.images)
        return inputs, inputs.materials

    wait_s = 0.1
    while True:
        try:
            return assemble(settings, engine, shelf, read_ahead)
        except (StoreUrlError, PermissionError, FileExistsError, NotADirectoryError) as error:
            raise Unusable(f"the store of pictures: {error}") from error
        except redis.RedisError as error:
            if not is_away(error):
                raise
            log.warning("Redis does not answer yet", error=str(error))
            time.sleep(wait_s)
            wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)


if __name__ == "__main__":
    sys.exit(main())
