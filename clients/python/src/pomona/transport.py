"""The way a call takes to the service and back: one interface, in a sync and an async form. Nothing in it is HTTP's.

A transport sends one call once: retries, deadlines over several attempts and healing are the client's. It raises
nothing but `PomonaError`, and lets cancellation through: a call that is cancelled is cancelled in the service too.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from pomona.asks import Attempt, Call

T = TypeVar("T")


class Transport(Protocol):
    """Sends calls from any thread."""

    def call(self, call: Call[T], attempt: Attempt) -> T:
        """Send a call and wait for its answer.

        Args:
            call: what is asked.
            attempt: how long to wait, and what to tell the service of time and importance.

        Raises:
            PomonaError: the service's error; `NoAnswer` or `DeadlineExceeded` once `attempt.seconds` have passed;
                `ConnectionFailed`; `BadAnswer`.
        """
        ...

    def close(self) -> None:
        """Let go of connections; calls after it raise `ClientClosed`."""
        ...


class AsyncTransport(Protocol):
    """Sends calls from one event loop. The names differ from `Transport`'s, so that one class can be both."""

    async def acall(self, call: Call[T], attempt: Attempt) -> T:
        """As `Transport.call`; where the task is cancelled, the service hears of it."""
        ...

    async def aclose(self) -> None:
        """As `Transport.close`."""
        ...
