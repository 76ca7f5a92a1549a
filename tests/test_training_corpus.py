"""The corpus of the bundled model: catalogue, fetching, extraction, rendering, building, captions, scenes."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.tiny_corpus import write_tiny_corpus
from training.corpus import build as building
from training.corpus.__main__ import main, spread
from training.corpus.attribution import attribution
from training.corpus.backdrops import BACKDROP_CLASSES
from training.corpus.build import Built, NothingBuilt, build
from training.corpus.captions import FORMS, caption_of, in_form
from training.corpus.catalogue import CATALOGUE, HELD_OUT_WORDS, Record, of_sources, read_catalogue
from training.corpus.extract import SourceUnreadable, fingerprint, icon_svg, originals, package_root, svg_text
from training.corpus.fetch import fetch, is_fetched, unpack
from training.corpus.rcc import ResourceArchive
from training.corpus.recolour import recoloured
from training.corpus.render import drawn_bounds, picture_of_bitmap, picture_of_svg, with_view_box
from training.corpus.scenes import SEMANTIC_CLASSES, Composer, coloured_words
from training.corpus.sources import LICENCE_CLASSES, SOURCES, Package, source_of
from training.pictures import Corpus, Pixels


@pytest.fixture(scope="module")
def catalogue() -> list[Record]:
    return read_catalogue()


def svg(body: str, attributes: str = 'viewBox="0 0 100 100"') -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{body}</svg>'


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "PNG")
    return file.getvalue()


# --- catalogue -------------------------------------------------------------------------------------------------------


def test_the_catalogue_has_no_share_alike_and_no_copyleft_picture(catalogue: list[Record]) -> None:
    assert {record["lic"] for record in catalogue} == set(LICENCE_CLASSES)
    licences = {record["license"] for record in catalogue}
    assert not [licence for licence in licences if re.search(r"SA|GPL|GFDL|NC|ND", licence)]


def test_the_catalogue_has_the_splits_that_the_readme_names(catalogue: list[Record]) -> None:
    counts = Counter(record["split"] for record in catalogue)
    assert counts == {"train": 25015, "val": 253, "test_concept": 537, "test_combo": 376}
    readme = (CATALOGUE.parent / "README.md").read_text(encoding="utf-8")
    for count in (len(catalogue), *counts.values()):
        assert re.search(rf"\b{count:,}\b", readme), f"README.md does not say {count:,}"


def test_the_catalogue_is_small_and_every_record_can_be_found(catalogue: list[Record]) -> None:
    assert CATALOGUE.stat().st_size < 1_000_000
    assert len({record["id"] for record in catalogue}) == len(catalogue)
    assert len([name for name, _ in groupby(catalogue, key=lambda record: record["src"])]) == len(SOURCES)
    for record in catalogue:
        assert record["pkg"] in {package.name for package in source_of(record["src"]).packages}
        assert record["path"]
        assert re.fullmatch(r"[0-9a-f]{12}", record["sha"])


def test_no_held_out_word_names_or_tags_a_picture_of_another_split(catalogue: list[Record]) -> None:
    forms = "|".join(rf"{word}(?:s|es)?" for word in HELD_OUT_WORDS)
    pattern = re.compile(rf"\b(?:{forms})\b", re.IGNORECASE)
    for record in catalogue:
        words = " | ".join(
            [record["name"], record["caption"], record["concept"], *record["alt_names"], *record["tags"]]
        )
        is_held_out = record["split"] == "test_concept"
        assert bool(pattern.search(words)) == is_held_out, record["id"]


def test_a_held_out_combination_is_known_in_other_styles_only(catalogue: list[Record]) -> None:
    train = {(record["concept"], record["style"]) for record in catalogue if record["split"] == "train"}
    known = {concept for concept, _ in train}
    for record in catalogue:
        if record["split"] == "test_combo":
            assert record["concept"] in known, record["id"]
            assert (record["concept"], record["style"]) not in train, record["id"]


def test_everyone_whose_licence_asks_for_credit_is_credited(catalogue: list[Record]) -> None:
    text = (CATALOGUE.parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert text == attribution(catalogue), "write it anew: see README.md"
    for source in SOURCES:
        assert source.credit in text
    for record in catalogue:
        if source_of(record["src"]).licence == "by picture":
            assert record["credit"], record["id"]
            assert record["credit"] in text


def test_an_unknown_source_is_refused_with_the_names_there_are(catalogue: list[Record]) -> None:
    with pytest.raises(ValueError, match="no source 'notto'.*noto, noto-v1"):
        of_sources(catalogue, ["notto"])
    assert {record["src"] for record in of_sources(catalogue, ["noto", "tango"])} == {"noto", "tango"}


# --- rendering -------------------------------------------------------------------------------------------------------


def test_a_drawing_is_cut_out_of_its_page_and_centred() -> None:
    picture = picture_of_svg(svg('<rect x="5" y="60" width="10" height="5" fill="#f00"/>'), 128)
    assert picture is not None
    assert drawn_bounds(picture) == pytest.approx([4, 34, 124, 94], abs=1)
    assert (picture[64, 64] == [255, 0, 0, 255]).all()
    assert (picture[picture[..., 3] == 0] == [255, 255, 255, 0]).all()


@pytest.mark.parametrize("size", [128, 256, 512])
def test_an_svg_is_drawn_anew_for_every_size(size: int) -> None:
    """A line of a 400th of the page: solid and thin at 512, faint at 128."""
    page = svg('<rect width="100" height="100" fill="#fff"/><path d="M50 0V100" stroke="#000" stroke-width=".25"/>')
    picture = picture_of_svg(page, size)
    assert picture is not None
    assert drawn_bounds(picture) == [size // 32, size // 32, size - size // 32, size - size // 32]
    darkest = 255 - int(picture[size // 2, :, 0].min())
    assert darkest == pytest.approx(255 * 0.25 / 100 * (size * 30 / 32) / 2, abs=45)


def test_an_old_drawing_without_view_box_is_scaled_as_a_whole() -> None:
    body = '<rect width="125" height="62.5" fill="#00f"/>'
    picture = picture_of_svg(svg(body, 'width="100pt" height="50pt"'), 128)
    assert picture is not None
    assert drawn_bounds(picture) == [4, 34, 124, 94]
    assert 'viewBox="0 0 125.0 62.5"' in with_view_box(svg(body, 'width="100pt" height="50pt"'))
    assert 'viewBox="0 0 1000.0 1000.0"' in with_view_box(svg(body, 'width="100%"'))
    assert with_view_box(svg(body)) == svg(body)


def test_edges_take_up_no_colour_of_the_void() -> None:
    disc = picture_of_svg(svg('<circle cx="50" cy="50" r="40" fill="#f00"/>'), 128)
    assert disc is not None
    edge = disc[(disc[..., 3] > 20) & (disc[..., 3] < 235)]
    assert len(edge) > 100
    assert edge[:, 0].min() > 245
    assert edge[:, 1:3].max() < 10


def test_pixel_art_is_enlarged_by_whole_numbers() -> None:
    red, blue, void = [255, 0, 0, 255], [0, 0, 255, 255], [0, 0, 0, 0]
    art = png([[void, void, void, void], [void, red, blue, blue], [void, blue, red, blue]])
    picture = picture_of_bitmap(art, 128, is_pixel_art=True)
    assert picture is not None
    assert drawn_bounds(picture) == [1, 22, 127, 106]
    drawn = picture[22:106, 1:127]
    assert (drawn[:42, :42] == red).all()
    assert (drawn[42:, :42] == blue).all()
    assert (drawn[:42, 42:] == blue).all()


def test_a_photo_is_cropped_to_its_square() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3))
    middle = picture_of_bitmap(png(photo), 40, crop="square")
    corner = picture_of_bitmap(png(photo), 32, crop=[25, 5, 32])
    assert middle is not None
    assert corner is not None
    assert (middle[..., :3] == photo[:, 10:50]).all()
    assert (corner[..., :3] == photo[5:37, 25:57]).all()
    assert (corner[..., 3] == 255).all()


def test_a_small_bitmap_is_enlarged_fourfold_at_most() -> None:
    picture = picture_of_bitmap(png(np.full((10, 20, 4), 255)), 128)
    assert picture is not None
    assert drawn_bounds(picture) == [24, 44, 104, 84]


def test_what_draws_nothing_is_no_picture_and_what_is_broken_is_an_error() -> None:
    assert picture_of_svg(svg(""), 64) is None
    assert picture_of_svg(svg('<text x="10" y="50">fonts differ from machine to machine</text>'), 64) is None
    assert picture_of_bitmap(png(np.zeros((8, 8, 4))), 64) is None
    with pytest.raises(ValueError, match="root node"):
        picture_of_svg("<svg", 64)
    with pytest.raises(ValueError, match="no picture"):
        picture_of_bitmap(b"GIF", 64)


# --- packages as they are, but tiny ----------------------------------------------------------------------------------

DISC = '<circle cx="8" cy="8" r="6" fill="currentColor"/>'


def write_icons(folder: Path, source: str, icons: dict[str, str], **more: Any) -> None:
    (package,) = source_of(source).packages
    file = package_root(folder, package) / package.files[0]
    file.parent.mkdir(parents=True, exist_ok=True)
    bodies = {name: {"body": body} for name, body in icons.items()}
    file.write_text(json.dumps({"prefix": source, "icons": bodies, **more}))


def write_file(folder: Path, package: Package, path: str, content: bytes) -> None:
    file = package_root(folder, package) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def record_of(source: str, name: str, path: str, **more: Any) -> Record:
    return {
        "id": f"{source}/{name}",
        "src": source,
        "pkg": source_of(source).packages[0].name,
        "path": path,
        "paint": None,
        "sha": "",
        "license": "MIT",
        "lic": "permissive",
        "credit": None,
        "split": "train",
        "crop": None,
        "pixel": False,
        **more,
    }


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Three sources as they lie after fetching: an icon set, a coloured one, clip art with a photograph's crop."""
    folder = tmp_path / "packages"
    write_icons(folder, "noto", {"sun": DISC, "moon": DISC.replace("currentColor", "#00f")})
    write_icons(folder, "game-icons", {"ball": DISC}, width=16, height=16)
    (package,) = source_of("openclipart").packages
    write_file(folder, package, "svg/old.svg", svg(DISC, 'width="16" height="16"').encode())
    return folder


@pytest.fixture
def records() -> list[Record]:
    return [
        record_of("noto", "sun", "sun"),
        record_of("noto", "moon", "moon"),
        record_of("game-icons", "ball", "ball", paint="red", lic="by", license="CC-BY-3.0"),
        record_of("openclipart", "old", "svg/old.svg", lic="pd", license="public domain"),
    ]


def with_fingerprints(folder: Path, records: list[Record]) -> list[Record]:
    found = []
    for source, some in groupby(records, key=lambda record: record["src"]):
        for record, original in originals(folder, source_of(source), list(some)):
            assert original is not None
            found.append({**record, "sha": fingerprint(original)})
    return found


def test_an_icon_is_its_body_in_the_box_of_its_set() -> None:
    icons: dict[str, Any] = {"plain": {"body": "<a/>"}, "wide": {"body": "<b/>", "width": 40, "left": -2}}
    aliases: dict[str, Any] = {
        "other": {"parent": "wide", "top": 3},
        "far": {"parent": "other"},
        "turned": {"parent": "wide", "rotate": 1},
        "lost": {"parent": "nothing"},
    }
    icon_set = {"icons": icons, "aliases": aliases, "height": 24}
    boxes = {name: re.findall(r'viewBox="(.*?)"', icon_svg(icon_set, name) or "") for name in [*icons, *aliases]}
    assert boxes == {
        "plain": ["0 0 16 24"],
        "wide": ["-2 0 40 24"],
        "other": ["-2 3 40 24"],
        "far": ["-2 3 40 24"],
        "turned": [],
        "lost": [],
    }
    assert (icon_svg(icon_set, "far") or "").endswith("><b/></svg>")


def test_a_coloured_icon_has_the_colour_of_its_caption(packages: Path, records: list[Record]) -> None:
    ((_, ball),) = originals(packages, source_of("game-icons"), records[2:3])
    assert isinstance(ball, str)
    assert 'fill="#e53935"' in ball
    picture = picture_of_svg(ball, 64)
    assert picture is not None
    assert (picture[32, 32] == [0xE5, 0x39, 0x35, 255]).all()


def test_every_colour_of_the_catalogue_can_be_put_on(catalogue: list[Record]) -> None:
    from training.corpus.paints import painted

    for source, colour in {(record["src"], record["paint"]) for record in catalogue if record["paint"]}:
        fills = "currentColor #2F88FF #8fbffa"
        assert painted(fills, source, colour) != fills


def resource_archive(files: dict[str, bytes]) -> bytes:
    """A Qt resource archive of version 3: one folder `pictures`; files that shrink are packed."""
    names, data, nodes = b"", b"", b""

    def node(name: str, flags: int, third: int, fourth: int) -> bytes:
        nonlocal names
        packed = struct.pack(">IHIIQ", len(names), flags, third, fourth, 0)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        return packed

    nodes += node("", 2, 1, 1) + node("pictures", 2, len(files), 2)
    for name, content in files.items():
        packed = struct.pack(">I", len(content)) + zlib.compress(content)
        is_smaller = len(packed) < len(content)
        stored = packed if is_smaller else content
        nodes += node(name, int(is_smaller), 0, len(data))
        data += struct.pack(">I", len(stored)) + stored
    begin = 24
    offsets = (begin + len(data) + len(names), begin, begin + len(data))
    return struct.pack(">4s5I", b"qres", 3, *offsets, 0) + data + names + nodes


def test_qt_resource_archives_are_read_packed_and_plain(packages: Path) -> None:
    files = {"long.svg": b"<svg>" * 50, "short.webp": b"RIFF"}
    archive = resource_archive(files)
    assert ResourceArchive(archive).files() == {f"pictures/{name}": content for name, content in files.items()}
    with pytest.raises(ValueError, match="no(t a)? .*archive"):
        ResourceArchive(b"PK" + archive)
    (package,) = source_of("gcompris").packages
    write_file(packages, package, "a.rcc", archive)
    paths = ["a.rcc!pictures/short.webp", "a.rcc!pictures/long.svg", "a.rcc!pictures/none", "b.rcc!pictures/none"]
    wanted = [record_of("gcompris", path, path) for path in paths]
    found = [original for _, original in originals(packages, source_of("gcompris"), wanted)]
    assert found == [b"RIFF", "<svg>" * 50, None, None]


def test_svg_files_may_be_latin_1_as_old_ones_are() -> None:
    assert svg_text("<svg>é</svg>".encode("latin-1")) == "<svg>é</svg>"
    assert svg_text("\ufeff<svg>é</svg>".encode()) == "<svg>é</svg>"


def test_a_source_whose_package_is_missing_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match=r"@iconify-json/noto 1.2.9 is not in .* training.corpus fetch"):
        originals(tmp_path, source_of("noto"), [])


def write_avatars(folder: Path) -> list[Record]:
    """DiceBear with a style that draws a square of the seed's size."""
    source = source_of("avatar-thumbs")
    core = "export const createAvatar = (style, options) => style.create(options);"
    style = """export const create = ({ seed, backgroundColor }) =>
        `<svg viewBox="0 0 90 90"><rect width="${seed}" height="9" fill="#00f"/><!-- ${backgroundColor} --></svg>`;"""
    for package, code in zip(source.packages, (style, core), strict=True):
        write_file(folder, package, "package.json", b'{"type": "module"}')
        write_file(folder, package, "lib/index.js", code.encode())
    return [record_of("avatar-thumbs", seed, seed) for seed in ("20", "10")]


def test_avatars_are_drawn_from_their_seeds(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    wanted = write_avatars(tmp_path)
    drawn = [original for _, original in originals(tmp_path, source_of("avatar-thumbs"), wanted)]
    assert [re.findall(r'rect width="(\d+)"', str(original)) for original in drawn] == [["20"], ["10"]]
    assert "transparent" in str(drawn[0])


def test_avatars_without_node_are_left_out_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = write_avatars(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceUnreadable, match="no `node`: install it from https://nodejs.org"):
        list(originals(tmp_path, source_of("avatar-thumbs"), wanted))


# --- building --------------------------------------------------------------------------------------------------------


def test_a_build_gives_array_index_credits_and_summary(tmp_path: Path, packages: Path, records: list[Record]) -> None:
    out = tmp_path / "corpus"
    built = build(packages, out, with_fingerprints(packages, records), size=64)
    corpus = Corpus.open(out)
    assert corpus.rgba.shape == (4, 64, 64, 4)
    assert [record["row"] for record in corpus.records] == [0, 1, 2, 3]
    assert [record["id"] for record in corpus.records] == [record["id"] for record in records]
    assert corpus.records[0]["pkg"] == "@iconify-json/noto 1.2.9"
    assert corpus.records[2]["coverage"] == pytest.approx(np.pi / 4 * (60 / 64) ** 2, abs=0.01)
    assert corpus.records[2]["bbox"] == [2, 2, 62, 62]
    middle = [tuple(int(value) for value in corpus.rgba[row, 32, 32]) for row in range(4)]
    assert middle == [(0, 0, 0, 255), (0, 0, 255, 255), (0xE5, 0x39, 0x35, 255), (0, 0, 0, 255)]
    assert built.by_licence == {"permissive": 2, "by": 1, "pd": 1}
    assert built.by_source == {"noto": 2, "game-icons": 1, "openclipart": 1}
    assert (built.missing, built.changed, built.unreadable) == ((), (), {})
    assert json.loads((out / "summary.json").read_text())["pictures"] == 4
    credits = (out / "ATTRIBUTION.md").read_text()
    assert "| 1 | Game-icons: Lorc, Delapouite" in credits
    assert "Twemoji" not in credits
    assert sorted(path.name for path in out.iterdir()) == ["ATTRIBUTION.md", "index.jsonl", "rgba.npy", "summary.json"]


def test_several_processes_build_the_same(tmp_path: Path, packages: Path, records: list[Record]) -> None:
    build(packages, tmp_path / "one", records, size=32)
    build(packages, tmp_path / "two", records, size=32, processes=2)
    assert_same_corpus(tmp_path / "one", tmp_path / "two")


def assert_same_corpus(first: Path, second: Path) -> None:
    for name in ("rgba.npy", "index.jsonl", "ATTRIBUTION.md", "summary.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_missing_broken_and_changed_pictures_are_named(tmp_path: Path, packages: Path, records: list[Record]) -> None:
    records = with_fingerprints(packages, records)
    write_icons(packages, "noto", {"sun": DISC.replace("6", "5")})
    write_icons(packages, "game-icons", {"ball": "<unclosed"})
    built = build(packages, tmp_path / "corpus", records, size=32)
    assert built.changed == ("noto/sun",)
    assert built.missing == ("noto/moon", "game-icons/ball")
    assert [record["id"] for record in Corpus.open(tmp_path / "corpus").records] == ["noto/sun", "openclipart/old"]
    assert len(np.load(tmp_path / "corpus" / "rgba.npy")) == 2


def test_an_interrupted_build_goes_on_after_the_last_finished_source(
    tmp_path: Path, packages: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(packages, tmp_path / "whole", records, size=32)
    out = tmp_path / "interrupted"
    with monkeypatch.context() as patched:
        patched.setattr(building, "picture_of_svg", interrupting_at(2, building.picture_of_svg))
        with pytest.raises(KeyboardInterrupt):
            build(packages, out, records, size=32)
    assert not (out / "rgba.npy").exists()
    assert not (out / "index.jsonl").exists()
    with monkeypatch.context() as patched:
        patched.setattr(building, "picture_of_svg", interrupting_at(2, building.picture_of_svg))
        build(packages, out, records, size=32)  # two pictures are left: the two of noto are not drawn again
    assert_same_corpus(tmp_path / "whole", out)


def interrupting_at(count: int, draw: Any) -> Any:
    """`draw`, but Ctrl-C comes when `count` pictures are drawn."""
    left = iter(range(count))

    def drawing(text: str, size: int) -> Pixels | None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        picture: Pixels | None = draw(text, size)
        return picture

    return drawing


def test_a_source_that_cannot_be_read_is_left_out_and_added_later(
    tmp_path: Path, packages: Path, records: list[Record]
) -> None:
    build(packages, tmp_path / "whole", records, size=32)
    (package,) = source_of("game-icons").packages
    aside = package_root(packages, package).rename(tmp_path / "aside")
    built = build(packages, tmp_path / "corpus", records, size=32)
    assert built.pictures == 3
    assert "@iconify-json/game-icons 1.2.4 is not in" in built.unreadable["game-icons"]
    aside.rename(package_root(packages, package))
    build(packages, tmp_path / "corpus", records, size=32)
    assert_same_corpus(tmp_path / "whole", tmp_path / "corpus")


def test_a_build_of_nothing_says_why(tmp_path: Path, records: list[Record]) -> None:
    with pytest.raises(NothingBuilt, match="Not a single picture .* training.corpus fetch"):
        build(tmp_path / "none", tmp_path / "corpus", records)


def test_the_command_builds_and_tells_by_its_status_whether_all_is_there(
    tmp_path: Path, packages: Path, catalogue: list[Record], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    flags = of_sources(catalogue, ["circle-flags"])
    command = ["build", str(packages), str(tmp_path / "corpus"), "--size", "32", "--only", "circle-flags"]
    assert main([*command, "--at-most", "3"]) == 1
    assert "Not a single picture was made." in caplog.text
    write_icons(packages, "circle-flags", {record["path"]: DISC for record in spread(flags, 3)})
    assert main([*command, "--at-most", "3"]) == 0
    assert "3 pictures are not those that were looked at" in caplog.text
    assert main([*command, "--at-most", "4"]) == 1
    assert "3 pictures are not in their package" in caplog.text
    with pytest.raises(SystemExit):
        main([*command, "--size", "8"])


def test_a_selection_is_spread_evenly_and_keeps_the_order(catalogue: list[Record]) -> None:
    some = spread(catalogue, 1000)
    assert len(some) == 1000
    assert len({record["src"] for record in some}) > 35
    rows = {record["id"]: row for row, record in enumerate(catalogue)}
    assert [rows[record["id"]] for record in some] == sorted(rows[record["id"]] for record in some)
    assert spread(some, 5000) == some


# --- fetching --------------------------------------------------------------------------------------------------------

NOTO, TANGO, ARCADE = (source_of(name).packages[0] for name in ("noto", "tango", "kenney"))


class FakeNpm:
    """Stands in for npm and the registry behind it: a program on PATH that packs what is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        folder.mkdir()
        self.answer("echo npm error 404 Not Found - GET https://registry/noto >&2; exit 1")

    def answer(self, script: str) -> None:
        program = self.folder / "npm"
        program.write_text(f'#!/bin/sh\necho "$*" >> {self.calls}\n{script}\n')
        program.chmod(0o755)

    def publish(self, files: dict[str, bytes]) -> None:
        write_tar(self.folder / "package.tgz", {f"package/{name}": content for name, content in files.items()}, "gz")
        self.answer(f"cp {self.folder}/package.tgz .")


def write_tar(path: Path, files: dict[str, bytes], compression: str = "") -> None:
    with tarfile.open(path, f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNpm:
    fake = FakeNpm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:/bin:/usr/bin")
    return fake


def fetched(folder: Path, *wanted: Package) -> list[str]:
    return [str(failed or "") for _, failed in fetch(folder, wanted)]


def test_a_package_is_fetched_once_and_only_what_is_needed_is_kept(tmp_path: Path, npm: FakeNpm) -> None:
    npm.publish({"icons.json": b"{}", "index.js": b"run me", "../icons.json": b"outside"})
    folder = tmp_path / "packages"
    folder.mkdir()
    assert fetched(folder, NOTO) == [""]
    assert fetched(folder, NOTO) == [""]
    assert npm.calls.read_text().splitlines() == ["pack --ignore-scripts --silent @iconify-json/noto@1.2.9"]
    kept = sorted(path.name for path in package_root(folder, NOTO).iterdir())
    assert kept == [".version", "icons.json"]
    assert [path.name for path in folder.iterdir()] == ["node_modules"]


def test_another_version_and_a_half_unpacked_package_are_fetched_anew(tmp_path: Path, npm: FakeNpm) -> None:
    npm.publish({"icons.json": b"new"})
    for version in ("1.2.8", None):
        root = package_root(tmp_path, NOTO)
        root.mkdir(parents=True, exist_ok=True)
        (root / "icons.json").write_text("old")
        (root / ".version").unlink(missing_ok=True)
        if version:
            (root / ".version").write_text(version)
        assert not is_fetched(tmp_path, NOTO)
        assert fetched(tmp_path, NOTO) == [""]
        assert (root / "icons.json").read_text() == "new"


def test_a_failure_names_package_client_and_reason_and_the_others_go_on(tmp_path: Path, npm: FakeNpm) -> None:
    sentences = fetched(tmp_path, NOTO, source_of("fluent-emoji").packages[0])
    assert len(sentences) == 2
    assert "@iconify-json/noto 1.2.9: `npm pack" in sentences[0]
    assert "404 Not Found" in sentences[0]
    npm.publish({"README.md": b""})
    assert fetched(tmp_path, NOTO) == ["@iconify-json/noto 1.2.9 holds none of the files icons.json."]
    assert not is_fetched(tmp_path, NOTO)


def test_a_missing_client_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sentences = fetched(tmp_path, NOTO, TANGO)
    assert (
        sentences[0]
        == "@iconify-json/noto 1.2.9 needs npm, which is not here: install Node.js from https://nodejs.org."
    )
    assert sentences[1].startswith("tango-icon-theme 0.8.90-11 needs apt-get, which is not here: run this on Debian 12")


def test_the_fetch_command_fails_when_a_package_is_missing(tmp_path: Path, npm: FakeNpm) -> None:
    command = ["fetch", str(tmp_path / "packages"), "--only", "noto"]
    assert main(command) == 1
    npm.publish({"icons.json": b"{}"})
    assert main(command) == 0


def test_wheels_and_debian_packages_are_unpacked_to_their_pictures(tmp_path: Path) -> None:
    wheel = tmp_path / "arcade.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("arcade/resources/assets/images/items/star.png", b"star")
        archive.writestr("arcade/__init__.py", b"code")
    assert unpack(ARCADE, wheel, tmp_path / "wheel") == 1
    assert (tmp_path / "wheel/arcade/resources/assets/images/items/star.png").read_bytes() == b"star"
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    tree = tmp_path / "tree"
    icon = "usr/share/icons/Tango/scalable/apps/editor.svg"
    for path, content in {icon: b"<svg/>", "DEBIAN/control": CONTROL, "usr/share/doc/copyright": b""}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    subprocess.run(["dpkg-deb", "--build", tree, tmp_path / "a.deb"], check=True, capture_output=True)
    assert unpack(TANGO, tmp_path / "a.deb", tmp_path / "deb") == 1
    assert (tmp_path / "deb" / icon).read_bytes() == b"<svg/>"


CONTROL = b"Package: tango\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: none\n"


def test_a_real_package_of_the_registry_gives_the_pictures_of_the_catalogue(
    tmp_path: Path, catalogue: list[Record]
) -> None:
    (package,) = source_of("circle-flags").packages
    asked = ["npm", "view", f"{package.name}@{package.version}", "version", "--fetch-retries=0", "--fetch-timeout=9000"]
    if shutil.which("npm") is None or subprocess.run(asked, capture_output=True, cwd=tmp_path).returncode != 0:
        pytest.skip(f"{package} cannot be reached: no npm, or no registry")
    assert fetched(tmp_path, package) == [""]
    wanted = spread(of_sources(catalogue, ["circle-flags"]), 5)
    built = build(tmp_path, tmp_path / "corpus", wanted, size=64)
    assert built == Built(5, {"permissive": 5}, {"circle-flags": 5}, (), (), {})
    coverage = [record["coverage"] for record in Corpus.open(tmp_path / "corpus").records]
    assert coverage == pytest.approx([np.pi / 4 * (60 / 64) ** 2] * 5, abs=0.01)


# --- captions --------------------------------------------------------------------------------------------------------

APPLE: Record = {
    "name": "red apple",
    "caption": "a red apple",
    "alt_names": ["apple", "ripe apple", "never taken"],
    "tags": ["fruit", "food", "orchard"],
    "style_text": "flat icon",
    "colors": [["red", 0.6], ["green", 0.25], ["brown", 0.1]],
}


def test_captions_come_in_every_form_with_keywords_and_colours() -> None:
    captions = [caption_of(APPLE, np.random.default_rng(seed)) for seed in range(400)]
    wording = r"(a red apple|red apple|apple|ripe apple)"
    opening = r"(a picture|a drawing|an image|an icon) of"
    forms = {
        "plain": wording,
        "style after": f"{wording}, flat icon",
        "style of": f"a flat icon of {wording}",
        "style first": f"flat icon, {wording}",
        "picture of": f"{opening} {wording}",
    }
    assert set(forms) == set(FORMS)
    more = r"(, (fruit|food|orchard))*(, red and green)?"
    for form in forms.values():
        assert sum(re.fullmatch(form + more, caption) is not None for caption in captions) > 15, form
    assert all(re.fullmatch(f"({'|'.join(forms.values())}){more}", caption) for caption in captions)
    assert 20 < sum("red and green" in caption for caption in captions) < 120
    assert 50 < sum("orchard" in caption or "food" in caption for caption in captions) < 150


def test_captions_depend_on_the_generator_alone() -> None:
    first = [caption_of(APPLE, np.random.default_rng(7)) for _ in range(3)]
    assert len(set(first)) == 1
    random = np.random.default_rng(7)
    assert len({caption_of(APPLE, random) for _ in range(20)}) > 5


def test_a_style_is_not_told_twice() -> None:
    random = np.random.default_rng(0)
    for form in FORMS:
        assert in_form(form, "a red silhouette of an owl", "silhouette", random) == "a red silhouette of an owl"
    assert in_form("style of", "an owl", "emoji", random) == "an emoji of an owl"
    assert in_form("style of", "an owl", "clip art", random) == "clip art of an owl"


def test_every_record_has_captions(catalogue: list[Record]) -> None:
    for record in catalogue[::50]:
        caption = caption_of(record, np.random.default_rng(0))
        assert caption == caption.strip()
        assert caption


# --- scenes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    return Composer(Corpus.open(write_tiny_corpus(tmp_path_factory.mktemp("corpus"))))


def test_boxes_masks_and_classes_of_a_scene_agree(composer: Composer) -> None:
    counts = set()
    for seed in range(60):
        scene = composer.sample(np.random.default_rng(seed))
        assert (scene.image.shape, scene.image.dtype) == ((128, 128, 3), np.uint8)
        assert (scene.instance.shape, scene.semantic.shape) == ((128, 128), (128, 128))
        assert set(np.unique(scene.instance)) == set(range(len(scene.objects) + 1))
        assert scene.semantic.max() < len(SEMANTIC_CLASSES)
        assert scene.semantic[scene.instance == 0].max() < len(BACKDROP_CLASSES)
        for number, thing in enumerate(scene.objects, start=1):
            mask = scene.instance == number
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert thing.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert {SEMANTIC_CLASSES[index] for index in np.unique(scene.semantic[mask])} == {thing.category}
            assert thing.words in scene.caption
        assert scene.caption.endswith(scene.background)
        counts.add(len(scene.objects))
    assert counts == {1, 2, 3}


def test_words_of_place_are_true_of_the_boxes(composer: Composer) -> None:
    seen: Counter[str] = Counter()
    for seed in range(150):
        scene = composer.sample(np.random.default_rng(seed))
        for words, holds in PLACES.items():
            if f" {words} " in scene.caption:
                seen[words] += 1
                assert holds(scene), scene.caption
    assert set(seen) == set(PLACES)


def middle_of(scene: Any) -> float:
    left, _, right, _ = scene.objects[0].box
    return (left + right) / 2 / 128


PLACES = {
    "left of": lambda scene: is_beside(scene, first=0),
    "right of": lambda scene: is_beside(scene, first=1),
    "above": lambda scene: is_stacked(scene, first=0),
    "below": lambda scene: is_stacked(scene, first=1),
    "on the left": lambda scene: middle_of(scene) < 0.4,
    "on the right": lambda scene: middle_of(scene) > 0.6,
    "in the middle": lambda scene: 0.4 <= middle_of(scene) <= 0.6,
}


def is_beside(scene: Any, first: int) -> bool:
    """The caption begins with thing `first`, and thing 0 ends left of where thing 1 begins."""
    begins = scene.caption.startswith(scene.objects[first].words)
    return bool(begins and scene.objects[0].box[2] <= scene.objects[1].box[0])


def is_stacked(scene: Any, first: int) -> bool:
    begins = scene.caption.startswith(scene.objects[first].words)
    return bool(begins and scene.objects[0].box[3] <= scene.objects[1].box[1])


def test_a_scene_depends_on_the_generator_alone(composer: Composer) -> None:
    first, again = (composer.sample(np.random.default_rng(3)) for _ in range(2))
    assert first.caption == again.caption
    assert first.objects == again.objects
    assert (first.image == again.image).all()
    assert (composer.sample(np.random.default_rng(4)).image != first.image).any()


def test_scenes_show_only_pictures_of_their_splits(tmp_path: Path) -> None:
    corpus = Corpus.open(write_tiny_corpus(tmp_path))
    splits = {record["id"]: record["split"] for record in corpus.records}
    for wanted in (("train",), ("val", "test_combo")):
        composer = Composer(corpus, wanted)
        scenes = [composer.sample(np.random.default_rng(seed)) for seed in range(20)]
        assert {splits[thing.id] for scene in scenes for thing in scene.objects} <= set(wanted)


def test_a_corpus_without_fit_pictures_composes_nothing(tmp_path: Path) -> None:
    corpus = Corpus.open(write_tiny_corpus(tmp_path))
    composer = Composer(Corpus(corpus.rgba, [{**record, "mono": True} for record in corpus.records]))
    with pytest.raises(ValueError, match="No picture of the corpus is fit for scenes"):
        composer.sample(np.random.default_rng(0))


def painted_disc(colour: tuple[int, int, int]) -> Pixels:
    picture = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    ImageDraw.Draw(picture).ellipse((8, 8, 56, 56), fill=(*colour, 255))
    return np.asarray(picture)


def test_a_thing_of_one_bright_colour_can_have_another() -> None:
    red = painted_disc((230, 40, 40))
    blue, green = recoloured(red, "blue"), recoloured(red, "green")
    assert blue is not None
    assert green is not None
    assert blue[32, 32].argsort()[:3].tolist()[-1] == 2  # of red, green and blue, blue is the most
    assert green[32, 32, 1] > green[32, 32, [0, 2]].max()
    assert (blue[..., 3] == red[..., 3]).all()
    assert (blue[red[..., 3] == 0] == red[red[..., 3] == 0]).all()
    assert recoloured(painted_disc((120, 120, 120)), "blue") is None
    assert recoloured(painted_disc((90, 50, 20)), "orange") is None  # a dark orange would be brown


def test_turning_a_hue_by_nothing_changes_nothing() -> None:
    red = painted_disc((255, 0, 0))
    again = recoloured(red, "red")
    assert again is not None
    assert abs(again[red[..., 3] > 0].astype(int) - red[red[..., 3] > 0]).max() <= 20


def test_a_coloured_thing_has_the_right_article() -> None:
    assert coloured_words("an umbrella", "purple") == "a purple umbrella"
    assert coloured_words("a car", "orange") == "an orange car"
    assert coloured_words("scissors", "teal") == "teal scissors"
