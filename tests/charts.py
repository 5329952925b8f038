"""The chart rendered for tests: its objects by kind and name, with or without what is live on a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.manifests import CHART, Release, render

Object = dict[str, Any]

ANYBODY: Final = {"access": {"anonymous": True}}

_FROM_VALUES: Final = """\
{{- define "pomona.live" -}}
{{- $live := dig "live" dict (.root.Values.global | default dict) -}}
{{ get $live (printf "%s/%s" .kind .name) | default dict | toJson }}
{{- end }}
"""
"""Instead of templates/_live.tpl: Helm's `lookup` answers nothing where there is no cluster."""


class Rendered:
    """The objects of one rendering.

    Args:
        text: a stream of YAML documents.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._objects: list[Object] = list(yaml.load_all(text, Loader=yaml.CSafeLoader))

    def __iter__(self) -> Iterator[Object]:
        return iter(self._objects)

    def all(self, kind: str) -> dict[str, Object]:
        """Return the objects of a kind by name."""
        return {each["metadata"]["name"]: each for each in self._objects if each["kind"] == kind}

    def one(self, kind: str, name: str | None = None) -> Object:
        """Return the only object of a kind, or the one of that name."""
        found = self.all(kind)
        if name is not None:
            return found[name]
        (only,) = found.values()
        return only

    def pod(self, name: str | None = None) -> Object:
        """Return the pod's specification of a Deployment."""
        specification: Object = self.one("Deployment", name)["spec"]["template"]["spec"]
        return specification

    def server(self, name: str | None = None) -> Object:
        """Return the server's container of a Deployment."""
        (container,) = [each for each in self.pod(name)["containers"] if each["name"] == "pomona"]
        return dict(container)


def chart(values: Mapping[str, Any] | None = None, *, release: str = "pomona", tests: bool = False) -> Rendered:
    """Render the chart for callers without keys."""
    return Rendered(render({**ANYBODY, **(values or {})}, Release(release), tests=tests))


def environment(container: Object) -> dict[str, str]:
    """Return a container's variables that have a value of their own."""
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


class LiveChart:
    """The chart as an upgrade renders it, on a cluster that already has objects.

    Args:
        folder: for a copy of the chart.
    """

    def __init__(self, folder: Path) -> None:
        self._chart = folder / "pomona"
        shutil.copytree(CHART, self._chart)
        (self._chart / "templates" / "_live.tpl").write_text(_FROM_VALUES)

    def __call__(self, values: Mapping[str, Any], *live: Object) -> Rendered:
        """Render.

        Args:
            values: override the chart's own.
            live: objects of the release's namespace.
        """
        known = {f"{each['kind']}/{each['metadata']['name']}": each for each in live}
        return Rendered(render({**ANYBODY, **values, "global": {"live": known}}, Release(chart=self._chart)))
