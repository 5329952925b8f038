"""Answers of two networks compared, and what is asked of int8."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.backends.unet_agreement import Agreement, Answer, too_different, unjudgeable
from models.unet.letterbox import unet_letterbox
from tests.knowing_unet import KnowingUNet, discs

SIDE = 10


def answer(healthy: int, infected: int, fruits: int = 1) -> Answer:
    """The first pixels of an image of 100 are healthy, the next infected."""
    classes = np.zeros(SIDE * SIDE, np.uint8)
    classes[:healthy] = 1
    classes[healthy : healthy + infected] = 2
    return Answer(classes.reshape(SIDE, SIDE), fruits)


def test_equal_answers_agree_in_all() -> None:
    answers = [answer(30, 20), answer(10, 0, 0)]
    agreement = Agreement.between(answers, answers)
    assert agreement.images == 2
    assert agreement.iou == agreement.iou_per_image == {"fruit": 1, "healthy": 1, "infected": 1}
    assert agreement.equal_counts == 1


def test_pixels_are_counted_over_all_images_and_in_each() -> None:
    # Fruit 50 and 40 pixels, then 10 and 10; infected 20 and 10, of which 10 are the same, then none.
    agreement = Agreement.between([answer(30, 20), answer(10, 0)], [answer(30, 10), answer(10, 0)])
    assert agreement.iou == pytest.approx({"fruit": 50 / 60, "healthy": 1, "infected": 10 / 20})
    assert agreement.iou_per_image == pytest.approx({"fruit": (40 / 50 + 1) / 2, "healthy": 1, "infected": 10 / 20})


def test_counts_are_the_same_or_not_in_each_image() -> None:
    some = [answer(30, 20, fruits) for fruits in (1, 2, 3, 0)]
    others = [answer(30, 20, fruits) for fruits in (1, 3, 3, 0)]
    assert Agreement.between(some, others).equal_counts == 0.75


@pytest.mark.parametrize(
    ("healthy", "infected", "words"),
    [(0, 0, "no fruit and no infected"), (10, 0, "no infected"), (10, 1, None)],
)
def test_a_mask_that_is_empty_everywhere_cannot_be_judged(healthy: int, infected: int, words: str | None) -> None:
    agreement = Agreement.between([answer(healthy, infected)] * 2, [answer(healthy, infected)] * 2)
    told = unjudgeable(agreement)
    assert told is None if words is None else told == f"{words} pixel was found to compare"
    assert (too_different(agreement) is None) == (words is None)


@pytest.mark.parametrize(
    ("fruit", "infected", "words"),
    [
        (0.98, 0.98, None),
        (0.9799, 0.99, "0.9799 of fruit: below 0.98"),
        (0.99, 0.5, "0.5000 of infected: below 0.98"),
        (0.97, 0.96, "0.9700 of fruit, 0.9600 of infected: below 0.98"),
        (0.99, math.nan, "nan of infected: below 0.98"),
    ],
)
def test_fruit_and_infected_must_both_reach_what_is_asked(fruit: float, infected: float, words: str | None) -> None:
    ious = {"fruit": fruit, "healthy": 0.5, "infected": infected}
    told = too_different(Agreement(1, ious, dict.fromkeys(ious, 0.0), 0.0))
    assert told is None if words is None else told == f"IoU {words}"


def test_an_output_is_read_as_serving_reads_it() -> None:
    truth = discs((60, 60, 40), (130, 60, 40), (330, 120, 50), infected=[2])
    frame = unet_letterbox(truth.size)
    knowing = KnowingUNet(truth)
    (output,) = knowing.infer([knowing.prepare(truth.pixels, frame)])
    classes, fruits = Answer.of(output, frame)
    np.testing.assert_array_equal(classes, truth.semantic)
    assert fruits == 3
    assert Answer.of(np.zeros_like(output), frame).fruits == 0
