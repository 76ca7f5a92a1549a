"""The evaluation of the bundled model: measures against known values, judges that learn, and a whole evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.tiny import save_tiny_checkpoint, save_tiny_inpainting_checkpoint
from tests.tiny_corpus import write_tiny_corpus
from training.evaluate.__main__ import main
from training.evaluate.augmentation import augmented, small_cutouts
from training.evaluate.colours import dominant_colours, name_pixels, named_colour
from training.evaluate.drawing import DrawingSettings
from training.evaluate.evaluate import Evaluation, Extent, judge_set
from training.evaluate.held_out import SHIPPED, Caption, caption_of_row, choose_captions, read_captions
from training.evaluate.inpainting import cut_holes, fill, given_back, judge_holes, middle_of
from training.evaluate.judge_training import JudgeTask, LabelSettings, contrastive_loss, judge_run, labels_of
from training.evaluate.judges import Judges, encode, word_numbers
from training.evaluate.metrics import (
    Figure,
    frechet,
    frechet_distance,
    gaussian_distance,
    is_in_top,
    is_within_noise,
    psnr,
    ranks,
    rate,
    share_of,
    ssim,
)
from training.evaluate.prompts import colour_prompts, naming_prompts, rare_concepts, sheet_prompts
from training.evaluate.report import read_figures
from training.evaluate.sheets import contact_sheet
from training.evaluate.upscaling import SET, judge_enlarged
from training.optimiser import Muon, parameter_groups
from training.pictures import COLOURS, Corpus, on_background
from training.upscaler_model import (
    AutoencoderSettings,
    DenoiserSettings,
    fit_to_pipeline,
    new_upscaler_autoencoder,
    new_upscaler_unet,
    save_upscaler,
)

TINY_JUDGES = """
[network]
channels = [16, 32, 64]
blocks = [1, 1, 1]
features = 32
word_width = 32
embedding = 32
[labels]
least_word = 1
least_concept = 1
least_style = 1
[loop]
steps = 60
batch_size = 32
learning_rate = 1e-2
warmup_steps = 5
cooldown_steps = 30
weight_average = 0.9
measure_every_steps = 1000
"""


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus with a concept for each shape in each colour, and with a test_concept split."""
    folder = write_tiny_corpus(tmp_path_factory.mktemp("corpus"), size=64)
    path = folder / "index.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record["concept"] = record["caption"].removeprefix("a ")
        if record["row"] in (3, 11, 19, 26):
            record["split"] = "test_concept"
        elif record["row"] in (1, 16, 37):
            record["split"] = "val"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def corpus(corpus_folder: Path) -> Corpus:
    return Corpus.open(corpus_folder)


@pytest.fixture(scope="module")
def judges_folder(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Judges of the tiny corpus, trained by the command."""
    folder = tmp_path_factory.mktemp("judges")
    settings = folder / "tiny.toml"
    settings.write_text(TINY_JUDGES)
    main(["judges", "--corpus", str(corpus_folder), "--run", str(folder), "--settings", str(settings)])
    return folder


@pytest.fixture(scope="module")
def judges(judges_folder: Path) -> Judges:
    return Judges.load(judges_folder)


def subjects(corpus: Corpus) -> list[Caption]:
    """One picture of every concept."""
    return list({(c := caption_of_row(corpus, row)).concept: c for row in range(len(corpus.records))}.values())


def on_white(corpus: Corpus, captions: list[Caption]) -> Any:
    return np.stack([on_background(corpus.rgba[caption.row], 255) for caption in captions])[:, None]


# --- measures -----------------------------------------------------------------------------------------------------


def test_rank_is_the_number_of_captions_that_score_no_worse() -> None:
    similarity = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.2, 0.3, 0.1]])
    assert ranks(similarity, [0, 2, 2]).tolist() == [0, 1, 2]
    assert is_in_top(similarity, [0, 2, 2], 2).tolist() == [True, True, False]


def test_a_judge_without_an_opinion_counts_as_wrong() -> None:
    assert not is_in_top(np.ones((2, 10)), [0, 9], 5).any()
    assert not is_in_top(np.full((2, 10), np.nan), [0, 9], 5).any()


def test_distance_of_known_gaussians() -> None:
    mean, covariance = np.array([1.0, 2.0]), np.diag([4.0, 9.0])
    assert gaussian_distance((mean, covariance), (mean, covariance)) == pytest.approx(0, abs=1e-12)
    moved, wider = mean + [3.0, 4.0], np.diag([16.0, 9.0])
    assert gaussian_distance((mean, covariance), (moved, covariance)) == pytest.approx(25)
    assert gaussian_distance((mean, covariance), (mean, wider)) == pytest.approx((4 - 2) ** 2)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = [(turn @ mean, turn @ covariance @ turn.T), (turn @ moved, turn @ wider @ turn.T)]
    assert gaussian_distance(turned[0], turned[1]) == pytest.approx(25 + 4)


def test_distance_of_gaussians_that_do_not_commute_matches_a_trace_formula_for_two_dimensions() -> None:
    first, second = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for a 2 x 2 matrix with positive eigenvalues
    product = first @ second
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(first) + np.trace(second) - 2 * root
    assert gaussian_distance((np.zeros(2), first), (np.zeros(2), second)) == pytest.approx(expected)


def test_distance_of_samples_grows_with_their_shift_and_has_an_error() -> None:
    random = np.random.default_rng(0)
    reference, same = random.normal(size=(2000, 3)), random.normal(size=(1000, 3))
    assert frechet_distance(same, reference) < 0.05
    figure = frechet(same + [2, 0, 0], reference)
    assert figure.value == pytest.approx(4, abs=0.5)
    assert 0.01 < figure.error < 0.5


def test_psnr_of_equal_and_of_shifted_pictures() -> None:
    picture = np.full((16, 16, 3), 100, np.uint8)
    assert psnr(picture, picture) == float("inf")
    assert psnr(picture + 10, picture) == pytest.approx(10 * np.log10(255**2 / 100))


def test_ssim_of_equal_brighter_and_moved_pictures() -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert ssim(picture, picture) == pytest.approx(1)
    flat = np.full((32, 32, 3), 100, np.uint8)
    c1 = (0.01 * 255) ** 2
    brighter = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)  # equation 6 of Wang et al.: no structure, only luminance
    assert ssim(flat + 50, flat) == pytest.approx(brighter)
    assert ssim(np.roll(picture, 3, axis=1), picture) < 0.2


def test_rates_have_an_error_even_when_everything_hits() -> None:
    assert rate([1, 1, 1, 1]).value == 1
    assert rate([1, 1, 1, 1]).error > 0.05
    assert rate([0, 1] * 200).error == pytest.approx(0.025, rel=0.05)
    clustered = np.repeat([[0.0], [1.0]] * 50, 8, axis=1)
    assert rate(clustered).error == pytest.approx(rate(clustered[:, :1]).error)
    assert is_within_noise(Figure(0.40, 0.03, 100), Figure(0.50, 0.03, 100))
    assert not is_within_noise(Figure(0.40, 0.01, 100), Figure(0.50, 0.01, 100))


def test_share_of_the_ceiling_is_a_ratio_of_means() -> None:
    drawn, ceiling = np.array([1, 0, 0, 0] * 25), np.array([1, 1, 0, 0] * 25)
    share = share_of(drawn, ceiling, np.random.default_rng(0))
    assert share.value == pytest.approx(0.5)
    assert 0.03 < share.error < 0.2


# --- colours ------------------------------------------------------------------------------------------------------


def painted(colour: str, background: str) -> np.ndarray:
    picture = Image.new("RGB", (64, 64), COLOURS[background])
    ImageDraw.Draw(picture).ellipse((12, 12, 52, 52), fill=COLOURS[colour], outline=(90, 90, 90), width=2)
    return np.asarray(picture)


def test_every_named_colour_has_its_own_name() -> None:
    pixels = np.array(list(COLOURS.values()), np.uint8)
    assert name_pixels(pixels).tolist() == list(range(len(COLOURS)))


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("background", ["white", "teal"])
def test_a_painted_object_has_its_colour_whatever_is_behind_it(colour: str, background: str) -> None:
    assert next(iter(dominant_colours(painted(colour, background)))) == colour


def test_a_picture_without_an_object_has_no_colour() -> None:
    assert dominant_colours(np.full((64, 64, 3), 250, np.uint8)) == {}


@pytest.mark.parametrize(
    ("caption", "colour"),
    [
        ("a red apple", "red"),
        ("a light blue heart", "light blue"),
        ("an orange silhouette of a fox", "orange"),
        ("a small blue diamond", "blue"),
        ("an orange", None),
        ("a person with black hair", None),
        ("a black and white cat", None),
        ("a redwood tree", None),
    ],
)
def test_the_colour_of_the_subject_is_read_from_the_caption(caption: str, colour: str | None) -> None:
    assert named_colour(caption) == colour


# --- prompts and captions -----------------------------------------------------------------------------------------


def test_the_fixed_prompts_are_as_many_as_promised_and_all_different() -> None:
    naming = naming_prompts()
    assert len(naming) == len({c.concept for c in naming}) == len({c.text for c in naming}) == 100
    assert len(sheet_prompts()) == len(set(sheet_prompts())) == 64
    assert len(colour_prompts()) == len(set(colour_prompts())) == 52
    assert all(named_colour(prompt) for prompt in colour_prompts())


def test_naming_prompts_that_a_corpus_cannot_teach_are_found(corpus: Corpus) -> None:
    assert len(rare_concepts(corpus)) == 100
    assert rare_concepts(corpus)["dog"] == 0


def test_captions_are_distinct_and_keep_their_order(corpus: Corpus) -> None:
    captions = choose_captions(corpus, "test_combo")
    assert captions == choose_captions(Corpus(corpus.rgba, list(corpus.records)), "test_combo")
    assert len({caption.concept for caption in captions}) == len(captions) > 3
    assert captions[0].prompt == f"{captions[0].text}, {captions[0].style}"
    seen = choose_captions(corpus, "seen")
    assert {corpus.records[caption.row]["split"] for caption in seen} == {"train"}
    assert {caption.concept for caption in seen} == {caption.concept for caption in captions}


def test_shipped_captions_are_complete() -> None:
    sets = {name: read_captions(name) for name in ("test_combo", "test_concept", "seen", "colour")}
    assert SHIPPED.stat().st_size < 100_000
    for captions in sets.values():
        assert len(captions) == len({caption.concept for caption in captions}) == 100
    assert {c.concept for c in sets["seen"]} == {c.concept for c in sets["test_combo"]}
    assert not {c.concept for c in sets["test_concept"]} & {c.concept for c in sets["test_combo"]}


# --- judges -------------------------------------------------------------------------------------------------------


def test_labels_come_from_the_train_split_alone(corpus: Corpus) -> None:
    records = [dict(record) for record in corpus.records]
    records[3] |= {"split": "val", "caption": "a heptagon", "concept": "heptagon", "category": "odd"}
    labels = labels_of(records, LabelSettings(least_word=1, least_concept=1, least_style=1))
    assert "disc" in labels.words
    assert "heptagon" not in labels.words + labels.concepts
    assert "odd" not in labels.categories


def test_captions_become_word_numbers_and_unknown_words_are_one_word() -> None:
    numbers = word_numbers(["disc", "red"])
    assert encode(["a red, Disc", "?"], numbers).tolist() == [[1, 3, 2], [1, 0, 0]]


def test_captions_of_the_same_concept_are_no_mistake() -> None:
    logits = torch.tensor([[10.0, 10.0, 0.0], [10.0, 10.0, 0.0], [0.0, 0.0, 10.0]])
    shared, apart = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    assert contrastive_loss(logits, shared) < 0.7 + 1e-3
    assert contrastive_loss(10 * torch.eye(3), apart) < 1e-3
    assert contrastive_loss(logits, apart) > 0.3


def test_one_step_lowers_the_loss_of_the_same_batch(corpus: Corpus, judges: Judges) -> None:
    torch.manual_seed(0)
    task = JudgeTask(corpus, judges.labels, judges.settings, batch_size=24)
    before, _ = task.loss(0, np.random.default_rng(0))
    before.backward()
    Muon(parameter_groups(task.model)).step(1e-3)
    with torch.no_grad():
        after, _ = task.loss(0, np.random.default_rng(0))
    assert after < before - 0.01


def test_training_pictures_keep_their_colour_and_differ_from_draw_to_draw(corpus: Corpus) -> None:
    row = next(r["row"] for r in corpus.records if r["caption"] == "a red square")
    cutouts = np.stack([small_cutouts(corpus.rgba[row], 64)] * 8)
    pictures = augmented(cutouts, np.ones(8, np.bool_), np.random.default_rng(0))
    assert pictures.shape == (8, 3, 64, 64)
    assert pictures.min() >= -1
    assert pictures.max() <= 1
    centres = pictures[:, :, 28:36, 28:36].mean((2, 3))
    assert torch.allclose(centres, torch.tensor(COLOURS["red"]) / 127.5 - 1, atol=0.1)
    assert not torch.equal(pictures[0], pictures[1])
    again = augmented(cutouts, np.ones(8, np.bool_), np.random.default_rng(0))
    assert torch.equal(pictures, again)


def test_stored_judges_give_the_same_scores(judges: Judges, corpus: Corpus, tmp_path: Path) -> None:
    judges.save(tmp_path)
    loaded = Judges.load(tmp_path)
    pictures = on_white(corpus, subjects(corpus))[:, 0]
    first, second = judges.look(pictures), loaded.look(pictures)
    assert torch.equal(first.categories, second.categories)
    assert np.array_equal(judges.similarity(first, ["a red disc"]), loaded.similarity(second, ["a red disc"]))
    assert loaded.labels == judges.labels


def test_missing_judges_say_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="training.evaluate judges"):
        Judges.load(tmp_path)


def test_a_stopped_judge_run_goes_on(corpus: Corpus, judges_folder: Path) -> None:
    run = judge_run(corpus, judges_folder, judges_folder / "tiny.toml")
    assert run.step == run.settings.steps


def test_real_pictures_are_recognised_and_noise_is_not(judges: Judges, corpus: Corpus) -> None:
    captions = subjects(corpus)
    real = judge_set(judges, captions, captions, on_white(corpus, captions))
    assert len(captions) == 16
    assert real.hits["top_1"].mean() >= 0.35
    assert real.hits["top_5"].mean() >= 0.85
    noise = np.random.default_rng(0).integers(0, 256, (16, 2, 64, 64, 3), dtype=np.uint8)
    unseen = judge_set(judges, captions, captions, noise)
    assert unseen.hits["top_1"].mean() <= 0.2
    assert unseen.hits["top_5"].mean() <= 0.6


def test_fewer_captions_are_ranked_among_as_many_candidates(judges: Judges, corpus: Corpus) -> None:
    captions = subjects(corpus)
    pictures = on_white(corpus, captions)
    whole, part = (judge_set(judges, captions[:n], captions, pictures[:n]).hits["top_1"] for n in (16, 5))
    assert np.array_equal(whole[:5], part)


def test_real_pictures_as_drawn_ones_reach_the_ceiling_exactly(judges: Judges, corpus: Corpus) -> None:
    evaluation = Evaluation(corpus, judges, Extent())
    real = evaluation.of_real()
    drawn = {name: on_white(corpus, evaluation.taken(name)) for name in ("test_combo", "test_concept", "seen")}
    perfect = evaluation.judged(drawn)
    assert set(perfect.figures) >= {"test_combo/top_1", "seen/category", "frechet"}
    assert all(perfect.figures[measure] == real.figures[measure] for measure in perfect.figures)
    noise = np.random.default_rng(0).integers(0, 256, drawn["test_combo"].shape, dtype=np.uint8)
    worse = evaluation.judged(drawn | {"test_combo": noise})
    assert worse.figures["frechet"].value > perfect.figures["frechet"].value


# --- the whole ----------------------------------------------------------------------------------------------------


def test_a_contact_sheet_has_a_cell_for_every_picture() -> None:
    pictures = [painted("red", "white")] * 3
    sheet = contact_sheet(pictures, ["one", "two words", "a caption too long for one line of a small cell"], 2, 64)
    cell = np.asarray(sheet)[6:70, 6:70]
    assert np.array_equal(cell, pictures[0])
    assert sheet.width == 2 * (64 + 6) + 6


def test_a_checkpoint_is_drawn_judged_and_reported(
    corpus_folder: Path, judges_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_checkpoint(tmp_path / "tiny")
    out = tmp_path / "out"
    command = ["model", str(model), "--corpus", str(corpus_folder), "--out", str(out), "--judges", str(judges_folder)]
    command += ["--steps", "2", "--limit", "4", "--device", "cpu", "--pictures-per-caption", "2"]
    main(command)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    report = json.loads((out / "report.json").read_text())
    assert line["test_combo/top_1"] == report["drawn"]["test_combo/top_1"]["value"]
    assert line["seconds_a_picture"] > 0
    assert report["drawn"]["naming/top_1"]["count"] == 4
    assert report["chance"]["naming/top_1"] == 0.01
    assert np.shape(report["hits"]["test_combo/top_1"]) == (4, 2)
    assert report["real"]["frechet"]["value"] < report["drawn"]["frechet"]["value"]
    assert report["drawn"]["autoencoder/psnr_coloured"]["error"] > 0
    assert "| retrieval top-1, held-out combinations |" in (out / "table.md").read_text()
    sheets = {"sheet", "naming", "naming-test", "test_combo", "seen", "test_concept", "colour", "made_colour"}
    assert {path.stem for path in out.glob("*.png")} == sheets
    assert (out / "naming-answers.txt").read_text().startswith("1. a dog\n")

    main([*command, "--sets", "test_combo", "--previous", str(out / "report.json")])
    again = json.loads((out / "report.json").read_text())
    assert again["seconds_a_picture"] is None, "the pictures of the first evaluation were drawn again"
    assert again["previous"]["test_combo/top_1"] == again["drawn"]["test_combo/top_1"]
    assert read_figures(out / "report.json").keys() == again["drawn"].keys()


# --- inpainting ---------------------------------------------------------------------------------------------------


def test_a_hole_lies_in_the_middle_of_the_drawing_in_whole_blocks() -> None:
    drawing = np.zeros((128, 128, 4), np.uint8)
    drawing[40:120, 16:48, 3] = 255  # 80 high, 32 wide
    mask = middle_of(drawing)
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    assert (rows[0], rows[-1] + 1) == (56, 104)
    assert (columns[0], columns[-1] + 1) == (24, 40)
    assert mask.sum() == 48 * 16, "the hole is not a box"


def test_a_perfect_filling_gives_back_everything_and_none_nothing(judges: Judges, corpus: Corpus) -> None:
    holes = cut_holes(corpus)
    perfect = judge_holes(judges, corpus, holes, holes.whole)
    assert {name: figure for name, figure in perfect["filled"].items() if name != "psnr"} == perfect["whole"]
    nothing = judge_holes(judges, corpus, holes, holes.emptied)
    assert nothing["filled"] == nothing["white hole"]
    assert perfect["filled"]["psnr"].value > nothing["filled"]["psnr"].value
    known = {"filled": 0.5, "white hole": 0.2, "whole": 0.8}
    assert given_back({v: {"top_1": {"value": x}} for v, x in known.items()}, "top_1") == pytest.approx(0.5)


def test_a_checkpoint_fills_holes_and_leaves_the_rest_as_it_was(
    corpus_folder: Path, judges_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = save_tiny_inpainting_checkpoint(tmp_path / "nine"), tmp_path / "out"
    command = ["inpainting", str(model), "--corpus", str(corpus_folder), "--out", str(out)]
    main([*command, "--judges", str(judges_folder), "--steps", "2", "--limit", "3"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["given_back"].keys() == {"top_1", "top_5"}
    found = json.loads((out / "inpainting.json").read_text())
    assert found["filled"]["top_1"]["count"] == 3
    assert "| whole |" in (out / "inpainting.md").read_text()
    with Image.open(out / "inpainting.png") as sheet:
        assert sheet.width > 6 * 128
    holes = cut_holes(Corpus.open(corpus_folder), 2)
    filled = fill(str(model), holes, DrawingSettings(steps=2))
    assert np.array_equal(filled[~holes.masks], holes.whole[~holes.masks])
    assert not np.array_equal(filled[0][holes.masks[0]], holes.whole[0][holes.masks[0]])


# --- super-resolution ---------------------------------------------------------------------------------------------


def test_a_perfect_enlargement_is_judged_as_the_true_picture_and_a_white_one_is_not(
    judges: Judges, corpus: Corpus
) -> None:
    captions = choose_captions(corpus, SET)
    true = on_white(corpus, captions)[:, 0]
    ways = {"perfect": lambda small: true, "white": lambda small: np.full_like(true, 255)}
    figures = judge_enlarged(judges, corpus, captions, ways)
    assert figures["perfect"].pop("agreement").value == 1
    assert figures["perfect"].pop("psnr").value == 99
    assert figures["perfect"] == figures["true"]
    assert figures["white"]["agreement"].value < 1
    assert figures["white"]["psnr"].value < 20


def test_an_upscaler_is_compared_with_bicubic_enlargement(
    corpus_folder: Path,
    judges_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    held_out = choose_captions(Corpus.open(corpus_folder), SET)[0]
    identity = Corpus.open(corpus_folder).records[held_out.row]["id"]
    package = tmp_path / "node_modules" / "@iconify-json" / "twemoji"
    package.mkdir(parents=True)
    icons = {"fox": {"body": '<circle cx="50" cy="50" r="40" fill="red"/>', "width": 100, "height": 100}}
    (package / "icons.json").write_text(json.dumps({"prefix": "twemoji", "icons": icons}))
    record = {"id": identity, "src": "twemoji", "path": "fox", "paint": None, "split": SET}
    monkeypatch.setattr("training.evaluate.upscaling.read_catalogue", lambda: [record])
    torch.manual_seed(0)
    settings = DenoiserSettings(channels=(8, 8), layers=1, groups=4, max_noise_level=30)
    unet = new_upscaler_unet(settings)
    autoencoder = new_upscaler_autoencoder(AutoencoderSettings((8, 8, 8)))
    fit_to_pipeline(autoencoder, torch.rand(2, 3, 64, 64) * 2 - 1)
    save_upscaler(unet, autoencoder, tmp_path / "x4", settings)

    command = ["upscaling", str(tmp_path / "x4"), "--corpus", str(corpus_folder), "--packages", str(tmp_path)]
    main([*command, "--out", str(tmp_path / "out"), "--judges", str(judges_folder), "--steps", "1", "--limit", "2"])

    found = json.loads((tmp_path / "out" / "upscaling.json").read_text())
    assert set(found) == {
        *("upscaled, 128", "bicubic, 128", "true, 128"),
        *("upscaled, 512", "bicubic, 512", "autoencoder, 512"),
    }
    assert found["upscaled, 128"]["agreement"]["count"] == 2
    assert found["bicubic, 512"]["psnr"]["count"] == 1
    assert 25 < found["bicubic, 512"]["psnr"]["value"] < 45, "a red disc on white, enlarged, is not what was compared"
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["psnr"].keys() == found.keys() - {"true, 128"}
    with Image.open(tmp_path / "out" / "upscaling.png") as sheet:
        assert sheet.width > 4 * 256
