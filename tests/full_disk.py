"""`python -m tests.full_disk FOLDER`: API and worker on a disk that is really full; FOLDER is a small disk of its own.

`tests/test_room.py` runs this where it may mount one.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from tests.board_values import make_submission
from tests.fleet import Fleet
from tests.http_kit import ENTRY, FakeWorker, encoded, serving
from workers.connection import connect
from workers.embedded import ensure_server
from workers.store import LocalStore


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Not a byte is free meanwhile."""
    junk = folder / "junk"
    with junk.open("wb", buffering=0) as file:
        for size in (65536, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    yield
    junk.unlink()


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "junk"]


async def check_door(url: str, disk: Path) -> None:
    store = LocalStore(disk / "door")
    client = connect(url)
    FakeWorker(client, store).publish(ENTRY)
    noise = encoded(Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)))
    body = {"task": "image-to-image", "prompt": "a pear", "image": base64.b64encode(noise).decode()}
    async with serving(url, store, store_reserve=0) as without_reserve:
        with filled(disk):
            # Room for this job was promised, and somebody else took it: what the disk itself says counts.
            store.free_bytes = lambda: None  # type: ignore[method-assign]
            answer = await without_reserve.post("/generate", json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "store_full"), answer.text
            assert int(answer.headers["Retry-After"]) > 0
            assert files_of(disk) == []
            assert not client.keys("denoised:job*")
            assert not client.exists("denoised:reserved")
        assert (await without_reserve.post("/generate", json=body)).status_code == 202
    async with serving(url, store, store_reserve=64 * 1024) as client_of_door:
        with filled(disk):
            answer = await client_of_door.post("/generate", json={"prompt": "a pear"})
            assert answer.json()["code"] == "store_full", answer.text
    client.flushall()
    client.close()


def check_worker(url: str, disk: Path) -> None:
    client = connect(url)
    with Fleet(url, client, disk) as fleet:
        fleet.start(DENOISED_SAVE_PATIENCE_S="0.3")
        with filled(disk):
            ids = fleet.submit(make_submission(), make_submission(seed=2))
            fleet.wait_for(lambda: fleet.logs().count("handed back") >= len(ids))
            assert {fleet.view(job_id).status for job_id in ids} == {"queued"}
        fleet.wait_ended(ids)
        fleet.assert_each_succeeded_once(ids)
        assert len(files_of(fleet.store.root)) == len(ids)
    client.close()


def main() -> None:
    disk = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        server = ensure_server(Path(folder))
        try:
            asyncio.run(check_door(server.url, disk))
            check_worker(server.url, disk)
        finally:
            server.stop()
    print("kept its promises")


if __name__ == "__main__":
    main()
