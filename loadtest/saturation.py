"""The service at saturation against the bare model, and a lone request against the bare path.

`python -m loadtest saturation` lets bare model and service take turns, on the same images. The bare model gets prepared
images in its best batch size and does nothing else; the service gets JPEGs over HTTP and answers with encoded masks.
The bare path is the same work as the service's in one thread: JPEG in, encoded masks out, no server.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from tqdm import tqdm

from loadtest.images import IMAGE, RenderedImage, render_image
from loadtest.report import Effort, Report, table
from loadtest.server import MODEL, Server, post_image, running
from loadtest.summary import Spread
from loadtest.wire import SEGMENT
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
from models.unet.instances import Cells
from models.unet.letterbox import UNetLetterbox, input_area, unet_letterbox
from models.unet.postprocess import class_map, objects
from service.pipelines.encoding import encode_fruits
from service.settings import Settings

UNET: Final = "unet-mobilenetv2-citrus"
IMAGES: Final = 8
"""Different ones, so that no encoding serves two requests in flight."""

IN_FLIGHT: Final = 4
_MAX_PIXELS: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work, without a server.

    Attributes:
        name: in the report.
        path: of the endpoint that does the same.
        batches: batch sizes to try.
        run_model: runs the model alone on that many prepared images.
        run_path: does everything from JPEG to encoded masks.
        request_of: returns the JSON of the same request.
    """

    name: str
    path: str
    batches: tuple[int, ...]
    run_model: Callable[[int], object]
    run_path: Callable[[RenderedImage], object]
    request_of: Callable[[RenderedImage], dict[str, Any]]


def main(effort: Effort, folder: Path) -> None:
    """Measure throughput and latency of models, bare and served, and write `saturation`."""
    images = [render_image(seed, IMAGE) for seed in range(IMAGES)]
    with tempfile.TemporaryDirectory() as scratch:
        works = bare_models(images)
        with running(Path(scratch), embedding_cache_mib="0") as server:
            rows = [
                {
                    "work": work.name,
                    **_throughput(work, server, images, effort),
                    **_latency(work, server, images, 3 * effort.rounds),
                }
                for work in works
            ]
    data = {"image": f"{IMAGE.width} x {IMAGE.height} JPEG", "work": rows}
    Report("saturation", data, lines_of(data, effort)).write(folder)


def _throughput(work: Work, server: Server, images: Sequence[RenderedImage], effort: Effort) -> dict[str, Any]:
    """Return medians of items per second, bare and served in turn, and the ratio of each round."""
    sizes = {size: _bare_rate(work, size, min(1.0, effort.seconds)) for size in work.batches}
    best = max(sizes, key=lambda size: sizes[size])
    count = max(2 * IN_FLIGHT, round(effort.seconds * sizes[best]))
    bare, served = [], []
    for _ in tqdm(range(effort.rounds), desc=f"{work.name}: bare and served in turn"):
        bare.append(_bare_rate(work, best, effort.seconds))
        served.append(_served_rate(work, server, images, count))
    ratio = Spread.of([one / other for one, other in zip(served, bare, strict=True)])
    return {
        "best_batch": best,
        "bare_per_s": round(statistics.median(bare), 2),
        "served_per_s": round(statistics.median(served), 2),
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
    }


def _bare_rate(work: Work, size: int, seconds: float) -> float:
    """Return the items per second of the bare model in batches of `size`."""
    work.run_model(size)
    started = time.perf_counter()
    done = 0
    while (spent := time.perf_counter() - started) < seconds:
        work.run_model(size)
        done += size
    return done / spent


def _served_rate(work: Work, server: Server, images: Sequence[RenderedImage], count: int) -> float:
    """Return the answers per second between the first and the last of `count`, with `IN_FLIGHT` in flight."""
    done: list[float] = []

    def send(number: int) -> None:
        _send(client, work, server, images[number % len(images)])
        done.append(time.perf_counter())

    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(IN_FLIGHT) as callers:
        list(callers.map(send, range(count)))
    return (count - 1) / (max(done) - min(done))


def _latency(work: Work, server: Server, images: Sequence[RenderedImage], rounds: int) -> dict[str, Any]:
    """Return medians in milliseconds of the bare path and of a lone request in turn, and the median of their ratios."""
    bare, served = [], []
    with httpx.Client(timeout=60) as client:
        for number in tqdm(range(rounds), desc=f"{work.name}: one at a time"):
            image = images[number % len(images)]
            started = time.perf_counter()
            work.run_path(image)
            middle = time.perf_counter()
            _send(client, work, server, image)
            bare.append(middle - started)
            served.append(time.perf_counter() - middle)
    ratios = [one / other for one, other in zip(served, bare, strict=True)]
    return {
        "bare_path_ms": round(statistics.median(bare) * 1000, 1),
        "alone_ms": round(statistics.median(served) * 1000, 1),
        "alone_ratio": round(statistics.median(ratios), 3),
    }


def _send(client: httpx.Client, work: Work, server: Server, image: RenderedImage) -> None:
    post_image(client, server, image.data, work.request_of(image), path=work.path).raise_for_status()


def lines_of(data: Mapping[str, Any], effort: Effort) -> list[str]:
    """Return the report as Markdown."""
    rows = [
        (
            *(row["work"], f"{row['bare_per_s']:g} ({row['best_batch']})", f"{row['served_per_s']:g}"),
            f"{row['ratio']:g} ({row['ratio_low']:g} to {row['ratio_high']:g})",
            *(f"{row[name]:g}" for name in ("bare_path_ms", "alone_ms", "alone_ratio")),
        )
        for row in data["work"]
    ]
    columns = ("work", "bare model, per s (batch)", "served, per s", "served / bare", "bare path, ms", "alone, ms")
    return [
        f"{data['image']}s, no embedding cache. Throughput: {effort.rounds} rounds of about {effort.seconds:g} s, bare "
        f"model and service ({IN_FLIGHT} requests in flight) in turn; median, and the ratio's median (lowest to "
        f"highest). Alone: {3 * effort.rounds} requests one at a time, each after the same work without a server.",
        "",
        *table((*columns, "ratio"), rows),
    ]


def bare_models(images: Sequence[RenderedImage]) -> list[Work]:
    """Load the models on the backend that the service chooses too: embed, segment, semantic, and inspect.

    Args:
        images: prepared for the models here, in turn.
    """
    settings = Settings()
    backend = choose_backend(settings.backend, settings.device)
    sam = load_sam(CATALOGUE[MODEL], backend, settings.model_store, device=settings.device)
    unet = load_unet(CATALOGUE[UNET], backend, settings.model_store, device=settings.device)
    for_sam = [_sam_prepared(sam, image) for image in images]
    for_semantic, for_fast = ([_unet_prepared(unet, image, fast=fast) for image in images] for fast in (False, True))

    def decode(prepared: Sequence[Any], prompted: Sequence[RenderedImage]) -> tuple[Any, Any]:
        packed = pack([image.prompt for image in prompted], [_letterbox(image) for image in prompted])
        return sam.decode(sam.encode(prepared), np.arange(len(prepared)), packed)

    def segment(image: RenderedImage) -> None:
        (logits,), (scores,) = decode([_sam_prepared(sam, image)], [image])
        for mask in masks_of(logits, scores, _letterbox(image), multimask=True):
            encode_rle(mask.pixels)

    def semantic(image: RenderedImage) -> None:
        letterbox = _unet_letterbox(image, fast=False)
        (logits,) = unet.infer([_unet_prepared(unet, image, fast=False)])
        cells = Cells.of(logits, letterbox)
        classes = class_map(cells)
        for pixel_class in CLASSES[1:]:
            encode_rle(classes == pixel_class)
        objects(cells)

    def inspection(image: RenderedImage) -> None:
        (output,) = unet.infer([_unet_prepared(unet, image, fast=True)])
        encode_fruits(inspect(output, _unet_letterbox(image, fast=True)).fruits, GRADES, None, "rle")

    return [
        Work(
            *("embed", "/v1/embed", sam.image_batches),
            run_model=lambda size: sam.encode(_first(for_sam, size)),
            run_path=lambda image: sam.encode([_sam_prepared(sam, image)]),
            request_of=lambda _: {"model": MODEL},
        ),
        Work(
            *("point to mask", SEGMENT, sam.image_batches),
            run_model=lambda size: decode(_first(for_sam, size), _first(images, size)),
            run_path=segment,
            request_of=lambda image: {"model": MODEL, "prompts": [{"points": [[image.point.x, image.point.y]]}]},
        ),
        Work(
            *("semantic", "/v1/semantic", unet.image_batches),
            run_model=lambda size: unet.infer(_first(for_semantic, size)),
            run_path=semantic,
            request_of=lambda _: {"model": UNET},
        ),
        Work(
            *("inspect, fast", "/v1/inspect", unet.image_batches),
            run_model=lambda size: unet.infer(_first(for_fast, size)),
            run_path=inspection,
            request_of=lambda _: {"model": UNET, "mode": "fast"},
        ),
    ]


def _letterbox(image: RenderedImage) -> Letterbox:
    return letterbox_for(_size(image), padding="none")


def _sam_prepared(sam: SamBackend, image: RenderedImage) -> Any:
    letterbox = _letterbox(image)
    return sam.prepare(_decoded(image, letterbox.resized, scaled=True), letterbox)


def _unet_letterbox(image: RenderedImage, *, fast: bool) -> UNetLetterbox:
    return unet_letterbox(_size(image), input_area(CATALOGUE[UNET].input_area, fast=fast))


def _unet_prepared(unet: UNetBackend, image: RenderedImage, *, fast: bool) -> Any:
    letterbox = _unet_letterbox(image, fast=fast)
    return unet.prepare(_decoded(image, letterbox.resized, scaled=False), letterbox)


def _size(image: RenderedImage) -> Size:
    return read_size(image.data, max_pixels=_MAX_PIXELS)


def _decoded(image: RenderedImage, resized: Size, *, scaled: bool) -> Any:
    """Decode as the service does for this model."""
    return decode_resized(image.data, resized, max_pixels=_MAX_PIXELS, scaled=scaled)


def _first(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` items, from the start again where there are fewer."""
    return [items[number % len(items)] for number in range(count)]
