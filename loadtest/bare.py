"""The models without a server: what `loadtest.saturation` compares the service with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from loadtest.drawn import DrawnImage
from models.backends.base import SamBackend, UNetBackend
from models.backends.load import choose_backend, load_sam, load_unet
from models.catalog import CATALOGUE
from models.images import decode_resized, read_size
from models.inspection import GRADES, inspect
from models.letterbox import Letterbox, letterbox_for
from models.masks import encode_rle
from models.sam.postprocess import masks_of
from models.sam.prompts import pack
from models.types import CLASSES, Size
from models.unet.letterbox import UNetLetterbox, unet_letterbox
from models.unet.postprocess import class_map, objects
from service.rendering import render_fruits
from service.settings import Settings

SAM: Final = "mobile-sam"
UNET: Final = "unet-mobilenetv2-citrus"

_MAX_PIXELS: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class Bare:
    """One kind of work, without a server.

    Attributes:
        name: in the report.
        endpoint: that does the same.
        batches: sizes to try.
        run_model: the model alone on that many prepared photos.
        run_path: from JPEG to encoded masks.
        request_of: the JSON that asks the endpoint for the same.
    """

    name: str
    endpoint: str
    batches: tuple[int, ...]
    run_model: Callable[[int], None]
    run_path: Callable[[DrawnImage], None]
    request_of: Callable[[DrawnImage], dict[str, Any]]


def bare_models(photos: Sequence[DrawnImage]) -> list[Bare]:
    """Embed, point to mask, semantic, and inspect in mode `fast`, on the backend that the service chooses too.

    Args:
        photos: prepared for the models here, one after the other.
    """
    settings = Settings()
    backend = choose_backend(settings.backend)
    sam = load_sam(CATALOGUE[SAM], backend, settings.model_store)
    unet = load_unet(CATALOGUE[UNET], backend, settings.model_store)
    seen = [_unet_prepared(unet, image) for image in photos]
    return [_embed(sam, photos), _segment(sam, photos), _semantic(unet, seen), _inspect(unet, seen)]


def _embed(sam: SamBackend, photos: Sequence[DrawnImage]) -> Bare:
    prepared = [_sam_prepared(sam, image) for image in photos]
    return Bare(
        "embed",
        "/v1/embed",
        sam.image_batches,
        lambda size: _discard(sam.encode(_some(prepared, size))),
        lambda image: _discard(sam.encode([_sam_prepared(sam, image)])),
        lambda _: {"model": SAM},
    )


def _segment(sam: SamBackend, photos: Sequence[DrawnImage]) -> Bare:
    prepared = [_sam_prepared(sam, image) for image in photos]

    def run(some: Sequence[Any], asked: Sequence[DrawnImage]) -> tuple[Any, Any]:
        packed = pack([image.prompt for image in asked], [_sam_frame(image) for image in asked])
        return sam.decode(sam.encode(some), np.arange(len(some)), packed)

    def path(image: DrawnImage) -> None:
        (logits,), (scores,) = run([_sam_prepared(sam, image)], [image])
        for mask in masks_of(logits, scores, _sam_frame(image), multimask=True):
            encode_rle(mask.pixels)

    return Bare(
        "point to mask",
        "/v1/segment",
        sam.image_batches,
        lambda size: _discard(run(_some(prepared, size), _some(photos, size))),
        path,
        lambda image: {
            "model": SAM,
            "prompts": [{"points": [[point.x, point.y] for point in image.prompt.points]}],
        },
    )


def _semantic(unet: UNetBackend, prepared: Sequence[Any]) -> Bare:
    def path(image: DrawnImage) -> None:
        frame = _unet_frame(image)
        (logits,) = unet.infer([_unet_prepared(unet, image)])
        classes = class_map(logits, frame)
        for fruit_class in CLASSES[1:]:
            encode_rle(classes == fruit_class)
        objects(logits, frame)

    return _by_unet("semantic", "/v1/semantic", unet, prepared, path, {"model": UNET})


def _inspect(unet: UNetBackend, prepared: Sequence[Any]) -> Bare:
    def path(image: DrawnImage) -> None:
        (output,) = unet.infer([_unet_prepared(unet, image)])
        render_fruits(inspect(output, _unet_frame(image)).fruits, GRADES, "rle")

    return _by_unet("inspect, fast", "/v1/inspect", unet, prepared, path, {"model": UNET, "mode": "fast"})


def _by_unet(
    name: str,
    endpoint: str,
    unet: UNetBackend,
    prepared: Sequence[Any],
    path: Callable[[DrawnImage], None],
    request: dict[str, Any],
) -> Bare:
    return Bare(
        name,
        endpoint,
        unet.image_batches,
        lambda size: _discard(unet.infer(_some(prepared, size))),
        path,
        lambda _: request,
    )


def _sam_frame(image: DrawnImage) -> Letterbox:
    return letterbox_for(_size(image), padding="none")


def _sam_prepared(sam: SamBackend, image: DrawnImage) -> Any:
    frame = _sam_frame(image)
    return sam.prepare(_decoded(image, frame.resized, scaled=True), frame)


def _unet_frame(image: DrawnImage) -> UNetLetterbox:
    return unet_letterbox(_size(image))


def _unet_prepared(unet: UNetBackend, image: DrawnImage) -> Any:
    frame = _unet_frame(image)
    return unet.prepare(_decoded(image, frame.resized, scaled=False), frame)


def _size(image: DrawnImage) -> Size:
    return read_size(image.data, max_pixels=_MAX_PIXELS)


def _decoded(image: DrawnImage, resized: Size, *, scaled: bool) -> Any:
    """As the service decodes it for this model."""
    return decode_resized(image.data, resized, max_pixels=_MAX_PIXELS, scaled=scaled)


def _some(items: Sequence[Any], size: int) -> list[Any]:
    return [items[number % len(items)] for number in range(size)]


def _discard(_: object) -> None:
    """Nobody looks at a benchmark's masks."""
