"""The models without a server: what `loadtest.saturation` compares the service with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from loadtest.drawn import DrawnPicture
from models.backends.base import SamBackend
from models.backends.load import choose_backend, load_sam, load_unet
from models.backends.unet_base import UNetBackend
from models.data.samples import CLASSES
from models.images import decode_resized, read_size
from models.inspection import GRADES, inspect
from models.masks import encode_rle
from models.sam.postprocess import masks_of
from models.sam.prompts import pack
from models.transforms import Frame, frame_for
from models.types import Size
from models.unet.frames import UNetFrame, unet_frame
from models.unet.postprocess import class_map, objects
from models.zoo import CATALOGUE
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
        run_model: the model alone on that many prepared pictures.
        run_path: from JPEG to encoded masks.
        request_of: the JSON that asks the endpoint for the same.
    """

    name: str
    endpoint: str
    batches: tuple[int, ...]
    run_model: Callable[[int], None]
    run_path: Callable[[DrawnPicture], None]
    request_of: Callable[[DrawnPicture], dict[str, Any]]


def bare_models(pictures: Sequence[DrawnPicture]) -> list[Bare]:
    """Embed, point to mask, semantic, and inspect in mode `fast`, on the backend that the service chooses too.

    Args:
        pictures: prepared for the models here, one after the other.
    """
    settings = Settings()
    backend = choose_backend(settings.backend)
    sam = load_sam(CATALOGUE[SAM], backend, settings.shelf)
    unet = load_unet(CATALOGUE[UNET], backend, settings.shelf)
    seen = [_unet_prepared(unet, picture) for picture in pictures]
    return [_embed(sam, pictures), _segment(sam, pictures), _semantic(unet, seen), _inspect(unet, seen)]


def _embed(sam: SamBackend, pictures: Sequence[DrawnPicture]) -> Bare:
    prepared = [_sam_prepared(sam, picture) for picture in pictures]
    return Bare(
        "embed",
        "/v1/embed",
        sam.picture_batches,
        lambda size: _discard(sam.encode(_some(prepared, size))),
        lambda picture: _discard(sam.encode([_sam_prepared(sam, picture)])),
        lambda _: {"model": SAM},
    )


def _segment(sam: SamBackend, pictures: Sequence[DrawnPicture]) -> Bare:
    prepared = [_sam_prepared(sam, picture) for picture in pictures]

    def run(some: Sequence[Any], asked: Sequence[DrawnPicture]) -> tuple[Any, Any]:
        packed = pack([picture.prompt for picture in asked], [_sam_frame(picture) for picture in asked])
        return sam.decode(sam.encode(some), np.arange(len(some)), packed)

    def path(picture: DrawnPicture) -> None:
        (logits,), (scores,) = run([_sam_prepared(sam, picture)], [picture])
        for mask in masks_of(logits, scores, _sam_frame(picture), multimask=True):
            encode_rle(mask.pixels)

    return Bare(
        "point to mask",
        "/v1/segment",
        sam.picture_batches,
        lambda size: _discard(run(_some(prepared, size), _some(pictures, size))),
        path,
        lambda picture: {
            "model": SAM,
            "prompts": [{"points": [[point.x, point.y] for point in picture.prompt.points]}],
        },
    )


def _semantic(unet: UNetBackend, prepared: Sequence[Any]) -> Bare:
    def path(picture: DrawnPicture) -> None:
        frame = _unet_frame(picture)
        (logits,) = unet.infer([_unet_prepared(unet, picture)])
        classes = class_map(logits, frame)
        for fruit_class in CLASSES[1:]:
            encode_rle(classes == fruit_class)
        objects(logits, frame)

    return _by_unet("semantic", "/v1/semantic", unet, prepared, path, {"model": UNET})


def _inspect(unet: UNetBackend, prepared: Sequence[Any]) -> Bare:
    def path(picture: DrawnPicture) -> None:
        (output,) = unet.infer([_unet_prepared(unet, picture)])
        render_fruits(inspect(output, _unet_frame(picture)).fruits, GRADES, "rle")

    return _by_unet("inspect, fast", "/v1/inspect", unet, prepared, path, {"model": UNET, "mode": "fast"})


def _by_unet(
    name: str,
    endpoint: str,
    unet: UNetBackend,
    prepared: Sequence[Any],
    path: Callable[[DrawnPicture], None],
    request: dict[str, Any],
) -> Bare:
    return Bare(
        name,
        endpoint,
        unet.picture_batches,
        lambda size: _discard(unet.infer(_some(prepared, size))),
        path,
        lambda _: request,
    )


def _sam_frame(picture: DrawnPicture) -> Frame:
    return frame_for(_size(picture), padding="none")


def _sam_prepared(sam: SamBackend, picture: DrawnPicture) -> Any:
    frame = _sam_frame(picture)
    return sam.prepare(_decoded(picture, frame.resized, scaled=True), frame)


def _unet_frame(picture: DrawnPicture) -> UNetFrame:
    return unet_frame(_size(picture))


def _unet_prepared(unet: UNetBackend, picture: DrawnPicture) -> Any:
    frame = _unet_frame(picture)
    return unet.prepare(_decoded(picture, frame.resized, scaled=False), frame)


def _size(picture: DrawnPicture) -> Size:
    return read_size(picture.data, max_pixels=_MAX_PIXELS)


def _decoded(picture: DrawnPicture, resized: Size, *, scaled: bool) -> Any:
    """As the service decodes it for this model."""
    return decode_resized(picture.data, resized, max_pixels=_MAX_PIXELS, scaled=scaled)


def _some(items: Sequence[Any], size: int) -> list[Any]:
    return [items[number % len(items)] for number in range(size)]


def _discard(_: object) -> None:
    """Nobody looks at a benchmark's masks."""
