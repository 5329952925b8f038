"""What is tried again, when, and when not, on a clock of the tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from pomona import NO_RETRY, Call, Client, ListModels, Point, Retry, Segment, Timeout, errors
from pomona._model_requests import UnloadModel
from pomona.images import EncodedImage
from pomona.retries import Plan, RetryBudget, Send, Wait, attempts, to_timeout
from pomona.testing import MockTransport
from pomona.video import EndTracking, TrackFrame


@dataclass
class Simulation:
    """Makes calls of a service that answers what is listed, on a clock that only waiting and answering advance."""

    answers: list[Any]
    retry: Retry = field(default_factory=lambda: Retry(first_delay=0.1, longest_delay=1.0))
    timeout: Timeout = field(default_factory=Timeout)
    deadline: float | None = None
    draw: float = 1.0
    takes: float = 0.0
    """Seconds until an answer."""
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
        steps = attempts(call or Call(request=ListModels()), plan)
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
            if not isinstance(answer, Exception):
                return answer
            step = steps.throw(answer)


def broken() -> errors.ConnectionFailed:
    return errors.ConnectionFailed("refused")


def busy(seconds: float | None = None) -> errors.Overloaded:
    return errors.Overloaded("full", retry_after=seconds)


def test_an_answer_ends_a_call() -> None:
    simulation = Simulation(["answer"])
    assert simulation.run() == "answer"
    assert simulation.waits == []


def test_delays_double_up_to_the_longest_and_are_random_below_that() -> None:
    simulation = Simulation([*[broken()] * 6, "answer"], Retry(attempts=7, first_delay=0.1, longest_delay=1.0))
    assert simulation.run() == "answer"
    assert simulation.waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    half = Simulation([broken(), broken(), "answer"], draw=0.5)
    half.run()
    assert half.waits == pytest.approx([0.05, 0.1])


def test_retry_after_is_waited_for() -> None:
    simulation = Simulation([busy(3), errors.NotReady("loading", retry_after=2), "answer"])
    assert simulation.run() == "answer"
    assert simulation.waits == pytest.approx([3.1, 2.2])


def test_attempts_end_and_the_last_error_is_raised() -> None:
    last = broken()
    simulation = Simulation([broken(), broken(), broken(), last])
    with pytest.raises(errors.ConnectionFailed) as raised:
        simulation.run()
    assert raised.value is last
    assert len(simulation.sent) == 4
    with pytest.raises(errors.ConnectionFailed):
        Simulation([broken()], NO_RETRY).run()


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
def test_other_errors_are_not_tried_again(error: errors.PomonaError) -> None:
    simulation = Simulation([error, "answer"])
    with pytest.raises(type(error)):
        simulation.run()
    assert len(simulation.sent) == 1


@pytest.mark.parametrize("request_", [TrackFrame(session="s"), EndTracking("s"), UnloadModel("m", "r")])
def test_what_the_service_may_have_done_is_tried_again_only_where_it_says_so(request_: Any) -> None:
    call: Call[Any] = Call(request=request_)
    simulation = Simulation([broken(), "answer"])
    with pytest.raises(errors.ConnectionFailed):
        simulation.run(call)
    assert len(simulation.sent) == 1
    assert Simulation([busy(), "answer"]).run(call) == "answer"


def test_a_wait_that_would_end_after_the_deadline_is_not_begun() -> None:
    simulation = Simulation([busy(3), "answer"], deadline=3.0)
    with pytest.raises(errors.Overloaded):
        simulation.run()
    assert simulation.waits == []
    in_time = Simulation([busy(3), "answer"], deadline=3.2)
    assert in_time.run() == "answer"


def test_each_attempt_gets_the_time_that_is_left() -> None:
    simulation = Simulation([broken(), "answer"], deadline=1.0, takes=0.3)
    simulation.run()
    first, second = (send.attempt for send in simulation.sent)
    assert (first.timeout, first.deadline) == pytest.approx((1.0, 1.0))
    assert (second.timeout, second.deadline) == pytest.approx((0.6, 0.6))
    assert first.request_id == second.request_id == "r1"


def test_without_a_deadline_the_timeouts_hold_and_no_deadline_is_sent() -> None:
    simulation = Simulation([broken(), "answer"], timeout=Timeout(attempt=2, total=2.5), takes=1.0)
    simulation.run()
    assert [send.attempt.timeout for send in simulation.sent] == pytest.approx([2.0, 1.4])
    assert all(send.attempt.deadline is None for send in simulation.sent)


def test_a_deadline_that_passes_before_anything_is_sent_is_an_error_of_ours() -> None:
    simulation = Simulation([busy(), "answer"], deadline=1.0)
    plan = Plan(
        timeout=Timeout(),
        retry=Retry(),
        budget=RetryBudget(Retry()),
        deadline=1.0,
        urgency=None,
        request_id="r1",
        clock=lambda: simulation.now,
    )
    simulation.now += 1
    with pytest.raises(errors.DeadlineExceeded):
        next(attempts(Call(request=ListModels()), plan))


def test_retries_are_bounded_over_all_calls_of_a_client() -> None:
    retry = Retry(attempts=2, budget=0.25, reserve=3.0, first_delay=0)
    budget = RetryBudget(retry)
    counts = []
    for _ in range(20):
        simulation = Simulation([broken(), broken()], retry, budget=budget)
        with pytest.raises(errors.ConnectionFailed):
            simulation.run()
        counts.append(len(simulation.sent))
    # 3 from the reserve, and a retry per 4 calls.
    assert sum(counts) - 20 == pytest.approx(3 + 20 * 0.25, abs=1)
    assert counts[:3] == [2, 2, 2]


def test_a_forgotten_image_is_sent_again_once_and_costs_no_retry() -> None:
    image = EncodedImage(b"bytes", "image/png")
    call = Call(request=Segment(Point(1, 1)), image=image, image_id="6ae3")
    simulation = Simulation([errors.UnknownImageId("forgotten"), "answer"], NO_RETRY)
    assert simulation.run(call) == "answer"
    assert [(send.call.image_id, send.call.image) for send in simulation.sent] == [("6ae3", image), (None, image)]
    with pytest.raises(errors.UnknownImageId):
        Simulation([errors.UnknownImageId("forgotten")] * 2, NO_RETRY).run(call)


def test_limits_are_checked() -> None:
    assert to_timeout(3) == Timeout(attempt=3, total=3)
    assert to_timeout(None) == Timeout()
    for wrong in ({"connect": 0}, {"attempt": -1}, {"total": float("nan")}):
        with pytest.raises(errors.InvalidArgument):
            Timeout(**wrong)
    with pytest.raises(errors.InvalidArgument):
        Retry(attempts=0)
    with Client(transport=MockTransport()) as pomona:
        for deadline, urgency in ((0, None), (-1, None), (float("nan"), None), (None, 8)):
            with pytest.raises(errors.InvalidArgument):
                pomona.send(ListModels(), deadline=deadline, urgency=urgency)
