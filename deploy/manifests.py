"""Render every variant of the chart as plain YAML into `deploy/rendered`: `python -m deploy.manifests`.

Helm's own engine renders it, as a Python library; neither a cluster nor the Helm command is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from helm_python.chart import Chart

CHART: Final = Path(__file__).parent / "chart"
VARIANTS: Final = Path(__file__).parent / "variants"
RENDERED: Final = Path(__file__).parent / "rendered"

RELEASE: Final = "pomona"
NAMESPACE: Final = "vision"

_TESTS: Final = "/templates/tests/"


@dataclass(frozen=True, slots=True)
class Release:
    """What a chart is rendered as.

    Attributes:
        name: of the release.
        namespace: in which it is.
        chart: the folder.
    """

    name: str = RELEASE
    namespace: str = NAMESPACE
    chart: Path = CHART


def variants() -> dict[str, Path]:
    """Return the file of values of each variant, by name; that of NAME.SUFFIX is of another release beside NAME's."""
    return {path.stem: path for path in sorted(VARIANTS.glob("*.yaml"))}


def render(values: Mapping[str, Any], release: Release = Release(), *, tests: bool = False) -> str:
    """Render the chart.

    Args:
        values: override the chart's own.
        release: to render it as.
        tests: only what `helm test` runs, or all but that.

    Returns:
        A stream of YAML documents, each preceded by the name of its template, without the notes.

    Raises:
        HelmError: the values do not match the chart's schema, or a template fails.
    """
    parts = []
    for name, text in sorted(_templates(values, release).items()):
        body = "\n".join(line.rstrip() for line in text.strip().removeprefix("---").strip().splitlines())
        if body and not name.endswith(".txt") and (_TESTS in name) == tests:
            parts.append(f"---\n# Source: {name}\n{body}\n")
    return "".join(parts)


def notes(values: Mapping[str, Any]) -> str:
    """Return what `helm install` prints at its end; arguments and errors are those of `render`."""
    return _templates(values, Release())["pomona/templates/NOTES.txt"].strip()


def _templates(values: Mapping[str, Any], release: Release) -> dict[str, str]:
    with Chart.load(release.chart) as chart:
        return dict(chart.render(dict(values), name=release.name, namespace=release.namespace))


def rendered(variant: Path) -> str:
    """Return the manifests of a variant, see `render`."""
    _, _, suffix = variant.stem.partition(".")
    release = Release(f"{RELEASE}-{suffix}" if suffix else RELEASE)
    return render(yaml.safe_load(variant.read_text()), release)


def main() -> None:
    """Write the manifests of all variants."""
    RENDERED.mkdir(exist_ok=True)
    for name, path in variants().items():
        target = RENDERED / f"{name}.yaml"
        target.write_text(rendered(path))
        sys.stdout.write(f"{target.relative_to(Path.cwd())}\n")


if __name__ == "__main__":
    main()
