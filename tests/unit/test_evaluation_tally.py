from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pytest

from models.data.samples import Sample
from models.errors import DataError
from models.evaluation.answers import Answer, Prompted
from models.evaluation.results import Measured, Subject
from models.evaluation.tally import Tally, fruits_touch
from models.types import PixelClass
from tests.knowing_unet import discs

PLAIN = Subject("s", "S", "sam", "", "", {})


def answer(
    sample: Sample,
    fruits: Sequence[int],
    *,
    prompted: Sequence[tuple[float, float]] | None = None,
    stages: Mapping[str, float] = MappingProxyType({}),
) -> Answer:
    """The true masks of some fruits, and what was said of prompts: scores and IoUs."""
    assert sample.instance_map is not None
    masks = tuple(sample.instance_map == number for number in fruits)
    seen = np.isin(sample.instance_map, list(fruits))
    classes = np.where(seen, np.uint8(PixelClass.FRUIT), np.uint8(PixelClass.BACKGROUND))
    told = None if prompted is None else tuple(Prompted(*each) for each in prompted)
    return Answer(classes, masks, stages, told)


def measured(*pairs: tuple[Sample, Answer], subject: Subject = PLAIN) -> Measured:
    tally = Tally(subject)
    for sample, given in pairs:
        tally.add(sample, given)
    return tally.measured(0)


APART = discs((60, 100, 40), (180, 100, 40), (300, 100, 40), name="apart")
TOUCHING = discs((60, 100, 40), (120, 100, 40), name="touching")


def test_counts_of_touching_fruits_are_of_images_where_they_touch() -> None:
    found = measured(
        (APART, answer(APART, (1, 2, 3))), (APART, answer(APART, (1,))), (TOUCHING, answer(TOUCHING, (1,)))
    )
    assert found.measures["fruit_count_right_per_image"].value == pytest.approx(1 / 3)
    assert found.measures["touching_fruit_count_right_per_image"].value == 0
    assert found.measures["fruit_count_error_per_image"].value == 1
    assert "touching_fruit_count_right_per_image" not in measured((APART, answer(APART, (1,)))).measures


def test_fruits_touch_across_sides_not_across_corners() -> None:
    beside, corners, alone = (np.zeros((4, 4), np.uint16) for _ in range(3))
    beside[1, 1], beside[2, 1] = 1, 2
    corners[1, 1], corners[2, 2] = 1, 2
    alone[1:3, 1:3] = 5
    assert fruits_touch(beside)
    assert fruits_touch(beside.T)
    assert not fruits_touch(corners)
    assert not fruits_touch(alone)


def test_prompted_fruits_weigh_the_same_whatever_their_image() -> None:
    one = answer(APART, (1, 2, 3), prompted=[(0.9, 0.9), (0.9, 0.9), (0.9, 0.6)])
    other = answer(TOUCHING, (1,), prompted=[(0.5, 0.2)])
    found = measured((APART, one), (TOUCHING, other))
    assert found.measures["prompted_iou_per_fruit"].value == pytest.approx((0.9 + 0.9 + 0.6 + 0.2) / 4)
    assert [each.measures["prompted_iou"] for each in found.per_image] == pytest.approx([0.8, 0.2])
    assert "fruit_count_right_per_image" not in found.measures


def test_scores_are_held_against_the_truth_in_bins_that_say_their_ends() -> None:
    said = [(0.95, 0.9), (1.02, 1.0), (0.3, 0.1), (-0.01, 0.0)]
    calibration = measured((APART, answer(APART, (1,), prompted=said))).score_calibration
    assert calibration is not None
    assert [(each.score_low, each.score_high, each.count) for each in calibration.bins] == [
        (0.0, 0.1, 1), (0.3, 0.4, 1), (0.9, 1.0, 2),
    ]  # fmt: skip
    assert calibration.mean_abs_error == pytest.approx((0.05 + 0.02 + 0.2 + 0.01) / 4)
    assert calibration.bias == pytest.approx((0.05 + 0.02 + 0.2 - 0.01) / 4)


def test_an_oracle_has_no_calibration_for_it_does_not_choose_by_scores() -> None:
    oracle = Subject("o", "O", "sam", "", "", {}, oracle=True)
    assert measured((APART, answer(APART, (1,), prompted=[(0.9, 0.8)])), subject=oracle).score_calibration is None


def test_times_are_medians_and_the_total_is_the_median_of_totals() -> None:
    stages = ({"encode": 10.0, "prompt": 1.0}, {"encode": 30.0, "prompt": 2.0}, {"encode": 20.0})
    found = measured(*((APART, answer(APART, (1,), stages=each)) for each in stages))
    # An image without prompts took no time for them.
    assert found.milliseconds == {"encode": 20.0, "prompt": 1.0, "total": 20.0}


def test_each_image_says_what_counts_for_it_and_nothing_else() -> None:
    (score,) = measured((APART, answer(APART, (1, 2)))).per_image
    assert score.fruit_iou == pytest.approx(2 / 3, abs=1e-3)
    assert score.measures["object_recall"] == pytest.approx(2 / 3)
    assert (score.measures["fruits"], score.measures["fruits_found"]) == (3, 2)
    # A SAM tells no healthy fruit from infected, and nothing was asked for.
    assert not {"healthy_iou", "infected_iou", "mean_iou", "infected_fraction_error", "prompted_iou"} & set(
        score.measures
    )


def test_nothing_cannot_be_summed_up_and_an_answer_must_fit_its_image() -> None:
    with pytest.raises(DataError):
        Tally(PLAIN).measured(0)
    with pytest.raises(DataError):
        Tally(PLAIN).add(APART, Answer(np.zeros((10, 10), np.uint8), (), {}))
