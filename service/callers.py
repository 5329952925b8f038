"""What every door does alike: how a caller names a request and says until when, and how it is told what went wrong."""

from __future__ import annotations

import math
import re
import time
import uuid
from typing import Final

from models.errors import PomonaError
from service.errors import MalformedRequest, Overloaded, Problem, problem_of
from service.messages import When
from service.observability.observer import Outcome
from service.work import DEFAULT_URGENCY

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_URGENCY: Final = re.compile(r"(?:^|,)\s*u\s*=\s*([0-7])\s*(?:[,;]|$)")
_MAX_DETAIL: Final = 600
_MAX_DEADLINE_MS: Final = 3_600_000


CLIENT_CLOSED: Final = 499
"""nginx's status for a caller who left; nobody reads it but the log."""


class Refusal(Exception):
    """An error as a caller is told it.

    Attributes:
        problem: its row of the table.
        detail: what was wrong and what would be right; nothing of what only concerns the server.
        retry_after: whole seconds after which the same request may succeed, or None.
    """

    def __init__(self, problem: Problem, detail: str, retry_after: int | None) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail
        self.retry_after = retry_after


def refusal_of(error: PomonaError) -> Refusal:
    """How a caller is told of an error."""
    row = problem_of(error)
    if row.status == 500:
        detail = "Something failed on the server; its log has the request id."
    else:
        detail = _shortened(error.detail)
    seconds: float | None = error.retry_after if isinstance(error, Overloaded) else row.retry_after
    return Refusal(row, detail, None if seconds is None else max(1, math.ceil(seconds)))


def outcome_of(status: int) -> Outcome:
    """What an answer of this HTTP status is called in the metrics."""
    if status < 400:
        return "ok"
    if status == CLIENT_CLOSED:
        return "gone"
    if status in (429, 504):
        return "shed"
    return "refused" if status < 500 else "failed"


def request_id_of(asked: str) -> str:
    """The caller's own where it is a plain token, else a new one."""
    return asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex


def when_of(deadline: str | None, priority: str, arrived: float) -> When:
    """Read `X-Deadline-Ms` (milliseconds from arrival) and `Priority` (RFC 9218, of which the urgency is used).

    A priority that cannot be read is as if it were absent, as the RFC asks (section 4); a deadline that cannot be read
    is refused, as ignoring it would make answers late.

    Args:
        deadline: as the caller wrote it, or None.
        priority: as the caller wrote it.
        arrived: when the request came, seconds of `time.monotonic`.

    Raises:
        MalformedRequest: the deadline is not a number of milliseconds above 0.
    """
    urgency = _URGENCY.search(priority)
    within = None
    if deadline is not None:
        try:
            milliseconds = float(deadline)
        except ValueError:
            milliseconds = 0.0
        within = seconds_left(milliseconds, arrived, said=f"X-Deadline-Ms is {deadline!r}")
    return When(within, int(urgency[1]) if urgency else DEFAULT_URGENCY)


def seconds_left(milliseconds: float, arrived: float, *, said: str) -> float:
    """Seconds that are left until a deadline.

    Args:
        milliseconds: from the request's arrival.
        arrived: when that was, seconds of `time.monotonic`.
        said: how the caller put it.

    Raises:
        MalformedRequest: it is not above 0, or too far away.
    """
    if not 0 < milliseconds <= _MAX_DEADLINE_MS:
        raise MalformedRequest(
            f"{said}; milliseconds from the request's arrival, above 0 and at most {_MAX_DEADLINE_MS}, would be right."
        )
    return milliseconds / 1000 - (time.monotonic() - arrived)


def _shortened(detail: str) -> str:
    """A detail may quote what the caller sent, which may be of any length."""
    return detail if len(detail) <= _MAX_DETAIL else detail[: _MAX_DETAIL - 1] + "…"
