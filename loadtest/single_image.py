"""One image at a time: its whole path on both backends, input sizes, and deadlines with automatic input size.

`python -m loadtest image` measures the path in one process, a new image each time (the cache is off), the backends
taking turns, so that both meet the same noise of the machine; memory and start are those of a real server whose files
are ready from an earlier start. `python -m loadtest deadlines` sends requests with `"input_size": "auto"`.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from tqdm import tqdm

from loadtest import wire
from loadtest.images import IMAGE, RenderedImage, render_image
from loadtest.report import Effort, Report, table
from loadtest.server import MODEL, Server, post_image, running
from models import images
from models.backends.base import BackendName
from models.backends.load import ModelStore, ensure_files, load_sam
from models.catalog import CATALOGUE
from models.letterbox import Padding, letterbox_for, resize
from models.masks import encode_rle
from models.sam.build import build_sam
from models.sam.constants import INPUT_SIDE
from models.sam.postprocess import masks_of
from models.sam.prompts import pack
from models.types import BinaryMask, Size
from models.weights.checkpoints import load_state_dict
from service.api.context import RequestContext
from service.api.schema import InputSize, SegmentRequest
from service.lifecycle import load_pipelines
from service.pipelines import Pipelines
from service.pipelines.source import encoded
from service.settings import Settings
from tests.golden.golden import golden_cases, read_image

BACKENDS: Final[tuple[BackendName, ...]] = ("openvino", "torch")
STARTS: Final = 3
STAGES: Final = ("decode", "encode", "prompt", "postprocess", "total")

INPUTS: Final[tuple[tuple[InputSize, Padding], ...]] = (
    (1024, "square"),
    (1024, "none"),
    (768, "square"),
    (768, "none"),
    (512, "square"),
    (512, "none"),
)
INPUT_IMAGES: Final = (Size(1800, 4160), Size(768, 1024))
REFERENCE: Final = "SamPredictor"

DEADLINE_MS: Final = 300
PAUSE_S: Final = 0.5
DEADLINE_IMAGES: Final = (Size(768, 1024), IMAGE, Size(1800, 4160))

_MAX_PIXELS: Final = 50_000_000


def main(effort: Effort, folder: Path) -> None:
    """Measure the path of an image, the server's memory and start, and input sizes, and write `image`."""
    data: dict[str, Any] = {
        "image": f"{IMAGE.width} x {IMAGE.height} JPEG, one point, three masks as RLE",
        "path_ms": asyncio.run(_measure_path(effort.rounds)),
        "server": {backend: _measure_server(backend) for backend in BACKENDS},
        "input_sizes_ms": asyncio.run(_measure_input_sizes(max(1, effort.rounds // 2))),
        "agreement": _measure_agreement(Settings().model_store),
    }
    Report("image", data, lines_of(data, effort)).write(folder)


async def _segment(
    pipelines: Pipelines, image: RenderedImage, input_size: InputSize | None = None, padding: Padding | None = None
) -> dict[str, float]:
    """Segment in this process, and return the seconds of each stage."""
    now = pipelines.engine.clock()
    context = RequestContext(received=now, arrived=now)
    request = SegmentRequest(prompts=[], input_size=input_size, padding=padding)
    await pipelines.segment.segment(request, [image.prompt], encoded(image.data), context)
    return asdict(context.timings)


async def _measure_path(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return median and quartiles in milliseconds, by backend and stage."""
    loaded: dict[BackendName, Pipelines] = {
        backend: await load_pipelines(Settings(backend=backend, embedding_cache_mib=0), device_index=0)
        for backend in BACKENDS
    }
    image = render_image(3, IMAGE)
    timings: dict[BackendName, list[dict[str, float]]] = {backend: [] for backend in BACKENDS}
    for _ in tqdm(range(rounds), desc="whole path, backends in turn"):
        for backend, pipelines in loaded.items():
            timings[backend].append(await _segment(pipelines, image))
    for pipelines in loaded.values():
        await pipelines.engine.close(10)
    return {
        backend: {stage: _quartiles([run[stage] for run in runs]) for stage in STAGES}
        for backend, runs in timings.items()
    }


def _quartiles(seconds: Sequence[float]) -> dict[str, float]:
    low, middle, high = (round(float(value) * 1000, 1) for value in np.percentile(seconds, [25, 50, 75]))
    return {"median": middle, "low": low, "high": high}


def _measure_server(backend: BackendName) -> dict[str, float]:
    """Return the seconds to readiness, and the resident memory when idle and after requests."""
    ready, idle, used = [], [], []
    image = render_image(3, IMAGE)
    for _ in tqdm(range(STARTS), desc=f"starts on {backend}"):
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), backend=backend) as server:
            ready.append(server.ready_s)
            idle.append(server.resident_mib())
            with httpx.Client(timeout=60) as client:
                for _ in range(3):
                    post_image(client, server, image.data, wire.point_request(image.point)).raise_for_status()
            used.append(server.resident_mib())
    return {
        "ready_s": round(statistics.median(ready), 2),
        "idle_mib": round(statistics.median(idle)),
        "after_requests_mib": round(statistics.median(used)),
    }


async def _measure_input_sizes(rounds: int) -> dict[str, dict[str, Any]]:
    """Measure milliseconds from JPEG to masks for each image and input, and for the reference, all in turn.

    Returns:
        By image ("4160 x 1800"), then by input ("1024 none") or `REFERENCE`: the median total, and for inputs the
        medians of the stages.
    """
    settings = Settings(backend="openvino", embedding_cache_mib=0)
    pipelines = await load_pipelines(settings, device_index=0)
    reference = SamPredictor(reference_sam(settings.model_store))
    measured: dict[str, dict[str, Any]] = {}
    try:
        for size in INPUT_IMAGES:
            image = render_image(3, size)
            timings: dict[str, list[dict[str, float]]] = {}
            for _ in tqdm(range(rounds), desc=f"{image.name}, inputs in turn"):
                for input_size, padding in INPUTS:
                    run = await _segment(pipelines, image, input_size, padding)
                    timings.setdefault(f"{input_size} {padding}", []).append(run)
                timings.setdefault(REFERENCE, []).append({"total": _run_reference(reference, image)})
            measured[image.name] = {
                name: {stage: round(statistics.median(run[stage] for run in runs) * 1000, 1) for stage in runs[0]}
                for name, runs in timings.items()
            }
    finally:
        await pipelines.engine.close(10)
    return measured


def _measure_agreement(model_store: ModelStore) -> dict[str, dict[str, float]]:
    """Measure the IoU with the golden masks (the reference at 1024 square), of each prompt's best golden mask.

    Returns:
        By input: mean, tenth percentile, and worst.
    """
    backend = load_sam(CATALOGUE[MODEL], "openvino", model_store)
    cases = golden_cases()
    agreement = {}
    for input_size, padding in tqdm(INPUTS, desc="agreement on the golden images"):
        found = []
        embeddings = {}
        for case in cases:
            pixels = read_image(case.image)
            letterbox = letterbox_for(Size(*pixels.shape[:2]), int(input_size), padding)
            if case.image not in embeddings:
                prepared = backend.prepare(resize(pixels, letterbox), letterbox)
                embeddings[case.image] = backend.encode([prepared])[0]
            packed = pack([case.prompt], [letterbox])
            logits, scores = backend.decode([embeddings[case.image]], np.zeros(1, np.int64), packed)
            best = int(np.argmax(case.scores))
            # The same token as the golden mask's: the mask is compared, not the ranking.
            token = best + 1 if case.prompt.multimask else 0
            only = np.repeat(logits[0, token][None], 4, axis=0)
            (mask,) = masks_of(only, scores[0], letterbox, multimask=False)
            found.append(_iou(mask.pixels, case.masks[best]))
        agreement[f"{input_size} {padding}"] = {
            "mean": round(float(np.mean(found)), 4),
            "p10": round(float(np.quantile(found, 0.1)), 4),
            "worst": round(float(np.min(found)), 4),
        }
    return agreement


def reference_sam(model_store: ModelStore) -> Sam:
    """Return segment-anything's model around MobileSAM's encoder."""
    entry = CATALOGUE[MODEL]
    model = build_sam(entry.architecture, load_state_dict(ensure_files(entry, "torch", model_store)))
    encoder: Any = model.encoder
    encoder.img_size = INPUT_SIDE  # what the predictor pads to
    return Sam(encoder, model.decoder.prompt_encoder, model.decoder.mask_decoder).eval()


def _run_reference(predictor: SamPredictor, image: RenderedImage) -> float:
    """Return the seconds from JPEG to RLE, as a user of segment-anything would write it."""
    started = time.perf_counter()
    with torch.inference_mode():
        predictor.set_image(images.decode(image.data, max_pixels=_MAX_PIXELS).pixels)
        point = image.point
        masks, _, _ = predictor.predict(np.array([[point.x, point.y]]), np.array([1]), multimask_output=True)
    for mask in masks:
        encode_rle(mask)
    return time.perf_counter() - started


def _iou(one: BinaryMask, other: BinaryMask) -> float:
    union = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / union if union else 1.0


def lines_of(data: Mapping[str, Any], effort: Effort) -> list[str]:
    """Return the report of `image` as Markdown."""
    paths = (
        (backend, *(f"{part['median']:g} ({part['low']:g} to {part['high']:g})" for part in stages.values()))
        for backend, stages in data["path_ms"].items()
    )
    servers = (
        (backend, f"{one['ready_s']:g} s", f"{one['idle_mib']} MiB", f"{one['after_requests_mib']} MiB")
        for backend, one in data["server"].items()
    )
    times, agreement = data["input_sizes_ms"], data["agreement"]
    inputs = []
    for name in [*agreement, REFERENCE]:
        kept = agreement.get(name)
        ious = [f"{kept[key]:.3f}" for key in ("mean", "p10", "worst")] if kept else [""] * 3
        inputs.append((name.replace(" ", ", "), *(f"{times[image][name]['total']:g}" for image in times), *ious))
    return [
        f"{data['image']}; {effort.rounds} rounds, the backends taking turns; milliseconds, median (quartiles).",
        "",
        *table(("backend", *STAGES), paths),
        "",
        f"Server, median of {STARTS} starts with all files ready.",
        "",
        *table(("backend", "ready after", "resident, idle", "resident, after requests"), servers),
        "",
        f"From JPEG to three masks for one point, on OpenVINO, milliseconds: medians of {max(1, effort.rounds // 2)} "
        "rounds, all rows taking turns. Agreement is the IoU with the golden masks (MobileSAM's own code, 1024 square) "
        f"on 37 prompts. `{REFERENCE}` is segment-anything's, on PyTorch eager, with the same checkpoint.",
        "",
        *table(("input_size, padding", *times, "mean IoU", "10 % below", "worst"), inputs),
    ]


def deadlines(effort: Effort, folder: Path) -> None:
    """Measure which input sizes `auto` chooses under light load, and whether answers are in time; write `deadlines`."""
    cameras = ",".join(f"{size.width}x{size.height}" for size in DEADLINE_IMAGES)
    with (
        tempfile.TemporaryDirectory() as scratch,
        running(Path(scratch), embedding_cache_mib="0", camera_sizes=cameras) as server,
        httpx.Client(timeout=60) as client,
    ):
        rows = [_measure_deadlines(client, server, size, effort.rounds) for size in DEADLINE_IMAGES]
    data = {"deadline_ms": DEADLINE_MS, "requests": effort.rounds, "images": rows}
    Report("deadlines", data, deadline_lines(data)).write(folder)


def _measure_deadlines(client: httpx.Client, server: Server, size: Size, requests: int) -> dict[str, Any]:
    rendered = [render_image(seed, size) for seed in range(4)]
    milliseconds: list[float] = []
    sizes: Counter[int] = Counter()
    problems: Counter[str] = Counter()
    in_time = 0
    for number in tqdm(range(requests), desc=rendered[0].name):
        image = rendered[number % len(rendered)]
        request = wire.point_request(image.point, input_size="auto")
        started = time.perf_counter()
        answer = post_image(client, server, image.data, request, deadline_ms=DEADLINE_MS)
        milliseconds.append((time.perf_counter() - started) * 1000)
        if answer.is_success:
            sizes[answer.json()["model"]["input_size"]] += 1
            in_time += milliseconds[-1] <= DEADLINE_MS
        else:
            problems[wire.problem_code(answer.content)] += 1
        time.sleep(PAUSE_S)
    return {
        "image": rendered[0].name,
        "in_time": in_time,
        "input_sizes": dict(sizes),
        "problems": dict(problems),
        "p50_ms": round(statistics.median(milliseconds), 1),
        "worst_ms": round(max(milliseconds), 1),
    }


def deadline_lines(data: Mapping[str, Any]) -> list[str]:
    """Return the report of `deadlines` as Markdown."""
    rows = [
        (
            *(row["image"], f"{row['in_time']} of {data['requests']}", _counts(row["input_sizes"])),
            *(_counts(row["problems"]), f"{row['p50_ms']:g}", f"{row['worst_ms']:g}"),
        )
        for row in data["images"]
    ]
    return [
        f'One point to masks, `"input_size": "auto"`, a deadline of {data["deadline_ms"]} ms, {data["requests"]} '
        f"requests one at a time with pauses of {PAUSE_S:g} s, no embedding cache. The sizes are set in "
        "`POMONA_CAMERA_SIZES`.",
        "",
        *table(("image", "in time", "input sizes chosen", "not answered", "p50, ms", "worst, ms"), rows),
    ]


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
