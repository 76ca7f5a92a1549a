"""Where pictures and uploads lie: one folder a job.

Owns files, their names and their end of life. Knows nothing of Redis, requests or picture formats; who may see a file
is decided elsewhere. Two kinds behind one Protocol: a folder on this machine, and anything that fsspec can reach when
several machines share the pictures.

    <root>/<id[:6]>/<id[6:8]>/<id>/<name>      an id starts with its time: 4.7 hours, then 66 seconds a folder
    <root>/.tmp/<host>.<pid>.<token>           written, not yet renamed (local folders only)
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from workers.contract import created_at_of, slug

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
_LEVELS = (6, 8)
"""Hex digits of the id that name the first and, from there, the second folder level."""
TIMEOUT_S = 60.0
"""A call of a store elsewhere that takes longer counts as refused. Clients have limits of their own, but with their
repeats these add up to many minutes, for which a line that has died would hold a job and a thread."""
_STRAY_AGE_S = 24 * 3600
"""Age at which a temporary file is rubbish whoever wrote it: on a shared disk its process cannot be asked after."""


class StoreUrlError(ValueError):
    """The store's URL cannot be used; the message says what to give instead."""


class Store(Protocol):
    """Files by job id (`workers.contract.new_job_id`) and name (letters, digits, `.`, `_`, `-`; not first a dot).

    Any other id or name is a ValueError, so that nothing reaches beyond the folder. What the disk or the network
    says (full, denied) comes through as the OSError it is.
    """

    def put(self, job_id: str, name: str, data: bytes) -> None:
        """Writes a file; when it returns the file is durable. Nobody ever sees half of it."""

    def get(self, job_id: str, name: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError."""

    def path(self, job_id: str, name: str) -> Path | None:
        """The file on this machine, to be streamed; None when it lies elsewhere. Raises FileNotFoundError."""

    def remove(self, job_id: str, name: str) -> None:
        """Removes one file, if it is there."""

    def erase(self, job_id: str) -> None:
        """Removes all of the job's files, if there are any."""

    def used_bytes(self) -> int:
        """Bytes of all files. Looks at every one of them: nothing for every request."""

    def free_bytes(self) -> int | None:
        """Bytes that the disk has left, at once; None where nobody can say."""

    def expire(self, older_than_s: float, is_alive: Callable[[str], bool]) -> int:
        """Erases the jobs whose id was made longer ago than that and that `is_alive` disowns; returns how many."""


def open_store(url: str) -> Store:
    """The store at a path, a `file://` URL, or any other fsspec URL (`s3://bucket/pictures`). Raises StoreUrlError."""
    if "://" not in url and "::" not in url:
        return LocalStore(Path(url).expanduser())
    parts = urlsplit(url)
    if parts.scheme != "file":
        return RemoteStore(url)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise StoreUrlError(f"{url} names no folder of this machine: write file:///absolute/path or just the path.")
    return LocalStore(Path(unquote(parts.path)))


class LocalStore:
    """A folder on this machine (or a shared disk), readable by its owner alone."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._temporary = self.root / ".tmp"
        self._temporary.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)

    def put(self, job_id: str, name: str, data: bytes) -> None:
        target = self._file(job_id, name)
        temporary = self._temporary_path()
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def get(self, job_id: str, name: str) -> bytes:
        return self._file(job_id, name).read_bytes()

    def path(self, job_id: str, name: str) -> Path | None:
        path = self._file(job_id, name)
        path.stat()
        return path

    def remove(self, job_id: str, name: str) -> None:
        self._file(job_id, name).unlink(missing_ok=True)

    def erase(self, job_id: str) -> None:
        folder = self.root.joinpath(*_place(job_id))
        doomed = self._temporary_path()
        try:
            folder.rename(doomed)  # all files vanish at once; what a crash leaves is cleaned by expire
        except FileNotFoundError:
            return
        _sync_folder(folder.parent)
        shutil.rmtree(doomed)

    def used_bytes(self) -> int:
        total, folders = 0, [self.root]
        while folders:
            with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # erased meanwhile
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(Path(entry.path))
                        else:
                            total += entry.stat(follow_symlinks=False).st_size
        return total

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.root).free

    def expire(self, older_than_s: float, is_alive: Callable[[str], bool]) -> int:
        self._clean_strays()
        erased = 0
        for job_id in _old_ids(self._names, time.time() - older_than_s):
            if is_alive(job_id):
                continue
            self.erase(job_id)
            erased += 1
        self._remove_empty_folders(time.time() - older_than_s)
        return erased

    def _remove_empty_folders(self, before: float) -> None:
        """Those of a time in which no job is made any more; jobs that were erased leave them, too."""
        for names in _old_folders(self._names, before):
            with contextlib.suppress(OSError):  # not empty yet
                self.root.joinpath(*names).rmdir()
                self.root.joinpath(names[0]).rmdir()

    def _file(self, job_id: str, name: str) -> Path:
        return self.root.joinpath(*_place(job_id), _checked(name))

    def _names(self, *folders: str) -> list[str]:
        try:
            return os.listdir(self.root.joinpath(*folders))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _publish(self, temporary: Path, target: Path) -> None:
        for last_try in (False, False, True):
            try:
                self._make_folder(target.parent)
                temporary.rename(target)
                break
            except FileNotFoundError:  # the folder was erased, or was empty and expired, between the two calls
                if last_try:
                    raise
        _sync_folder(target.parent)

    def _make_folder(self, folder: Path) -> None:
        """Makes the folder and its parents durable: a rename into a folder that is lost is lost with it."""
        if folder.is_dir():
            return
        if folder != self.root:
            self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)
        _sync_folder(folder.parent)

    def _temporary_path(self) -> Path:
        return self._temporary / f"{_host()}.{os.getpid()}.{secrets.token_hex(8)}"

    def _clean_strays(self) -> None:
        for stray in self._temporary.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process cleans too
                if _is_written_by_a_living_process(stray) and time.time() - stray.stat().st_mtime < _STRAY_AGE_S:
                    continue
                if stray.is_dir():
                    shutil.rmtree(stray)
                else:
                    stray.unlink()


class RemoteStore:
    """Objects behind an fsspec URL. Atomic and durable as far as the service's own "put" is; object stores are."""

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StoreUrlError(
                f"No store can be opened at {url}: {error}. Give a path, or install what the URL's scheme needs."
            ) from error

    def put(self, job_id: str, name: str, data: bytes) -> None:
        self._call("pipe_file", self._object(job_id, name), data)

    def get(self, job_id: str, name: str) -> bytes:
        data: bytes = self._call("cat_file", self._object(job_id, name))
        return data

    def path(self, job_id: str, name: str) -> Path | None:
        self._object(job_id, name)
        return None

    def remove(self, job_id: str, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), _refusals_as_os_errors():
            self._files.rm_file(self._object(job_id, name))

    def erase(self, job_id: str) -> None:
        folder = "/".join((self._root, *_place(job_id)))
        self._files.invalidate_cache()  # other processes write here too
        with contextlib.suppress(FileNotFoundError):
            self._call("rm", folder, recursive=True)

    def used_bytes(self) -> int:
        with _refusals_as_os_errors():
            self._files.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._files.find(self._root, detail=True)
        return sum(info.get("size") or 0 for info in found.values())

    def free_bytes(self) -> int | None:
        return None

    def expire(self, older_than_s: float, is_alive: Callable[[str], bool]) -> int:
        self._files.invalidate_cache()
        erased = 0
        for job_id in _old_ids(self._names, time.time() - older_than_s):
            if not is_alive(job_id):
                self.erase(job_id)
                erased += 1
        return erased

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """One call of the client. It is given up after TIMEOUT_S where that can be done, as with all async ones."""
        with _refusals_as_os_errors():
            if isinstance(self._files, AsyncFileSystem):
                call = getattr(self._files, f"_{name}")
                return sync(self._files.loop, call, *args, timeout=TIMEOUT_S, **kwargs)
            return getattr(self._files, name)(*args, **kwargs)

    def _object(self, job_id: str, name: str) -> str:
        return "/".join((self._root, *_place(job_id), _checked(name)))

    def _names(self, *folders: str) -> list[str]:
        try:
            entries: list[Any] = self._call("ls", "/".join((self._root, *folders)), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries]


@contextlib.contextmanager
def _refusals_as_os_errors() -> Iterator[None]:
    """What the store's client raises, as the OSError that callers of any store expect.

    Clients of object stores have exceptions of their own, without a common base: a lost network must not look like a
    fault of the job.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 (see above; the body is one call of the client)
        raise OSError(f"{type(error).__name__}: {error}") from error


def _place(job_id: str) -> tuple[str, str, str]:
    if created_at_of(job_id) is None or not job_id.isalnum():
        raise ValueError(f"{job_id!r} is no job id: 44 hexadecimal digits")
    first, second = _LEVELS
    return job_id[:first], job_id[first:second], job_id


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no file name: letters, digits, '.', '_', '-', at most 128, no dot first")
    return name


def _old_ids(names: Callable[..., list[str]], before: float) -> Iterator[str]:
    """Job ids made before that moment (unix seconds). Folders are sorted by time: young ones are not opened."""
    for upper, lower in _old_folders(names, before):
        for job_id in sorted(names(upper, lower)):
            made = created_at_of(job_id)
            if made is not None and made < before:
                yield job_id


def _old_folders(names: Callable[..., list[str]], before: float) -> Iterator[tuple[str, str]]:
    """Both levels of every folder that may have jobs made before that moment."""
    newest = f"{max(0, int(before * 1000)):012x}"
    first, second = _LEVELS
    for upper in sorted(name for name in names() if len(name) == first and name <= newest[:first]):
        for lower in sorted(name for name in names(upper) if upper + name <= newest[:second]):
            yield upper, lower


def _host() -> str:
    return slug(socket.gethostname()).replace(".", "_")


def _is_written_by_a_living_process(temporary: Path) -> bool:
    """False only when its process is known to be dead; a process of another machine counts as living."""
    host, _, rest = temporary.name.partition(".")
    pid = rest.partition(".")[0]
    if host != _host() or not pid.isdecimal():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # erased meanwhile: nothing to keep
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
