import math

import numpy as np
import pytest
from numpy.typing import NDArray

from models.data.samples import Instance, Sample
from models.errors import DataError
from models.evaluation.bootstrap import Estimate, Statistic, estimate
from models.evaluation.summary import ImageMeasure, measure, summarise
from models.types import PixelClass, SemanticMap


def sample(semantic: SemanticMap, name: str = "a") -> Sample:
    """An image with this annotation, its fruit one instance."""
    fruit = np.isin(semantic, (PixelClass.HEALTHY, PixelClass.INFECTED, PixelClass.FRUIT))
    return Sample(
        name,
        np.zeros((*semantic.shape, 3), np.uint8),
        semantic,
        (Instance(1, (0, 0, 1, 1), PixelClass.FRUIT),),
        fruit.astype(np.uint16),
    )


def scene(width: int, healthy: int, infected: int, *, fill: int = 0) -> SemanticMap:
    """An image 20 high: `healthy` columns, then `infected`, then `fill`."""
    semantic = np.full((20, width), fill, np.uint8)
    semantic[:, :healthy] = PixelClass.HEALTHY
    semantic[:, healthy : healthy + infected] = PixelClass.INFECTED
    return semantic


def mean_of(values: NDArray[np.float64]) -> Statistic:
    return lambda weights: (weights @ values) / weights.sum(axis=1)


def test_names_tell_images_from_pixels() -> None:
    # A small image that is half right, and a large one that is all right.
    small = measure(scene(40, 5, 0), sample(scene(40, 10, 0)))
    large = measure(scene(400, 100, 0), sample(scene(400, 100, 0)))
    found = summarise([small, large], resamples=50)
    assert found["healthy_iou_per_image"].value == pytest.approx((0.5 + 1) / 2)
    assert found["healthy_iou_over_pixels"].value == pytest.approx(105 / 110)
    assert found["fruit_iou_per_image"].value == pytest.approx((0.5 + 1) / 2)
    assert found["background_iou_per_image"].value == pytest.approx((30 / 35 + 1) / 2)
    assert found["mean_iou_per_image"].value == pytest.approx(((0.5 + 30 / 35) / 2 + 1) / 2)
    assert found["mean_iou_over_pixels"].value == pytest.approx((105 / 110 + 330 / 335) / 2)
    assert found["healthy_dice_per_image"].value == pytest.approx((2 / 3 + 1) / 2)
    assert found["mean_dice_over_pixels"].value == pytest.approx((210 / 215 + 660 / 665) / 2)
    # No image has infected pixels, in truth or prediction.
    assert not [name for name in found if name.startswith(("infected_iou", "infected_dice", "infected_boundary"))]
    assert found["infected_fraction_error_per_image"].value == 0


def test_images_of_fruit_alone_count_against_background_only() -> None:
    truth = np.where(scene(40, 10, 0) == PixelClass.HEALTHY, PixelClass.FRUIT, PixelClass.BACKGROUND).astype(np.uint8)
    for predicted in (scene(40, 4, 4), np.where(scene(40, 8, 0) > 0, PixelClass.FRUIT, 0).astype(np.uint8)):
        measured = measure(predicted, sample(truth))
        assert not measured.classes.any()
        assert math.isnan(measured.infected_fraction_error)
        found = summarise([measured], resamples=20)
        assert set(found) == {
            "fruit_iou_per_image",
            "fruit_iou_over_pixels",
            "fruit_dice_per_image",
            "fruit_dice_over_pixels",
            "fruit_boundary_f_per_image",
        }
        assert found["fruit_iou_over_pixels"].value == pytest.approx(0.8)


def test_the_infected_fractions_error_and_bias_differ() -> None:
    truth = sample(scene(40, 10, 10))
    measures = [measure(scene(40, 8, 12), truth), measure(scene(40, 14, 6), truth), measure(scene(40, 20, 0), truth)]
    found = summarise(measures, resamples=20)
    assert found["infected_fraction_error_per_image"].value == pytest.approx((0.1 + 0.2 + 0.5) / 3)
    assert found["infected_fraction_bias_per_image"].value == pytest.approx((0.1 - 0.2 - 0.5) / 3)


def test_objects_are_counted_over_all_fruits() -> None:
    truth = sample(scene(40, 10, 0))
    fruit, stray = scene(40, 10, 0) > 0, scene(40, 0, 0, fill=1) > 0
    measures = [
        measure(scene(40, 10, 0), truth, objects=[fruit, stray]),
        measure(scene(40, 10, 0), truth, objects=[]),
        measure(scene(40, 10, 0), truth, objects=[scene(40, 8, 0) > 0]),
        measure(scene(40, 10, 0), truth),  # fruits not told apart: takes no part
    ]
    found = summarise(measures, resamples=20)
    assert found["object_precision"].value == pytest.approx(2 / 3)
    assert found["object_precision"].images == 2
    assert found["object_recall"].value == pytest.approx(2 / 3)
    assert found["object_recall"].images == 3
    assert found["object_iou"].value == pytest.approx((1 + 0.8) / 2)


def test_ignored_pixels_count_nowhere() -> None:
    truth = scene(40, 10, 10)
    truth[:, 15:] = PixelClass.IGNORE
    good, bad = scene(40, 10, 5), scene(40, 10, 30)
    one, other = (summarise([measure(each, sample(truth))], resamples=5) for each in (good, bad))
    assert one == other
    assert one["infected_iou_over_pixels"].value == 1
    assert one["infected_boundary_f_per_image"].value == 1


def test_predictions_that_cannot_be_are_refused() -> None:
    truth = sample(scene(40, 10, 0))
    with pytest.raises(DataError, match="healthy, infected and fruit only"):
        measure(np.full((20, 40), PixelClass.IGNORE, np.uint8), truth)
    with pytest.raises(DataError, match="shape"):
        measure(scene(30, 1, 1), truth)
    with pytest.raises(DataError, match="no images"):
        summarise([])


def test_every_estimate_lies_in_its_interval_and_repeats() -> None:
    rng = np.random.default_rng(4)
    measures: list[ImageMeasure] = []
    for number in range(30):
        healthy, infected = rng.integers(4, 15, 2)
        truth = scene(60, int(healthy), int(infected))
        guess = scene(60, int(healthy + rng.integers(-3, 4)), int(infected + rng.integers(-3, 4)))
        measures.append(measure(guess, sample(truth, str(number)), objects=[guess > 0]))
    found = summarise(measures, resamples=400)
    assert found == summarise(measures, resamples=400)
    assert found != summarise(measures, resamples=400, seed=1)
    assert len(found) == 2 * 5 * 2 + 3 + 3 + 2  # IoU and Dice, outlines, objects, infected fraction
    for name, each in found.items():
        assert each.low <= each.value <= each.high, name
        assert each.images == 30
    narrow = summarise(measures, resamples=400, confidence=0.5)["mean_iou_per_image"]
    wide = found["mean_iou_per_image"]
    assert narrow.high - narrow.low < wide.high - wide.low


def test_the_bootstrap_of_a_mean_has_its_known_spread() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    result = estimate(mean_of(values), images=400, resamples=4000)
    assert result.value == pytest.approx(values.mean())
    # The standard error of a mean; quantiles of 4000 resamples scatter by about 3 % of it.
    spread = 1.96 * values.std() / 20
    assert result.high - values.mean() == pytest.approx(spread, rel=0.1)
    assert values.mean() - result.low == pytest.approx(spread, rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).uniform(0, 1, 50)
        result = estimate(mean_of(values), images=50, resamples=300, seed=seed)
        covered += result.low <= 0.5 <= result.high
    # Binomial with p about 0.94 (percentile intervals of 50 are a little narrow): 176 to 197 is four sigma wide.
    assert 174 <= covered <= 200


def test_resamples_that_measure_nothing_are_left_out() -> None:
    def known(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(weights[:, 0] > 0, 0.7, np.nan)

    assert estimate(known, images=3, counted=1) == Estimate(0.7, 0.7, 0.7, 1)
    nothing = estimate(lambda weights: np.full(len(weights), np.nan), images=3)
    assert math.isnan(nothing.low)


@pytest.mark.parametrize("wrong", [{"images": 0}, {"resamples": 0}, {"confidence": 0.0}, {"confidence": 1.0}])
def test_what_cannot_be_estimated_is_refused(wrong: dict[str, float]) -> None:
    settings = {"images": 3, "resamples": 10, "confidence": 0.9} | wrong
    with pytest.raises(DataError, match="nothing to estimate"):
        estimate(
            mean_of(np.ones(3)),
            images=int(settings["images"]),
            resamples=int(settings["resamples"]),
            confidence=settings["confidence"],
        )
