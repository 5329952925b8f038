"""Every kind of prompt returns the fruit that was drawn."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from models.masks import encode_rle
from tests.system.calls import FRUITS, Drawn, iou, only, pixels_of, segment

pytestmark = pytest.mark.checkpoint


def test_a_box_around_each_fruit_returns_the_fruit(client: httpx.Client, drawn: Drawn, known: str) -> None:
    prompts = [{"box": drawn.box(number), "multimask": False} for number in range(1, FRUITS + 1)]
    answer = segment(client, known, *prompts)
    for number, result in enumerate(answer.results, start=1):
        assert iou(only(result), drawn.fruit(number)) >= 0.9


def test_a_point_in_the_middle_of_each_fruit_returns_the_fruit_first_of_three(
    client: httpx.Client, drawn: Drawn, known: str
) -> None:
    prompts = [{"points": [drawn.centre(number)]} for number in range(1, FRUITS + 1)]
    answer = segment(client, known, *prompts)
    for number, result in enumerate(answer.results, start=1):
        scores = [mask.score for mask in result.masks]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert iou(pixels_of(result.masks[0]), drawn.fruit(number)) >= 0.9


def test_without_multimask_a_point_returns_one_mask(client: httpx.Client, drawn: Drawn, known: str) -> None:
    answer = segment(client, known, {"points": [drawn.centre(1)], "labels": [1], "multimask": False})
    assert iou(only(answer.results[0]), drawn.fruit(1)) >= 0.9


def test_points_with_a_box_return_the_fruit_without_what_a_background_point_excludes(
    client: httpx.Client, drawn: Drawn, known: str
) -> None:
    x0, y0, _, _ = drawn.box(2)
    corner = [x0 + 2, y0 + 2]
    prompt = {
        "points": [drawn.centre(2), corner],
        "labels": [1, 0],
        "box": drawn.box(2),
        "multimask": False,
    }
    pixels = only(segment(client, known, prompt).results[0])
    assert iou(pixels, drawn.fruit(2)) >= 0.9
    assert not pixels[int(corner[1]), int(corner[0])]


def test_an_earlier_answers_logits_and_a_drawn_mask_are_prompts(client: httpx.Client, drawn: Drawn) -> None:
    # A mask alone is a weak prompt: it needs the square that the model was trained on, and a fruit that stands alone.
    box = {"box": drawn.box(3), "multimask": False}
    earlier = segment(client, drawn.data, box, format="logits", padding="square").results[0].masks[0]
    rle = encode_rle(drawn.fruit(3))
    as_rle = {"size": rle.size, "counts": rle.counts}
    answer = segment(
        client,
        drawn.data,
        {"mask": earlier.mask.model_dump(), "multimask": False},
        {"mask": as_rle, "multimask": False},
        {"mask": as_rle, "points": [drawn.centre(3)], "multimask": False},
        padding="square",
    )
    for result in answer.results:
        assert iou(only(result), drawn.fruit(3)) >= 0.9


def test_prompts_of_every_kind_share_one_call_and_answer_in_order(
    client: httpx.Client, drawn: Drawn, known: str
) -> None:
    rle = encode_rle(drawn.fruit(3))
    prompts: list[dict[str, Any]] = [
        {"points": [drawn.centre(1)]},
        {"mask": {"size": rle.size, "counts": rle.counts}, "points": [drawn.centre(3)], "multimask": False},
        {"box": drawn.box(2), "multimask": False},
        *({"points": [drawn.centre(number)], "multimask": False} for number in (3, 2, 1)),
    ]
    answer = segment(client, known, *prompts)
    for number, result in zip((1, 3, 2, 3, 2, 1), answer.results, strict=True):
        assert iou(pixels_of(result.masks[0]), drawn.fruit(number)) >= 0.9
    assert answer.timing_ms.encode == 0 < answer.timing_ms.prompt
