"""What is tried again, when, and when not: on a clock that tests turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from pomona import NO_RETRY, Client, ListModels, Model, Retry, Segment, Timeout, errors
from pomona.asks import Call
from pomona.images import Picture
from pomona.retrying import Plan, RetryBudget, Send, Wait, conversation, timeout_of
from pomona.shapes import Point
from pomona.testing import MockTransport, a_mask, a_model, a_segmentation, an_embedding


@dataclass
class Rehearsal:
    """A conversation with a service that answers what is listed, on a clock that only waiting and answering turns."""

    answers: list[Any]
    retry: Retry = field(default_factory=lambda: Retry(first_delay=0.1, longest_delay=1.0))
    timeout: Timeout = field(default_factory=Timeout)
    deadline: float | None = None
    draw: float = 1.0
    takes: float = 0.0
    """Seconds of an answer."""
    now: float = 100.0
    waits: list[float] = field(default_factory=list)
    sent: list[Send[Any]] = field(default_factory=list)
    budget: RetryBudget | None = None

    def run(self, call: Call[Any] | None = None) -> Any:
        plan = Plan(
            timeout=self.timeout,
            retry=self.retry,
            budget=self.budget or RetryBudget(self.retry),
            deadline=self.deadline,
            urgency=None,
            request_id="r1",
            clock=lambda: self.now,
            draw=lambda: self.draw,
        )
        steps = conversation(call or Call(ask=ListModels()), plan)
        try:
            step = next(steps)
            while True:
                if isinstance(step, Wait):
                    self.waits.append(step.seconds)
                    self.now += step.seconds
                    step = next(steps)
                    continue
                self.sent.append(step)
                self.now += self.takes
                answer = self.answers.pop(0)
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
        except StopIteration as done:
            return done.value


def broken() -> errors.ConnectionFailed:
    return errors.ConnectionFailed("refused")


def busy(seconds: float | None = None) -> errors.Overloaded:
    return errors.Overloaded("full", retry_after=seconds)


def test_an_answer_ends_it() -> None:
    rehearsal = Rehearsal(["answer"])
    assert rehearsal.run() == "answer"
    assert rehearsal.waits == []


def test_delays_double_up_to_the_longest_and_are_drawn_below_that() -> None:
    rehearsal = Rehearsal([*[broken()] * 6, "answer"], Retry(attempts=7, first_delay=0.1, longest_delay=1.0))
    assert rehearsal.run() == "answer"
    assert rehearsal.waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    half = Rehearsal([broken(), broken(), "answer"], draw=0.5)
    half.run()
    assert half.waits == pytest.approx([0.05, 0.1])


def test_what_the_service_says_of_coming_back_is_honoured() -> None:
    rehearsal = Rehearsal([busy(3), errors.NotReady("loading", retry_after=2), "answer"])
    assert rehearsal.run() == "answer"
    assert rehearsal.waits == pytest.approx([3.1, 2.2])


def test_attempts_end_and_the_last_error_is_raised() -> None:
    last = broken()
    rehearsal = Rehearsal([broken(), broken(), broken(), last])
    with pytest.raises(errors.ConnectionFailed) as raised:
        rehearsal.run()
    assert raised.value is last
    assert len(rehearsal.sent) == 4
    with pytest.raises(errors.ConnectionFailed):
        Rehearsal([broken()], NO_RETRY).run()


@pytest.mark.parametrize(
    "error",
    [
        errors.NotAnImage("text"),
        errors.DeadlineExceeded("late"),
        errors.DeadlineUnreachable("late"),
        errors.TimedOut("late"),
        errors.NoAnswer("late"),
        errors.InternalError("failed"),
        errors.BadAnswer("strange"),
        errors.UnknownImageId("forgotten"),
        errors.ClientClosed("closed"),
    ],
)
def test_what_is_not_safe_or_no_use_is_not_tried_again(error: errors.PomonaError) -> None:
    rehearsal = Rehearsal([error, "answer"])
    with pytest.raises(type(error)):
        rehearsal.run()
    assert len(rehearsal.sent) == 1


def test_nothing_is_waited_for_that_ends_after_the_deadline() -> None:
    rehearsal = Rehearsal([busy(3), "answer"], deadline=3.0)
    with pytest.raises(errors.Overloaded):
        rehearsal.run()
    assert rehearsal.waits == []
    in_time = Rehearsal([busy(3), "answer"], deadline=3.2)
    assert in_time.run() == "answer"


def test_each_attempt_gets_the_time_that_is_left() -> None:
    rehearsal = Rehearsal([broken(), "answer"], deadline=1.0, takes=0.3)
    rehearsal.run()
    first, second = (send.attempt for send in rehearsal.sent)
    assert (first.seconds, first.deadline) == pytest.approx((1.0, 1.0))
    assert (second.seconds, second.deadline) == pytest.approx((0.6, 0.6))
    assert first.request_id == second.request_id == "r1"


def test_without_a_deadline_the_limits_hold_and_the_service_is_told_nothing() -> None:
    rehearsal = Rehearsal([broken(), "answer"], timeout=Timeout(attempt=2, total=2.5), takes=1.0)
    rehearsal.run()
    assert [send.attempt.seconds for send in rehearsal.sent] == pytest.approx([2.0, 1.4])
    assert all(send.attempt.deadline is None for send in rehearsal.sent)


def test_a_deadline_that_is_over_before_anything_was_sent_is_told_here() -> None:
    rehearsal = Rehearsal([busy(), "answer"], deadline=1.0)
    plan = Plan(
        timeout=Timeout(),
        retry=Retry(),
        budget=RetryBudget(Retry()),
        deadline=1.0,
        urgency=None,
        request_id="r1",
        clock=lambda: rehearsal.now,
    )
    rehearsal.now += 1
    with pytest.raises(errors.DeadlineExceeded):
        next(conversation(Call(ask=ListModels()), plan))


def test_a_client_s_retries_are_bounded_over_all_its_calls() -> None:
    retry = Retry(attempts=2, budget=0.25, reserve=3.0, first_delay=0)
    budget = RetryBudget(retry)
    attempts = []
    for _ in range(20):
        rehearsal = Rehearsal([broken(), broken()], retry, budget=budget)
        with pytest.raises(errors.ConnectionFailed):
            rehearsal.run()
        attempts.append(len(rehearsal.sent))
    # 3 free ones, and a retry per 4 calls.
    assert sum(attempts) - 20 == pytest.approx(3 + 20 * 0.25, abs=1)
    assert attempts[:3] == [2, 2, 2]


def test_a_forgotten_picture_is_sent_again_once_and_costs_no_retry() -> None:
    picture = Picture(b"bytes", "image/png")
    call = Call(ask=Segment(Point(1, 1)), picture=picture, image_id="6ae3")
    rehearsal = Rehearsal([errors.UnknownImageId("forgotten"), "answer"], NO_RETRY)
    assert rehearsal.run(call) == "answer"
    assert [(send.call.image_id, send.call.picture) for send in rehearsal.sent] == [("6ae3", picture), (None, picture)]
    with pytest.raises(errors.UnknownImageId):
        Rehearsal([errors.UnknownImageId("forgotten")] * 2, NO_RETRY).run(call)


def test_limits_are_checked() -> None:
    assert timeout_of(3) == Timeout(attempt=3, total=3)
    assert timeout_of(None) == Timeout()
    for wrong in ({"connect": 0}, {"attempt": -1}, {"total": float("nan")}):
        with pytest.raises(errors.InvalidArgument):
            Timeout(**wrong)
    with pytest.raises(errors.InvalidArgument):
        Retry(attempts=0)
    with Client(transport=MockTransport()) as pomona:
        for deadline, urgency in ((0, None), (-1, None), (float("nan"), None), (None, 8)):
            with pytest.raises(errors.InvalidArgument):
                pomona.ask(ListModels(), deadline=deadline, urgency=urgency)


def test_the_client_waits_between_attempts_and_heals() -> None:
    waits: list[float] = []
    transport = MockTransport()
    transport.answer(ListModels, busy(2), (a_model(),))
    with Client(transport=transport, sleep=waits.append) as pomona:
        models: tuple[Model, ...] = pomona.models()
        assert [model.name for model in models] == ["mobile-sam"]
        assert 2 <= waits[0] <= 2.1
        transport.answer(Segment, errors.UnknownImageId("forgotten"), a_segmentation([a_mask((1, 1, 9, 9))]))
        from pomona import Embed

        transport.answer(Embed, an_embedding())
        embedding = pomona.embed(b"\x89PNG\r\n\x1a\n")
        assert pomona.segment(embedding, Point(1, 1)).best[0].area == 64
    assert transport.closed
    with pytest.raises(errors.ClientClosed):
        pomona.models()
