"""What input size and padding cost and keep: time on two images, mask agreement on the golden ones."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from tqdm import tqdm

from loadtest.drawn import DrawnImage, draw
from models import images
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
from service.messages import InputChoice, InputSize, SegmentRequest
from service.pipeline import Pipeline
from tests.golden.golden import golden_cases, read_image

DIALS: Final[tuple[tuple[InputSize, Padding], ...]] = (
    (1024, "square"),
    (1024, "none"),
    (768, "square"),
    (768, "none"),
    (512, "square"),
    (512, "none"),
)
IMAGES: Final = (Size(1800, 4160), Size(768, 1024))
ROUNDS: Final = 7


async def measure_times(pipeline: Pipeline, model_store: ModelStore) -> dict[str, dict[str, Any]]:
    """Milliseconds from JPEG to masks, for each image and dial and for the reference, all in turn.

    Returns:
        by image ("4160 x 1800"), then by dial ("1024 none") or "SamPredictor": the median total, and for dials the
        medians of the parts.
    """
    reference = _reference(model_store)
    measured: dict[str, dict[str, Any]] = {}
    for size in IMAGES:
        image = draw(3, size)
        timings: dict[str, list[dict[str, float]]] = {}
        for _ in tqdm(range(ROUNDS), desc=f"{image.name}, dials in turn"):
            for input_size, padding in DIALS:
                request = SegmentRequest([image.prompt], image.data, input=InputChoice(input_size, padding))
                answer = await pipeline.segment(request)
                timings.setdefault(f"{input_size} {padding}", []).append(asdict(answer.timings))
            timings.setdefault("SamPredictor", []).append({"total": _run_reference(reference, image)})
        measured[image.name] = {
            dial: {part: round(statistics.median(run[part] for run in runs) * 1000, 1) for part in runs[0]}
            for dial, runs in timings.items()
        }
    return measured


def measure_agreement(model_store: ModelStore) -> dict[str, dict[str, float]]:
    """IoU with the golden masks (the reference at 1024 square) of the mask that each prompt's best golden one is.

    Returns:
        by dial: mean, the tenth percentile, and the worst.
    """
    backend = load_sam(CATALOGUE["mobile-sam"], "openvino", model_store)
    cases = golden_cases()
    agreement = {}
    for input_size, padding in tqdm(DIALS, desc="agreement on the golden images"):
        found = []
        embeddings = {}
        for case in cases:
            pixels = read_image(case.image)
            frame = letterbox_for(Size(*pixels.shape[:2]), int(input_size), padding)
            if case.image not in embeddings:
                embeddings[case.image] = backend.encode([backend.prepare(resize(pixels, frame), frame)])[0]
            packed = pack([case.prompt], [frame])
            logits, scores = backend.decode([embeddings[case.image]], np.zeros(1, np.int64), packed)
            best = int(np.argmax(case.scores))
            # The same token as the golden mask's: what is compared is the mask, not the ranking.
            token = best + 1 if case.prompt.multimask else 0
            only = np.repeat(logits[0, token][None], 4, axis=0)
            (mask,) = masks_of(only, scores[0], frame, multimask=False)
            found.append(_iou(mask.pixels, case.masks[best]))
        agreement[f"{input_size} {padding}"] = {
            "mean": round(float(np.mean(found)), 4),
            "p10": round(float(np.quantile(found, 0.1)), 4),
            "worst": round(float(np.min(found)), 4),
        }
    return agreement


def table(times: Mapping[str, Mapping[str, Any]], agreement: Mapping[str, Mapping[str, float]]) -> Sequence[str]:
    """The figures as lines of Markdown."""
    names = list(times)
    lines = [
        f"From JPEG to three masks for one point, on OpenVINO, milliseconds: medians of {ROUNDS} rounds, all rows",
        "taking turns. Agreement is the IoU with the golden masks (MobileSAM's own code, 1024 square) on 37 prompts.",
        "`SamPredictor` is segment-anything's, on PyTorch eager, with the same checkpoint.",
        "",
        "| input_size, padding | " + " | ".join(names) + " | mean IoU | 10 % below | worst |",
        "|---|" + "---:|" * (len(names) + 3),
    ]
    for dial in [*agreement, "SamPredictor"]:
        cells = [f"{times[name][dial]['total']:g}" for name in names]
        kept = agreement.get(dial)
        cells += [f"{kept['mean']:.3f}", f"{kept['p10']:.3f}", f"{kept['worst']:.3f}"] if kept else ["", "", ""]
        lines.append(f"| {dial.replace(' ', ', ')} | " + " | ".join(cells) + " |")
    return lines


def _reference(model_store: ModelStore) -> SamPredictor:
    """segment-anything's predictor around MobileSAM's encoder."""
    entry = CATALOGUE["mobile-sam"]
    model = build_sam(entry.architecture, load_state_dict(ensure_files(entry, "torch", model_store)))
    encoder: Any = model.encoder
    encoder.img_size = INPUT_SIDE  # what the predictor pads to
    sam = Sam(encoder, model.decoder.prompt_encoder, model.decoder.mask_decoder)
    return SamPredictor(sam.eval())


def _run_reference(predictor: SamPredictor, image: DrawnImage) -> float:
    """Seconds from JPEG to RLE, as a user of segment-anything would write it."""
    started = time.perf_counter()
    with torch.inference_mode():
        predictor.set_image(images.decode(image.data, max_pixels=50_000_000).pixels)
        point = image.prompt.points[0]
        masks, _, _ = predictor.predict(np.array([[point.x, point.y]]), np.array([1]), multimask_output=True)
    for mask in masks:
        encode_rle(mask)
    return time.perf_counter() - started


def _iou(one: BinaryMask, other: BinaryMask) -> float:
    union = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / union if union else 1.0
