"""The batching policy on a fake clock: exact batches, refusals and drops."""

from __future__ import annotations

import pytest

from service.errors import DeadlineUnreachable, Overloaded
from service.scheduler.policy import DEFAULT_URGENCY, BatchPolicy, Item, Limits, Piece, QueueOptions, Terms
from tests.fakes import FakeClock


class Bench:
    """A policy whose batches take 10 ms plus 10 ms per cost, once it has learned that."""

    def __init__(
        self, limits: Limits | None = None, *, learned: bool = True, options: QueueOptions | None = None
    ) -> None:
        self.clock = FakeClock()
        of = limits or Limits(4, 4)
        self.policy: BatchPolicy[str, str] = BatchPolicy(
            lambda _: of, ServiceTimes(), clock=self.clock, options=options
        )
        if learned:
            for cost in (1, 2, 3, 4):
                self.policy.learn("a", cost, 0.010 + 0.010 * cost)
                self.policy.learn("b", cost, 0.010 + 0.010 * cost)

    def admit(
        self,
        name: str | None,
        *,
        key: str = "a",
        cost: float = 1,
        within: float | None = None,
        urgency: int = DEFAULT_URGENCY,
    ) -> Item[str, str]:
        deadline = None if within is None else self.clock.now + within
        item = Item(Piece(key, Terms(self.clock.now, deadline, urgency), cost), name)
        self.policy.admit(item)
        return item

    def take(self) -> str:
        return "".join(str(item.payload)[0] for item in self.policy.take().batch)

    def end(self, seconds: float | None = 0.02) -> None:
        self.clock.now += seconds or 0.0
        self.policy.finished(seconds)


def test_a_lone_item_on_an_idle_device_starts_at_once() -> None:
    bench = Bench()
    bench.admit("x")
    assert bench.take() == "x"


def test_arrivals_gather_while_the_device_is_busy_and_run_together_when_it_is_free() -> None:
    bench = Bench()
    bench.admit("1")
    assert bench.take() == "1"
    for name in "234":
        bench.admit(name)
    with pytest.raises(RuntimeError):
        bench.policy.take()
    bench.end()
    assert bench.take() == "234"
    bench.end()
    assert bench.take() == ""


def test_without_deadlines_first_come_is_first_served() -> None:
    bench = Bench(Limits(1, 1))
    for name in "123":
        bench.admit(name)
        bench.clock.now += 0.001
    served = []
    for _ in range(3):
        served.append(bench.take())
        bench.end()
    assert served == ["1", "2", "3"]


def test_the_earliest_deadline_goes_first_and_those_without_one_last() -> None:
    bench = Bench(Limits(2, 2))
    bench.admit("n")
    bench.admit("l", within=1.0)
    bench.admit("e", within=0.5)
    assert bench.take() == "el"
    bench.end()
    assert bench.take() == "n"


def test_more_urgent_work_goes_before_an_earlier_deadline() -> None:
    bench = Bench(Limits(1, 1))
    bench.admit("d", within=0.5)
    bench.admit("u", urgency=1)
    assert bench.take() == "u"


def test_an_item_that_waited_too_long_goes_before_every_deadline() -> None:
    bench = Bench(Limits(1, 1), options=QueueOptions(max_age=1.0))
    bench.admit("old", urgency=7)
    bench.clock.now += 1.01
    bench.admit("d", within=0.5, urgency=0)
    assert bench.take() == "o"


def test_a_batch_is_bounded_by_count() -> None:
    bench = Bench(Limits(3, 100))
    for name in "12345":
        bench.admit(name)
    assert bench.take() == "123"


def test_a_batch_is_bounded_by_cost() -> None:
    bench = Bench(Limits(100, 4))
    bench.admit("1", cost=2)
    bench.admit("2", cost=2)
    bench.admit("3", cost=1)
    assert bench.take() == "12"


def test_an_item_larger_than_the_bound_runs_alone() -> None:
    bench = Bench(Limits(4, 4))
    bench.admit("9", cost=9)
    bench.admit("1")
    assert bench.take() == "9"


def test_a_batch_is_cut_so_that_its_tightest_deadline_still_holds() -> None:
    # Three would take 40 ms, two 30 ms.
    bench = Bench()
    bench.admit("1", within=0.035)
    bench.admit("2")
    bench.admit("3")
    assert bench.take() == "12"


def test_only_equal_keys_share_a_batch_and_keys_compete_by_deadline() -> None:
    bench = Bench()
    bench.admit("1", key="a", within=1.0)
    bench.admit("2", key="b", within=0.5)
    bench.admit("3", key="a", within=2.0)
    bench.admit("4", key="b")
    assert bench.take() == "24"
    bench.end()
    assert bench.take() == "13"


def test_a_full_queue_refuses_at_the_door_and_says_when_there_should_be_room() -> None:
    bench = Bench(options=QueueOptions(max_queued=4))
    for name in "1234":
        bench.admit(name)
    with pytest.raises(Overloaded) as refused:
        bench.admit("5")
    assert refused.value.retry_after == pytest.approx(0.050)  # one batch of four
    assert bench.policy.waiting == 4


def test_what_by_the_learned_times_would_be_late_is_refused_at_the_door() -> None:
    bench = Bench()
    with pytest.raises(DeadlineUnreachable, match="5 ms after its deadline, with 0 pieces of work ahead"):
        bench.admit("x", within=0.015)
    bench.admit("y", within=0.0201)
    assert bench.take() == "y"


def test_what_runs_and_waits_ahead_counts_at_the_door() -> None:
    bench = Bench(Limits(2, 2))
    bench.admit("1")
    bench.take()  # 20 ms
    bench.clock.now += 0.005
    bench.admit("2", within=0.060)
    bench.admit("3", within=0.060)  # together 30 ms
    with pytest.raises(DeadlineUnreachable, match="6 ms after its deadline, with 2 pieces of work ahead"):
        bench.admit("4", within=0.062)  # 15 + 30 + 20 are needed
    bench.admit("5", within=0.0685)  # and a twentieth of that in reserve


def test_nobody_is_admitted_who_would_make_an_admitted_one_late() -> None:
    bench = Bench(Limits(1, 1))
    bench.admit("1", within=0.035)
    with pytest.raises(Overloaded, match="late that was admitted before"):
        bench.admit("2", within=0.021)
    with pytest.raises(Overloaded):
        bench.admit("3", urgency=0)
    bench.admit("4", urgency=7)
    assert bench.take() == "1"


def test_without_learned_times_everything_is_admitted() -> None:
    bench = Bench(learned=False)
    bench.admit("x", within=0.0001)
    assert bench.take() == "x"


def test_a_deadline_that_passes_in_the_queue_leaves_it_unexecuted() -> None:
    bench = Bench(Limits(1, 1))
    bench.admit("1")
    bench.take()
    late = bench.admit("2", within=0.045)
    bench.admit("3")
    bench.end(0.046)  # longer than predicted
    taken = bench.policy.take()
    assert taken.late == [late]
    assert [item.payload for item in taken.batch] == ["3"]


def test_a_deadline_that_cannot_be_met_any_more_is_not_run_either() -> None:
    bench = Bench(Limits(1, 1))
    bench.admit("1")
    bench.take()
    late = bench.admit("2", within=0.045)
    bench.end(0.030)  # 15 ms are left, 20 are needed
    assert bench.policy.take().late == [late]


def test_an_item_whose_caller_left_is_dropped_before_it_runs() -> None:
    bench = Bench()
    gone = bench.admit("1")
    bench.admit("2")
    gone.abandoned = True
    taken = bench.policy.take()
    assert taken.abandoned == [gone]
    assert [item.payload for item in taken.batch] == ["2"]


def test_with_linger_a_batch_waits_for_company_but_not_past_its_deadline() -> None:
    bench = Bench(options=QueueOptions(linger=0.010))
    bench.admit("1", within=0.024)
    taken = bench.policy.take()
    assert taken.batch == []
    assert taken.wait == pytest.approx(0.004)
    bench.clock.now += 0.002
    bench.admit("2")  # together they need 30 ms: the first goes alone
    assert bench.take() == "1"


def test_with_linger_a_full_batch_does_not_wait() -> None:
    bench = Bench(Limits(2, 2), options=QueueOptions(linger=1.0))
    bench.admit("1")
    bench.admit("2")
    assert bench.take() == "12"


def test_times_learned_in_a_bad_moment_do_not_refuse_for_ever() -> None:
    bench = Bench(options=QueueOptions(probe_after=2.0))
    for _ in range(32):
        bench.admit("slow")
        bench.take()
        bench.end(5.0)
    with pytest.raises(DeadlineUnreachable):
        bench.admit("x", within=1.0)
    bench.clock.now += 2.0
    bench.admit("probe", within=1.0)
    with pytest.raises(DeadlineUnreachable):
        bench.admit("x", within=1.0)
    assert bench.take() == "p"


def test_what_was_learned_in_a_bad_moment_is_tried_anew_although_other_work_keeps_the_device_busy() -> None:
    bench = Bench(options=QueueOptions(probe_after=2.0))
    for _ in range(32):
        bench.admit("slow")
        bench.take()
        bench.end(5.0)
    for _ in range(4):
        with pytest.raises(DeadlineUnreachable):
            bench.admit("x", within=1.0)
        bench.clock.now += 0.480
        bench.admit("other", key="b", within=0.025)
        assert bench.take() == "o"
        with pytest.raises(DeadlineUnreachable):
            bench.admit("x", within=1.0)
        bench.end()
    bench.admit("probe", within=1.0)
    assert bench.take() == "p"


def test_a_request_is_tried_anew_where_the_time_of_any_of_its_pieces_may_be_out_of_date() -> None:
    bench = Bench(options=QueueOptions(probe_after=2.0))
    bench.clock.now += 1.990
    bench.admit("1", key="a")
    bench.take()
    bench.end()
    now = bench.clock.now
    with pytest.raises(DeadlineUnreachable):
        bench.admit("a", key="a", within=0.001)
    terms = Terms(now, now + 0.001)
    bench.policy.admit(Item(Piece("a", terms)), Item(Piece("b", terms)))
    assert bench.policy.waiting == 2


def test_a_failed_batch_teaches_nothing() -> None:
    bench = Bench()
    before = bench.policy.predict("a", 1)
    bench.admit("1")
    bench.take()
    bench.end(None)
    assert bench.policy.predict("a", 1) == before


def test_an_item_that_is_being_prepared_holds_its_place_but_does_not_run() -> None:
    bench = Bench(Limits(1, 1))
    coming = bench.admit(None, within=0.5)
    bench.admit("2", within=0.6)
    assert bench.take() == "2"
    coming.payload = "1"
    bench.end()
    assert bench.take() == "1"


def test_an_item_that_is_being_prepared_counts_for_those_behind_it() -> None:
    bench = Bench(Limits(1, 1))
    bench.admit(None, within=0.025)
    with pytest.raises(DeadlineUnreachable):
        bench.admit("2", within=0.035)


def test_the_pieces_of_one_request_are_admitted_together_or_not_at_all() -> None:
    bench = Bench(Limits(1, 1))
    terms = Terms(bench.clock.now, bench.clock.now + 0.035)
    with pytest.raises(DeadlineUnreachable):
        bench.policy.admit(Item(Piece("a", terms)), Item(Piece("b", terms)))
    assert bench.policy.waiting == 0
    terms = Terms(bench.clock.now, bench.clock.now + 0.0401)
    bench.policy.admit(Item(Piece("a", terms)), Item(Piece("b", terms)))
    assert bench.policy.waiting == 2


def test_the_time_until_it_is_prepared_counts_at_the_door() -> None:
    bench = Bench()
    terms = Terms(bench.clock.now, bench.clock.now + 0.030)
    with pytest.raises(DeadlineUnreachable, match="5 ms after"):
        bench.policy.admit(Item(Piece("a", terms, ready_by=bench.clock.now + 0.015)))
    bench.policy.admit(Item(Piece("a", terms, ready_by=bench.clock.now + 0.009)))


def test_a_place_whose_preparation_failed_is_given_up() -> None:
    bench = Bench()
    bench.policy.drop(bench.admit(None))
    assert bench.policy.waiting == 0


def test_a_smaller_choice_is_tried_before_a_probe() -> None:
    bench = Bench(options=QueueOptions(probe_after=2.0))
    bench.clock.now += 2.0
    item = Item[str, str](Piece("a", Terms(bench.clock.now, bench.clock.now + 0.001)))
    with pytest.raises(DeadlineUnreachable):
        bench.policy.admit(item, may_probe=False)
    bench.policy.admit(item, may_probe=True)


def test_better_work_that_should_be_prepared_by_now_is_expected() -> None:
    bench = Bench(Limits(1, 1))
    coming = bench.admit(None, urgency=0)
    bench.admit("2")
    assert bench.policy.expects_better()
    coming.payload = "1"
    assert not bench.policy.expects_better()


def test_work_that_is_still_being_prepared_is_not_waited_for() -> None:
    bench = Bench(Limits(1, 1))
    bench.policy.admit(Item(Piece("a", Terms(bench.clock.now, urgency=0), ready_by=bench.clock.now + 1)))
    bench.admit("2")
    assert not bench.policy.expects_better()
