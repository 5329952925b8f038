"""The chart as plain YAML: `python -m deploy.manifests` renders every variant into `deploy/rendered/`.

Helm's own engine renders it, from a wheel that holds it as a library; no cluster and no Helm command is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from helm_python.chart import Chart

CHART: Final = Path(__file__).parent / "chart"
VARIANTS: Final = Path(__file__).parent / "variants"
RENDERED: Final = Path(__file__).parent / "rendered"

_RELEASE: Final = "pomona"
_NAMESPACE: Final = "vision"


def variants() -> dict[str, Path]:
    """Files of values by the variant's name."""
    return {path.stem: path for path in sorted(VARIANTS.glob("*.yaml"))}


def render(values: Mapping[str, Any]) -> str:
    """Render the chart.

    Args:
        values: laid over the chart's own.

    Returns:
        a stream of YAML documents, each after the name of its template; without the notes.

    Raises:
        HelmError: the values do not fit the chart's schema, or a template fails.
    """
    with Chart.load(CHART) as chart:
        templates = chart.render(dict(values), name=_RELEASE, namespace=_NAMESPACE)
    parts = []
    for name, text in sorted(templates.items()):
        body = "\n".join(line.rstrip() for line in text.strip().removeprefix("---").strip().splitlines())
        if body and not name.endswith(".txt"):
            parts.append(f"---\n# Source: {name}\n{body}\n")
    return "".join(parts)


def notes(values: Mapping[str, Any]) -> str:
    """What `helm install` says at its end; arguments and errors are those of `render`."""
    with Chart.load(CHART) as chart:
        templates = chart.render(dict(values), name=_RELEASE, namespace=_NAMESPACE)
    return templates["pomona/templates/NOTES.txt"].strip()


def rendered(variant: Path) -> str:
    """A variant's manifests, see `render`."""
    return render(yaml.safe_load(variant.read_text()))


def main() -> None:
    """Write all variants."""
    RENDERED.mkdir(exist_ok=True)
    for name, path in variants().items():
        target = RENDERED / f"{name}.yaml"
        target.write_text(rendered(path))
        sys.stdout.write(f"{target.relative_to(Path.cwd())}\n")


if __name__ == "__main__":
    main()
