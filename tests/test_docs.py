"""The documentation says what the program does: settings, routes, error codes, options, links."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from app.cli.options import parser
from app.errors import ERRORS
from app.main import create_app
from app.schemas import JobDocument
from app.settings import ApiSettings
from models.errors import JOB_ERROR_CODES
from workers.settings import WorkerSettings

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("app", "workers", "models", "bench", "docs", "docker", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*/*/*.md")])


def headings(page: str) -> set[str]:
    """Every heading of a page of docs/, without its marks."""
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / page).read_text("utf-8"), flags=re.DOTALL)
    return {re.sub(r"[`*]", "", line.lstrip("# ")).strip() for line in text.splitlines() if line.startswith("#")}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_page_is_what_the_settings_classes_say(generator: ModuleType) -> None:
    written = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert written == generator.settings_page(), "run: python docs/generate.py"


@pytest.mark.parametrize("settings", [ApiSettings, WorkerSettings])
def test_every_setting_has_its_heading_and_tells_how_to_choose(settings: type, generator: ModuleType) -> None:
    known = headings("settings.md")
    for name, field in settings.model_fields.items():
        assert generator.variable(name) in known
        assert field.description, f"{name} has no description"


def test_every_field_of_a_job_has_its_row() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    section = page.partition("### The job document")[2].partition("\n### ")[0]
    first_cells = re.findall(r"^\| ([^|]*)\|", section, re.MULTILINE)
    rows = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert rows == set(JobDocument.model_fields)


def test_every_route_has_its_heading() -> None:
    known = headings("api.md")
    paths = create_app(ApiSettings()).openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    assert len(routes) > 8
    assert routes - known == set()


def test_every_error_code_has_its_heading() -> None:
    assert {*ERRORS, *JOB_ERROR_CODES} - headings("errors.md") == set()


def test_every_option_of_the_command_line_has_a_help_text() -> None:
    seen = 0
    for path, command in commands(parser()):
        assert command.description, f"{path} has no description"
        for action in command._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            assert action.help, f"{path} {'/'.join(action.option_strings) or action.dest} has no help"
            seen += action.help != argparse.SUPPRESS
    assert seen > 30


def test_every_command_is_on_the_command_line_page() -> None:
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for path, _ in commands(parser()):
        assert path in text, f"docs/cli.md says nothing of {path}"


def commands(command: argparse.ArgumentParser, path: str = "denoised") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield path, command
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from commands(child, f"{path} {name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_local_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_every_page_that_is_named_anywhere_is_there() -> None:
    files = [*PAGES, *(path for room in ROOMS for path in (ROOT / room).rglob("*.py")), *ROOT.glob("*.toml")]
    named = {
        (name, path.relative_to(ROOT))
        for path in files
        for name in re.findall(r"\bdocs/\w+\.md", path.read_text("utf-8"))
    }
    assert len(named) > 10
    assert {(name, str(path)) for name, path in named if not (ROOT / name).exists()} == set()


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, f"docs/README.md does not name {page.name}"
