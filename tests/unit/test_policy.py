"""The batching policy on a fake clock: exact batches, refusals and drops."""

from __future__ import annotations

import pytest

from service.api.context import DEFAULT_URGENCY
from service.errors import DeadlineUnreachable, Overloaded
from service.scheduler.latency import LatencyModel
from service.scheduler.policy import BatchPolicy, Limits, QueueOptions, WorkItem
from tests.fakes import FakeClock, FakeRequest


class Bench:
    """A policy whose batches take 10 ms plus 10 ms per cost, once it has learned that."""

    def __init__(
        self, limits: Limits | None = None, *, learned: bool = True, options: QueueOptions | None = None
    ) -> None:
        self.clock = FakeClock()
        of = limits or Limits(4, 4)
        self.policy: BatchPolicy[str, str] = BatchPolicy(
            lambda _: of, LatencyModel(), clock=self.clock, options=options
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
    ) -> WorkItem[str, str]:
        item = self.item(key, cost=cost, within=within, urgency=urgency)
        item.payload = name
        self.policy.admit(item)
        return item

    def item(
        self,
        key: str = "a",
        *,
        cost: float = 1,
        within: float | None = None,
        urgency: int = DEFAULT_URGENCY,
        ready_in: float = 0,
    ) -> WorkItem[str, str]:
        now = self.clock.now
        deadline = None if within is None else now + within
        return WorkItem(key, FakeRequest(now, urgency), deadline=deadline, cost=cost, ready_by=now + ready_in)

    def take(self) -> str:
        return "".join(str(item.payload)[0] for item in self.policy.take().items)

    def end(self, seconds: float | None = 0.02) -> None:
        self.clock.now += seconds or 0.0
        self.policy.finished(seconds)


def test_a_lone_item_on_an_idle_device_runs_at_once() -> None:
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


def test_the_place_of_an_item_that_waited_too_long_is_not_taken_by_what_comes_later() -> None:
    bench = Bench(Limits(1, 1), options=QueueOptions(max_age=1.0))
    bench.admit("old", urgency=7)
    bench.clock.now += 1.01
    bench.admit("d", within=0.5, urgency=0)
    assert bench.take() == "o"


def test_an_item_that_waited_too_long_does_not_go_before_deadlines_that_were_there() -> None:
    bench = Bench(Limits(1, 1), options=QueueOptions(max_age=1.0))
    bench.admit("old", urgency=7)
    bench.clock.now += 0.99
    bench.admit("d", within=0.05)
    bench.clock.now += 0.02
    bench.admit("e", within=0.5, urgency=1)
    assert served(bench, 3) == "doe"


def served(bench: Bench, batches: int) -> str:
    """Return what the next batches hold; each takes 20 ms."""
    names = ""
    for _ in range(batches):
        names += bench.take()
        bench.end()
    return names


def test_a_crowd_that_waited_too_long_does_not_keep_a_deadline_waiting() -> None:
    bench = Bench(Limits(1, 1), options=QueueOptions(max_age=1.0))
    for _ in range(64):
        bench.admit("crowd")
    bench.clock.now += 10
    for _ in range(5):
        assert served(bench, 1) == "c"
        bench.clock.now += 0.001
        bench.admit("late comer", within=0.03)
        assert served(bench, 1) == "l"


def test_work_that_waits_too_long_gets_its_turns_beside_deadlines_that_never_end() -> None:
    bench = Bench(Limits(1, 1), options=QueueOptions(max_age=1.0))
    for _ in range(64):
        bench.admit("crowd", urgency=7)
    names = ""
    for _ in range(200):
        while True:
            try:
                bench.admit("dated", within=0.1)
            except (DeadlineUnreachable, Overloaded):
                break
        names += served(bench, 1)
    ran = names[100:]  # after max_age
    assert ran.count("d") + ran.count("c") == 100
    # At most one batch in four; each turn also waits for the three or four deadlines that were there before it began.
    assert 100 / 8 <= ran.count("c") <= 100 / 4
    assert "cc" not in ran


def test_a_crowd_leaves_a_fourth_of_the_places_to_work_with_deadlines() -> None:
    bench = Bench(options=QueueOptions(max_queued=8))
    for _ in range(6):
        bench.admit("crowd")
    with pytest.raises(Overloaded, match="6 work items"):
        bench.admit("one more")
    for _ in range(2):
        bench.admit("dated", within=9)
    with pytest.raises(Overloaded, match="8 work items"):
        bench.admit("one more", within=9)


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
        bench.admit(name, within=9)
    with pytest.raises(Overloaded) as refused:
        bench.admit("5", within=9)
    assert refused.value.retry_after == pytest.approx(0.050)  # one batch of four
    assert bench.policy.waiting == 4


def test_an_item_that_would_be_late_by_the_learned_times_is_refused() -> None:
    bench = Bench()
    with pytest.raises(DeadlineUnreachable, match="5 ms after its deadline, with 0 work items ahead"):
        bench.admit("x", within=0.015)
    bench.admit("y", within=0.0201)
    assert bench.take() == "y"


def test_running_and_waiting_work_counts_at_admission() -> None:
    bench = Bench(Limits(2, 2))
    bench.admit("1")
    bench.take()  # 20 ms
    bench.clock.now += 0.005
    bench.admit("2", within=0.060)
    bench.admit("3", within=0.060)  # together 30 ms
    with pytest.raises(DeadlineUnreachable, match="6 ms after its deadline, with 2 work items ahead"):
        bench.admit("4", within=0.062)  # 15 + 30 + 20 are needed
    bench.admit("5", within=0.0685)  # and a twentieth of that in reserve


def test_an_item_that_would_make_an_admitted_one_late_is_refused() -> None:
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
    assert [item.payload for item in taken.items] == ["3"]


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
    assert bench.policy.drop(gone)
    assert bench.take() == "2"
    assert not bench.policy.drop(gone)


def in_a_bad_moment(bench: Bench) -> None:
    """Let batches of a take 5 s, as never before."""
    for _ in range(32):
        bench.admit("slow")
        bench.take()
        bench.end(5.0)


def test_times_learned_in_a_bad_moment_are_forgotten_after_four_times_as_long() -> None:
    bench = Bench()
    in_a_bad_moment(bench)
    bench.clock.now += 19.9
    with pytest.raises(DeadlineUnreachable):
        bench.admit("x", within=0.1)
    bench.clock.now += 0.1
    bench.admit("x", within=0.1)
    assert bench.take() == "x"


def test_times_learned_in_a_bad_moment_are_forgotten_although_other_work_keeps_the_device_busy() -> None:
    bench = Bench()
    in_a_bad_moment(bench)
    refused = 0.0
    while True:
        bench.clock.now += 0.480
        bench.admit("other", key="b", within=0.025)
        try:
            bench.admit("x", within=1.0)
        except DeadlineUnreachable:
            refused = bench.clock.now
        assert bench.take() == "o"
        bench.end()
        if bench.clock.now - refused > 0.1:
            break
    assert bench.take() == "x"
    assert refused == pytest.approx(1000 + 32 * 5 + 20, abs=0.5)


def test_times_that_were_never_learned_in_a_good_moment_are_probed_on_an_idle_device() -> None:
    bench = Bench(learned=False)
    in_a_bad_moment(bench)
    bench.clock.now += 20
    bench.admit("probe", within=1.0)
    with pytest.raises(DeadlineUnreachable):
        bench.admit("x", within=1.0)
    assert bench.take() == "p"


def test_a_requests_own_work_does_not_keep_it_from_probing() -> None:
    # As an inspection does: the place of the U-Net is reserved before that of the SAM.
    bench = Bench(options=QueueOptions(probe_after=2.0))
    bench.policy.learn("sam", 1, 5.0)
    bench.clock.now += 20
    request = FakeRequest(bench.clock.now)
    due = bench.clock.now + 1.0
    bench.policy.admit(WorkItem("a", request, deadline=due))
    with pytest.raises(DeadlineUnreachable):
        bench.policy.admit(WorkItem("sam", FakeRequest(bench.clock.now), deadline=due))
    bench.policy.admit(WorkItem("sam", request, deadline=due))


def test_probes_take_no_more_than_a_fifth_of_the_devices_time() -> None:
    bench = Bench(options=QueueOptions(probe_after=2.0))
    bench.policy.learn("sam", 1, 5.0)  # and never less, so that it cannot heal
    busy = 0.0
    started = bench.clock.now
    while bench.clock.now < started + 600:
        bench.clock.now += 0.5
        try:
            bench.admit("x", key="sam", within=1.0)
        except DeadlineUnreachable:
            continue
        bench.take()
        bench.end(5.0)
        busy += 5.0
    assert 0.1 < busy / 600 <= 0.2


def test_a_request_probes_if_the_time_of_any_of_its_items_may_be_out_of_date() -> None:
    bench = Bench(options=QueueOptions(probe_after=2.0))
    bench.clock.now += 1.990
    bench.admit("1", key="a")
    bench.take()
    bench.end()
    with pytest.raises(DeadlineUnreachable):
        bench.admit("a", key="a", within=0.001)
    bench.policy.admit(bench.item("a", within=0.001), bench.item("b", within=0.001))
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


def test_the_items_of_one_request_are_admitted_together_or_not_at_all() -> None:
    bench = Bench(Limits(1, 1))
    with pytest.raises(DeadlineUnreachable):
        bench.policy.admit(bench.item("a", within=0.035), bench.item("b", within=0.035))
    assert bench.policy.waiting == 0
    bench.policy.admit(bench.item("a", within=0.0401), bench.item("b", within=0.0401))
    assert bench.policy.waiting == 2


def test_the_time_until_an_item_is_prepared_counts_at_admission() -> None:
    bench = Bench()
    with pytest.raises(DeadlineUnreachable, match="5 ms after"):
        bench.policy.admit(bench.item(within=0.030, ready_in=0.015))
    bench.policy.admit(bench.item(within=0.030, ready_in=0.009))


def test_an_item_whose_preparation_failed_is_dropped() -> None:
    bench = Bench()
    bench.policy.drop(bench.admit(None))
    assert bench.policy.waiting == 0


def test_an_item_does_not_probe_while_a_smaller_choice_is_left() -> None:
    bench = Bench(options=QueueOptions(probe_after=2.0))
    bench.clock.now += 2.0
    item = bench.item(within=0.001)
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
    bench.policy.admit(bench.item(urgency=0, ready_in=1))
    bench.admit("2")
    assert not bench.policy.expects_better()


def test_a_batch_that_would_make_an_item_late_that_is_nearly_prepared_is_not_started() -> None:
    bench = Bench(Limits(1, 1))
    bench.policy.learn("long", 1, 0.5)
    bench.admit("long", key="long")
    coming = bench.item(within=0.2, ready_in=0.1)
    bench.policy.admit(coming)
    batch = bench.policy.take()
    assert batch.items == []
    assert batch.hold_until == coming.ready_by
    bench.clock.now += 0.09
    coming.payload = "soon"
    assert served(bench, 2) == "sl"


def test_a_batch_grows_only_as_long_as_an_item_that_is_nearly_prepared_is_in_time() -> None:
    bench = Bench()
    for name in "1234":
        bench.admit(name)
    # 20 ms of its own, and a twentieth of 65 ms in reserve: 41 ms are left, enough for three that take 40 ms.
    bench.policy.admit(bench.item("b", within=0.065, ready_in=0.04))
    assert bench.take() == "123"


def test_the_device_does_not_wait_for_an_item_that_is_prepared_too_late_or_whose_time_is_over() -> None:
    bench = Bench(Limits(1, 1))
    bench.policy.learn("long", 1, 0.5)
    bench.admit("long", key="long")
    with pytest.raises(DeadlineUnreachable):
        bench.policy.admit(bench.item(within=0.2, ready_in=0.19))
    overdue = bench.item(within=0.2, ready_in=0.1)
    bench.policy.admit(overdue)
    bench.clock.now += 0.1
    assert bench.take() == "l"
