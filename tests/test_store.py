"""The store of pictures: one contract for both kinds, then what a disk adds: crashes, modes, what is left lying."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from workers.contract import new_job_id
from workers.store import LocalStore, RemoteStore, Store, StoreUrlError, open_store

NAME = "0.png"


def id_of_age(age_s: float) -> str:
    return f"{int((time.time() - age_s) * 1000):012x}{secrets.token_hex(16)}"


@pytest.fixture(params=["path", "file-url", "remote"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    urls = {
        "path": str(tmp_path / "pictures"),
        "file-url": (tmp_path / "our pictures").as_uri(),
        "remote": f"memory://{secrets.token_hex(8)}/pictures",
    }
    return open_store(urls[request.param])


def test_the_url_decides_the_kind(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path / "a")), LocalStore)
    local = open_store((tmp_path / "with space").as_uri())
    assert isinstance(local, LocalStore)
    assert local.root == tmp_path / "with space"
    assert isinstance(open_store("memory://bucket/pictures"), RemoteStore)


@pytest.mark.parametrize("url", ["nonsense://bucket", "file://host/folder", "file://"])
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(StoreUrlError, match="path"):
        open_store(url)


def test_a_file_is_read_back_as_written_and_replaced_whole(any_store: Store) -> None:
    job = new_job_id()
    any_store.put(job, NAME, b"first")
    any_store.put(job, NAME, b"second, and longer")
    any_store.put(job, "1.png", b"")
    assert any_store.get(job, NAME) == b"second, and longer"
    assert any_store.get(job, "1.png") == b""


def test_a_file_that_is_not_there_is_not_found(any_store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        any_store.get(new_job_id(), NAME)


class EndpointConnectionError(Exception):
    """An object store's client has exceptions that are no OSError."""


class FakeLostNetwork(MemoryFileSystem):
    """An object store out of reach."""

    protocol = "lost"

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise EndpointConnectionError("Could not connect to the endpoint")

    pipe_file = cat_file = rm = ls = find = _refuse


@pytest.mark.parametrize("verb", ["put", "get", "erase", "expire", "used_bytes"])
def test_an_object_store_out_of_reach_is_an_os_error(verb: str) -> None:
    fsspec.register_implementation("lost", FakeLostNetwork, clobber=True)
    lost = open_store("lost://bucket/pictures")
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: lost.put(new_job_id(), NAME, b""),
        "get": lambda: lost.get(new_job_id(), NAME),
        "erase": lambda: lost.erase(new_job_id()),
        "expire": lambda: lost.expire(0, lambda _: False),
        "used_bytes": lost.used_bytes,
    }
    with pytest.raises(OSError, match="EndpointConnectionError: Could not connect"):
        calls[verb]()


def test_erasing_removes_every_file_of_that_job_and_may_be_repeated(any_store: Store) -> None:
    gone, kept = new_job_id(), new_job_id()
    for job in (gone, kept):
        any_store.put(job, NAME, b"0")
        any_store.put(job, "1.png", b"1")
    any_store.erase(gone)
    any_store.erase(gone)
    for name in (NAME, "1.png"):
        with pytest.raises(FileNotFoundError):
            any_store.get(gone, name)
        assert any_store.get(kept, name)


def test_one_file_is_removed_and_the_others_stay(any_store: Store) -> None:
    job = new_job_id()
    for name in (NAME, "1.png"):
        any_store.put(job, name, b"0")
    for _ in range(2):
        any_store.remove(job, NAME)
    with pytest.raises(FileNotFoundError):
        any_store.get(job, NAME)
    assert any_store.get(job, "1.png") == b"0"


def test_expiry_goes_by_the_age_of_the_id_and_spares_the_living(any_store: Store) -> None:
    old, older, alive, young = id_of_age(3700), id_of_age(90_000), id_of_age(7200), id_of_age(3500)
    for job in (old, older, alive, young):
        any_store.put(job, NAME, b"x")
    asked = []

    def is_alive(job_id: str) -> bool:
        asked.append(job_id)
        return job_id == alive

    assert any_store.expire(3600, is_alive) == 2
    assert sorted(asked) == sorted([old, older, alive])
    assert any_store.get(alive, NAME) == any_store.get(young, NAME) == b"x"
    for job in (old, older):
        with pytest.raises(FileNotFoundError):
            any_store.get(job, NAME)
    assert any_store.expire(3600, is_alive) == 0


def test_ids_that_share_a_folder_are_told_apart_by_their_own_time(any_store: Store) -> None:
    start_of_a_folder = 0x01A20616_0000 / 1000
    first, second = (f"{int((start_of_a_folder + later) * 1000):012x}{'0' * 32}" for later in (20, 40))
    for job in (first, second):
        any_store.put(job, NAME, b"x")
    assert any_store.expire(time.time() - (start_of_a_folder + 30), lambda _: False) == 1
    assert any_store.get(second, NAME) == b"x"
    with pytest.raises(FileNotFoundError):
        any_store.get(first, NAME)


def test_used_bytes_are_those_of_all_files(any_store: Store) -> None:
    assert any_store.used_bytes() == 0
    jobs = [new_job_id(), id_of_age(90_000)]
    for job in jobs:
        any_store.put(job, NAME, bytes(1000))
        any_store.put(job, "1.png", bytes(500))
    assert any_store.used_bytes() == 3000
    any_store.erase(jobs[0])
    assert any_store.used_bytes() == 1500


def test_only_a_disk_can_say_what_is_free(store: LocalStore) -> None:
    free = store.free_bytes()
    assert free is not None
    assert free > 0
    assert open_store("memory://bucket/free").free_bytes() is None


def test_an_empty_store_expires_nothing(any_store: Store) -> None:
    assert any_store.expire(0, lambda _: False) == 0


BAD_NAMES = [
    "",
    ".",
    "..",
    ".hidden",
    "../0.png",
    "a/b.png",
    "/etc/passwd",
    "a\\b",
    "0.png\n",
    "a\0b",
    "é.png",
    "a" * 129,
]
BAD_IDS = ["", "..", "../" + "0" * 41, "0" * 43, "0" * 45, "G" * 44, "0" * 44 + "\n", "0" * 43 + "/", ".tmp"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_could_leave_the_folder_is_refused(any_store: Store, name: str) -> None:
    job = new_job_id()
    for call in (
        lambda: any_store.put(job, name, b""),
        lambda: any_store.get(job, name),
        lambda: any_store.path(job, name),
    ):
        with pytest.raises(ValueError, match="no file name"):
            call()


@pytest.mark.parametrize("job", BAD_IDS)
def test_an_id_that_is_not_ours_is_refused(any_store: Store, job: str) -> None:
    for call in (lambda: any_store.put(job, NAME, b""), lambda: any_store.get(job, NAME), lambda: any_store.erase(job)):
        with pytest.raises(ValueError, match="no job id"):
            call()


def test_only_a_local_file_has_a_path(store: Store) -> None:
    job = new_job_id()
    with pytest.raises(FileNotFoundError):
        store.path(job, NAME)
    store.put(job, NAME, b"pixels")
    path = store.path(job, NAME)
    assert path is not None
    assert path.read_bytes() == b"pixels"
    remote = open_store("memory://bucket/paths")
    remote.put(job, NAME, b"pixels")
    assert remote.path(job, NAME) is None


def test_folders_and_files_are_for_their_owner_alone(store: LocalStore) -> None:
    store.put(new_job_id(), NAME, b"pixels")
    for path in (store.root, *store.root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def job_files(store: LocalStore) -> list[str]:
    return [path.name for path in store.root.rglob("*") if path.is_file() and ".tmp" not in path.parts]


WRITER_KILLED_BEFORE_THE_RENAME = """
import os, signal, sys
from pathlib import Path
from workers.contract import new_job_id
from workers.store import LocalStore
class Killed(LocalStore):
    def _publish(self, temporary, target):
        os.kill(os.getpid(), signal.SIGKILL)
Killed(Path(sys.argv[1])).put(new_job_id(), "0.png", b"half" * 1000)
"""


def test_a_writer_killed_in_between_leaves_nothing_visible_and_expiry_cleans_up(store: LocalStore) -> None:
    ended = subprocess.run([sys.executable, "-c", WRITER_KILLED_BEFORE_THE_RENAME, str(store.root)], check=False)
    assert ended.returncode == -9
    assert job_files(store) == []
    assert len(os.listdir(store.root / ".tmp")) == 1
    store.expire(3600, lambda _: True)
    assert os.listdir(store.root / ".tmp") == []


def test_expiry_leaves_what_a_living_process_is_writing_and_takes_what_is_a_day_old(store: LocalStore) -> None:
    ours, foreign, stale = (
        store._temporary_path(),
        store._temporary / "elsewhere.1.ab",
        store._temporary / "elsewhere.2.cd",
    )
    for path in (ours, foreign, stale):
        path.write_bytes(b"half")
    os.utime(stale, (time.time() - 90_000,) * 2)
    store.expire(0, lambda _: False)
    assert ours.exists()
    assert foreign.exists()
    assert not stale.exists()


def test_an_erasure_cut_short_is_finished_by_expiry(store: LocalStore) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    doomed = store._temporary_path()
    doomed = doomed.with_name(doomed.name.replace(f".{os.getpid()}.", f".{dead.pid}."))
    doomed.mkdir()
    (doomed / NAME).write_bytes(b"x")
    store.expire(0, lambda _: False)
    assert not doomed.exists()


def test_expiry_removes_empty_folders_too(store: LocalStore) -> None:
    store.put(id_of_age(90_000), NAME, b"x")
    store.expire(3600, lambda _: False)
    assert os.listdir(store.root) == [".tmp"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_the_oserror_it_is(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    full = store.root / "full"
    full.symlink_to("/dev/full")
    really_open = os.open
    monkeypatch.setattr(
        os, "open", lambda path, flags, *mode: really_open(full, os.O_WRONLY) if mode else really_open(path, flags)
    )
    with pytest.raises(OSError, match="No space") as caught:
        store.put(new_job_id(), NAME, b"pixels")
    assert caught.value.errno == errno.ENOSPC
    assert job_files(store) == []


def test_readers_see_the_old_file_or_the_new_one_and_never_a_mixture(store: LocalStore) -> None:
    job, stop = new_job_id(), threading.Event()
    versions = {bytes([number]) * 200_000 for number in range(4)}
    store.put(job, NAME, min(versions))

    def write() -> None:
        while not stop.is_set():
            for version in versions:
                store.put(job, NAME, version)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {store.get(job, NAME) for _ in range(200)} <= versions
    finally:
        stop.set()
        writer.join()


def test_a_file_put_while_its_job_is_being_erased_is_either_there_or_gone(store: LocalStore) -> None:
    job = new_job_id()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(50):
            erasing = pool.submit(store.erase, job)
            store.put(job, NAME, b"pixels")
            erasing.result()
            assert job_files(store) in ([], [NAME])
    assert os.listdir(store.root / ".tmp") == []


def test_a_folder_that_vanishes_before_the_rename_is_made_again(tmp_path: Path) -> None:
    class ErasedOnce(LocalStore):
        erasures = 0

        def _make_folder(self, folder: Path) -> None:
            super()._make_folder(folder)
            if folder.name == job and self.erasures < 1:
                self.erasures += 1
                self.erase(job)

    job, store = new_job_id(), ErasedOnce(tmp_path)
    store.put(job, NAME, b"pixels")
    assert store.erasures == 1
    assert store.get(job, NAME) == b"pixels"
