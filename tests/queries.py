"""The queries of the alert rules and of the dashboard, and what they ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import promql_parser as promql
import yaml

FOLDER: Final = Path(__file__).parents[1] / "deploy" / "observability"
TARGET: Final = frozenset({"namespace", "job", "instance"})
"""Labels that Prometheus adds to what it scrapes."""

_VARIABLES: Final = {"$__rate_interval": "5m", "$namespace": ".*", "$job": ".*"}
_ALTERNATIVES: Final = re.compile(r"\w+(?:\|\w+)*")


@dataclass(frozen=True)
class Asked:
    """A metric that a query asks for.

    Attributes:
        name: of the metric or of a recording rule.
        labels: that must be there.
        values: plain ones that are compared with, by label.
    """

    name: str
    labels: frozenset[str]
    values: Mapping[str, frozenset[str]]


def rules() -> list[dict[str, Any]]:
    """All rules, in their order."""
    told = yaml.safe_load((FOLDER / "rules.yaml").read_text())
    return [rule for group in told["groups"] for rule in group["rules"]]


def recorded() -> dict[str, set[str]]:
    """Labels of what the recording rules make, by name; these are named before the first colon."""
    return {rule["record"]: set(rule["record"].split(":")[0].split("_")) for rule in rules() if "record" in rule}


def dashboard() -> dict[str, Any]:
    """Grafana's."""
    told: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return told


def queries() -> list[str]:
    """All of them, the variables of the dashboard's filled in."""
    of_panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    asked = [rule["expr"] for rule in rules()] + of_panels
    for variable, value in _VARIABLES.items():
        asked = [query.replace(variable, value) for query in asked]
    return asked


def asked(query: str) -> list[Asked]:
    """What a query asks for.

    Raises:
        ValueError: it is no PromQL.
    """
    return list(_asked(promql.parse(query), frozenset()))


def _asked(node: promql.Expr, needed: frozenset[str]) -> Iterator[Asked]:
    match node:
        case promql.VectorSelector():
            yield _selected(node, needed)
        case promql.MatrixSelector():
            yield _selected(node.vector_selector, needed)
        case promql.AggregateExpr():
            yield from _asked(node.expr, _grouping(node, needed))
        case promql.BinaryExpr():
            matching = node.modifier.matching if node.modifier is not None else None
            both = needed | frozenset(matching.labels if matching is not None else ())
            yield from _asked(node.lhs, both)
            yield from _asked(node.rhs, both)
        case promql.Call():
            for argument in node.args:
                yield from _asked(argument, needed)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            yield from _asked(node.expr, needed)
        case promql.NumberLiteral() | promql.StringLiteral():
            return
        case _:
            raise ValueError(f"{node} is not understood here")


def _grouping(node: promql.AggregateExpr, needed: frozenset[str]) -> frozenset[str]:
    if node.modifier is None:
        return frozenset()
    named = frozenset(node.modifier.labels)
    return named if node.modifier.type == promql.AggModifierType.By else needed | named


def _selected(selector: promql.VectorSelector, needed: frozenset[str]) -> Asked:
    values: dict[str, frozenset[str]] = {}
    matchers: Sequence[promql.Matcher] = selector.matchers.matchers
    for matcher in matchers:
        if _ALTERNATIVES.fullmatch(matcher.value):
            values[matcher.name] = values.get(matcher.name, frozenset()) | frozenset(matcher.value.split("|"))
    if selector.name is None:
        raise ValueError(f"{selector} names no metric")
    return Asked(selector.name, needed | {matcher.name for matcher in matchers}, values)
