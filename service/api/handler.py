"""What every request passes, whatever it came through: time limit, errors to problems, metrics, trace, log line."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from models.errors import PomonaError
from service.access import Access
from service.api.context import RequestContext
from service.api.drain import Drain
from service.errors import PROBLEMS, ProblemType, RateLimited, TimedOut, TryLater, problem_of
from service.observability.observer import Observer, Outcome
from service.observability.tracing import Tracing

T = TypeVar("T")

CLIENT_CLOSED: Final = 499
"""nginx's status for a caller who left; it appears in logs and metrics only."""

_LOG = logging.getLogger("pomona.request")
_MAX_DETAIL: Final = 1200
_NO_TRACING: Final = Tracing()


class Refusal(Exception):
    """An error as the caller sees it.

    Attributes:
        problem: its type.
        detail: what was wrong and what must hold; nothing that concerns the server alone.
        retry_after: whole seconds after which the same request may succeed, or None.
    """

    def __init__(self, problem: ProblemType, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail
        self.retry_after = retry_after


class CallerLeft(Exception):
    """The caller went away before the answer."""


class Dropped(Exception):
    """A newer frame of the stream took this one's turn."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended: HTTP status, name of the gRPC status, and code of the problem if there was one."""

    status: int
    grpc: str
    code: str = ""

    @property
    def outcome(self) -> Outcome:
        """What metrics call it."""
        if self.status < 400:
            return "ok"
        if self.status == CLIENT_CLOSED:
            return "gone"
        if self.code == PROBLEMS[RateLimited].code:
            return "refused"  # this caller has to slow down, where others find room
        if self.status in (429, 504):
            return "shed"
        return "refused" if self.status < 500 else "failed"


OK: Final = Ending(200, "OK")
GONE: Final = Ending(CLIENT_CLOSED, "CANCELLED")
LATE: Final = Ending(504, "DEADLINE_EXCEEDED")
DROPPED: Final = Ending(429, "ABORTED")

EndingFields = Callable[[Ending], tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Fields of the log line, and attributes of the span, that depend on the protocol."""


@dataclass(frozen=True, slots=True)
class RequestHandler:
    """Handles requests one by one; see the module.

    Attributes:
        observer: receives what is measured.
        tracing: begins a trace per request.
        limit_s: seconds a request may take, reading included.
        drain: counts what is being answered.
        access: lets callers in.
    """

    observer: Observer = field(default_factory=Observer)
    tracing: Tracing = field(default_factory=Tracing)
    limit_s: float = 60.0
    drain: Drain = field(default_factory=Drain)
    access: Access = field(default_factory=Access)

    async def handle(
        self,
        context: RequestContext,
        work: Callable[[], Awaitable[T]],
        *,
        span: str,
        headers: Mapping[str, str],
        logger: logging.Logger,
        fields: EndingFields,
    ) -> T:
        """Answer a request, or a frame of a stream.

        Args:
            context: of the request.
            work: does it.
            span: name of the trace's span.
            headers: the caller's, of which the API key and the trace context are read.
            logger: writes its line.
            fields: see `EndingFields`.

        Raises:
            Refusal: whatever went wrong, as the caller sees it.
            CallerLeft, Dropped: from `work`.
        """
        self.observer.request_started(context.endpoint)
        with self.drain.working(), self.tracing.request(span, context.request_id, headers) as trace:
            context.trace = trace
            ending: Ending | None = None
            try:
                answer = await self.translated(context, lambda: self._admitted(context, headers, work), self.limit_s)
            except CallerLeft:
                ending = GONE
                raise
            except Refusal as refusal:
                ending = Ending(refusal.problem.status, refusal.problem.grpc, refusal.problem.code)
                raise
            except Dropped:
                ending = DROPPED
                raise
            else:
                ending = OK
                return answer
            finally:
                context.release()
                if ending is None:  # cancelled: by the call's own deadline, or because the caller left
                    late = context.deadline is not None and context.clock() >= context.deadline
                    ending = LATE if late else GONE
                seconds = context.clock() - context.received
                self.observer.request_finished(context.endpoint, context.model, ending.outcome, seconds)
                if context.caller:
                    self.observer.caller_answered(context.caller, ending.outcome)
                line, attributes = fields(ending)
                log_line(logger, "request", context, line, seconds)
                if trace.recording is not None:
                    trace.finish(
                        {"request_id": context.request_id, "model": context.model} | context.log,
                        attributes,
                        failed=ending.status >= 500,
                    )

    async def handle_stream(
        self,
        context: RequestContext,
        work: Callable[[], Awaitable[None]],
        *,
        headers: Mapping[str, str],
        logger: logging.Logger,
        fields: EndingFields,
    ) -> None:
        """Host a stream, whose frames are the requests that are limited, measured and traced; see `handle`.

        A trace of the stream itself would end with the shift.
        """

        async def admitted() -> None:
            key = self.access.caller(headers)
            if key is not None and context.needs is not None:
                context.caller = key.name
                self.access.permit(key, context.needs)
            await work()

        ending = GONE
        self.observer.stream_changed(context.endpoint, opened=True)
        with self.drain.working(), _NO_TRACING.request(context.endpoint, context.request_id, headers):
            try:
                await self.translated(context, admitted, None)
                ending = OK
            except Refusal as refusal:
                ending = Ending(refusal.problem.status, refusal.problem.grpc)
                raise
            finally:
                self.observer.stream_changed(context.endpoint, opened=False)
                log_line(logger, "stream", context, fields(ending)[0], context.clock() - context.received)

    async def _admitted(
        self, context: RequestContext, headers: Mapping[str, str], work: Callable[[], Awaitable[T]]
    ) -> T:
        """Do `work` if the caller may have it done, and count it for the caller's API key meanwhile."""
        key = None if context.needs is None else self.access.caller(headers)
        if key is None or context.needs is None:
            return await work()
        context.caller = key.name
        with self.access.using(key, context.needs):
            return await work()

    async def translated(self, context: RequestContext, work: Callable[[], Awaitable[T]], limit_s: float | None) -> T:
        """Do `work` within a time limit and turn every error into a refusal.

        Raises:
            Refusal: see above.
            CallerLeft, Dropped: from `work`.
        """
        try:
            async with asyncio.timeout(limit_s):
                return await work()
        except (CallerLeft, Dropped):
            raise
        except TimeoutError:
            error: PomonaError = TimedOut(f"There was no answer within {limit_s:g} s (POMONA_REQUEST_TIMEOUT_S).")
        except PomonaError as known:
            error = known
        except Exception as unknown:  # noqa: BLE001 (nothing may leak; it is logged with its traceback)
            _LOG.exception("internal error", extra={"request_id": context.request_id})
            error = PomonaError(type(unknown).__name__)
        refusal = refusal_of(error)
        context.log["code"] = refusal.problem.code
        self.observer.problem_answered(refusal.problem.code)
        if refusal.problem.status == 500 and type(error) is not PomonaError:
            _LOG.error("internal error", extra={"request_id": context.request_id, "detail": error.detail})
        raise refusal


def log_line(
    logger: logging.Logger, message: str, context: RequestContext, fields: Mapping[str, Any], seconds: float
) -> None:
    """Write the line of a request, a frame or a stream."""
    line: dict[str, Any] = {"request_id": context.request_id, **fields, "ms": round(seconds * 1000, 2)}
    if context.caller:
        line["caller"] = context.caller
    if context.model:
        line["model"] = context.model
    logger.info(message, extra=line | context.log)


def refusal_of(error: PomonaError) -> Refusal:
    """Return an error as the caller sees it."""
    problem = problem_of(error)
    if problem.status == 500:
        return Refusal(problem, "Something failed on the server; its log has the request id.", problem.retry_after)
    seconds: float | None = error.retry_after if isinstance(error, TryLater) else problem.retry_after
    detail = error.detail  # it may quote what the caller sent, which may be of any length
    if len(detail) > _MAX_DETAIL:
        detail = detail[: _MAX_DETAIL - 1] + "…"
    return Refusal(problem, detail, None if seconds is None else max(1, math.ceil(seconds)))
