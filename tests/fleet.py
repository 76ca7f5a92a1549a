"""Real worker processes for tests: started, watched, killed, and ended whatever the test does.

Fake workers are forked from a process that has imported everything already: fifty of them would spend a minute on
imports otherwise. The real one is `python -m workers`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

import redis
from rq.job import Job

from models.request import PictureRequest
from tests import fake_worker
from tests.board_values import make_entry
from tests.fakes import draw_fake
from workers.board import JobBoard
from workers.contract import ENDED, JobView, Making, Provenance, Submission, WorkerBeat, key
from workers.pictures import digest_of_pixels, encode_picture, recipe_of
from workers.software import software_versions
from workers.store import open_store

LEASE_S = 1.5
"""Short, so that a dead worker's jobs move on within the test."""
_PATIENCE_S = 120.0
"""Only a test that fails waits so long; on a busy machine torch alone takes half a minute to import."""
_ROOT = Path(__file__).resolve().parent.parent


class WorkerProcess:
    """A forked fake worker, with the manners of a Popen."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", "tests.fake_worker"])
        self._process = context.Process(target=run_fake_worker, args=(environment, str(log)))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"worker {self.pid} did not end in {timeout} s"
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def run_fake_worker(environment: dict[str, str], log: str) -> None:
    """What a forked process does."""
    os.environ.update(environment)
    os.chdir(environment.get("PWD", _ROOT))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.exit(fake_worker.main())


AnyWorker = WorkerProcess | subprocess.Popen[bytes]


class Fleet:
    """Workers on one Redis and one store. Leaving the context kills what is left of them."""

    def __init__(self, url: str, client: redis.Redis, folder: Path, store_url: str | None = None) -> None:
        """`client`: of the same Redis, with an empty database. `store_url`: unless it is a folder in `folder`."""
        self.client = client
        self.board = JobBoard(client, retention_s=1000)
        self._store_url = store_url or str(folder / "store")
        self.store = open_store(self._store_url)
        self.entry = make_entry()
        self._url = url
        self._folder = folder
        self._workers: list[AnyWorker] = []

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for worker in self._workers:
            worker.kill()  # a stopped one too
            worker.wait(10)

    # --- workers ------------------------------------------------------------------------------------------------------

    def start(self, **environment: str) -> WorkerProcess:
        """A fake worker that is ready; arguments are environment variables."""
        worker = self.launch(**environment)
        self.wait_ready(worker)
        return worker

    def launch(self, **environment: str) -> WorkerProcess:
        """A fake worker that is starting."""
        worker = WorkerProcess(self._environment(environment), self._new_log())
        self._workers.append(worker)
        return worker

    def launch_real(self, **environment: str) -> subprocess.Popen[bytes]:
        """A worker with the real engine that is starting."""
        with self._new_log().open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "workers"],
                cwd=_ROOT,
                env={**os.environ, **self._environment(environment)},
                stderr=log,
            )
        self._workers.append(worker)
        return worker

    def wait_ready(self, worker: AnyWorker) -> None:
        self.wait_for(lambda: any(b.pid == worker.pid and b.state == "running" for b in self.board.beats()))

    def _environment(self, given: dict[str, str]) -> dict[str, str]:
        return {
            "REDIS_URL": self._url,
            "DENOISED_DATA_DIR": str(self._folder),
            "DENOISED_STORE_URL": self._store_url,
            "DENOISED_MODELS": "fake=fake",
            "DENOISED_LEASE_S": str(LEASE_S),
            "DENOISED_BEAT_S": "0.4",
            "DENOISED_MAINTENANCE_INTERVAL_S": "0.3",
            "DENOISED_RECOVERY_AGE_S": "0.5",
            "DENOISED_RETENTION_S": "1000",
            "DENOISED_SNAPSHOT_INTERVAL_S": "0.2",
            **given,
        }

    def _new_log(self) -> Path:
        return self._folder / f"worker-{len(self._workers)}.log"

    def name_of(self, worker: AnyWorker) -> str:
        return self.beat_of(worker).name

    def beat_of(self, worker: AnyWorker) -> WorkerBeat:
        return next(beat for beat in self.board.beats() if beat.pid == worker.pid)

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._folder.glob("worker-*.log")))

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def submit(self, *submissions: Submission) -> list[str]:
        return [self.board.submit(submission, self.entry)[0].record.id for submission in submissions]

    def view(self, job_id: str) -> JobView:
        view = self.board.get(job_id)
        assert view is not None
        return view

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until something is true, looking again after every event of any job and every few milliseconds."""
        deadline = time.monotonic() + _PATIENCE_S
        last = "$"
        while not condition():
            assert time.monotonic() < deadline, f"it never came true; the workers said:\n{self.logs()}"
            answer = self.client.xread({key("events"): last}, count=1000, block=20)
            if answer:
                last = answer[0][1][-1][0]

    def wait_ended(self, job_ids: Iterable[str]) -> list[JobView]:
        ids = list(job_ids)
        self.wait_for(lambda: all(self.view(job_id).status in ENDED for job_id in ids))
        return [self.view(job_id) for job_id in ids]

    def wait_running(self, job_ids: Iterable[str], step: int = 1) -> None:
        """Until all of these are at least at this step."""
        ids = list(job_ids)
        self.wait_for(
            lambda: all(
                (progress := self.view(job_id).progress) is not None and progress.step >= step for job_id in ids
            )
        )

    # --- what must hold -----------------------------------------------------------------------------------------------

    def assert_each_succeeded_once(self, job_ids: Iterable[str]) -> None:
        """One outcome, one event of it, one result in RQ, and the files that were promised."""
        ids = list(job_ids)
        ends = self.count_ends()
        for job_id in ids:
            view = self.view(job_id)
            outcome = view.record.outcome
            assert outcome is not None
            assert outcome.status == "succeeded", (outcome, self.logs())
            assert ends[job_id] == 1
            request = view.record.submission.request
            assert len(outcome.pictures) == request.num_images
            for index, picture in enumerate(outcome.pictures):
                recipe = recipe_of(request, index, provenance_of_fake(request, index))
                expected = encode_picture(draw_fake(request, index), "png", recipe)
                assert self.store.get(job_id, picture.file) == expected.data
        self.assert_rq_is_at_rest(ids)
        for job_id in ids:
            assert len(self.rq_job(job_id).results()) == 1

    def saved_files(self) -> list[str]:
        """Names of all files in the store that are kept for a job in flight."""
        return [path.name for path in self.store.root.rglob("*.safetensors")]

    def count_ends(self) -> Counter[str]:
        entries = self.client.xrange(key("events"))
        return Counter(fields[b"job"].decode() for _, fields in entries if fields[b"kind"] == b"end")

    def assert_rq_is_at_rest(self, job_ids: Iterable[str]) -> None:
        """RQ and the record agree, and nothing of these jobs is in any list."""
        ids = list(job_ids)
        matching = {"succeeded": {"finished"}, "failed": {"failed"}, "canceled": {"canceled", "stopped"}}
        self.wait_for(
            lambda: all(self.rq_job(job_id).get_status() in matching[self.view(job_id).status] for job_id in ids)
        )
        for job_id in ids:
            queue = self.view(job_id).record.queue
            assert job_id.encode() not in self.client.lrange(f"rq:queue:{queue}", 0, -1)
            assert job_id.encode() not in self.client.lrange(f"rq:queue:{queue}:intermediate", 0, -1)
            assert not self.client.hexists(key("costs", "fake"), job_id)

    def rq_job(self, job_id: str) -> Job:
        return Job.fetch(job_id, connection=self.client, serializer="json")


def provenance_of_fake(request: PictureRequest, index: int) -> Provenance:
    """What the recipe of a picture by the fake engine tells."""
    making = Making(
        contract=request.reproducibility,
        hardware="cpu of a fake",
        dtype="float32",
        software=dict(software_versions()),
        upscaler="0" * 64 if request.upscaler else None,
    )
    pixels = draw_fake(request, index)
    return Provenance(model_digest="0" * 64, pixels_sha256=digest_of_pixels(pixels), made_with=making)


def freeze(worker: AnyWorker) -> None:
    worker.send_signal(signal.SIGSTOP)


def thaw(worker: AnyWorker) -> None:
    worker.send_signal(signal.SIGCONT)
