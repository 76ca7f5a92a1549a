"""`python -m workers` with the real engine and tiny networks: what it draws, also after one of two was killed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
import torch
from PIL import Image
from safetensors.torch import save_file

from app.recipes import find_recipe
from models.canvas import make_canvas
from models.checkpoint import load_checkpoint
from models.control_files import ControlFiles
from models.device import choose_placement
from models.engine import Drawn, Engine
from models.lora_files import LoraFiles
from models.prepare import Inputs
from models.request import (
    ControlChoice,
    ImageToImageRequest,
    InpaintingRequest,
    LoraChoice,
    PictureRequest,
    TextToImageRequest,
)
from tests.fleet import Fleet, freeze, thaw
from tests.tiny import SIDE, save_tiny_checkpoint, save_tiny_controlnet, save_tiny_super_resolution, save_tiny_upscaler
from workers.__main__ import main
from workers.connection import connect
from workers.contract import Submission, new_job_id
from workers.embedded import ensure_server
from workers.enlarging import enlarging
from workers.worker import EXIT_USAGE

DIGEST, MASK_DIGEST = "ab" * 32, "cd" * 32
COMMON = {
    "model": "tiny",
    "prompt": "a red apple",
    "width": SIDE,
    "height": SIDE,
    "guidance_scale": 4.0,
    "noise_schedule": "default",
    "num_images": 1,
}


def make_requests() -> list[PictureRequest]:
    """Different in everything that does not split a batch, and one upload."""
    texts = [
        TextToImageRequest(**COMMON, seed=seed, num_inference_steps=steps, sampler=sampler)  # type: ignore[arg-type]
        for seed, steps, sampler in ((1, 60, "ddim"), (2, 50, "euler"), (3, 40, "dpmpp_2m"))
    ]
    image = ImageToImageRequest(
        **COMMON,  # type: ignore[arg-type]
        seed=4,
        num_inference_steps=60,
        sampler="ddim",
        image=f"sha256:{DIGEST}",
        strength=0.7,
    )
    inpainting = InpaintingRequest(
        **COMMON,  # type: ignore[arg-type]
        seed=5,
        num_inference_steps=60,
        sampler="euler_ancestral",
        image=f"sha256:{DIGEST}",
        mask_image=f"sha256:{MASK_DIGEST}",
        strength=1.0,
        mask_blur=3,
        padding_mask_crop=10,
        outpaint_right=6,
        controls=(ControlChoice(name="edges", image=f"sha256:{DIGEST}"),),
    )
    adapted = TextToImageRequest(
        **COMMON,  # type: ignore[arg-type]
        seed=6,
        num_inference_steps=60,
        sampler="ddim",
        loras=(LoraChoice(name="ink", weight=0.7),),
        controls=(ControlChoice(name="edges", image=f"sha256:{DIGEST}", end=0.6),),
    )
    enlarged = [image.model_copy(update={"upscaler": name, "seed": 8}) for name in ("x4", "ldm")]
    return [*texts, adapted, image, *enlarged, inpainting]


def upload() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE + 13, SIDE + 27, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask() -> Image.Image:
    drawn = np.zeros((SIDE + 13, SIDE + 27), np.uint8)
    drawn[20:50, 30:60] = 255
    return Image.fromarray(drawn)


def png_of(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def save_lora(folder: Path) -> None:
    """A LoRA `ink` of one layer, in `folder`."""
    folder.mkdir()
    random, name = torch.Generator().manual_seed(0), "lora_unet_conv_out"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, 32, 3, 3, generator=random) * 0.05,
        f"{name}.lora_up.weight": torch.randn(4, 2, 1, 1, generator=random),
    }
    save_file(tensors, folder / "ink.safetensors")


def draw_alone(request: PictureRequest, folder: Path) -> np.ndarray:
    """The picture of this request from an engine of its own: (H, W, 3) uint8."""
    if request.upscaler:
        first = draw_alone(request.model_copy(update={"upscaler": None}), folder)
        name = request.upscaler
        upscaler = load_checkpoint(name, str(folder.parent / name), choose_placement("cpu", "float32"))
        engine = Engine()
        engine.admit("alone", enlarging(request, [first], upscaler), upscaler, Inputs(Image.fromarray(first)))
        return picture_of(engine)
    checkpoint = load_checkpoint("tiny", str(folder), choose_placement("cpu", "float32"))
    engine, beside = Engine(), folder.parent
    loras = LoraFiles(beside / "loras").of(request, checkpoint)
    nets = ControlFiles(beside / "controlnets").of(request, checkpoint)
    canvas = make_canvas(request, upload(), mask()) if isinstance(request, InpaintingRequest) else None
    steering = canvas.beside(upload()) if canvas else upload()
    controls = tuple((net, steering) for net in nets)
    if canvas:
        inputs = Inputs(canvas.picture, canvas.canvas_mask, loras, controls)
    else:
        image = upload() if isinstance(request, ImageToImageRequest) else None
        inputs = Inputs(image, loras=loras, controlnets=controls)
    engine.admit("alone", request, checkpoint, inputs)
    picture = picture_of(engine)
    return canvas.paste(picture) if canvas else picture


def picture_of(engine: Engine) -> np.ndarray:
    while True:
        for event in engine.step():
            if isinstance(event, Drawn):
                return event.pictures[0]


def test_real_workers_draw_what_the_engine_draws_although_one_is_killed(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny")
    save_lora(tmp_path / "loras")
    save_tiny_controlnet(checkpoint, tmp_path / "controlnets" / "edges")
    x4 = save_tiny_upscaler(tmp_path / "x4", reads_prompts=False)
    ldm = save_tiny_super_resolution(tmp_path / "ldm")
    with Fleet(redis_url, redis_client, tmp_path) as fleet:
        environment = {
            "DENOISED_MODELS": f"tiny={checkpoint},x4={x4},ldm={ldm}",
            "DENOISED_DEVICE": "cpu",
            "DENOISED_DTYPE": "float32",
        }
        environment |= {f"DENOISED_{name.upper()}": str(tmp_path / name) for name in ("loras", "controlnets")}
        workers = [fleet.launch_real(**environment) for _ in range(2)]
        for worker in workers:
            fleet.wait_ready(worker)
        entry = fleet.board.catalogue()["tiny"]
        assert entry.tasks == ("text-to-image", "image-to-image", "inpainting")
        assert (entry.loras, entry.controlnets, entry.upscalers) == (("ink",), ("edges",), ("ldm", "x4"))
        assert {"ddim", "dpmpp_2m"} <= {sampler.name for sampler in entry.samplers}
        ids = []
        for request in make_requests():
            submission = Submission(tenant="ann", request=request)  # type: ignore[arg-type]
            job_id = new_job_id()
            fleet.store.put(job_id, f"{DIGEST}.png", png_of(upload()))
            fleet.store.put(job_id, f"{MASK_DIGEST}.png", png_of(mask()))
            fleet.board.submit(submission, entry, job_id)
            ids.append(job_id)
        fleet.wait_for(lambda: any(fleet.view(job_id).status == "running" for job_id in ids))
        running = next(job_id for job_id in ids if fleet.view(job_id).status == "running")
        holder = fleet.rq_job(running).worker_name
        next(worker for worker in workers if fleet.name_of(worker) == holder).kill()
        fleet.wait_ended(ids)
        assert_each_ended_once_with_its_picture(fleet, ids, checkpoint, entry.digest)
        outcome = fleet.view(ids[-1]).record.outcome
        assert outcome is not None
        inpainted = np.asarray(Image.open(io.BytesIO(fleet.store.get(ids[-1], outcome.pictures[0].file))))
        known, kept = np.asarray(upload()), np.asarray(mask()) == 0
        assert inpainted.shape == (known.shape[0], known.shape[1] + 6, 3)
        assert np.array_equal(inpainted[:, :-6][kept], known[kept]), "outside the mask nothing may change"
        assert not np.array_equal(inpainted[:, :-6][~kept], known[~kept])


def test_real_workers_draw_what_the_engine_draws_although_one_freezes_and_the_server_dies(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny")
    server = ensure_server(tmp_path / "server")
    client = connect(server.url)
    with Fleet(server.url, client, tmp_path) as fleet:
        environment = {"DENOISED_MODELS": f"tiny={checkpoint}", "DENOISED_DEVICE": "cpu", "DENOISED_DTYPE": "float32"}
        workers = [fleet.launch_real(**environment) for _ in range(2)]
        for worker in workers:
            fleet.wait_ready(worker)
        entry = fleet.board.catalogue()["tiny"]
        texts = [
            TextToImageRequest(**COMMON, seed=seed, num_inference_steps=80, sampler="ddim")  # type: ignore[arg-type]
            for seed in range(3)
        ]
        ids = [fleet.board.submit(Submission(tenant="ann", request=text), entry)[0].record.id for text in texts]
        fleet.wait_running(ids)
        names = {job_id: fleet.rq_job(job_id).worker_name for job_id in ids}
        frozen = next(worker for worker in workers if fleet.name_of(worker) in names.values())
        lost = {job_id: fleet.view(job_id).record.execution for job_id in ids if names[job_id] == fleet.name_of(frozen)}
        freeze(frozen)
        # Its lease runs out, and the other one takes its jobs over.
        fleet.wait_for(lambda: all(fleet.view(job_id).record.execution != lost[job_id] for job_id in lost))
        assert server.process is not None
        server.process.kill()
        server.process.wait(10)
        server = ensure_server(tmp_path / "server")
        thaw(frozen)
        fleet.wait_ended(ids)
        assert_each_ended_once_with_its_picture(fleet, ids, checkpoint, entry.digest)
        assert [worker.poll() for worker in workers] == [None, None]
    client.close()
    server.stop()


def test_strict_pictures_that_were_handed_over_twice_have_the_bytes_of_those_that_were_not(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, one_thread: None
) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny")
    save_lora(tmp_path / "loras")
    save_tiny_controlnet(checkpoint, tmp_path / "controlnets" / "edges")
    x4, ldm = save_tiny_upscaler(tmp_path / "x4", reads_prompts=False), save_tiny_super_resolution(tmp_path / "ldm")
    with Fleet(redis_url, redis_client, tmp_path) as fleet:
        environment = {
            "DENOISED_MODELS": f"tiny={checkpoint},x4={x4},ldm={ldm}",
            "DENOISED_DEVICE": "cpu",
            "DENOISED_DTYPE": "float32",
        }
        environment |= {f"DENOISED_{name.upper()}": str(tmp_path / name) for name in ("loras", "controlnets")}
        worker, ids = fleet.launch_real(**environment), []
        fleet.wait_ready(worker)
        entry = fleet.board.catalogue()["tiny"]
        for request in make_requests():
            strict = request.model_copy(update={"reproducibility": "strict"})
            job_id = new_job_id()
            fleet.store.put(job_id, f"{DIGEST}.png", png_of(upload()))
            fleet.store.put(job_id, f"{MASK_DIGEST}.png", png_of(mask()))
            fleet.board.submit(Submission(tenant="ann", request=strict), entry, job_id)  # type: ignore[arg-type]
            ids.append(job_id)
        for step in (10, 30):
            fleet.wait_running([job_id for job_id in ids if fleet.view(job_id).status != "succeeded"], step)
            worker.terminate()
            assert worker.wait(30) == 0
            worker = fleet.launch_real(**environment)
        views = fleet.wait_ended(ids)
        outcomes = [view.record.outcome for view in views]
        assert [outcome.reproducibility for outcome in outcomes if outcome] == ["strict"] * len(ids), fleet.logs()
        assert sum((outcome.resumed_from_step or 0) > 10 for outcome in outcomes if outcome) >= len(ids) - 2
        for view, outcome in zip(views, outcomes, strict=True):
            assert outcome is not None
            data = fleet.store.get(view.record.id, outcome.pictures[0].file)
            alone = draw_alone(view.record.submission.request, checkpoint)
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), alone)
        fleet.wait_for(lambda: not fleet.saved_files())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Of this process too: the number of threads is part of what strict pictures depend on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_each_ended_once_with_its_picture(fleet: Fleet, ids: list[str], checkpoint: Path, digest: str) -> None:
    """The picture that an engine draws alone, within one level, and the recipe of this model."""
    views = [fleet.view(job_id) for job_id in ids]
    assert [view.status for view in views] == ["succeeded"] * len(ids), fleet.logs()
    assert [fleet.count_ends()[job_id] for job_id in ids] == [1] * len(ids)
    fleet.assert_rq_is_at_rest(ids)
    for view in views:
        assert view.record.outcome is not None
        data = fleet.store.get(view.record.id, view.record.outcome.pictures[0].file)
        drawn = np.asarray(Image.open(io.BytesIO(data)), dtype=np.int16)
        alone = draw_alone(view.record.submission.request, checkpoint).astype(np.int16)
        assert np.abs(drawn - alone).max() <= 1
        recipe = find_recipe(data)
        assert recipe is not None
        assert recipe["model_digest"] == digest


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("DENOISED_LEASE_S", "6", "at most a third"),
        ("DENOISED_DTYPE", "foo", "dtype"),
        ("DENOISED_DEVICE", "cuda:99", "cuda:99"),
        ("DENOISED_DEVICE", "toaster", "toaster"),
        ("DENOISED_STORE_URL", "nonsense://bucket", "nonsense://bucket"),
        ("DENOISED_STORE_URL", "/dev/null", "/dev/null"),
        ("REDIS_URL", "localhost:6379", "redis://"),
    ],
)
def test_settings_that_cannot_be_used_are_one_sentence(
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    word: str,
) -> None:
    monkeypatch.setattr("workers.__main__.configure_logs", lambda _: None)  # this process keeps its own
    for setting, given in {"REDIS_URL": redis_url, "DENOISED_DATA_DIR": str(tmp_path), name: value}.items():
        monkeypatch.setenv(setting, given)
    assert main() == EXIT_USAGE
    said = capsys.readouterr().err
    assert word in said
    assert "Traceback" not in said


def test_a_worker_without_any_model_that_could_be_loaded_ends_for_good(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    with Fleet(redis_url, redis_client, tmp_path) as fleet:
        worker = fleet.launch_real(DENOISED_MODELS=f"nothing={tmp_path / 'nowhere'}")
        assert worker.wait(60) == EXIT_USAGE
        lines = [json.loads(line) for line in fleet.logs().splitlines() if line.startswith("{")]
        assert any(line.get("code") == "checkpoint_missing" for line in lines)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
