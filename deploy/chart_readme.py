"""Write the chart's README from its values and their comments: `python -m deploy.chart_readme` (`make manifests`).

A comment beside a value is its description, and may go on below itself. Comments above a group of values introduce it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import yaml

from deploy.manifests import CHART

PAGE: Final = CHART / "README.md"

_INTRODUCTION: Final = """\
# The chart `pomona`

{description} Chart {version}, for Kubernetes {kubernetes} and newer.

```console
$ helm install pomona deploy/chart --namespace vision --set image.repository=registry.example.com/vision/pomona \\
    --set access.keysSecret=pomona-keys
$ helm test pomona --namespace vision --logs
```

How to deploy, scale, route and update: `docs/kubernetes.md`. What changed between versions of the chart, and what to do
about it: `CHANGELOG.md` here. Values for lines with 1, 8 and 40 cameras: `examples`.

This page is generated from `values.yaml` by `make manifests`.
"""


@dataclass(frozen=True, slots=True)
class Value:
    """A value that may be set.

    Attributes:
        path: its keys, joined by dots.
        default: as YAML on one line.
        description: what it decides.
    """

    path: str
    default: str
    description: str


@dataclass(frozen=True, slots=True)
class Group:
    """A key of the top level, or several without values below them.

    Attributes:
        title: the key; empty where there are several.
        introduction: the comment above it.
        values: in the file's order.
    """

    title: str
    introduction: str
    values: tuple[Value, ...]


def read(text: str) -> list[Group]:
    """Return the groups of a file of values, in its order."""
    lines = text.splitlines()
    root = yaml.compose(text, yaml.SafeLoader)
    groups: list[Group] = []
    for key, node in root.value if isinstance(root, yaml.MappingNode) else ():
        found = tuple(_values(key, node, (), lines))
        introduction = _above(key, lines)
        if found[0].path != key.value:
            groups.append(Group(key.value, introduction, found))
        elif groups and not groups[-1].title and not introduction:
            groups[-1] = Group("", groups[-1].introduction, groups[-1].values + found)
        else:
            groups.append(Group("", introduction, found))
    return groups


def _values(key: yaml.Node, node: yaml.Node, parents: tuple[str, ...], lines: list[str]) -> Iterator[Value]:
    path = (*parents, key.value)
    description = _beside(key, node, lines)
    if isinstance(node, yaml.MappingNode) and not node.flow_style and not description:
        for inner, below in node.value:
            yield from _values(inner, below, path, lines)
        return
    yield Value(".".join(path), _on_one_line(node), description)


def _on_one_line(node: yaml.Node) -> str:
    def plain(inner: yaml.Node) -> object:
        if isinstance(inner, yaml.MappingNode):
            return {key.value: plain(value) for key, value in inner.value}
        if isinstance(inner, yaml.SequenceNode):
            return [plain(item) for item in inner.value]
        return yaml.safe_load(yaml.serialize(inner))

    text = yaml.safe_dump(plain(node), default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _beside(key: yaml.Node, node: yaml.Node, lines: list[str]) -> str:
    """Return the comment at the end of a value's first line (its key's, for lists below it), and how it goes on."""
    several = node.end_mark.line > node.start_mark.line and not isinstance(node, yaml.ScalarNode)
    mark = key.end_mark if several or node.start_mark.line > key.start_mark.line else node.end_mark
    found = re.search(r"(?:^|\s)#\s?(.*)$", lines[mark.line][mark.column :])
    if found is None:
        return ""
    column = lines[mark.line].index("#", mark.column)
    parts = [found[1]]
    for line in lines[mark.line + 1 :]:
        if line.find("#") != column or line[:column].strip():
            break
        parts.append(line[column + 1 :].strip())
    return " ".join(parts)


def _above(key: yaml.Node, lines: list[str]) -> str:
    parts: list[str] = []
    for line in reversed(lines[: key.start_mark.line]):
        if not line.startswith("#"):
            break
        parts.insert(0, line[1:].strip())
    return " ".join(parts)


def render() -> str:
    """Return the page's Markdown."""
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    kubernetes = about["kubeVersion"].removeprefix(">=").removesuffix(".0-0")
    parts = [_INTRODUCTION.format(description=about["description"], version=about["version"], kubernetes=kubernetes)]
    for group in read((CHART / "values.yaml").read_text()):
        title = f"`{group.title}`" if group.title else ", ".join(f"`{value.path}`" for value in group.values[:3])
        parts.append(f"## {title}{', …' if not group.title and len(group.values) > 3 else ''}\n")
        if group.introduction:
            parts.append(f"{group.introduction}\n")
        parts.append("| value | default | |\n|---|---|---|")
        parts += [f"| `{value.path}` | `{value.default}` | {_cell(value.description)} |" for value in group.values]
        parts.append("")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), "utf-8")
    sys.stdout.write("deploy/chart/README.md\n")


if __name__ == "__main__":
    main()
