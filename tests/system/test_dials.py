"""What the real model makes of smaller inputs."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.system.calls import FRUITS, Drawn, draw, embed, iou, only, pixels_of, segment

pytestmark = pytest.mark.checkpoint


@pytest.mark.parametrize("padding", ["none", "square"])
@pytest.mark.parametrize("side", [1024, 768, 512])
def test_every_size_and_padding_returns_the_fruit_that_was_drawn(
    client: httpx.Client, drawn: Drawn, side: int, padding: str
) -> None:
    prompts = [{"box": drawn.box(number), "multimask": False} for number in range(1, FRUITS + 1)]
    answer = segment(client, drawn.data, *prompts, input_size=side, padding=padding)
    assert (answer.model.input_size, answer.model.padding) == (side, padding)
    for number, result in enumerate(answer.results, start=1):
        assert iou(only(result), drawn.fruit(number)) >= 0.9


def test_a_point_at_the_small_size_returns_the_fruit_first_of_three(client: httpx.Client, drawn: Drawn) -> None:
    answer = segment(client, drawn.data, {"points": [drawn.centre(1)]}, input_size=512)
    assert len(answer.results[0].masks) == 3
    assert iou(pixels_of(answer.results[0].masks[0]), drawn.fruit(1)) >= 0.9


def test_a_small_embedding_is_kept_for_prompts_by_its_id(client: httpx.Client) -> None:
    new = draw(41)
    embedded = embed(client, new.data, input_size=512)
    assert (embedded.model.input_size, embedded.model.padding) == (512, "none")
    answer = segment(client, embedded.image.id, {"box": new.box(1), "multimask": False})
    assert answer.model == embedded.model
    assert answer.timing_ms.encode == 0
    assert iou(only(answer.results[0]), new.fruit(1)) >= 0.9


@pytest.mark.parametrize("padding", ["none", "square"])
@pytest.mark.parametrize("side", [1024, 768, 512])
def test_an_earlier_answers_logits_with_a_point_are_a_prompt_at_every_size(
    client: httpx.Client, drawn: Drawn, side: int, padding: str
) -> None:
    dials: dict[str, Any] = {"input_size": side, "padding": padding}
    box = {"box": drawn.box(2), "multimask": False}
    earlier = segment(client, drawn.data, box, format="logits", **dials).results[0].masks[0]
    prompt = {"mask": earlier.mask.model_dump(), "points": [drawn.centre(2)], "multimask": False}
    again = segment(client, drawn.data, prompt, **dials)
    assert iou(only(again.results[0]), drawn.fruit(2)) >= 0.9


def test_a_size_that_is_left_open_is_the_largest_without_a_deadline(client: httpx.Client) -> None:
    new = draw(42)
    answer = segment(client, new.data, {"box": new.box(1), "multimask": False}, input_size="auto")
    assert answer.model.input_size == 1024
    assert iou(only(answer.results[0]), new.fruit(1)) >= 0.9
