"""Requests to the real server, and rendered images whose fruit is known exactly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import httpx
import numpy as np

from models.catalog import CATALOGUE
from models.data.samples import Sample
from models.letterbox import letterbox_for
from models.sam.constants import LOGITS_STRIDE
from models.synthetic import Background, Layout, RenderOptions, render
from models.types import BinaryMask, Logits, Size
from service.api import schema
from tests.contract import doors
from tests.fakes import encode_image
from tests.reference import upsample

SIZE: Final = Size(480, 640)
FRUITS: Final = 3
ENTRY: Final = CATALOGUE["mobile-sam"]

_PLAIN: Final = RenderOptions(
    background=Background.BELT,
    fruits=FRUITS,
    layout=Layout.APART,
    infected_share=0.0,
    distractors=False,
    camera=False,
)

S = TypeVar("S", bound=schema.Schema)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A rendered image as it is sent, and its fruits' exact masks, boxes and centres."""

    sample: Sample
    data: bytes

    def fruit(self, number: int) -> BinaryMask:
        mask: BinaryMask = np.asarray(self.sample.instance_map) == number
        return mask

    def box(self, number: int) -> list[float]:
        return [float(side) for side in self.sample.instances[number - 1].box]

    def centre(self, number: int) -> list[float]:
        ys, xs = np.nonzero(self.fruit(number))
        return [float(xs.mean()), float(ys.mean())]


def render_scene(seed: int, *, infected_share: float = 0.0) -> Scene:
    sample = render(seed, SIZE, options=dataclasses.replace(_PLAIN, infected_share=infected_share))
    return Scene(sample, encode_image(sample.pixels))


def post(
    client: httpx.Client,
    path: str,
    image: bytes | str,
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> httpx.Response:
    """Send an image, or the id of one, with the fields of the JSON."""
    part = ("image", ("oranges.png", image)) if isinstance(image, bytes) else ("image_id", (None, image))
    return client.post(path, files=[part, ("request", (None, json.dumps(fields)))], headers=headers)


def answered(answer: httpx.Response, model: type[S]) -> S:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return model.model_validate_json(answer.content)


def embed(client: httpx.Client, data: bytes, **fields: Any) -> schema.EmbedResponse:
    return answered(post(client, "/v1/embed", data, **fields), schema.EmbedResponse)


def segment(
    client: httpx.Client,
    image: bytes | str,
    *prompts: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> schema.SegmentResponse:
    return answered(post(client, "/v1/segment", image, headers, prompts=prompts, **fields), schema.SegmentResponse)


def upsampled(logits: Logits) -> BinaryMask:
    """Return the mask of an image of `SIZE` from its low-resolution logits, whose shape shows what the encoder saw."""
    height, width = logits.shape
    letterbox = letterbox_for(SIZE, LOGITS_STRIDE * width, "square" if height == width else "none")
    return upsample(logits, letterbox) > 0


def pixels_of(mask: schema.ScoredMask) -> BinaryMask:
    """Return the mask from any format; its measures are checked against its pixels."""
    encoded = mask.mask.model_dump(mode="json")
    pixels = upsampled(doors.mask_array(encoded)) if "data" in encoded else doors.pixels_of(encoded, SIZE)
    ys, xs = np.nonzero(pixels)
    assert mask.area == len(ys)
    assert mask.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert 0 < mask.score < 1.2
    assert 0 <= mask.stability_score <= 1
    return pixels


def only(result: schema.PromptResult) -> BinaryMask:
    assert len(result.masks) == 1
    return pixels_of(result.masks[0])


def iou(one: BinaryMask, other: BinaryMask) -> float:
    return float((one & other).sum() / (one | other).sum())
