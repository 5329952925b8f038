"""The way a call takes to the service and back: one interface, in a sync and an async form. Nothing in it is HTTP's.

A transport sends one call once: retries, deadlines over several attempts and healing are the client's. It raises
nothing but `PomonaError`, and lets cancellation through: a call that is cancelled is cancelled in the service too.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from pomona.asks import Ask, Attempt, Call
from pomona.errors import DeadlineExceeded, NoAnswer, TooLate

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


@runtime_checkable
class StreamingTransport(Protocol):
    """A transport that can send the frames of a camera by a stream of their own."""

    def stream(self, ask: Ask[Any], in_flight: int) -> Transport | None:
        """A transport for one camera; closing it cancels what is on its way.

        Args:
            ask: of every frame.
            in_flight: most frames that are on their way.

        Returns:
            None where there is no stream for this: then each frame is a call.
        """
        ...


@runtime_checkable
class AsyncStreamingTransport(Protocol):
    """As `StreamingTransport`, for one event loop."""

    def astream(self, ask: Ask[Any], in_flight: int) -> AsyncTransport | None:
        """As `StreamingTransport.stream`."""
        ...


def too_late(attempt: Attempt) -> TooLate:
    """Which limit it was that passed before the answer to an attempt was here."""
    if attempt.deadline is not None and attempt.deadline <= attempt.seconds:
        return DeadlineExceeded("The deadline passed before the answer was here.", request_id=attempt.request_id)
    return NoAnswer(f"No answer within {attempt.seconds:.3g} s.", request_id=attempt.request_id)
