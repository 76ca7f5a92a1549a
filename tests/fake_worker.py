"""`python -m tests.fake_worker`: a real worker process around the fake engine.

Environment beside the worker's own settings: FAKE_STEP_S, FAKE_ROOM, FAKE_PLACES; FAKE_KILL_AT names a place between
two commands (popped, claimed, committed) at which the process kills itself; FAKE_CONTRACT_VERSION is the version of the
contract that it has, FAKE_STORE_TIMEOUT_S how long it waits for a store elsewhere.
"""

from __future__ import annotations

import os
import signal
import sys

from tests.fakes import FakeEngine, FakeShelf, nothing_ahead
from workers import contract, store
from workers.assembly import assemble
from workers.logs import configure_logs
from workers.settings import WorkerSettings
from workers.worker import Worker


def main() -> int:
    contract.CONTRACT_VERSION = int(os.environ.get("FAKE_CONTRACT_VERSION", contract.CONTRACT_VERSION))
    store.TIMEOUT_S = float(os.environ.get("FAKE_STORE_TIMEOUT_S", store.TIMEOUT_S))
    settings = WorkerSettings()
    configure_logs(settings.log_format)
    engine = FakeEngine(float(os.environ.get("FAKE_STEP_S", "0.005")), int(os.environ.get("FAKE_ROOM", "8")))
    shelf = FakeShelf(tuple(settings.models), int(os.environ.get("FAKE_PLACES", "8")))

    def kill_at(place: str) -> None:
        if place == os.environ.get("FAKE_KILL_AT"):
            os.kill(os.getpid(), signal.SIGKILL)

    return Worker(assemble(settings, engine, shelf, nothing_ahead, kill_at)).run()


if __name__ == "__main__":
    sys.exit(main())
