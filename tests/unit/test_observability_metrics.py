"""Exposed metrics are documented, pass promtool, and are those that rules and dashboard query."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, get_args

import pytest

from models.drift import STATISTICS
from service.errors import PROBLEMS
from service.observability.observer import CacheEvent, CaptureResult, Outcome, SessionEvent, Stage
from tests.exposition import documented, expose_everything, families, series
from tests.queries import FOLDER, TARGET, dashboard, queries, recorded, rules, selectors

ROOT: Final = Path(__file__).parents[2]

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")

KNOWN: Final = {
    "outcome": set(get_args(Outcome)),
    "event": {*get_args(CacheEvent), *get_args(SessionEvent)},
    "stage": set(get_args(Stage)),
    "result": {"met", "missed", *get_args(CaptureResult)},
    "statistic": set(STATISTICS),
    "code": {problem.code for problem in PROBLEMS.values()},
}


def promtool(*arguments: str, text: str | None = None) -> str:
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_documentation_lists_every_metric_as_it_is_exposed() -> None:
    assert documented() == families(expose_everything())


@needs_promtool
def test_promtool_finds_no_fault_in_the_metrics() -> None:
    ours = "".join(
        line for line in expose_everything().splitlines(keepends=True) if "pomona_" in line and "_created" not in line
    )
    assert promtool("check", "metrics", text=ours) == ""


@pytest.mark.parametrize("query", queries())
def test_queries_select_metrics_and_labels_that_are_exposed(query: str) -> None:
    exposed = series(expose_everything()) | recorded()
    for metric in selectors(query):
        assert metric.name in exposed, f"{metric.name} is not exposed"
        assert metric.labels <= exposed[metric.name] | TARGET, f"{metric.name} has no such labels"
        for label, values in metric.values.items():
            assert values <= KNOWN.get(label, values), f"{label} is never any of {values}"


def test_the_labels_and_values_of_a_query_are_found() -> None:
    (metric,) = selectors('sum by (endpoint) (rate(pomona_orders_total{outcome=~"ok|eaten", code!=""}[5m]))')
    assert metric.name == "pomona_orders_total"
    assert metric.labels == {"endpoint", "outcome", "code"}
    assert metric.values == {"outcome": {"ok", "eaten"}}
    with pytest.raises(ValueError, match="unclosed"):
        selectors("sum by (job) (rate(pomona_requests_total[5m])")


def test_every_recording_rule_is_used_and_named_by_its_labels() -> None:
    used = {metric.name for query in queries() for metric in selectors(query)}
    assert set(recorded()) <= used
    for rule in rules():
        if "record" in rule and "namespace_job" not in rule["expr"]:
            labels = set.union(*(set(metric.labels) for metric in selectors(rule["expr"])))
            assert recorded()[rule["record"]] <= labels


def test_every_metric_is_shown_on_the_dashboard() -> None:
    used = {metric.name for query in queries() for metric in selectors(query)}
    shown = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in used}
    assert {name for name in documented() if name not in shown} == set()


def test_panels_of_the_dashboard_have_unique_titles_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for grid in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


@needs_promtool
def test_the_rules_pass_their_own_tests() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(FOLDER / "rules_test.yaml"))
    promtool("check", "config", str(FOLDER / "prometheus.yaml"))


def test_every_alert_is_tested_to_fire() -> None:
    tested = (FOLDER / "rules_test.yaml").read_text()
    for rule in rules():
        if "alert" in rule:
            assert f"alertname: {rule['alert']}\n" in tested, f"{rule['alert']} is never expected to fire"
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert set(rule["annotations"]) == {"summary", "description"}


def test_the_gauges_of_a_dead_worker_are_dropped_and_its_counters_stay(tmp_path: Path) -> None:
    work = (
        "from service.observability.metrics import PrometheusObserver, exposition\n"
        "observer = PrometheusObserver()\n"
        "observer.readiness_changed(ready=True)\n"
        "observer.problem_answered('overloaded')\n"
        "print(exposition().decode())\n"
    )
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", work], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert [re.findall(r"^pomona_ready_workers (\S+)$", text, re.MULTILINE) for text in outputs] == [["1.0"]] * 2
    assert 'pomona_problems_total{code="overloaded"} 2.0' in outputs[1]
