"""What is learned about how long batches take and how fast work arrives."""

from __future__ import annotations

import pytest

from service.scheduler.latency import ArrivalRate, LatencyModel

NOW = 1000.0
MANY = 10**9


def test_a_fixed_part_and_a_part_per_cost_are_learned() -> None:
    model = LatencyModel()
    for cost in (1, 2, 4, 1, 2, 4):
        model.learn("k", cost, 0.05 + 0.02 * cost, NOW)
    assert model.predict("k", 8) == pytest.approx(0.05 + 0.16)


def test_one_outlier_in_nine_does_not_move_the_prediction() -> None:
    model = LatencyModel()
    for number in range(32):
        cost = 1 + number % 4
        model.learn("k", cost, 3.0 if number % 9 == 5 else 0.05 + 0.02 * cost, NOW)
    assert model.predict("k", 2) == pytest.approx(0.09)


def test_scatter_makes_predictions_careful() -> None:
    model = LatencyModel()
    for number in range(32):
        model.learn("k", 1, 0.10 + (0.01 if number % 2 else -0.01), NOW)
    assert model.predict("k", 1) == pytest.approx(0.12)


def test_a_change_of_speed_is_followed_within_the_window() -> None:
    model = LatencyModel()
    for _ in range(100):
        model.learn("k", 1, 0.1, NOW)
    assert model.predict("k", 1) == pytest.approx(0.1)
    for _ in range(32):
        model.learn("k", 1, 0.3, NOW)
    assert model.predict("k", 1) == pytest.approx(0.3)


def test_families_are_learned_separately_and_an_unknown_one_costs_nothing() -> None:
    model = LatencyModel()
    model.learn("k", 1, 0.1, NOW)
    assert model.predict("other", 1) == 0.0


def test_sizes_that_are_nearly_equal_say_nothing_about_others() -> None:
    model = LatencyModel()
    model.learn("k", 1.0, 0.6, NOW)
    model.learn("k", 0.25, 0.15, NOW)
    # One of them was timed while the machine was busy: a line through both alone would be steep, or flat.
    for slow, quick in ((0.229, 0.197), (0.197, 0.229)):
        for _ in range(16):
            model.learn("k", slow, 0.190, NOW)
            model.learn("k", quick, 0.140, NOW)
        assert model.predict("k", slow) == pytest.approx(0.190)
        assert model.predict("k", quick) == pytest.approx(0.140)
        assert 0.2 < model.predict("k", 0.5) < 0.45


def test_few_arrivals_say_nothing_and_the_rate_falls_in_silence() -> None:
    rate = ArrivalRate()
    for number in range(7):
        rate.add("k", 1, number * 0.01)
    assert rate.expected("k", 0.07, 0.17, MANY) == 0
    rate.add("k", 1, 0.07)
    assert rate.expected("k", 0.08, 0.18, MANY) == pytest.approx(10)
    assert rate.expected("k", 0.8, 0.9, MANY) == pytest.approx(1)
    assert rate.expected("other", 0.08, 0.18, MANY) == 0
    assert rate.expected("k", 0.08, 0.08, MANY) == 0
