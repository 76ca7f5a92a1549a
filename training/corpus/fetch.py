"""Downloads packages with the ordinary clients and unpacks the files that are needed.

    npm pack NAME@VERSION        apt-get download NAME=VERSION        pip download --no-deps NAME==VERSION

Nothing is installed and no script of a package is run. A package that is there in the wanted version is not fetched
again, one that was interrupted is fetched anew. Knows nothing of what the files mean.
"""

import fnmatch
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from training.corpus.extract import package_root
from training.corpus.sources import Client, Package

_MARK = ".version"

_INSTALL = {
    "npm": "install Node.js from https://nodejs.org",
    "apt": "run this on Debian 12 (the container debian:bookworm will do, after `apt-get update`)",
    "pip": "install pip for this Python",
}


class FetchFailed(Exception):
    """A package could not be fetched: which one, by which client, and what to do."""


def fetch(folder: Path, packages: Iterable[Package]) -> Iterator[tuple[Package, FetchFailed | None]]:
    """Bring each package into `folder`; yields it with None when it is there, or with what went wrong, and goes on."""
    for package in packages:
        try:
            if not is_fetched(folder, package):
                _fetch_one(folder, package)
            yield package, None
        except FetchFailed as failed:
            yield package, failed


def is_fetched(folder: Path, package: Package) -> bool:
    """Whether the package is there, whole and in the wanted version."""
    mark = package_root(folder, package) / _MARK
    return mark.is_file() and mark.read_text() == package.version


def _fetch_one(folder: Path, package: Package) -> None:
    """Download and unpack beside the place, then move there: what is in place is whole."""
    target = package_root(folder, package)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        archive = download(package, Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        if unpack(package, archive, unpacked) == 0:
            raise FetchFailed(f"{package} holds none of the files {', '.join(package.files)}.")
        (unpacked / _MARK).write_text(package.version)
        if target.exists():
            shutil.rmtree(target)
        unpacked.rename(target)


def download(package: Package, into: Path) -> Path:
    """The package's archive in the empty folder `into`. FetchFailed with the client's own last words."""
    command = _command(package)
    if shutil.which(command[0]) is None:
        raise FetchFailed(f"{package} needs {command[0]}, which is not here: {_INSTALL[package.client]}.")
    try:
        subprocess.run(command, cwd=into, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        reason = _last_words(error.stderr)
        told = " ".join(command)
        raise FetchFailed(
            f"{package}: `{told}` failed: {reason} Check the network and whether the registry has this version"
            f"{'; ' + _INSTALL['apt'] if package.client == 'apt' else ''}."
        ) from error
    archives = [path for path in into.iterdir() if path.suffix in (".tgz", ".deb", ".whl")]
    if len(archives) != 1:
        raise FetchFailed(f"{package}: `{' '.join(command)}` left {len(archives)} archives where one was expected.")
    return archives[0]


def unpack(package: Package, archive: Path, target: Path) -> int:
    """Write the wanted files of an archive below `target`; how many there were."""
    count = 0
    for name, content in _members(package.client, archive):
        is_wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in package.files)
        if not is_wanted or ".." in Path(name).parts:
            continue
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.read())
        count += 1
    return count


def _members(client: Client, archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(path from the package's root, its bytes to be read now) of every plain file of an archive."""
    if client == "pip":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as content:
                        yield info.filename, content
        return
    if client == "npm":
        with tarfile.open(archive, "r|gz") as files:
            yield from _plain_files(files, root="package/")
        return
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as dpkg:
        assert dpkg.stdout is not None, "A pipe was asked for. This is a bug."
        with tarfile.open(fileobj=dpkg.stdout, mode="r|") as files:
            yield from _plain_files(files, root="./")


def _plain_files(files: tarfile.TarFile, root: str) -> Iterator[tuple[str, IO[bytes]]]:
    for member in files:
        content = files.extractfile(member) if member.isfile() else None
        if content is not None:
            yield member.name.removeprefix(root), content


def _command(package: Package) -> list[str]:
    name, version = package.name, package.version
    if package.client == "npm":
        return ["npm", "pack", "--ignore-scripts", "--silent", f"{name}@{version}"]
    if package.client == "apt":
        return ["apt-get", "download", f"{name}={version}"]
    wheel_only = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    return [sys.executable, "-m", "pip", "download", *wheel_only, f"{name}=={version}"]


def _last_words(stderr: str) -> str:
    """The last line of a client's error output that says something, as a sentence."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and "A complete log of this run" not in line]
    last = lines[-1] if lines else "it gave no reason"
    return last if last.endswith(".") else f"{last}."
