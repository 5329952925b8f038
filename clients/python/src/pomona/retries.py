"""Timeouts and retries.

`attempts` is a generator that yields what to do next, to send or to wait, and is sent the outcome: it does no input or
output itself, so that both clients share every decision and tests need no time.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeAlias, TypeVar

from pomona import _checks as checks
from pomona._requests import Attempt, Call
from pomona.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    NoAnswer,
    PomonaError,
    TooLate,
    TryLater,
    UnknownImageId,
)

T = TypeVar("T")

_SHORTEST_S: Final = 1e-6
"""Time left in which nothing can be sent. The service accepts deadlines in microseconds."""


@dataclass(frozen=True, kw_only=True)
class Timeout:
    """Limits in seconds, beside a call's `deadline`, which is also sent to the service.

    Attributes:
        connect: to make a connection.
        attempt: for one attempt. By default the service itself gives up after 60.
        total: for a call with all its attempts.

    Raises:
        InvalidArgument: a limit is not a number above 0, at most 1,000,000.
    """

    connect: float = 5.0
    attempt: float = 65.0
    total: float = 120.0

    def __post_init__(self) -> None:
        for limit in ("connect", "attempt", "total"):
            object.__setattr__(self, limit, checks.seconds(getattr(self, limit), f"The timeout {limit!r}"))


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often to try again after a failed connection, or an answer that says to send the request again later.

    A connection that broke before the answer counts as failed, except for `track`, `end_tracking` and `unload_model`,
    which the service may have carried out: those are tried again only where it said so. Requests that were refused or
    that took too long are not tried again.

    Attributes:
        attempts: largest number, the first included; 1 for no retries.
        first_delay: seconds before the second attempt at most; doubled each time, and random between 0 and that ("full
            jitter": M. Brooker, "Exponential Backoff And Jitter", AWS, 2015), so that clients do not come back
            together.
        longest_delay: seconds.
        budget: retries per call over all calls of a client, so that a service that fails gets at most this much more
            work.
        reserve: retries before the budget limits them.

    Raises:
        InvalidArgument: a number is negative or not finite, or there is no attempt.
    """

    attempts: int = 4
    first_delay: float = 0.1
    longest_delay: float = 5.0
    budget: float = 0.2
    reserve: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "attempts", checks.whole(self.attempts, "attempts", low=1))
        for name in ("first_delay", "longest_delay", "budget", "reserve"):
            object.__setattr__(self, name, checks.number(getattr(self, name), name, low=0, high=checks.LONGEST_S))

    def delay(self, retries: int, draw: float) -> float:
        """Return seconds to wait before the next attempt.

        Args:
            retries: number made before.
            draw: random number, 0 to 1.
        """
        return draw * min(self.longest_delay, self.first_delay * 2.0 ** min(retries, _MOST_DOUBLINGS))


_MOST_DOUBLINGS: Final = 64  # any first delay is beyond the longest by then
NO_RETRY = Retry(attempts=1)


@dataclass
class RetryBudget:
    """The retries left, over all calls of a client and all its threads."""

    retry: Retry
    _left: float = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._left = self.retry.reserve

    def earn(self) -> None:
        """Add the share of one call."""
        with self._lock:
            self._left = min(self.retry.reserve, self._left + self.retry.budget)

    def spend(self) -> bool:
        """Take a retry, and return whether there was one."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


@dataclass(frozen=True)
class Plan:
    """How a call is made.

    Attributes:
        timeout: limits.
        retry: how often to try again.
        budget: the client's.
        deadline: seconds from now after which the answer is too late, or None.
        urgency: RFC 9218, or None.
        request_id: the same for every attempt.
        clock: seconds, monotonic.
        draw: random number, 0 to 1.
        began: by the clock; encoding the image counts.

    Raises:
        InvalidArgument: the deadline is not above 0, the urgency not 0 to 7, or the request id not printable ASCII.
    """

    timeout: Timeout
    retry: Retry
    budget: RetryBudget
    deadline: float | None
    urgency: int | None
    request_id: str
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random
    began: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "began", self.clock())
        if self.deadline is not None:
            object.__setattr__(self, "deadline", checks.seconds(self.deadline, "deadline"))
        if self.urgency is not None:
            urgency = checks.whole(self.urgency, "urgency (0 the most urgent)", low=0, high=7)
            object.__setattr__(self, "urgency", urgency)
        checks.token(self.request_id, "request_id", longest=128)


@dataclass(frozen=True)
class Send(Generic[T]):
    """Send this call, and send the result to the generator or throw the error into it."""

    call: Call[T]
    attempt: Attempt


@dataclass(frozen=True)
class Wait:
    """Wait before the next step."""

    seconds: float


Step: TypeAlias = Send[T] | Wait


def attempts(call: Call[T], plan: Plan) -> Generator[Step[T], Any, None]:
    """Make a call, and again where that is safe and in time.

    Yields:
        What to do next. The call is over when a `Send` succeeded; the `PomonaError` of one that failed is thrown in.

    Raises:
        PomonaError: that of the last attempt.
    """
    deadline_at = None if plan.deadline is None else plan.began + plan.deadline
    until = plan.began + min(plan.timeout.total, plan.deadline or math.inf)
    plan.budget.earn()
    retries = 0
    while True:
        left = until - plan.clock()
        if left < _SHORTEST_S:
            raise _late(plan)
        attempt = Attempt(
            timeout=min(left, plan.timeout.attempt),
            connect=plan.timeout.connect,
            deadline=None if deadline_at is None else deadline_at - plan.clock(),
            urgency=plan.urgency,
            request_id=plan.request_id,
        )
        try:
            yield Send(call, attempt)
        except UnknownImageId:
            if call.image_id is None or call.image is None:
                raise
            call = replace(call, image_id=None)
        except (ConnectionFailed, TryLater) as error:
            if isinstance(error, ConnectionFailed) and not call.request.idempotent:
                raise
            delay = _delay(error, retries, plan)
            # A retry that would come too late is not made: the caller gets the error at once.
            if retries + 1 >= plan.retry.attempts or plan.clock() + delay >= until or not plan.budget.spend():
                raise
            retries += 1
            yield Wait(delay)


def first_attempt(call: Call[T], plan: Plan) -> Send[T]:
    """Return the first attempt of a call that is not tried again.

    Raises:
        TooLate: the deadline has passed.
    """
    step = next(attempts(call, plan))
    if not isinstance(step, Send):
        raise TypeError("a call must begin with an attempt")
    return step


def to_timeout(timeout: Timeout | float | None) -> Timeout:
    """Return the limits that a caller gave; a number limits a call with all its attempts.

    Raises:
        InvalidArgument: it is neither limits nor a number above 0.
    """
    if isinstance(timeout, Timeout):
        return timeout
    if timeout is None:
        return Timeout()
    limit = checks.seconds(timeout, "timeout")
    return Timeout(attempt=limit, total=limit)


def _delay(error: PomonaError, retries: int, plan: Plan) -> float:
    jitter = plan.retry.delay(retries, plan.draw())
    return jitter if error.retry_after is None else error.retry_after + jitter


def _late(plan: Plan) -> TooLate:
    if plan.deadline is not None and plan.deadline <= plan.timeout.total:
        return DeadlineExceeded("The deadline passed before the answer arrived.", request_id=plan.request_id)
    return NoAnswer(f"No answer within {plan.timeout.total:g} s.", request_id=plan.request_id)
