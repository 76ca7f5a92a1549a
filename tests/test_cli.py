"""The command line: options, keys, and drawing through a real API process."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image
from rq.suspension import suspend

from app.cli import main
from app.cli.generate import output_format, output_paths, request_body
from app.cli.options import parser
from app.cli.progress import Progress, sentence
from app.client import Job
from app.client import Progress as StepProgress
from app.listener import CannotListen, bind, url_of
from app.security import load_keys
from app.settings import ApiSettings
from tests.board_values import make_submission
from tests.http_kit import ENTRY, FakeWorker, png
from tests.process_kit import PATIENCE_S, ROOT, Console
from workers.contract import JobView, Priority, key
from workers.store import LocalStore

# --- options ---------------------------------------------------------------------------------------------------------


def options(*words: str) -> argparse.Namespace:
    return parser().parse_args(["generate", *words])


def test_only_what_is_given_is_sent() -> None:
    assert request_body(options("a cat")) == {"prompt": "a cat", "output_format": "png"}


def test_every_option_of_generate_reaches_its_field(tmp_path: Path) -> None:
    upload = tmp_path / "in.png"
    upload.write_bytes(png(8, 8))
    words = "--steps 9 --size 64x128 --seed 5 --guidance 2.5 --negative blur --sampler euler --noise-schedule karras"
    words += f" --num-images 2 --image {upload} --strength 0.4 --format webp --model first --priority high"
    words += " --plain --clip-skip 1 --guidance-rescale 0.7 --lora ink --lora gold:0.5 --deadline 60"
    words += " --webhook https://hooks.example.org/pictures"
    body = request_body(options("a cat", *words.split()))
    assert body.pop("image")
    assert body == {
        "prompt": "a cat",
        "task": "image-to-image",
        "num_inference_steps": 9,
        "width": 64,
        "height": 128,
        "seed": 5,
        "guidance_scale": 2.5,
        "negative_prompt": "blur",
        "sampler": "euler",
        "noise_schedule": "karras",
        "num_images": 2,
        "strength": 0.4,
        "output_format": "webp",
        "model": "first",
        "priority": "high",
        "prompt_syntax": "plain",
        "clip_skip": 1,
        "guidance_rescale": 0.7,
        "loras": [{"name": "ink"}, {"name": "gold", "weight": 0.5}],
        "deadline_s": 60.0,
        "webhook": {"url": "https://hooks.example.org/pictures"},
    }


def test_a_mask_or_a_border_makes_it_inpainting(tmp_path: Path) -> None:
    upload = tmp_path / "in.png"
    upload.write_bytes(png(8, 8))
    words = f"--image {upload} --mask {upload} --mask-blur 0 --crop 32".split()
    body = request_body(options("a cat", *words))
    assert body.pop("image") == body.pop("mask_image")
    own = {"prompt": "a cat", "output_format": "png", "task": "inpainting"}
    assert body == own | {"mask_blur": 0, "padding_mask_crop": 32}
    body = request_body(options("a cat", "--image", str(upload), "--outpaint", "1,2,3,40"))
    assert body.pop("image")
    sides = {"outpaint_left": 1, "outpaint_top": 2, "outpaint_right": 3, "outpaint_bottom": 40}
    assert body == own | sides


def test_upscale_enlarges_the_upload_or_what_is_drawn(tmp_path: Path) -> None:
    upload = tmp_path / "in.png"
    upload.write_bytes(png(8, 8))
    from_image = "--image", str(upload), "--upscale"
    assert request_body(options("a cat", "--upscale"))["upscale"] is True
    assert request_body(options("", *from_image))["task"] == "upscale"
    assert "upscale" not in request_body(options("", *from_image))
    for more, task in (("--strength=0.5", "image-to-image"), ("--outpaint=8,0,0,0", "inpainting")):
        body = request_body(options("a cat", *from_image, more))
        assert (body["task"], body["upscale"]) == (task, True)


def test_controls_bring_their_pictures(tmp_path: Path) -> None:
    upload = tmp_path / "a:b=c.png"
    upload.write_bytes(png(8, 8))
    body = request_body(options("a cat", "--control", f"edges={upload}", "--control", f"pose={upload}:0.5"))
    first, second = body["controls"]
    assert (first["name"], second["name"], second["weight"]) == ("edges", "pose", 0.5)
    assert first["image"] == second["image"] == upload.read_bytes()
    with pytest.raises(SystemExit):
        options("a cat", "--control", "edges")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["-o", "a.JPG"], "jpeg"),
        (["-o", "a.webp"], "webp"),
        (["-o", "a"], "png"),
        ([], "png"),
        (["-o", "a.png", "--format", "webp"], "webp"),
    ],
)
def test_the_format_is_what_was_said_or_what_the_name_says(words: list[str], wanted: str) -> None:
    assert output_format(options("a cat", *words)) == wanted


def test_a_directory_gets_files_named_after_the_prompt(tmp_path: Path) -> None:
    folder = tmp_path / "v1.2"
    folder.mkdir()
    assert output_paths(options("A cat!", "-o", str(folder)), 1) == [folder / "a-cat.png"]
    assert output_paths(options("", "-o", str(folder), "--format", "webp"), 1) == [folder / "picture.webp"]


def test_several_pictures_are_numbered() -> None:
    assert output_paths(options("a cat", "-o", "d/cat.png"), 2) == [Path("d/cat-0.png"), Path("d/cat-1.png")]
    assert output_paths(options("a cat", "-o", "d/cat.png"), 1) == [Path("d/cat.png")]
    assert output_paths(options("A red  apple!", "--format", "jpeg"), 1) == [Path("A-red-apple.jpg".lower())]


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "x", "--size", "64"],
        ["generate", "x", "--size", "0x64"],
        ["generate", "x", "--steps", "0"],
        ["generate", "x", "--format", "gif"],
        ["generate", "x", "-n", "none"],
        ["generate", "x", "--guidance", "nan"],
        ["generate", "x", "--deadline", "nan"],
        ["generate", "x", "--image", "x.png", "--strength", "inf"],
        ["generate", "x", "--image", "x.png", "--outpaint", "1,2,3"],
        ["generate", "x", "--image", "x.png", "--outpaint", "1,2,3,-4"],
        ["generate", "x", "--image", "x.png", "--mask-blur", "65"],
        ["generate", "an apple that is no UTF-8: \udce4"],
        ["generate", "x", "--negative", "\udce4"],
        ["models", "--key", "schl\u00fcssel"],
        ["serve", "--port", "70000"],
        ["serve", "--model", "nameless"],
        ["serve", "--workers", "0"],
        ["keys"],
        [],
    ],
)
def test_an_option_that_cannot_be_used_ends_with_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_format_that_no_picture_has_is_refused_before_anything_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a cat", "-o", "cat.gif", "--server", "http://127.0.0.1:9"]) == 2
    assert ".gif" in capsys.readouterr().err


# --- listening -------------------------------------------------------------------------------------------------------


def test_a_taken_port_is_told_with_a_way_out() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"Port {port} .*in use.*--port"):
            bind("127.0.0.1", port)


def test_the_url_is_one_that_this_machine_can_call() -> None:
    with bind("127.0.0.1", 0) as here, bind("0.0.0.0", 0) as everywhere:
        assert url_of(here) == f"http://127.0.0.1:{here.getsockname()[1]}"
        assert url_of(everywhere) == f"http://127.0.0.1:{everywhere.getsockname()[1]}"


# --- keys ------------------------------------------------------------------------------------------------------------


def new_key(data_dir: Path, tenant: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["keys", "new", tenant, "--data-dir", str(data_dir)]) == 0
    return capsys.readouterr().out.strip()


def test_a_new_key_is_shown_once_and_kept_as_a_hash_that_only_its_owner_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = tmp_path / "data"
    key = new_key(data_dir, "alice", capsys)
    text = (data_dir / "keys").read_text()
    assert len(key) >= 40
    assert key not in text
    assert text.split()[:2] == ["alice", hashlib.sha256(key.encode()).hexdigest()]
    assert (data_dir / "keys").stat().st_mode & 0o777 == 0o600
    assert load_keys(ApiSettings(data_dir=data_dir)).tenant_of(f"Bearer {key}") == "alice"


def test_keys_are_listed_by_id_and_revoked_one_by_one_or_all_of_a_tenant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data-dir", str(tmp_path)]
    first, second, other = (new_key(tmp_path, tenant, capsys) for tenant in ("alice", "alice", "bob"))
    assert main(["keys", "list", *where]) == 0
    ids = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert [tenant for _, tenant in ids] == ["alice", "alice", "bob"]

    assert main(["keys", "revoke", ids[0][0], *where]) == 0
    ring = load_keys(ApiSettings(data_dir=tmp_path))
    assert len(ring.tenants) == 2
    assert ring.tenant_of(f"Bearer {second}") == "alice"

    assert main(["keys", "revoke", "alice", *where]) == 0
    ring = load_keys(ApiSettings(data_dir=tmp_path))
    assert [tenant for _, tenant in ring.tenants] == ["bob"]
    assert ring.tenant_of(f"Bearer {other}") == "bob"
    assert first not in (tmp_path / "keys").read_text()
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600


def test_revoking_what_is_not_there_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new_key(tmp_path, "alice", capsys)
    before = (tmp_path / "keys").read_bytes()
    assert main(["keys", "revoke", "bob", "--data-dir", str(tmp_path)]) == 1
    assert (tmp_path / "keys").read_bytes() == before


def test_settings_that_cannot_be_used_are_told_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENOISED_PORT", "abc")
    assert main(["keys", "list", "--data-dir", str(tmp_path)]) == 2
    assert "DENOISED_PORT" in capsys.readouterr().err


@pytest.mark.parametrize("tenant", ["", "two words", "a:b", "x" * 65, "#"])
def test_a_tenant_that_the_server_would_refuse_gets_no_key(
    tenant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "new", tenant, "--data-dir", str(tmp_path)]) == 2
    assert not (tmp_path / "keys").exists()


def test_a_keys_file_that_the_server_would_refuse_is_not_made_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text("alice not-a-hash\n")
    assert main(["keys", "new", "bob", "--data-dir", str(tmp_path)]) == 2
    assert (tmp_path / "keys").read_text() == "alice not-a-hash\n"


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "app.cli", "keys", "new"]
    made = [
        subprocess.Popen([*words, f"tenant-{n}", "--data-dir", str(tmp_path)], cwd=ROOT, stdout=-3, stderr=-3)
        for n in range(4)
    ]
    assert [process.wait(PATIENCE_S) for process in made] == [0] * 4
    assert len(load_keys(ApiSettings(data_dir=tmp_path)).tenants) == 4


# --- progress --------------------------------------------------------------------------------------------------------


def job(status: str, step: int | None = None, eta_s: float | None = None, queue_position: int | None = None) -> Job:
    progress = StepProgress(step, 20) if step is not None else None
    return Job("x", "text-to-image", status, datetime.now(UTC), queue_position, progress, eta_s)


def test_a_line_tells_place_step_and_time_left() -> None:
    assert (
        sentence(job("queued", eta_s=42.0, queue_position=2), bar_width=0) == "queued    2 before this one, 42 s left"
    )
    assert sentence(job("queued", eta_s=42.0, queue_position=0), bar_width=0) == "queued    next, 42 s left"
    assert sentence(job("running", 5, 1.25), bar_width=8) == "running   [##......] step 5 of 20, 1.2 s left"
    assert sentence(job("succeeded", 5, 1.25), bar_width=8) == "succeeded"


def test_away_from_a_terminal_only_milestones_get_a_line() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    for step in range(1, 21):
        progress.show(job("running", step, 1.25))
    assert len(stream.getvalue().splitlines()) == 5
    assert "\x1b" not in stream.getvalue()


def test_on_a_terminal_one_line_is_written_over_and_taken_away() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(stream)
    progress.show(job("running", 5, 1.25))
    progress.show(job("running", 5, 1.25))
    progress.end()
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[2K")


# --- drawing through a real API process ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def api(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, LocalStore]]:
    """URL and store of an API process with a key; the worker is played by FakeWorker."""
    folder = tmp_path_factory.mktemp("api")
    settings = {
        "REDIS_URL": redis_url,
        "DENOISED_DATA_DIR": str(folder),
        "DENOISED_API_KEYS": f"alice:{KEY},bob:{OTHER_KEY}",
        "DENOISED_OPERATORS": "alice",
    }
    with bind("127.0.0.1", 0) as listener:
        url = url_of(listener)
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "api", "--listen-fd", str(listener.fileno())],
            cwd=ROOT,
            pass_fds=(listener.fileno(),),
            env={**os.environ, **settings},
        )
    yield url, LocalStore(folder / "store")
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


KEY = "alice-key-0123456789"
OTHER_KEY = "bob-key-0123456789"


@pytest.fixture
def worker(api: tuple[str, LocalStore], redis_client: redis.Redis) -> FakeWorker:
    worker = FakeWorker(redis_client, api[1])
    worker.publish()
    worker.beat()
    return worker


def generate(api: tuple[str, LocalStore], *words: str, key: str = KEY) -> Console:
    command = [sys.executable, "-m", "app.cli", *words, "--server", api[0]]
    return Console(command, DENOISED_API_KEY=key)


def wait_for_job(worker: FakeWorker) -> JobView:
    end = time.monotonic() + PATIENCE_S
    while not (jobs := worker.board.list_jobs("alice", limit=1, cursor=None, status=None)[0]):
        assert time.monotonic() < end, "no job was submitted"
    return jobs[0]


def test_generate_draws_saves_and_shows_the_way(
    api: tuple[str, LocalStore], worker: FakeWorker, tmp_path: Path
) -> None:
    output = tmp_path / "apple.png"
    with generate(api, "generate", "a red apple", "-o", str(output), "-n", "2", "--seed", "7") as command:
        job = wait_for_job(worker)
        command.wait_for("queued")
        worker.claim(job.record.id)
        worker.progress(job.record.id, 10, 20)
        command.wait_for("running +step 10 of 20")
        files = worker.draw(job.record.id)
        assert command.wait_for_end() == 0
        command.wait_for("succeeded")
    assert [(tmp_path / f"apple-{n}.png").read_bytes() for n in (0, 1)] == files
    assert not output.exists()
    assert job.record.submission.request.prompt == "a red apple"
    assert job.record.submission.request.seed == 7


def test_generate_starts_from_a_picture(api: tuple[str, LocalStore], worker: FakeWorker, tmp_path: Path) -> None:
    upload, output = tmp_path / "in.png", tmp_path / "out.png"
    upload.write_bytes(png(64, 64))
    words = ["generate", "a pear", "--image", str(upload), "--strength", "0.5", "-o", str(output)]
    with generate(api, *words) as command:
        job = wait_for_job(worker)
        worker.draw(job.record.id)
        assert command.wait_for_end() == 0
    assert job.record.submission.request.task == "image-to-image"
    with Image.open(output) as picture:
        assert picture.size == (job.record.submission.request.width, job.record.submission.request.height)


def test_ctrl_c_cancels_the_job(api: tuple[str, LocalStore], worker: FakeWorker, tmp_path: Path) -> None:
    with generate(api, "generate", "a red apple", "-o", str(tmp_path / "x.png")) as command:
        job = wait_for_job(worker)
        command.wait_for("queued")
        command.process.send_signal(signal.SIGINT)
        assert command.wait_for_end() == 130
        command.wait_for("canceled")
    ended = worker.board.get(job.record.id)
    assert ended is not None
    assert ended.status == "canceled"
    assert not (tmp_path / "x.png").exists()


def test_ctrl_c_cancels_a_job_whose_answer_has_not_come_yet(
    api: tuple[str, LocalStore], worker: FakeWorker, tmp_path: Path
) -> None:
    pause_ms = 20_000  # at most
    worker.client.execute_command("CLIENT", "PAUSE", pause_ms, "WRITE")
    with generate(api, "generate", "a red apple", "-o", str(tmp_path / "x.png")) as command:
        wait_for_held_back_submission(worker.client)
        command.process.send_signal(signal.SIGINT)
        worker.client.execute_command("CLIENT", "UNPAUSE")
        assert command.wait_for_end() == 130
        command.wait_for("canceled")
    jobs, _ = worker.board.list_jobs("alice", limit=10, cursor=None, status=None)
    assert [job.status for job in jobs] == ["canceled"]


def wait_for_held_back_submission(client: redis.Redis) -> None:
    end = time.monotonic() + PATIENCE_S
    writes = {"evalsha", "eval", "exec"}  # room is reserved, or the job is queued; and the API's round of webhooks
    while sum("b" in other["flags"] and other["cmd"] in writes for other in client.client_list()) < 2:
        assert time.monotonic() < end, "nothing was submitted"


def test_a_failed_job_is_told_with_its_code(api: tuple[str, LocalStore], worker: FakeWorker, tmp_path: Path) -> None:
    with generate(api, "generate", "a red apple", "-o", str(tmp_path / "x.png")) as command:
        worker.fail(wait_for_job(worker).record.id)
        assert command.wait_for_end() == 1
        command.wait_for(r"The latents turned NaN\. \(not_finite\)")


def test_a_refused_request_is_told_with_field_and_code(api: tuple[str, LocalStore], worker: FakeWorker) -> None:
    with generate(api, "generate", "a red apple", "--sampler", "magic") as command:
        assert command.wait_for_end() == 1
        command.wait_for(r"\(sampler_unknown\)")
    assert worker.board.list_jobs("alice", limit=1, cursor=None, status=None)[0] == []


def test_a_wrong_key_is_told(api: tuple[str, LocalStore], worker: FakeWorker) -> None:
    with generate(api, "models", key="wrong-key-0123456789") as command:
        assert command.wait_for_end() == 1
        command.wait_for(r"\(key_unknown\)")


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        url = url_of(listener)
    with generate((url, LocalStore(tmp_path)), "generate", "a cat", "-o", str(tmp_path / "x.png")) as command:
        assert command.wait_for_end() == 3
        command.wait_for(r"No answer from .*denoised serve")


def test_models_lists_what_the_server_can_draw_with(
    api: tuple[str, LocalStore], worker: FakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--server", api[0], "--key", KEY]
    assert main(["models", *where]) == 0
    text = capsys.readouterr().out
    assert "first  (text-to-image, image-to-image; cpu, float32; loaded)" in text
    assert "128x128" in text
    assert "lcm" in text
    assert main(["models", "--json", *where]) == 0
    models: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in models] == ["first"]
    worker.client.delete(key("workers"))
    assert main(["models", *where]) == 0
    assert "float32; not loaded)" in capsys.readouterr().out


def test_models_are_loaded_and_unloaded(
    api: tuple[str, LocalStore], worker: FakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--server", api[0], "--key", KEY]

    def obey(action: str, is_loaded: bool) -> None:
        end = time.monotonic() + PATIENCE_S
        while (wish := worker.board.wishes().get("first")) is None or wish.action != action:
            assert time.monotonic() < end, "nothing was asked"
        worker.beat(models={"first": {"loaded": is_loaded, "warmed": True}}, wishes={"first": wish.id})

    for action, is_loaded, told in (("unload", False, "not loaded"), ("load", True, "loaded")):
        other_side = threading.Thread(target=obey, args=(action, is_loaded))
        other_side.start()
        assert main(["models", f"--{action}", "first", *where]) == 0
        other_side.join()
        assert capsys.readouterr().out == f"first  on fake: {told}\n"
    assert main(["models", "--load", "nothing", *where]) == 1
    assert "model_absent" in capsys.readouterr().err


def test_status_shows_queues_workers_and_their_jobs(
    api: tuple[str, LocalStore], worker: FakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--server", api[0], "--key", KEY]
    assert main(["status", *where]) == 0
    assert "No job waits." in capsys.readouterr().out
    priorities: tuple[Priority, ...] = ("normal", "normal", "low")
    submissions = [make_submission(model="first", priority=priority) for priority in priorities]
    ids = [worker.board.submit(submission, ENTRY)[0].record.id for submission in submissions]
    worker.claim(ids[0])
    worker.progress(ids[0], 3, 20)
    load = {"loaded": True, "warmed": True, "slots": 1, "rows_per_step": 2.0, "step_s": 0.25, "cost_per_s": 8.0}
    fault = {"code": "checkpoint_missing", "detail": "unet/config.json is missing."}
    worker.beat(models={"first": load}, faults={"broken": fault}, counters={"jobs_succeeded": 7.0})
    assert main(["status", *where]) == 0
    lines = [re.sub(r"\s+", " ", line) for line in capsys.readouterr().out.splitlines()]
    for line in (
        r"MODEL PRIORITY TENANT WAITING OLDEST DRAWN IN",
        r"first normal ann 1 \S+ s \S+ s",
        r"first low ann 1 \S+ s \S+ s",
        r"fake running \S+ s ago 1 7 0",
        r"first fake loaded 1 2\.0 250 ms 0\.0 s",
        r"fake cannot load broken: unet/config\.json is missing\. \(checkpoint_missing\)",
        rf"{ids[0]} fake ann first 3 of 20 1\.5 s",
    ):
        assert any(re.fullmatch(line, said) for said in lines), (line, lines)
    assert main(["status", "--json", *where]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [worker["name"] for worker in told["workers"]] == ["fake"]
    assert sum(queue["queued"] for queue in told["queues"]) == 2


def test_status_says_that_nobody_works_and_that_nothing_may_start(
    api: tuple[str, LocalStore], worker: FakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.client.delete(key("workers"))
    suspend(worker.client)
    assert main(["status", "--server", api[0], "--key", KEY]) == 0
    said = capsys.readouterr().out
    assert "Nothing starts" in said
    assert "No worker's heart beats." in said


def test_status_is_for_operators(
    api: tuple[str, LocalStore], worker: FakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--server", api[0], "--key", OTHER_KEY]) == 1
    assert "(operator_required)" in capsys.readouterr().err


def test_models_tells_what_a_worker_cannot_load(
    api: tuple[str, LocalStore], worker: FakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.beat(faults={"broken": {"code": "checkpoint_missing", "detail": "unet/config.json is missing."}})
    assert main(["models", "--server", api[0], "--key", KEY]) == 0
    assert "fake cannot load broken: unet/config.json is missing." in capsys.readouterr().err
