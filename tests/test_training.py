"""The trainers of the bundled model: one step, and a stopped run that goes on as if it had not been stopped."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline

from tests.tiny_corpus import write_tiny_corpus
from training.autoencoder import (
    AutoencoderSettings,
    AutoencoderTask,
    autoencoder_run,
    decoded,
    export,
    new_autoencoder,
    standardise,
)
from training.bundle import write_bundle
from training.denoiser import ConditionSettings, DenoiserTask, NetworkSettings, denoiser_run, new_unet
from training.hardware import Hardware
from training.latents import Bank, BankSettings, build_bank, build_bank_side_by_side
from training.loop import LoopSettings, Run
from training.masks import random_mask
from training.optimiser import Muon, orthogonal, parameter_groups
from training.pictures import Corpus
from training.sampling import weights
from training.settings import FOLDER, load
from training.tokenizer import load_tokenizer, train_tokenizer

TINY_AUTOENCODER = """
[autoencoder]
channels = [8, 8, 8, 8]
crop = 32
[loop]
steps = {steps}
batch_size = 4
learning_rate = 1e-3
measure_every_steps = 1000
"""

TINY_DENOISER = """
[bank]
coloured = 6
scenes = 0
masked_shards = 1
[network]
channels = [16, 32]
attention = "ca"
head_channels = 8
text_width = 16
text_layers = 1
text_heads = 2
pieces = 320
context_length = 12
[condition]
inpainting_share = 0.25
sheet_prompts = ["a red disc", "a blue ring"]
[loop]
steps = {steps}
batch_size = 8
learning_rate = 1e-3
measure_every_steps = 1000
"""


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def corpus(corpus_folder):
    return Corpus.open(corpus_folder)


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return new_autoencoder((8, 8, 8, 8)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def bank(corpus, autoencoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    build_bank(corpus, autoencoder, BankSettings(coloured=6, scenes=0, masked_shards=1), folder)
    return Bank.open(folder)


def settings_file(folder: Path, text: str, steps: int) -> Path:
    path = folder / f"settings-{steps}.toml"
    path.write_text(text.format(steps=steps))
    return path


def weights_of(run: Run) -> torch.Tensor:
    parts = [run.task.model, run.averaged]
    return torch.cat([p.detach().flatten() for part in parts for p in part.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_orthogonal_update_has_singular_values_of_about_one_in_every_block(dtype):
    wide = torch.randn(96, 300, generator=torch.Generator().manual_seed(0))
    tall = torch.randn(300, 96, generator=torch.Generator().manual_seed(1))
    large = torch.randn(256, 400, generator=torch.Generator().manual_seed(2))
    blocks = [orthogonal(wide, dtype), orthogonal(tall, dtype), *orthogonal(large, dtype).split(128)]
    for block in blocks:
        values = torch.linalg.svdvals(block)
        assert 0.5 < values.min() <= values.max() < 1.3


def test_muon_takes_matrices_and_leaves_edges_embeddings_and_biases_to_adamw():
    model = torch.nn.ModuleDict({"conv_in": torch.nn.Conv2d(3, 4, 3), "body": torch.nn.Linear(4, 4)})
    model["words"] = torch.nn.Embedding(5, 4)
    matrices, rest = parameter_groups(model)
    assert [tuple(p.shape) for p in matrices] == [(4, 4)]
    assert len(rest) == 4


def test_a_step_of_muon_moves_weak_directions_of_the_gradient_as_far_as_strong_ones():
    model = torch.nn.Linear(8, 8)
    before = model.weight.detach().clone()
    model.weight.grad = torch.diag(torch.logspace(0, -3, 8))
    Muon(parameter_groups(model)).step(rate=0.1)
    moved = torch.linalg.svdvals(before - model.weight.detach()) / (0.1 * 0.2 * 8**0.5)
    assert moved[0] < 1.3
    assert moved[5] > 0.5  # a direction 140 times weaker; plain descent would move it 140 times less


def test_the_rate_warms_up_stays_and_cools_down_to_nothing():
    loop = LoopSettings(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, cooldown_steps=20)
    assert [loop.rate_at(step) for step in (0, 9, 50, 80, 90, 99)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0.05])


def test_an_unknown_setting_is_refused_by_name(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text("[loop]\nstep = 3\n")
    with pytest.raises(ValueError, match=r"wrong.toml \[loop\]: unknown step; known are .*steps"):
        load(path, "loop", LoopSettings)


@pytest.mark.parametrize("name", ["autoencoder", "denoiser"])
def test_the_settings_that_come_along_are_read(name):
    loop = load(FOLDER / f"{name}.toml", "loop", LoopSettings)
    assert loop.steps > loop.cooldown_steps


def test_a_step_of_the_autoencoder_lowers_its_loss(corpus):
    torch.manual_seed(0)
    task = AutoencoderTask(corpus, AutoencoderSettings(channels=(8, 8, 8, 8), crop=32), batch_size=4)
    optimiser = Muon(parameter_groups(task.model))

    def loss():
        torch.manual_seed(1)
        return task.loss(0, np.random.default_rng(1))[0]

    before = loss()
    before.backward()
    optimiser.step(1e-3)
    assert loss() < before


def test_a_frozen_encoder_keeps_its_latents_while_the_decoder_learns(corpus, tmp_path):
    settings = AutoencoderSettings(channels=(8, 8, 8, 8), crop=32, frozen_encoder=True)
    task = AutoencoderTask(corpus, settings, batch_size=4)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    Run(tmp_path, task, LoopSettings(steps=2, batch_size=4, learning_rate=1e-2), Hardware("cpu")).train()
    changed = {name for name, p in task.model.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("decoder") for name in changed)
    assert not any(name.startswith(("encoder", "quant_conv")) for name in changed)


def test_a_run_in_bfloat16_keeps_its_weights_in_float32_and_comes_close_to_one_in_float32(corpus, tmp_path):
    settings = settings_file(tmp_path, TINY_AUTOENCODER, steps=3)
    precisions = [Hardware("cpu", bfloat16=True), Hardware("cpu")]
    runs = [autoencoder_run(corpus, tmp_path / str(p.dtype), settings, None, p) for p in precisions]
    before = weights_of(runs[0])
    for run in runs:
        run.train()
    halved, whole = (weights_of(run) for run in runs)
    assert halved.dtype == torch.float32
    assert 0 < (halved - whole).norm() < 0.5 * (whole - before).norm()


def test_automatic_precision_is_bfloat16_where_the_processor_multiplies_it(monkeypatch):
    found = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert Hardware("cpu", "auto").dtype == torch.float32
    found["avx512_bf16"] = True
    assert Hardware("cpu", "auto").dtype == torch.bfloat16
    assert Hardware("cpu").dtype == torch.float32


def test_an_autoencoder_run_that_was_stopped_equals_one_that_was_not(corpus, tmp_path):
    settings = settings_file(tmp_path, TINY_AUTOENCODER, steps=4)
    whole = autoencoder_run(corpus, tmp_path / "whole", settings)
    whole.train()
    stopped = autoencoder_run(corpus, tmp_path / "stopped", settings)
    stopped.train(until=lambda: stopped.step >= 2)
    resumed = autoencoder_run(corpus, tmp_path / "stopped", settings)
    assert resumed.step == 2
    resumed.train()
    assert torch.equal(weights_of(resumed), weights_of(whole))


def test_a_crash_while_writing_leaves_the_checkpoint_before(corpus, tmp_path, monkeypatch):
    settings = settings_file(tmp_path, TINY_AUTOENCODER, steps=4)
    run = autoencoder_run(corpus, tmp_path / "run", settings)
    run.train(until=lambda: run.step >= 1)

    def half_written(state, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        run.train(until=lambda: run.step >= 2)
    assert autoencoder_run(corpus, tmp_path / "run", settings).step == 1


def test_standardised_latents_have_unit_deviation_and_decode_to_the_same_picture():
    torch.manual_seed(3)
    autoencoder = new_autoencoder((8, 8, 8, 8))
    pictures = torch.rand(6, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = decoded(autoencoder, pictures)
        standardise(autoencoder, pictures)
        latents = autoencoder.encode(pictures).latent_dist.mode().transpose(0, 1).flatten(1)
        assert torch.allclose(latents.mean(1), torch.zeros(4), atol=1e-4)
        assert torch.allclose(latents.std(1), torch.ones(4), atol=1e-4)
        assert torch.allclose(decoded(autoencoder, pictures), before, atol=1e-4)
    assert autoencoder.config.scaling_factor == 1.0


def test_the_bank_holds_every_training_picture_and_goes_on_where_it_stopped(corpus, autoencoder, tmp_path):
    settings = BankSettings(coloured=6, scenes=0)
    build_bank(corpus, autoencoder, settings, tmp_path)
    entries = Bank.open(tmp_path).entries
    rows = {entry["row"] for entry in entries if entry["kind"] == "white"}
    assert rows == set(corpus.rows("train").tolist())
    assert {entry["row"] for entry in entries if entry["kind"] == "val"} == set(corpus.rows("val").tolist())
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    build_bank(corpus, autoencoder, dataclasses.replace(settings, masked_shards=1), tmp_path)
    bank = Bank.open(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(bank.masks) == len(bank.entries)


def test_the_parts_of_a_bank_are_the_whole_one(corpus, autoencoder, tmp_path, monkeypatch):
    monkeypatch.setattr("training.latents.SHARD", 8)
    settings = BankSettings(coloured=6, scenes=3, masked_shards=2)
    build_bank(corpus, autoencoder, settings, tmp_path / "whole")
    for first in (1, 0):
        build_bank(corpus, autoencoder, settings, tmp_path / "parts", part=slice(first, None, 2))
    whole, parts = Bank.open(tmp_path / "whole"), Bank.open(tmp_path / "parts")
    assert whole.entries == parts.entries
    assert len(whole.masks) == 16
    for name in ("latents", "masked_latents", "masks"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name


def test_a_bank_may_be_built_by_processes_side_by_side(corpus_folder, autoencoder, tmp_path):
    settings = BankSettings(coloured=6, scenes=0, masked_shards=1)
    autoencoder.save_pretrained(tmp_path / "vae")
    folders = corpus_folder, tmp_path / "vae"
    build_bank_side_by_side(*folders, settings, tmp_path / "by-two", Hardware("cpu"), processes=2)
    build_bank(Corpus.open(corpus_folder), autoencoder, settings, tmp_path / "by-one")
    by_one, by_two = Bank.open(tmp_path / "by-one"), Bank.open(tmp_path / "by-two")
    assert by_one.entries == by_two.entries
    np.testing.assert_allclose(by_one.latents, by_two.latents, atol=2e-3)


def test_a_picture_under_a_full_mask_leaves_the_same_latents_whatever_it_showed(bank):
    """About one mask in five covers everything; what an inpainting network then sees of the picture is grey."""
    latents = torch.from_numpy(bank.masked_latents).float()
    distance = (latents[:, None] - latents[None]).abs().amax((2, 3, 4))  # [m, m]
    is_grey = (distance < 1e-3).sum(1) > len(latents) / 8
    assert is_grey.any()
    assert not is_grey.all()
    assert bank.masks[is_grey.numpy()].all()
    plain = torch.from_numpy(bank.latents[: len(latents)]).float()
    assert (plain - latents)[is_grey].abs().amax((1, 2, 3)).min() > 1e-2


def test_masks_are_never_empty():
    random = np.random.default_rng(0)
    shares = [random_mask(random, 64).mean() for _ in range(200)]
    assert min(shares) > 0
    assert max(shares) == 1


def test_held_out_pictures_are_never_drawn_and_avatars_seldom(corpus):
    found = weights(corpus.records)
    assert all((weight == 0) == (r["split"] != "train") for weight, r in zip(found, corpus.records, strict=True))
    avatars = [record | {"category": "avatar"} for record in corpus.records]
    assert weights(avatars).sum() < found.sum() / 2


def test_subjects_in_many_styles_are_drawn_more_often(corpus):
    record = next(record for record in corpus.records if record["split"] == "train")
    alone, *several = [record | {"concept": name, "style": style} for name, style in zip("abbbb", "ssuvw", strict=True)]
    found = weights([alone, *several])
    assert found[1:] == pytest.approx(np.full(4, 3.4 * found[0]))


def test_a_denoiser_run_that_was_stopped_equals_one_that_was_not(corpus, bank, autoencoder, tmp_path):
    settings = settings_file(tmp_path, TINY_DENOISER, steps=4)
    whole = denoiser_run(corpus, bank, autoencoder, tmp_path / "whole", settings)
    whole.train()
    stopped = denoiser_run(corpus, bank, autoencoder, tmp_path / "stopped", settings)
    stopped.train(until=lambda: stopped.step >= 2)
    resumed = denoiser_run(corpus, bank, autoencoder, tmp_path / "stopped", settings)
    resumed.train()
    assert torch.equal(weights_of(resumed), weights_of(whole))


def test_text_to_image_never_looks_at_the_channels_of_inpainting(corpus, bank, tmp_path):
    """Without inpainting rows nothing moves the last five input channels of `conv_in` away from zero."""
    tokenizer = train_tokenizer(["a red disc"], 300, 12, tmp_path / "tokenizer")
    network = NetworkSettings((16, 32), "ca", 8, 16, 1, 2, pieces=300, context_length=12)
    for share in (0.0, 0.5):
        torch.manual_seed(0)
        task = DenoiserTask(corpus, bank, tokenizer, None, (network, ConditionSettings(inpainting_share=share), 8))
        Run(
            tmp_path / str(share), task, LoopSettings(steps=2, batch_size=8, learning_rate=1e-2), Hardware("cpu")
        ).train()
        moved = task.model.unet.conv_in.weight[:, 4:].abs().max().item() > 0
        assert moved == (share > 0)


def test_a_dropped_caption_is_the_empty_prompt(corpus, bank, tmp_path):
    tokenizer = train_tokenizer(["a red disc"], 300, 12, tmp_path / "tokenizer")
    network = NetworkSettings((16, 32), "ca", 8, 16, 1, 2, pieces=300, context_length=12)
    task = DenoiserTask(corpus, bank, tokenizer, None, (network, ConditionSettings(dropped_captions=1.0), 8))
    seen = []
    task.tokens = lambda captions: (
        seen.extend(captions) or tokenizer(captions, padding="max_length", max_length=12, return_tensors="pt").input_ids
    )
    task.loss(0, np.random.default_rng(0))
    assert seen == [""] * 8


@pytest.mark.parametrize("prompt", ["a red disc", "ΑΒΓ ж 红心 🦊", "", "e\u0301 \x00 \U0010ffff"])
def test_the_tokenizer_covers_every_unicode_prompt(tmp_path, prompt):
    train_tokenizer(["a red disc", "a blue ring"], 300, 24, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer(prompt, padding="max_length", max_length=64, truncation=True).input_ids
    assert len(ids) == 64
    assert tokenizer.unk_token is None
    import unicodedata

    expected = unicodedata.normalize("NFC", prompt).lower()
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == expected.strip()


def test_a_run_becomes_a_checkpoint_that_diffusers_loads(corpus, bank, autoencoder, tmp_path):
    settings = settings_file(tmp_path, TINY_DENOISER, steps=1)
    denoiser_run(corpus, bank, autoencoder, tmp_path / "run", settings).train()
    autoencoder.save_pretrained(tmp_path / "vae")
    write_bundle(tmp_path / "run", tmp_path / "vae", tmp_path / "out", load(settings, "network", NetworkSettings))
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    assert pipeline.unet.config.in_channels == 9
    listed = json.loads((tmp_path / "out" / "files.json").read_text())["files"]
    there = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {file["path"] for file in listed} == there - {"files.json"}
    assert not [p for p in (tmp_path / "out").rglob("*.json") if str(tmp_path) in p.read_text(encoding="utf-8")]
    assert "Twemoji" in (tmp_path / "out" / "ATTRIBUTION.md").read_text(encoding="utf-8")


def test_the_caption_reaches_levels_without_cross_attention():
    unet = new_unet(NetworkSettings(channels=(16, 32), attention="cc", text_width=16, text_heads=2, head_channels=8))
    torch.nn.init.zeros_(unet.mid_block.attentions[0].proj_out.weight)  # no other way for the caption
    inputs, timesteps = torch.randn(1, 9, 8, 8).expand(2, -1, -1, -1), torch.tensor([500, 500])
    captions = torch.randn(2, 12, 16)
    with torch.no_grad():
        same = unet(inputs, timesteps, captions).sample
        torch.nn.init.ones_(unet.add_embedding.norm2.weight)
        told = unet(inputs, timesteps, captions).sample
    assert torch.allclose(same[0], same[1], atol=1e-6), "a new network does not yet know what to make of the text"
    assert not torch.allclose(told[0], told[1], atol=1e-3)


def test_an_exported_autoencoder_starts_another_run(corpus, tmp_path):
    settings = settings_file(tmp_path, TINY_AUTOENCODER, steps=1)
    run = autoencoder_run(corpus, tmp_path / "run", settings)
    run.train()
    export(run, corpus, AutoencoderSettings(), tmp_path / "out")
    kept = AutoencoderKL.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    again = autoencoder_run(corpus, tmp_path / "again", settings, start_from=tmp_path / "out")
    assert torch.equal(again.task.model.decoder.conv_in.weight, kept.decoder.conv_in.weight.float())
