"""Calls to the real server, and drawn images whose fruit is known exactly."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

import httpx
import numpy as np

from models.catalog import CATALOGUE
from models.data.samples import Sample
from models.letterbox import letterbox_for
from models.masks import EncodedLogits, Rle, decode_logits, decode_png, decode_rle
from models.polygons import decode_polygons
from models.sam.constants import LOGITS_STRIDE
from models.synthetic import Background, Layout, RenderOptions, render
from models.types import BinaryMask, Logits, Size
from service.api import schema
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


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A drawn image as it is sent, and its fruits' exact masks, boxes and centres."""

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


def draw(seed: int, *, infected_share: float = 0.0) -> Drawn:
    sample = render(seed, SIZE, options=dataclasses.replace(_PLAIN, infected_share=infected_share))
    return Drawn(sample, encode_image(sample.pixels))


def embed(client: httpx.Client, data: bytes, **fields: Any) -> schema.EmbedResponse:
    files = [("image", ("oranges.png", data)), ("request", (None, json.dumps(fields).encode()))]
    answer = client.post("/v1/embed", files=files)
    assert answer.status_code == 200, answer.text
    return schema.EmbedResponse.model_validate_json(answer.content)


def ask(
    client: httpx.Client,
    image: bytes | str,
    *prompts: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> httpx.Response:
    """Send an image, or the id of one, with prompts."""
    what = ("image", ("oranges.png", image)) if isinstance(image, bytes) else ("image_id", (None, image))
    request = json.dumps({"prompts": prompts, **fields})
    return client.post("/v1/segment", files=[what, ("request", (None, request))], headers=headers)


def segment(
    client: httpx.Client,
    image: bytes | str,
    *prompts: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> schema.SegmentResponse:
    """As `ask`, for what is answered."""
    answer = ask(client, image, *prompts, headers=headers, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return schema.SegmentResponse.model_validate_json(answer.content)


def enlarged(logits: Logits) -> BinaryMask:
    """The mask of an image of `SIZE` from its low-resolution logits; their shape tells what the encoder saw."""
    height, width = logits.shape
    frame = letterbox_for(SIZE, LOGITS_STRIDE * width, "square" if height == width else "none")
    return upsample(logits, frame) > 0


def pixels_of(mask: schema.ScoredMask) -> BinaryMask:
    """The mask from any format, with its figures checked against its pixels."""
    encoded = mask.mask
    if isinstance(encoded, schema.RleMask):
        pixels = decode_rle(Rle(encoded.size, encoded.counts))
    elif isinstance(encoded, schema.PngMask):
        pixels = decode_png(base64.b64decode(encoded.png, validate=True))
    elif isinstance(encoded, schema.PolygonsMask):
        pixels = decode_polygons(encoded.polygons, SIZE)
    else:
        logits = decode_logits(EncodedLogits(encoded.shape, encoded.dtype, base64.b64decode(encoded.data)))
        pixels = enlarged(logits)
    ys, xs = np.nonzero(pixels)
    assert mask.area == len(ys)
    assert mask.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert 0 < mask.score < 1.2
    assert 0 <= mask.stability_score <= 1
    return pixels


def only(result: schema.ResultOut) -> BinaryMask:
    assert len(result.masks) == 1
    return pixels_of(result.masks[0])


def iou(one: BinaryMask, other: BinaryMask) -> float:
    return float((one & other).sum() / (one | other).sum())
