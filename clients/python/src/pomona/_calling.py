"""What the sync client and the async one share: how calls and streams are begun, whichever way they wait."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable
from types import ModuleType
from typing import Any, Final

from pomona import _checks as checks
from pomona._requests import Inspect, Request
from pomona.errors import FrameDropped, InvalidArgument, MissingPackage
from pomona.retries import Plan, Retry, RetryBudget, Timeout, to_timeout
from pomona.streams import StreamOptions, TakenFrame
from pomona.transports import split_url

DEFAULT_URL: Final = "http://localhost:3000"


class BaseClient:
    """What both clients know of how calls are made."""

    def __init__(self, timeout: Timeout | float | None, retry: Retry | None) -> None:
        self._timeout = to_timeout(timeout)
        if retry is not None and not isinstance(retry, Retry):
            raise InvalidArgument(f"retry must be a Retry, as NO_RETRY, got {checks.shown(retry)}.")
        self._retry = retry or Retry()
        self._budget = RetryBudget(self._retry)

    def _plan(self, deadline: float | None, urgency: int | None, request_id: str | None) -> Plan:
        return Plan(
            timeout=self._timeout,
            retry=self._retry,
            budget=self._budget,
            deadline=deadline,
            urgency=urgency,
            request_id=uuid.uuid4().hex if request_id is None else request_id,
        )

    def _frame_plan(self, taken: TakenFrame, options: StreamOptions, urgency: int | None) -> Plan:
        return self._plan(taken.time_left(options.deadline), urgency, None)


def frames_of(frames: Any, request: object, *, or_async: bool = False) -> Any:
    """Return the iterator of a stream's frames; of an async client they may be an async iterable.

    Raises:
        InvalidArgument: the frames cannot be iterated, or the request is none with an image.
    """
    if not isinstance(request, Request) or not request.needs_image:
        raise InvalidArgument(f"request must be an object as Inspect() or Segment(…), got {checks.shown(request)}.")
    try:
        if not isinstance(frames, (str, bytes)):
            return frames if or_async and isinstance(frames, AsyncIterable) else iter(frames)
    except TypeError:
        pass
    raise InvalidArgument(f"frames must be an iterable of images or Frames, got {checks.shown(frames)}.")


def refuse_track(request: object) -> None:
    if isinstance(request, Inspect) and request.track is not None:
        raise InvalidArgument("track follows fruit over the frames of one stream: use stream(…) over grpc://.")


def frames_in_flight(request: Request[Any], wanted: int) -> int:
    """Return how many frames may be in flight: one where fruit is followed, so that they arrive in their order."""
    return 1 if isinstance(request, Inspect) and request.track is not None else wanted


def drop_if_outdated(taken: TakenFrame | None) -> None:
    if taken is not None and taken.outdated():
        raise FrameDropped("The service wanted the frame later; a newer one was sent instead.")


def is_grpc(url: str) -> bool:
    parts = split_url(url)
    if parts is None or parts.scheme not in ("http", "https", "grpc", "grpcs"):
        raise InvalidArgument(
            f"url must start with http://, https://, grpc:// or grpcs://, as {DEFAULT_URL}, got {checks.shown(url)}."
        )
    return parts.scheme in ("grpc", "grpcs")


def grpc_transports() -> ModuleType:
    try:
        from pomona import grpc
    except ImportError as error:
        raise MissingPackage(
            f"grpc:// needs grpcio and protobuf: pip install 'pomona-client[grpc]' ({error})."
        ) from error
    return grpc
