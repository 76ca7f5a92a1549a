"""Evaluation of the bundled model.

    python -m training.evaluate judges --corpus CORPUS --run FOLDER [--minutes M]
    python -m training.evaluate model PATH --corpus CORPUS --out FOLDER [--previous PATH]
    python -m training.evaluate inpainting PATH --corpus CORPUS --out FOLDER
    python -m training.evaluate upscaling PATH --corpus CORPUS --packages PACKAGES --out FOLDER
    python -m training.evaluate captions --corpus CORPUS
    python -m training.evaluate prompts --corpus CORPUS

`judges` trains the judges. `model` draws, judges and writes report.json, table.md and the sheets; its last line is one
JSON object. `inpainting` cuts holes into held-out pictures and judges how the checkpoint fills them. `upscaling`
compares an upscaler with bicubic enlargement on held-out drawings. `captions` writes the chosen held-out captions to
held_out.json, for checks without a corpus. `prompts` checks that every naming prompt can be learned from the corpus.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from training.evaluate import judge_training
from training.evaluate.drawing import DrawingSettings
from training.evaluate.evaluate import SETS, Evaluation, Extent, Results
from training.evaluate.held_out import SHIPPED as SHIPPED_CAPTIONS
from training.evaluate.held_out import write_captions
from training.evaluate.inpainting import evaluate_inpainting, given_back
from training.evaluate.judges import SHIPPED as SHIPPED_JUDGES
from training.evaluate.judges import Judges
from training.evaluate.metrics import Figure
from training.evaluate.prompts import LEAST_STYLES, rare_concepts
from training.evaluate.report import Report, judges_fingerprint, read_figures
from training.evaluate.sheets import contact_sheet, numbered_sheet
from training.pictures import Corpus


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    judges = commands.add_parser("judges", help="train the judges")
    judge_training.add_arguments(judges)
    judges.set_defaults(run_command=judge_training.command)
    model = commands.add_parser("model", help="draw and judge")
    _add_model_arguments(model)
    model.set_defaults(run_command=evaluate_model)
    holes = commands.add_parser("inpainting", help="fill holes in held-out pictures and judge them")
    _add_drawing_arguments(holes)
    holes.set_defaults(run_command=_inpaint)
    larger = commands.add_parser("upscaling", help="enlarge held-out drawings and judge them")
    _add_common_arguments(larger)
    larger.add_argument("--packages", type=Path, required=True, help="folder of `python -m training.corpus fetch`")
    larger.add_argument("--steps", type=int, help="default: the checkpoint's own")
    larger.set_defaults(run_command=_upscale)
    captions = commands.add_parser("captions", help="write the chosen held-out captions")
    captions.add_argument("--corpus", type=Path, required=True)
    captions.add_argument("--out", type=Path, default=SHIPPED_CAPTIONS)
    captions.set_defaults(run_command=_write_captions)
    prompts = commands.add_parser("prompts", help="check the naming prompts")
    prompts.add_argument("--corpus", type=Path, required=True)
    prompts.set_defaults(run_command=_check_prompts)
    arguments = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.run_command(arguments)


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="checkpoint folder in diffusers layout")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of `python -m training.corpus build`")
    parser.add_argument("--out", type=Path, required=True, help="report, table, sheets and drawn pictures")
    parser.add_argument("--judges", type=Path, default=SHIPPED_JUDGES, help="folder of trained judges")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--limit", type=int, help="draw only so many pictures of each set")


def _add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common_arguments(parser)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, help="default: the checkpoint's own")


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    _add_drawing_arguments(parser)
    parser.add_argument("--previous", type=Path, help="checkpoint folder or report.json of the model before")
    parser.add_argument("--pictures-per-caption", type=int, default=1)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")


def evaluate_model(arguments: argparse.Namespace) -> None:
    """Evaluate `arguments.model`; see `python -m training.evaluate model --help`."""
    corpus = Corpus.open(arguments.corpus)
    extent = Extent(arguments.limit, tuple(arguments.sets))
    evaluation = Evaluation(corpus, Judges.load(arguments.judges), extent)
    settings = DrawingSettings(
        arguments.seed, arguments.steps, arguments.guidance, pictures_per_caption=arguments.pictures_per_caption
    )
    digest, drawn = _results_of(arguments.model, evaluation, settings, arguments)
    previous = _previous_figures(evaluation, settings, arguments)
    report = Report(
        model=Path(arguments.model).resolve().name,
        digest=digest,
        judges=judges_fingerprint(arguments.judges),
        settings=settings,
        drawn=drawn,
        real=evaluation.of_real(),
        previous=previous,
        candidates={name: len(evaluation.captions(name)) for name in extent.sets if f"{name}/top_1" in drawn.figures},
    )
    _write(report, evaluation, arguments.out)
    print(report.as_markdown())  # noqa: T201 the result of a command
    print(report.as_line(), flush=True)  # noqa: T201 its last line is for programs


def _results_of(
    source: str, evaluation: Evaluation, settings: DrawingSettings, arguments: argparse.Namespace
) -> tuple[str, Results]:
    """Digest and results of the checkpoint at `source`."""
    # Here and not above: training the judges needs neither diffusers nor transformers, which take seconds to import.
    import diffusers
    import transformers

    from models.checkpoint import load_checkpoint
    from models.device import choose_placement

    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    placement = choose_placement(arguments.device, arguments.dtype)
    checkpoint = load_checkpoint(Path(source).resolve().name, str(source), placement)
    return checkpoint.digest, evaluation.of_checkpoint(checkpoint, settings, arguments.out / "drawn")


def _previous_figures(
    evaluation: Evaluation, settings: DrawingSettings, arguments: argparse.Namespace
) -> dict[str, Figure]:
    path: Path | None = arguments.previous
    if path is None:
        return {}
    if path.suffix == ".json":
        return read_figures(path)
    return _results_of(str(path), evaluation, settings, arguments)[1].figures


def _write(report: Report, evaluation: Evaluation, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(report.as_markdown(), encoding="utf-8")
    for name, gallery in report.drawn.galleries.items():
        prompts = evaluation.prompts(name)
        contact_sheet(list(gallery.firsts), prompts).save(folder / f"{name}.png", optimize=True)
        if name == "naming":
            _save_naming_test(list(gallery.firsts), prompts, folder)


def _save_naming_test(pictures: list[np.ndarray], prompts: list[str], folder: Path) -> None:
    """The sheet for a person who has not seen the prompts, and the answers in a file of their own."""
    sheet: Image.Image = numbered_sheet(pictures)
    sheet.save(folder / "naming-test.png", optimize=True)
    answers = "".join(f"{number}. {prompt}\n" for number, prompt in enumerate(prompts, 1))
    (folder / "naming-answers.txt").write_text(answers, encoding="utf-8")


def _inpaint(arguments: argparse.Namespace) -> None:
    settings = DrawingSettings(arguments.seed, arguments.steps, arguments.guidance)
    corpus, judges = Corpus.open(arguments.corpus), Judges.load(arguments.judges)
    figures = evaluate_inpainting(arguments.model, corpus, judges, settings, arguments.out, arguments.limit)
    print((arguments.out / "inpainting.md").read_text(encoding="utf-8"))  # noqa: T201 the result of a command
    gains = {measure: round(given_back(figures, measure), 3) for measure in ("top_1", "top_5")}
    print(json.dumps({"model": Path(arguments.model).resolve().name, "given_back": gains}))  # noqa: T201 for programs


def _upscale(arguments: argparse.Namespace) -> None:
    from training.evaluate.upscaling import UpscalingSettings, evaluate_upscaling  # diffusers, again

    corpus, judges, model = Corpus.open(arguments.corpus), Judges.load(arguments.judges), Path(arguments.model)
    settings = UpscalingSettings(arguments.seed, arguments.steps, arguments.limit)
    figures = evaluate_upscaling(model, corpus, arguments.packages, judges, arguments.out, settings)
    print((arguments.out / "upscaling.md").read_text(encoding="utf-8"))  # noqa: T201 the result of a command
    line = {name: found["psnr"]["value"] for name, found in figures.items() if "psnr" in found}
    print(json.dumps({"model": model.resolve().name, "psnr": line}))  # noqa: T201 for programs


def _write_captions(arguments: argparse.Namespace) -> None:
    print(json.dumps(write_captions(Corpus.open(arguments.corpus), arguments.out)))  # noqa: T201 result of a command


def _check_prompts(arguments: argparse.Namespace) -> None:
    rare = rare_concepts(Corpus.open(arguments.corpus))
    print(json.dumps({"least_styles": LEAST_STYLES, "too_rare": rare}))  # noqa: T201 result of a command
    if rare:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
