"""What became of each request, and the lines in which a run keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

_REFUSALS: Final = frozenset({429, 503, 504})


class Kind(StrEnum):
    """Which user asked, and for what."""

    FRAME = "frame"
    EMBED = "embed"
    CLICK = "click"
    BATCH = "batch image"


class Outcome(StrEnum):
    """How a request ended."""

    IN_TIME = "in time"
    """Answered within its deadline, or without having one."""
    LATE = "late"
    """Answered after its deadline."""
    REFUSED = "refused"
    """The service said in good order that it will not answer: 429, 503 or 504 with a problem code."""
    FAILED = "failed"
    """Anything else: another status, no answer, cut off."""
    SKIPPED = "skipped"
    """Never sent: as many frames as the camera allows were in flight."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request.

    Attributes:
        kind: what it was.
        step: number of the step in which it fell due; None in a pause.
        outcome: how it ended.
        seconds: from when it was due to its end; 0 for a skipped frame.
        lag_s: from when it was due to when it was sent: what the load generator itself was late.
        code: of the problem, or what else went wrong; empty where nothing did.
    """

    kind: Kind
    step: int | None
    outcome: Outcome
    seconds: float
    lag_s: float = 0.0
    code: str = ""

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def parse(cls, line: str) -> Record:
        """Read what `line` wrote."""
        fields = json.loads(line)
        return cls(**fields | {"kind": Kind(fields["kind"]), "outcome": Outcome(fields["outcome"])})


def judge(status: int, code: str, seconds: float, deadline_s: float | None) -> Outcome:
    """Tell how a request ended.

    Args:
        status: of the answer; 0 where none came.
        code: of the problem in the answer; empty where it has none.
        seconds: from when the request was due to its answer.
        deadline_s: seconds from when it was due to its deadline, where it has one.
    """
    if status == 200:
        return Outcome.LATE if deadline_s is not None and seconds > deadline_s else Outcome.IN_TIME
    return Outcome.REFUSED if status in _REFUSALS and code else Outcome.FAILED
