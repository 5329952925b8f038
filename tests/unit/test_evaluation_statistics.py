import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.errors import DataError
from models.evaluation.bootstrap import Statistic, intervals, mean_of, ratio_of
from models.evaluation.calibration import calibrate
from models.evaluation.results import Interval


def interval(statistic: Statistic, *, images: int, resamples: int = 2000, seed: int = 0) -> Interval:
    return intervals({"x": statistic}, images=images, resamples=resamples, seed=seed)["x"]


def test_the_interval_of_a_mean_has_its_known_spread() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    result = interval(mean_of(values), images=400, resamples=4000)
    assert result.value == pytest.approx(values.mean())
    # The standard error of a mean; quantiles of 4000 resamples scatter by about 3 % of it.
    spread = 1.96 * values.std() / 20
    assert result.high - values.mean() == pytest.approx(spread, rel=0.1)
    assert values.mean() - result.low == pytest.approx(spread, rel=0.1)


def test_intervals_cover_the_true_mean_about_95_percent_of_the_time() -> None:
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).uniform(0, 1, 50)
        result = interval(mean_of(values), images=50, resamples=300, seed=seed)
        covered += result.low <= 0.5 <= result.high
    # Binomial with p about 0.94 (percentile intervals of 50 are a little narrow): 176 to 197 is four sigma wide.
    assert 174 <= covered <= 200


def test_intervals_repeat_with_their_seed_and_narrow_with_less_confidence() -> None:
    values = np.random.default_rng(1).uniform(0, 1, 30)
    statistics = {"mean": mean_of(values), "ratio": ratio_of(values, np.ones(30))}
    found = intervals(statistics, images=30, resamples=300)
    assert found["mean"] == found["ratio"]  # the same resamples for every measure
    assert found == intervals(statistics, images=30, resamples=300)
    assert found != intervals(statistics, images=30, resamples=300, seed=1)
    narrow = intervals(statistics, images=30, resamples=300, confidence=0.5)
    assert narrow["mean"].high - narrow["mean"].low < found["mean"].high - found["mean"].low


def test_images_and_resamples_without_a_value_are_left_out() -> None:
    def known(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(weights[:, 0] > 0, 0.7, np.nan)

    assert interval(known, images=3) == Interval(0.7, 0.7, 0.7)
    assert interval(mean_of(np.array([0.5, np.nan, 0.5])), images=3) == Interval(0.5, 0.5, 0.5)
    assert intervals({"x": mean_of(np.full(3, np.nan))}, images=3) == {}


@pytest.mark.parametrize(("images", "resamples", "confidence"), [(0, 10, 0.9), (3, 0, 0.9), (3, 10, 0.0), (3, 10, 1.0)])
def test_invalid_bootstrap_options_are_refused(images: int, resamples: int, confidence: float) -> None:
    with pytest.raises(DataError, match="must be at least 1"):
        intervals({"x": mean_of(np.ones(3))}, images=images, resamples=resamples, confidence=confidence)


def test_calibration_of_a_small_example() -> None:
    scores = np.array([0.95, 0.91, 0.5, 0.42, 1.03])
    ious = np.array([0.85, 0.95, 0.1, 0.42, 1.0])
    result = calibrate(scores, ious)
    assert result.count == 5
    assert result.mean_absolute_error == pytest.approx((0.1 + 0.04 + 0.4 + 0 + 0.03) / 5)
    assert result.bias == pytest.approx((0.1 - 0.04 + 0.4 + 0 + 0.03) / 5)
    # 0.42 in the fifth bin, 0.5 in the sixth, the other three in the last, where their errors cancel in part.
    assert [(each.low, each.high, each.count) for each in result.bins] == [(0.4, 0.5, 1), (0.5, 0.6, 1), (0.9, 1.0, 3)]
    assert result.bins[2].mean_score == pytest.approx((0.95 + 0.91 + 1.03) / 3)
    assert result.expected_calibration_error == pytest.approx((0 + 0.4 + abs(0.1 - 0.04 + 0.03)) / 5)
    deviations = (scores - scores.mean()) * (ious - ious.mean())
    assert result.correlation == pytest.approx(deviations.mean() / scores.std() / ious.std())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-0.2, 1.2), st.floats(0, 1)), min_size=1, max_size=40),
    st.integers(1, 15),
)
def test_the_calibration_error_agrees_with_a_slow_loop(pairs: list[tuple[float, float]], bins: int) -> None:
    expected = 0.0
    for place in range(bins):
        held = [pair for pair in pairs if min(int(min(max(pair[0], 0), 1) * bins), bins - 1) == place]
        if held:
            expected += abs(math.fsum(score for score, _ in held) - math.fsum(iou for _, iou in held)) / len(pairs)
    scores, ious = np.array(pairs).T
    result = calibrate(scores, ious, bins=bins)
    assert result.expected_calibration_error == pytest.approx(expected, abs=1e-12)
    assert abs(result.bias) <= result.mean_absolute_error + 1e-12
    assert result.expected_calibration_error <= result.mean_absolute_error + 1e-12
    assert sum(each.count for each in result.bins) == len(pairs)
    assert calibrate(ious, ious).expected_calibration_error == pytest.approx(0, abs=1e-12)


def test_the_correlation_of_equal_scores_is_nan() -> None:
    assert math.isnan(calibrate(np.array([0.9, 0.9]), np.array([0.1, 0.8])).correlation)
    assert calibrate(np.array([0.9, 0.8]), np.array([0.1, 0.8])).correlation == pytest.approx(-1)


@pytest.mark.parametrize(
    ("scores", "ious", "bins"),
    [([], [], 10), ([0.5], [0.5, 0.5], 10), ([0.5], [0.5], 0), ([math.nan], [0.5], 10), ([0.5], [math.inf], 10)],
)
def test_scores_that_cannot_be_calibrated_are_refused(scores: list[float], ious: list[float], bins: int) -> None:
    with pytest.raises(DataError):
        calibrate(np.array(scores), np.array(ious), bins=bins)
