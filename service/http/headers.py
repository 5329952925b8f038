"""What a caller says of time and importance in headers."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers

from service import callers
from service.messages import When

DEADLINE: Final = "x-deadline-ms"


def when_of(headers: Headers, arrived: float) -> When:
    """Read `X-Deadline-Ms` and `Priority`; see `service.callers.when_of`.

    Args:
        headers: of the request.
        arrived: when the request came, seconds of `time.monotonic`.

    Raises:
        MalformedRequest: the deadline is not a number of milliseconds above 0.
    """
    return callers.when_of(headers.get(DEADLINE), headers.get("priority", ""), arrived)
