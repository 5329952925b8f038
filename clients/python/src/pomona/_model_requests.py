"""Requests that change the models of a service, for callers whose API key has the scope `admin`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from pomona import _checks as checks
from pomona._reading import read_value
from pomona._requests import Request
from pomona.revisions import Revision, ShadowReport


@dataclass(frozen=True)
class LoadModel(Request[Revision]):
    """A new revision beside the one that answers; see `Client.load_model`.

    Raises:
        InvalidArgument: an argument is of another type or value.
    """

    operation = "models/load"
    needs_image = False
    posts = True

    model: str
    file: str
    _: KW_ONLY
    sha256: str | None = None
    architecture: str | None = None
    promote: bool = False
    shadow: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.text(self.file, "file")
        checks.flag(self.promote, "promote")
        object.__setattr__(self, "shadow", checks.number(self.shadow, "shadow", low=0, high=1))

    def parse(self, body: Mapping[str, Any]) -> Revision:
        """Read the result."""
        return read_value(Revision, body["revision"])


@dataclass(frozen=True)
class PromoteModel(Request[Revision]):
    """A loaded revision answers from the next request on; see `Client.promote_model`.

    Raises:
        InvalidArgument: an argument is no text.
    """

    operation = "models/promote"
    needs_image = False
    posts = True

    model: str
    revision: str

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.text(self.revision, "revision")

    def parse(self, body: Mapping[str, Any]) -> Revision:
        """Read the result."""
        return read_value(Revision, body["revision"])


@dataclass(frozen=True)
class UnloadModel(Request[int]):
    """A revision that does not answer any more is given up; see `Client.unload_model`.

    Raises:
        InvalidArgument: an argument is no text.
    """

    operation = "models/unload"
    needs_image = False
    posts = True
    idempotent = False  # the revision would be unknown then

    model: str
    revision: str

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.text(self.revision, "revision")

    def parse(self, body: Mapping[str, Any]) -> int:
        """Read the result."""
        return int(body["freed_mib"])


@dataclass(frozen=True)
class ReportShadows(Request["tuple[ShadowReport, ...]"]):
    """How the answers of revisions differ; see `Client.shadows`."""

    operation = "shadow"
    needs_image = False

    def parse(self, body: Mapping[str, Any]) -> tuple[ShadowReport, ...]:
        """Read the result."""
        return tuple(read_value(ShadowReport, each) for each in body["shadows"])
