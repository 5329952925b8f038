import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from models.errors import DataError
from models.evaluation.calibration import calibrate


def test_by_hand() -> None:
    scores = np.array([0.95, 0.91, 0.5, 0.42, 1.03])
    ious = np.array([0.85, 0.95, 0.1, 0.42, 1.0])
    result = calibrate(scores, ious)
    assert result.count == 5
    assert result.mean_absolute_error == pytest.approx((0.1 + 0.04 + 0.4 + 0 + 0.03) / 5)
    assert result.bias == pytest.approx((0.1 - 0.04 + 0.4 + 0 + 0.03) / 5)
    # 0.42 in the fifth bin, 0.5 in the sixth, the other three in the last, where their errors cancel in part.
    assert [each.count for each in result.bins] == [1, 1, 3]
    assert result.bins[2].score == pytest.approx((0.95 + 0.91 + 1.03) / 3)
    assert result.expected_calibration_error == pytest.approx((0 + 0.4 + abs(0.1 - 0.04 + 0.03)) / 5)
    deviations = (scores - scores.mean()) * (ious - ious.mean())
    assert result.correlation == pytest.approx(deviations.mean() / scores.std() / ious.std())


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)))
def test_true_scores_are_calibrated(ious: NDArray[np.float64]) -> None:
    result = calibrate(ious, ious)
    assert result.mean_absolute_error == 0
    assert result.expected_calibration_error == pytest.approx(0, abs=1e-12)
    assert math.isnan(result.correlation) or result.correlation == pytest.approx(1)


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


def test_the_correlation_of_equal_scores_is_unknown() -> None:
    assert math.isnan(calibrate(np.array([0.9, 0.9]), np.array([0.1, 0.8])).correlation)
    assert calibrate(np.array([0.9, 0.8]), np.array([0.1, 0.8])).correlation == pytest.approx(-1)


@pytest.mark.parametrize(
    ("scores", "ious", "bins"),
    [([], [], 10), ([0.5], [0.5, 0.5], 10), ([0.5], [0.5], 0), ([math.nan], [0.5], 10), ([0.5], [math.inf], 10)],
)
def test_what_cannot_be_compared_is_refused(scores: list[float], ious: list[float], bins: int) -> None:
    with pytest.raises(DataError):
        calibrate(np.array(scores), np.array(ious), bins=bins)
