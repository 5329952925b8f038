"""What a caller says of time and importance in headers."""

from __future__ import annotations

import re
import time
from typing import Final

from starlette.datastructures import Headers

from service.errors import MalformedRequest
from service.messages import When
from service.work import DEFAULT_URGENCY

DEADLINE: Final = "x-deadline-ms"
_MAX_DEADLINE_MS: Final = 3_600_000
_URGENCY: Final = re.compile(r"(?:^|,)\s*u\s*=\s*([0-7])\s*(?:[,;]|$)")


def when_of(headers: Headers, arrived: float) -> When:
    """Read `X-Deadline-Ms` (milliseconds from arrival) and `Priority` (RFC 9218, of which the urgency is used).

    A priority that cannot be read is as if it were absent, as the RFC asks (section 4); a deadline that cannot be read
    is refused, as ignoring it would make answers late.

    Args:
        headers: of the request.
        arrived: when the request came, seconds of `time.monotonic`.

    Raises:
        MalformedRequest: the deadline is not a number of milliseconds above 0.
    """
    urgency = _URGENCY.search(headers.get("priority", ""))
    return When(_within(headers.get(DEADLINE), arrived), int(urgency[1]) if urgency else DEFAULT_URGENCY)


def _within(text: str | None, arrived: float) -> float | None:
    """Seconds that are left until the deadline."""
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 0 < milliseconds <= _MAX_DEADLINE_MS:
        raise MalformedRequest(
            f"X-Deadline-Ms is {text!r}; milliseconds from the request's arrival, above 0 and at most "
            f"{_MAX_DEADLINE_MS}, would be right."
        )
    return milliseconds / 1000 - (time.monotonic() - arrived)
