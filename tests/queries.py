"""The PromQL queries of the alert rules and the dashboard, and the metrics and labels that they select."""

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
"""Labels that Prometheus adds when it scrapes."""

_VARIABLES: Final = {"$__rate_interval": "5m", "$namespace": ".*", "$job": ".*"}
_ALTERNATIVES: Final = re.compile(r"\w+(?:\|\w+)*")


@dataclass(frozen=True)
class Selector:
    """A metric that a query selects.

    Attributes:
        name: of the metric or of a recording rule.
        labels: that the metric must have.
        values: plain ones that a label is matched with, by label.
    """

    name: str
    labels: frozenset[str]
    values: Mapping[str, frozenset[str]]


def rules() -> list[dict[str, Any]]:
    """Return all rules, in their order."""
    loaded = yaml.safe_load((FOLDER / "rules.yaml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def recorded() -> dict[str, set[str]]:
    """Return the labels of the recorded series, which are before the first colon of the name, by name."""
    return {rule["record"]: set(rule["record"].split(":")[0].split("_")) for rule in rules() if "record" in rule}


def dashboard() -> dict[str, Any]:
    """Return Grafana's dashboard."""
    loaded: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return loaded


def queries() -> list[str]:
    """Return all queries, with the dashboard's variables replaced."""
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    found = [rule["expr"] for rule in rules()] + shown
    for variable, value in _VARIABLES.items():
        found = [query.replace(variable, value) for query in found]
    return found


def selectors(query: str) -> list[Selector]:
    """Return the metrics that a query selects.

    Raises:
        ValueError: it is not PromQL.
    """
    return list(_selectors(promql.parse(query), frozenset()))


def _selectors(node: promql.Expr, needed: frozenset[str]) -> Iterator[Selector]:
    match node:
        case promql.VectorSelector():
            yield _selector(node, needed)
        case promql.MatrixSelector():
            yield _selector(node.vector_selector, needed)
        case promql.AggregateExpr():
            yield from _selectors(node.expr, _grouping(node, needed))
        case promql.BinaryExpr():
            matching = node.modifier.matching if node.modifier is not None else None
            both = needed | frozenset(matching.labels if matching is not None else ())
            yield from _selectors(node.lhs, both)
            yield from _selectors(node.rhs, both)
        case promql.Call():
            for argument in node.args:
                yield from _selectors(argument, needed)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            yield from _selectors(node.expr, needed)
        case promql.NumberLiteral() | promql.StringLiteral():
            return
        case _:
            raise ValueError(f"{node} is a kind of expression that is not supported")


def _grouping(node: promql.AggregateExpr, needed: frozenset[str]) -> frozenset[str]:
    if node.modifier is None:
        return frozenset()
    named = frozenset(node.modifier.labels)
    return named if node.modifier.type == promql.AggModifierType.By else needed | named


def _selector(selector: promql.VectorSelector, needed: frozenset[str]) -> Selector:
    values: dict[str, frozenset[str]] = {}
    matchers: Sequence[promql.Matcher] = selector.matchers.matchers
    for matcher in matchers:
        if _ALTERNATIVES.fullmatch(matcher.value):
            values[matcher.name] = values.get(matcher.name, frozenset()) | frozenset(matcher.value.split("|"))
    if selector.name is None:
        raise ValueError(f"{selector} names no metric")
    return Selector(selector.name, needed | {matcher.name for matcher in matchers}, values)
