"""What a CUDA card does with SAM: `python -m loadtest.gpu`; writes `loadtest/reports/gpu.json` and `.md`.

Encoders bare and behind the runner's queue, as images per second and as a share of what the card multiplies in
bfloat16, next to segment-anything as it is on the same card; then the decoder's prompts per second.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import torch
from torch import Tensor
from tqdm import tqdm

from loadtest import gpu_measures as measures
from loadtest.machine import REPORTS, footer, machine
from models.backends.load import ensure_files
from models.backends.torch_backend import TorchSam
from models.catalog import CATALOGUE
from models.letterbox import letterbox_for
from models.sam.constants import INPUT_SIDE
from models.types import Size
from models.weights.checkpoints import load_state_dict
from service.device_queue import DeviceQueue
from service.runners.sam import SamRunner
from service.settings import Settings

MODELS: Final = ("sam-vit-h", "sam-vit-b", "mobile-sam")
REAL: Final = "mobile-sam"
"""With its checkpoint; the others have random weights, which are as fast."""

IMAGES: Final = (1, 2, 4, 8, 16)
PROMPTS: Final = (1, 4, 16, 64)
MOST_IMAGES: Final = 8
MATRIX_SIDE: Final = 8192
SECONDS: Final = 10.0
"""Of each measurement behind the queue."""

FRAME: Final = letterbox_for(Size(INPUT_SIDE, INPUT_SIDE))


def main() -> None:
    """Measure, print and write; where there is no CUDA card, say so and write nothing."""
    if not torch.cuda.is_available():
        print("No CUDA device here: nothing was measured, and no report was written.")
        return
    device = torch.device("cuda:0")
    figures: dict[str, Any] = {
        "machine": machine(),
        "card": torch.cuda.get_device_name(device),
        "bf16_peak_tflops": round(measures.matrix_peak(device, torch.bfloat16, MATRIX_SIDE) / 1e12, 1),
        "models": [asyncio.run(_measure(name, device)) for name in tqdm(MODELS, desc="models")],
    }
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "gpu.json").write_text(json.dumps(figures, indent=2) + "\n")
    (REPORTS / "gpu.md").write_text(table(figures))
    print(table(figures))


async def _measure(name: str, device: torch.device) -> dict[str, Any]:
    figures: dict[str, Any] = {"model": name, "gflop": measures.encoder_flops(name, FRAME.padded) / 1e9}
    weights = _weights(name)
    figures["reference"] = reference_rates(name, weights, device)
    sam = TorchSam(name, weights, str(device))
    figures["bare_per_s"] = {count: measures.bare_rate(sam, device, FRAME, count) for count in IMAGES}
    figures["prompts_per_s"] = {
        count: measures.prompts_rate(sam, device, FRAME, count, MOST_IMAGES) for count in PROMPTS
    }
    runner = SamRunner(CATALOGUE[name], sam, DeviceQueue(sam.device))
    await runner.warm_up()
    figures["served"] = {count: asdict(await measures.served_rate(runner, FRAME, count, SECONDS)) for count in IMAGES}
    await runner.close(SECONDS)
    return figures


def _weights(name: str) -> dict[str, Tensor]:
    if name != REAL:
        return measures.random_weights(name)
    return load_state_dict(ensure_files(CATALOGUE[name], "torch", Settings().model_store))


def reference_rates(
    name: str,
    weights: dict[str, Tensor],
    device: torch.device,
    size: Size = FRAME.padded,
    counts: Sequence[int] = IMAGES,
) -> dict[str, dict[int, float | None]]:
    """Images per second of the encoder as others run it, in float32 and in bfloat16, by batch size."""
    encoder = measures.reference_encoder(name, weights).to(device)
    return {
        kind: {count: measures.eager_rate(encoder, device, size, count, bf16=kind == "bf16") for count in counts}
        for kind in ("fp32", "bf16")
    }


def table(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    peak = figures["bf16_peak_tflops"]
    rows = [
        f"{figures['card']}: {peak:g} TFLOP/s in bfloat16 (product of two matrices of {MATRIX_SIDE} x {MATRIX_SIDE}).",
        "",
        f"Images of {INPUT_SIDE} x {INPUT_SIDE} per second, and the share of that peak. Bare: prepared images in",
        "batches of one size. Served: so many callers at the runner's queue, preparation included, and the batches",
        "that they got. Reference: the encoder as segment-anything has it (MobileSAM's: timm's), images on the card.",
        "",
        "| model | images | bare | served (batch) | reference fp32 | reference bf16 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for model in figures["models"]:
        for count, bare in model["bare_per_s"].items():
            served = model["served"][count]
            through = f"{_rate(served['images_per_s'], model['gflop'], peak)} ({served['batch']:.1f})"
            others = [_rate(model["reference"][kind][count], model["gflop"], peak) for kind in ("fp32", "bf16")]
            cells = [model["model"], str(count), _rate(bare, model["gflop"], peak), through, *others]
            rows.append(f"| {' | '.join(cells)} |")
    counts = list(figures["models"][0]["prompts_per_s"])
    rows += [
        "",
        f"Prompts per second of the decoder in one batch, on at most {MOST_IMAGES} images.",
        "",
        f"| model | {' | '.join(f'{count} prompts' for count in counts)} |",
        "|---|" + "---:|" * len(counts),
    ]
    for model in figures["models"]:
        rates = ["out of memory" if rate is None else f"{rate:.0f}" for rate in model["prompts_per_s"].values()]
        rows.append(f"| {model['model']} | {' | '.join(rates)} |")
    return "\n".join([*rows, "", footer(figures["machine"]), ""])


def _rate(per_second: float | None, gflop: float, peak_tflops: float) -> str:
    if per_second is None:
        return "out of memory"
    return f"{per_second:.1f}, {per_second * gflop / 1000 / peak_tflops:.1%}"


if __name__ == "__main__":
    main()
