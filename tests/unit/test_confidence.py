from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalog import Architecture, CatalogueEntry, LocalFile
from models.confidence import (
    COVERAGE,
    FEWEST,
    INTERVALS,
    FractionIntervals,
    FractionRange,
    fit_intervals,
)
from models.errors import WeightsError

SHA256 = "ab" * 32
FRACTIONS = st.floats(0, 1)


def noisy(count: int, seed: int = 0) -> list[tuple[float, float]]:
    """Predicted and annotated fractions; large ones are further apart."""
    rng = np.random.default_rng(seed)
    truth = 0.8 * rng.random(count) ** 3 + 0.05
    predicted = np.clip(truth + rng.normal(0, 0.01 + 0.1 * truth), 0, 1)
    return list(zip(predicted.tolist(), truth.tolist(), strict=True))


def fitted(fractions: list[tuple[float, float]]) -> FractionIntervals:
    intervals = fit_intervals(fractions, SHA256)
    assert intervals is not None
    return intervals


def entry_of(weights: Path, sha256: str = SHA256) -> CatalogueEntry:
    return CatalogueEntry("mine", Architecture.UNET_MOBILENETV2, "mine", weights.name, 1, sha256, (LocalFile(weights),))


def test_of_other_fruit_like_these_nine_tenths_lie_in_their_intervals() -> None:
    intervals = fitted(noisy(2000))
    held = [low <= truth <= high for predicted, truth in noisy(4000, 1) for low, high in [intervals.of(predicted)]]
    assert np.mean(held) == pytest.approx(COVERAGE, abs=0.03)
    assert intervals.covered == pytest.approx(COVERAGE, abs=0.03)


def test_where_little_is_seen_the_interval_is_narrower_than_where_half_is() -> None:
    intervals = fitted(noisy(2000))
    small, large = intervals.of(0.05), intervals.of(0.5)
    assert small[1] - small[0] < 0.7 * (large[1] - large[0])


@given(st.lists(st.tuples(FRACTIONS, FRACTIONS), max_size=120), FRACTIONS)
def test_an_interval_holds_the_predicted_fraction_and_stays_within_0_and_1(
    fractions: list[tuple[float, float]], fraction: float
) -> None:
    intervals = fit_intervals(fractions, SHA256)
    assert (intervals is None) == (len(fractions) < FEWEST)
    if intervals is not None:
        low, high = intervals.of(fraction)
        assert 0 <= low <= fraction <= high <= 1
        assert all(each.fruits >= FEWEST for each in intervals.ranges)
        assert sum(each.fruits for each in intervals.ranges) == len(fractions)
        assert intervals.ranges[-1].most == 1


def test_nineteen_fruits_have_the_interval_of_their_largest_errors() -> None:
    errors = np.linspace(-0.1, 0.2, FEWEST)
    (only,) = fitted([(0.5, 0.5 + error) for error in errors.tolist()]).ranges
    assert (only.below, only.above) == pytest.approx((-0.1, 0.2))


def test_a_file_beside_the_weights_is_read_with_them(tmp_path: Path) -> None:
    weights, intervals = tmp_path / "model.safetensors", fitted(noisy(100))
    INTERVALS.write(intervals, weights)
    assert INTERVALS.read(entry_of(weights)) == intervals


def test_intervals_of_other_weights_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tmp_path / "model.safetensors"
    assert INTERVALS.read(entry_of(weights)) is None
    INTERVALS.write(replace(fitted(noisy(100)), sha256="cd" * 32), weights)
    assert INTERVALS.read(entry_of(weights)) is None
    assert "belongs to other weights" in caplog.text


@pytest.mark.parametrize("content", ["{", json.dumps({"sha256": SHA256, "ranges": []})])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    weights = tmp_path / "model.safetensors"
    INTERVALS.path(weights).write_text(content)
    with pytest.raises(WeightsError, match=r"model\.calibration\.json cannot be read"):
        INTERVALS.read(entry_of(weights))


def test_an_interval_ends_at_0_and_1() -> None:
    intervals = FractionIntervals(SHA256, COVERAGE, None, (FractionRange(1.0, -0.3, 0.4, 50),))
    assert intervals.of(0.1) == (0.0, 0.5)
    assert intervals.of(0.9) == pytest.approx((0.6, 1.0))
