"""Every call and every frame is attempted once: within the time limit, counted, timed, with its line in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from models.errors import PomonaError
from service.callers import CLIENT_CLOSED, Refusal, outcome_of, refusal_of
from service.errors import TimedOut
from service.grpc.calls import Call
from service.observability.observer import Observer
from service.observability.tracing import RequestTrace, Tracing

T = TypeVar("T")

_LOG = logging.getLogger("pomona.grpc")


class Dropped(Exception):
    """A newer frame took this one's turn."""


@dataclass(frozen=True, slots=True)
class _End:
    """How an attempt ended: the name of its gRPC status, and the HTTP status that means the same."""

    grpc: str
    status: int


_OK: Final = _End("OK", 200)
_GONE: Final = _End("CANCELLED", CLIENT_CLOSED)
_LATE: Final = _End("DEADLINE_EXCEEDED", 504)
_DROPPED: Final = _End("ABORTED", 429)
_NOT_RECORDED: Final = Tracing()
"""For streams, whose spans would end with the shift; their frames have their own."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """See the module.

    Attributes:
        observer: hears of every attempt.
        limit_s: seconds that one may take.
        tracing: begins a trace for every attempt.
    """

    observer: Observer
    limit_s: float
    tracing: Tracing = field(default_factory=Tracing)

    async def make(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work of a call or of a frame.

        Raises:
            Refusal: whatever went wrong, as the caller is told it.
            Dropped: a newer frame took this one's turn.
        """
        with self.tracing.request(call.path.removeprefix("/"), call.request_id, call.metadata) as traced:
            call.trace.update(traced.headers)
            return await self._watched(call, work, traced)

    async def _watched(self, call: Call, work: Callable[[], Awaitable[T]], traced: RequestTrace) -> T:
        """Do it; the observer, the trace and the log hear of it."""
        self.observer.began(call.path)
        end = _GONE
        try:
            answer = await self._translated(call, work, self.limit_s)
        except Refusal as refusal:
            end = _End(refusal.problem.grpc, refusal.problem.status)
            raise
        except Dropped:
            end = _DROPPED
            raise
        else:
            end = _OK
            return answer
        finally:
            if end is _GONE and call.expired:  # cancelled before the pipeline said so itself
                end = _LATE
            seconds = self._tell("request", call, end)
            self.observer.requested(call.path, call.facts.get("model", ""), outcome_of(end.status), seconds)
            traced.ended(
                {"request_id": call.request_id} | call.facts,
                {"rpc.system.name": "grpc", "rpc.method": call.path[1:], "rpc.response.status_code": end.grpc},
                failed=end.status >= 500,
            )

    async def host(self, call: Call, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work of a stream, whose frames are the attempts that are counted and limited.

        Raises:
            Refusal: whatever went wrong, as the caller is told it.
        """
        end = _GONE
        self.observer.streams(call.path, opened=True)
        with _NOT_RECORDED.request(call.path, call.request_id, call.metadata):
            try:
                await self._translated(call, work, None)
                end = _OK
            except Refusal as refusal:
                end = _End(refusal.problem.grpc, refusal.problem.status)
                raise
            finally:
                self.observer.streams(call.path, opened=False)
                self._tell("stream", call, end)

    def _tell(self, what: str, call: Call, end: _End) -> float:
        seconds = time.monotonic() - call.arrived
        line = {
            "request_id": call.request_id,
            "path": call.path,
            "grpc_status": end.grpc,
            "ms": round(seconds * 1000, 2),
        }
        _LOG.info(what, extra=line | call.facts)
        return seconds

    async def _translated(self, call: Call, work: Callable[[], Awaitable[T]], limit_s: float | None) -> T:
        error: PomonaError
        try:
            async with asyncio.timeout(limit_s):
                return await work()
        except Dropped:
            raise
        except TimeoutError:
            error = TimedOut(f"No answer within {self.limit_s:g} s (POMONA_REQUEST_TIMEOUT_S).")
        except PomonaError as known:
            error = known
        except Exception as unknown:  # noqa: BLE001 (nothing may leak; it is logged with its traceback)
            _LOG.exception("internal error", extra={"request_id": call.request_id})
            error = PomonaError(type(unknown).__name__)
        refusal = refusal_of(error)
        call.facts["code"] = refusal.problem.code
        self.observer.refused(refusal.problem.code)
        if refusal.problem.status == 500 and type(error) is not PomonaError:
            _LOG.error("internal error", extra={"request_id": call.request_id, "detail": error.detail})
        raise refusal
