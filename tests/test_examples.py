"""Every example of the pages that tell how to use a running server is run, in order, against one.

A page's `sh` and `python` blocks run in a folder of their own; its `python` blocks share one namespace. A block whose
line before says `<!-- not run: why -->` is left out. A block named `output` is what the block before it prints, with
`...` for what differs. Blocks that fail fail the test; so do answers of the server that refuse.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx2
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    *("README.md", "docs/api.md", "docs/cli.md"),
    *(f"docs/{name}.md" for name in ("openai", "a1111", "replicate", "huggingface", "client", "webhooks", "replay")),
)
"""The pages of the ways in."""
ADDRESS = "http://127.0.0.1:8000"
JOB = "01a20662c335f488afe73aced0333f7c710e455ea9df"
"""In the reference it stands for the job of the example before."""
_BLOCK = re.compile(r"^(?P<before>[^\n]*)\n```(?P<kind>[a-z]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_TIMEOUT_S = 120

DRIVER = """
import contextlib, io, json, sys, traceback
space = {"__name__": "__main__"}
for line in sys.stdin:
    said, error = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(said):
            exec(compile(json.loads(line), "<example>", "exec"), space)
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps([said.getvalue(), error]), flush=True)
"""


@dataclass(frozen=True)
class Block:
    """An example: its kind (sh or python), its text, and what it prints, where the page says so."""

    kind: str
    text: str
    output: str | None


def blocks_of(page: str) -> Iterator[Block]:
    """The examples of a page that are to be run."""
    found = list(_BLOCK.finditer((ROOT / page).read_text("utf-8")))
    for block, following in zip(found, [*found[1:], None], strict=True):
        if block["kind"] in ("sh", "python") and not block["before"].startswith("<!-- not run: "):
            output = following["text"] if following and following["kind"] == "output" else None
            yield Block(block["kind"], block["text"], output)


class Reader:
    """Runs a page's blocks in one folder, as a reader would who tries them out."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder = folder
        self.server = server
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
        (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
        ours = ("DENOISED_", "REDIS_", "HF_HUB_OFFLINE")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self._environment = {
            **clean,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CURL_HOME": str(folder),
            "DENOISED_SERVER": server,
            "DENOISED_DATA_DIR": str(folder / "data"),
        }
        self._python: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._python is not None:
            self._python.communicate(timeout=_TIMEOUT_S)

    def run(self, block: Block) -> str:
        """What the block prints. Fails the test when the block fails."""
        text = block.text.replace(ADDRESS, self.server)
        if JOB in text:
            text = text.replace(JOB, self._newest_job())
        said, error = (self._run_python if block.kind == "python" else self._run_shell)(text)
        assert error is None, f"{error}\n{said}\nthe example:\n{text}"
        return said

    def _newest_job(self) -> str:
        jobs = httpx2.get(f"{self.server}/jobs?limit=1", trust_env=False).json()["jobs"]
        return str(jobs[0]["id"])

    def _run_shell(self, text: str) -> tuple[str, str | None]:
        done = subprocess.run(
            ["sh", "-eu", "-c", text],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        return done.stdout, None if done.returncode == 0 else f"exit status {done.returncode}: {done.stderr}"

    def _run_python(self, text: str) -> tuple[str, str | None]:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", DRIVER],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps(text) + "\n")
        self._python.stdin.flush()
        said, error = json.loads(self._python.stdout.readline())
        return said, error


def prepare(folder: Path) -> None:
    """The reader's own pictures, by the names that the reference gives them."""
    apple = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(apple).ellipse((12, 12, 52, 52), fill="red")
    for name in ("apple.png", "table.png", "small.png"):
        apple.save(folder / name)
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((20, 20, 44, 44), fill=255)
    mask.save(folder / "mask.png")


PREPARED: dict[str, Callable[[Path], None]] = {"docs/api.md": prepare}
"""Pages that begin with pictures of the reader's."""


@pytest.mark.parametrize("page", PAGES)
def test_every_example_works(page: str, live_server: str, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    PREPARED.get(page, lambda _folder: None)(tmp_path)
    checker = doctest.OutputChecker()
    blocks = list(blocks_of(page))
    assert blocks, f"{page} has no example"
    with Reader(tmp_path, live_server) as reader:
        for block in blocks:
            said = reader.run(block)
            if block.output is not None:
                assert checker.check_output(block.output, said, doctest.ELLIPSIS), f"{block.text}\nprinted:\n{said}"


def test_a_failing_example_fails(live_server: str, tmp_path: Path) -> None:
    broken = (
        Block("python", "1 / 0\n", None),
        Block("sh", "false; true\n", None),
        Block("sh", f"curl {ADDRESS}/jobs/nothing\n", None),
    )
    with Reader(tmp_path, live_server) as reader:
        for block in broken:
            with pytest.raises(AssertionError, match="the example"):
                reader.run(block)
        assert reader.run(Block("python", "print(6 * 7)\n", None)) == "42\n"
