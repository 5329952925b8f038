"""How long to wait, and what to try again: decided here, without clock, network or sleep of its own.

`conversation` is a generator that says what to do next (send, or wait) and is told what came of it, so that the sync
and the async client share every decision and tests need no time.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeAlias, TypeVar

from pomona.asks import Attempt, Call
from pomona.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidArgument,
    NoAnswer,
    PomonaError,
    TooLate,
    TryLater,
    UnknownImageId,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Timeout:
    """Limits in seconds. They hold beside a call's `deadline`, which the service is told of.

    Attributes:
        connect: to make a connection.
        attempt: for one attempt to be answered. The service itself gives up after 60, by default.
        total: for a call with all its attempts.

    Raises:
        InvalidArgument: a limit that is not above 0.
    """

    connect: float = 5.0
    attempt: float = 65.0
    total: float = 120.0

    def __post_init__(self) -> None:
        if not all(limit > 0 for limit in (self.connect, self.attempt, self.total)):
            raise InvalidArgument(f"{self}: limits are seconds above 0.")


@dataclass(frozen=True, kw_only=True)
class Retry:
    """What is tried again is what is safe to: connections that failed, and what the service said to send again later.

    Every question to Pomona can be asked twice without harm, so a connection that broke before the answer counts as
    failed. Time limits that passed, and requests that were refused, are never tried again.

    Attributes:
        attempts: at most, the first included; 1 for no retries.
        first_delay: seconds before the second attempt at most; doubled each time, and random between 0 and that ("full
            jitter": M. Brooker, "Exponential Backoff And Jitter", AWS, 2015), so that clients do not come back
            together.
        longest_delay: seconds.
        budget: retries per call over all calls of a client: so a service that fails altogether gets at most this much
            more work.
        reserve: retries that are free before the budget binds.

    Raises:
        InvalidArgument: negative numbers, or no attempt at all.
    """

    attempts: int = 4
    first_delay: float = 0.1
    longest_delay: float = 5.0
    budget: float = 0.2
    reserve: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.first_delay, self.longest_delay, self.budget, self.reserve) < 0:
            raise InvalidArgument(f"{self}: at least one attempt, and nothing below 0.")

    def delay(self, retries: int, draw: float) -> float:
        """Seconds to wait before the next attempt, where the service did not say.

        Args:
            retries: that were made before.
            draw: random, 0 to 1.
        """
        return draw * min(self.longest_delay, self.first_delay * 2.0**retries)


NO_RETRY = Retry(attempts=1)


@dataclass
class RetryBudget:
    """Retries that are left, over all calls of a client and all its threads."""

    retry: Retry
    _left: float = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._left = self.retry.reserve

    def earn(self) -> None:
        """A call was made."""
        with self._lock:
            self._left = min(self.retry.reserve, self._left + self.retry.budget)

    def spend(self) -> bool:
        """Take a retry, where there is one."""
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
        retry: what to try again.
        budget: of the client.
        deadline: seconds from now after which the answer is too late, or None.
        urgency: RFC 9218, or None.
        request_id: the same for every attempt.
        clock: seconds.
        draw: random, 0 to 1.
        began: when the plan was made: time that the picture took to be encoded counts.

    Raises:
        InvalidArgument: a deadline that is not above 0, or an urgency that is not 0 to 7.
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
        if self.deadline is not None and not self.deadline > 0:
            raise InvalidArgument(f"The deadline is {self.deadline} s; seconds from now, above 0, would be right.")
        if self.urgency is not None and self.urgency not in range(8):
            raise InvalidArgument(f"The urgency is {self.urgency}; 0 (most urgent) to 7 would be right.")


@dataclass(frozen=True)
class Send(Generic[T]):
    """Send this now, and send the answer back, or throw the error."""

    call: Call[T]
    attempt: Attempt


@dataclass(frozen=True)
class Wait:
    """Wait before going on."""

    seconds: float


Step: TypeAlias = Send[T] | Wait


def conversation(call: Call[T], plan: Plan) -> Generator[Step[T], Any, T]:
    """Make a call, again where that is safe and there is time.

    Yields:
        What to do next. `Send` wants the answer sent in, or the `PomonaError` thrown.

    Returns:
        The answer.

    Raises:
        PomonaError: that of the last attempt.
    """
    deadline_at = None if plan.deadline is None else plan.began + plan.deadline
    until = plan.began + min(plan.timeout.total, plan.deadline or math.inf)
    plan.budget.earn()
    retries = 0
    while True:
        left = until - plan.clock()
        if left <= 0:
            raise _late(plan)
        attempt = Attempt(
            seconds=min(left, plan.timeout.attempt),
            connect=plan.timeout.connect,
            deadline=None if deadline_at is None else deadline_at - plan.clock(),
            urgency=plan.urgency,
            request_id=plan.request_id,
        )
        try:
            answer: T = yield Send(call, attempt)
        except UnknownImageId:
            if call.image_id is None or call.picture is None:
                raise
            call = replace(call, image_id=None)
        except (ConnectionFailed, TryLater) as error:
            delay = _delay(error, retries, plan)
            # Retries that would come too late are not made: the caller hears at once.
            if retries + 1 >= plan.retry.attempts or plan.clock() + delay >= until or not plan.budget.spend():
                raise
            retries += 1
            yield Wait(delay)
        else:
            return answer


def answered(steps: Generator[Step[T], Any, T], answer: T) -> T:
    """Tell a conversation of the answer, which ends it.

    Returns:
        What it returns.
    """
    try:
        steps.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a conversation went on after its answer")


def timeout_of(timeout: Timeout | float | None) -> Timeout:
    """Limits from what a caller gave; a number limits a call with all its attempts."""
    if isinstance(timeout, Timeout):
        return timeout
    return Timeout() if timeout is None else Timeout(attempt=timeout, total=timeout)


def _delay(error: PomonaError, retries: int, plan: Plan) -> float:
    jitter = plan.retry.delay(retries, plan.draw())
    return jitter if error.retry_after is None else error.retry_after + jitter


def _late(plan: Plan) -> TooLate:
    if plan.deadline is not None and plan.deadline <= plan.timeout.total:
        return DeadlineExceeded("The deadline passed before the answer was here.", request_id=plan.request_id)
    return NoAnswer(f"No answer within {plan.timeout.total:g} s.", request_id=plan.request_id)
