"""Asks over a transport until there is an answer: carries out what `pomona.retrying` decides."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from pomona.asks import Ask, Call
from pomona.calls import ImageLike, call_of, with_picture
from pomona.errors import PomonaError
from pomona.facts import Capture, ImageInfo
from pomona.results import Embedding
from pomona.retrying import Plan, Retry, RetryBudget, Timeout, Wait, answered, conversation
from pomona.transport import AsyncTransport, Transport

T = TypeVar("T")


@dataclass(frozen=True)
class Wish:
    """What a caller says of time and importance.

    Attributes:
        deadline: seconds from now after which the answer is too late, or None.
        urgency: RFC 9218, 0 the most urgent to 7 the least, or None.
        request_id: names the request in the service's log; made where there is none.
    """

    deadline: float | None = None
    urgency: int | None = None
    request_id: str | None = None


@dataclass
class _Terms:
    timeout: Timeout
    retry: Retry
    budget: RetryBudget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = RetryBudget(self.retry)

    def plan(self, wish: Wish) -> Plan:
        """How a call is made."""
        return Plan(
            timeout=self.timeout,
            retry=self.retry,
            budget=self.budget,
            deadline=wish.deadline,
            urgency=wish.urgency,
            request_id=wish.request_id or uuid.uuid4().hex,
        )


class Asking:
    """Sync, from any thread.

    Args:
        timeout: limits.
        retry: what to try again.
        sleep: how to wait between attempts.
    """

    def __init__(self, timeout: Timeout, retry: Retry, sleep: Callable[[float], None]) -> None:
        self._terms = _Terms(timeout, retry)
        self._sleep = sleep

    def ask(self, transport: Transport, ask: Ask[T], image: ImageLike | None, capture: Capture | None, wish: Wish) -> T:
        """The answer.

        Raises:
            PomonaError: there is none.
        """
        plan = self._terms.plan(wish)
        call = call_of(ask, image, capture)
        return with_picture(self._converse(transport, call, plan), call)

    def _converse(self, transport: Transport, call: Call[T], plan: Plan) -> T:
        steps = conversation(call, plan)
        step = next(steps)
        while True:
            if isinstance(step, Wait):
                self._sleep(step.seconds)
                step = next(steps)
                continue
            try:
                answer = transport.call(step.call, step.attempt)
            except PomonaError as error:
                step = steps.throw(error)
            else:
                return answered(steps, answer)


class AsyncAsking:
    """Async; see `Asking`."""

    def __init__(self, timeout: Timeout, retry: Retry, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._terms = _Terms(timeout, retry)
        self._sleep = sleep

    async def ask(
        self, transport: AsyncTransport, ask: Ask[T], image: ImageLike | None, capture: Capture | None, wish: Wish
    ) -> T:
        """See `Asking.ask`."""
        plan = self._terms.plan(wish)
        if image is None or isinstance(image, (bytes, Embedding, ImageInfo)):
            call = call_of(ask, image, capture)
        else:
            # Files are read and pixels encoded beside the event loop.
            call = await asyncio.to_thread(call_of, ask, image, capture)
        return with_picture(await self._converse(transport, call, plan), call)

    async def _converse(self, transport: AsyncTransport, call: Call[T], plan: Plan) -> T:
        steps = conversation(call, plan)
        step = next(steps)
        while True:
            if isinstance(step, Wait):
                await self._sleep(step.seconds)
                step = next(steps)
                continue
            try:
                answer = await transport.acall(step.call, step.attempt)
            except PomonaError as error:
                step = steps.throw(error)
            else:
                return answered(steps, answer)
