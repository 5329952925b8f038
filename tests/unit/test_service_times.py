"""What is learned of how long batches take."""

from __future__ import annotations

import pytest


def test_a_fixed_part_and_a_part_per_cost_are_learned() -> None:
    times = ServiceTimes()
    for cost in (1, 2, 4, 1, 2, 4):
        times.learn("k", cost, 0.05 + 0.02 * cost)
    assert times.predict("k", 8) == pytest.approx(0.05 + 0.16)


def test_one_outlier_in_nine_does_not_move_the_prediction() -> None:
    times = ServiceTimes()
    for number in range(32):
        cost = 1 + number % 4
        times.learn("k", cost, 3.0 if number % 9 == 5 else 0.05 + 0.02 * cost)
    assert times.predict("k", 2) == pytest.approx(0.09)


def test_scatter_makes_predictions_careful() -> None:
    times = ServiceTimes()
    for number in range(32):
        times.learn("k", 1, 0.10 + (0.01 if number % 2 else -0.01))
    assert times.predict("k", 1) == pytest.approx(0.12)


def test_a_change_of_speed_is_followed_within_the_window() -> None:
    times = ServiceTimes()
    for _ in range(100):
        times.learn("k", 1, 0.1)
    for _ in range(32):
        times.learn("k", 1, 0.3)
    assert times.predict("k", 1) == pytest.approx(0.3)


def test_keys_are_learned_apart_and_an_unknown_one_costs_nothing() -> None:
    times = ServiceTimes()
    times.learn("k", 1, 0.1)
    assert times.predict("other", 1) == 0.0


def test_a_device_with_fixed_batch_sizes_pays_for_the_next_bucket() -> None:
    times = ServiceTimes(buckets=(1, 4, 8))
    times.learn("k", 1, 0.1)
    times.learn("k", 4, 0.2)
    times.learn("k", 8, 0.3)
    assert times.predict("k", 5) == times.predict("k", 8)
    assert times.predict("k", 2) == times.predict("k", 4)


def test_sizes_that_are_nearly_alike_say_nothing_of_others() -> None:
    times = ServiceTimes()
    times.learn("k", 1.0, 0.6)
    times.learn("k", 0.25, 0.15)
    # One of them was timed while the machine was busy: a line through both alone would be steep, or flat.
    for slow, quick in ((0.229, 0.197), (0.197, 0.229)):
        for _ in range(16):
            times.learn("k", slow, 0.190)
            times.learn("k", quick, 0.140)
        assert times.predict("k", slow) == pytest.approx(0.190)
        assert times.predict("k", quick) == pytest.approx(0.140)
        assert 0.2 < times.predict("k", 0.5) < 0.45
