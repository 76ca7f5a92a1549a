"""The dashboard and the alerts ask only for figures and labels that there are."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import promql
from tests.test_metrics import offered

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docker" / "grafana" / "dashboard.json").read_text())
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "docker" / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
OF_PROMETHEUS = {"up": set[str]()}
TARGET_LABELS = {"job", "instance"}
"""Which Prometheus adds to everything."""


def expressions() -> dict[str, str]:
    """Where it stands -> expression."""
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    table = re.findall(r"^\| [^|`]+ \| `([^`]+\(denoised_[^`]+)` \|$", page, flags=re.MULTILINE)
    return {
        **panels,
        **{rule["alert"]: rule["expr"] for rule in RULES},
        **{f"docs, query {number}": query for number, query in enumerate(table)},
    }


def check(expression: str) -> None:
    """Raises ValueError for what cannot be read, and for a figure or a label that nobody offers."""
    known = offered() | OF_PROMETHEUS
    uses = promql.read(expression)
    for figure, labels in uses.figures.items():
        if figure not in known:
            raise ValueError(f"there is no {figure}")
        if labels - known[figure] - TARGET_LABELS:
            raise ValueError(f"{figure} has no {labels - known[figure] - TARGET_LABELS}")
    of_all = set().union(*(known[figure] for figure in uses.figures))
    if uses.grouping - of_all - TARGET_LABELS:
        raise ValueError(f"nothing has {uses.grouping - of_all - TARGET_LABELS}")


@pytest.mark.parametrize("where", expressions())
def test_every_expression_asks_for_what_is_offered(where: str) -> None:
    check(expressions()[where])


def test_the_queries_of_the_documentation_are_among_them() -> None:
    assert sum(where.startswith("docs, ") for where in expressions()) >= 6


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("sum(denoised_qeued_jobs)", "there is no denoised_qeued_jobs"),
        ("rate(denoised_rows[5m])", "there is no denoised_rows"),
        ("sum by (le) (rate(denoised_step_seconds[5m]))", "there is no denoised_step_seconds"),
        ('denoised_queued_jobs{modell="a"}', "has no"),
        ("sum by (modell) (denoised_queued_jobs)", "nothing has"),
        ("summ(denoised_queued_jobs)", "summ is no function"),
        ("sum(denoised_queued_jobs", "is not closed"),
        ("sum denoised_queued_jobs)", "closes nothing"),
        ("rate(denoised_rows_total[5 minutes])", "cannot be read"),
        ("1 + 1", "no figure"),
    ],
)
def test_a_misspelt_expression_is_found(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check(expression)


# --- the dashboard ---------------------------------------------------------------------------------------------------


def test_the_dashboard_shows_what_an_operator_must_see() -> None:
    shown = set().union(
        *(promql.read(target["expr"]).figures for panel in DASHBOARD["panels"] for target in panel["targets"])
    )
    for name in offered():
        if not name.endswith(("_sum", "_count")):
            assert name in shown, f"no panel shows {name}"


def test_the_dashboard_can_be_imported_anywhere() -> None:
    panels = DASHBOARD["panels"]
    assert "id" not in DASHBOARD, "a number of one Grafana"
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    (figure, label) = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables["model"]["query"]["query"]).groups()  # type: ignore[union-attr]
    assert label in offered()[figure]
    for asked in (variables["model"], *panels, *(target for panel in panels for target in panel["targets"])):
        assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label in promql.read(target["expr"]).grouping, (panel["title"], label)
            assert set(re.findall(r"\$(?!__)(\w+)", target["expr"])) <= set(variables)


def test_no_panel_lies_on_another() -> None:
    cells = Counter(
        (column, row)
        for panel in DASHBOARD["panels"]
        for column in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for row in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    )
    assert set(cells.values()) == {1}
    assert max(column for column, _ in cells) < 24


# --- alerts ----------------------------------------------------------------------------------------------------------


def test_alerts_say_how_bad_it_is_and_the_documentation_what_to_do() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    described = re.findall(r"^\| `(Denoised\w+)` \| [^|]+ \| [^|]+ \|$", page, flags=re.MULTILINE)
    assert sorted(described) == sorted(rule["alert"] for rule in RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        summary = rule["annotations"]["summary"]
        grouping = promql.read(rule["expr"]).grouping
        for label in re.findall(r"\$labels\.(\w+)", summary):
            assert label in grouping, (rule["alert"], label)


def test_prometheus_reads_the_alerts_and_sends_a_key() -> None:
    config = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text())
    for name in config["rule_files"]:
        assert (ROOT / "docker" / "prometheus" / name).is_file()
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "denoised"
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert job["authorization"]["credentials_file"] in str(compose["services"]["prometheus"]["entrypoint"])
    assert job["dns_sd_configs"][0]["names"] == ["api"]
