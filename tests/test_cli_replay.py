"""`denoised replay`: what is sent, what is printed, and with which status it ends."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.cli.options import parser
from app.cli.replay import replay_body, verdict_lines
from app.client import Reason, Verdict
from app.listener import bind, url_of
from models.request import PictureRequest
from tests.board_values import make_submission
from tests.fakes import draw_fake
from tests.fleet import Fleet, provenance_of_fake
from tests.http_kit import png
from tests.process_kit import PATIENCE_S, ROOT
from workers.pictures import encode_picture, recipe_of

SAME: dict[str, Any] = {
    "agrees": True,
    "contract": "strict",
    "exact": True,
    "max_difference": 0,
    "differing_pixels": 0,
    "reasons": (),
}


def options(*words: str) -> argparse.Namespace:
    return parser().parse_args(["replay", *words])


def test_a_picture_is_sent_with_what_it_was_made_from(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.png").write_bytes(png(8, 8, (ord(name), 0, 0)))
    (tmp_path / "r.json").write_text('{"seed": 1}')
    files = {name: str(tmp_path / f"{name}.png") for name in ("a", "b", "c", "d")}
    words = ["--image", files["b"], "--mask", files["c"], "--control", files["d"], "--control", files["a"]]
    assert replay_body(options(files["a"], *words, "--recipe", str(tmp_path / "r.json"))) == {
        "image": Path(files["a"]).read_bytes(),
        "recipe": '{"seed": 1}',
        "init_image": Path(files["b"]),
        "mask_image": Path(files["c"]),
        "control_images": [Path(files["d"]), Path(files["a"])],
    }


def test_a_recipe_can_be_sent_alone(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('\n {"seed": 1}')
    assert replay_body(options(str(tmp_path / "recipe.json"))) == {"recipe": '\n {"seed": 1}'}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "a.png: the same pixels, to the last bit, as strict promises"),
        ({"contract": "standard"}, "a.png: the same pixels, to the last bit, more than standard promises"),
        ({"contract": None}, "a.png: the same pixels, to the last bit, though nothing promised it"),
        (
            {"exact": False, "contract": "standard", "max_difference": 1, "differing_pixels": 7},
            "a.png: the same picture, as standard promises (7 pixels differ, by up to 1 of 255)",
        ),
        (
            {"agrees": False, "exact": False, "max_difference": 9, "differing_pixels": 1},
            "a.png: other pixels (1 pixel differs, by up to 9 of 255)",
        ),
        (
            {"agrees": None, "exact": False, "max_difference": None, "differing_pixels": None},
            "a.png: it cannot be told whether the pixels agree",
        ),
    ],
)
def test_a_verdict_reads_as_a_sentence(changes: dict[str, Any], words: str) -> None:
    reason = Reason("model_changed", "The weights are others.")
    verdict = Verdict(**(SAME | changes | {"reasons": (reason,)}))
    assert verdict_lines("a.png", verdict) == [words, "  model_changed: The weights are others."]


@pytest.fixture
def server(redis_url: str, fleet: Fleet, tmp_path: Path) -> Iterator[str]:
    """URL of an API process beside a worker process around the fake engine."""
    fleet.start()
    environment = {"REDIS_URL": redis_url, "DENOISED_DATA_DIR": str(tmp_path)}
    with bind("127.0.0.1", 0) as listener:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "api", "--listen-fd", str(listener.fileno())],
            cwd=ROOT,
            pass_fds=(listener.fileno(),),
            env={**os.environ, **environment},
        )
        url = url_of(listener)
    yield url
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


def picture_of(request: PictureRequest) -> bytes:
    recipe = recipe_of(request, 0, provenance_of_fake(request, 0))
    return encode_picture(draw_fake(request, 0), "png", recipe).data


def test_the_status_tells_whether_the_pixels_agree(
    server: str, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = make_submission(seed=3).request
    picture, other, again = (tmp_path / name for name in ("a.png", "b.png", "again.png"))
    picture.write_bytes(picture_of(request))
    recipe = recipe_of(request, 0, provenance_of_fake(request, 0))
    other.write_bytes(encode_picture(draw_fake(request, 1), "png", recipe).data)
    assert main(["replay", str(picture), "--server", server, "-o", str(again)]) == 0
    assert capsys.readouterr().out == "a.png: the same pixels, to the last bit, more than standard promises\n"
    assert again.read_bytes() == picture.read_bytes()
    assert main(["replay", str(other), "--server", server]) == 1
    assert "picture_changed" in capsys.readouterr().out
    assert main(["replay", str(picture), "--server", server, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact"]
    other.write_bytes(png())
    assert main(["replay", str(other), "--server", server]) == 1
    assert "(recipe_missing)" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "a.png")]) == 2
    assert "a.png cannot be used" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_told_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    words = ["replay", str(tmp_path / "a.png"), "-o", str(tmp_path / "no such" / "b.png")]
    assert main([*words, "--server", "http://127.0.0.1:9"]) == 2
    assert "There is no directory" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is waited for"))
    (tmp_path / "a.png").write_bytes(png())
    with bind("127.0.0.1", 0) as listener:
        url = url_of(listener)
    assert main(["replay", str(tmp_path / "a.png"), "--server", url]) == 3
    assert "denoised serve" in capsys.readouterr().err
