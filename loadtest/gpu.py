"""What a CUDA device does with SAM and U-Net: `python -m loadtest gpu`.

Networks bare and behind the runner's queue, as images per second and as a share of the device's peak in bfloat16, next
to the original implementation on the same device; then the prompts per second of SAM's decoder. What measures runs on
any device.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from loadtest.report import REPORTS, Effort, Report, table
from models.backends.base import SamBackend, UNetBackend
from models.backends.load import ensure_files
from models.backends.torch_backend import TorchSam, TorchUNet
from models.catalog import CATALOGUE
from models.errors import DeviceOutOfMemory
from models.letterbox import Letterbox, letterbox_for
from models.sam.build import ARCHITECTURES
from models.sam.constants import INPUT_SIDE
from models.sam.prompts import pack
from models.sam.tiny_vit import translate_names
from models.types import Pixels, Point, Prompt, Size
from models.unet.build import build_unet
from models.unet.letterbox import INPUT_SIZE, UNetLetterbox, unet_letterbox
from models.weights.checkpoints import load_state_dict
from service.api.context import RequestContext
from service.runners.sam import SamRunner
from service.runners.unet import UNetRunner
from service.scheduler.queue import DeviceQueue
from service.settings import Settings

MODELS: Final = ("sam-vit-h", "sam-vit-b", "mobile-sam")
"""With random weights, which are as fast: a machine with a card may have no way to fetch checkpoints."""

UNET: Final = "unet-mobilenetv2-citrus"

IMAGES: Final = (1, 2, 4, 8, 16)
PROMPTS: Final = (1, 4, 16, 64)
MAX_IMAGES: Final = 8
MATRIX_SIDE: Final = 8192
LETTERBOX: Final = letterbox_for(Size(INPUT_SIDE, INPUT_SIDE))
UNET_LETTERBOX: Final = unet_letterbox(INPUT_SIZE)

_ENCODER: Final = "image_encoder."

_ROUNDS: Final = 5

_ENOUGH_S: Final = 1.0
"""Rounds that take longer than this together are not repeated."""


@dataclass(frozen=True, slots=True)
class Served:
    """Throughput of callers that each send their next image when they have an answer.

    Attributes:
        images_per_s: of all callers together.
        batch: mean number of images in the batch of an answer.
    """

    images_per_s: float
    batch: float


def main(effort: Effort, folder: Path) -> None:
    """Measure the models on the first CUDA device and write `gpu`; without one, say so and write nothing."""
    if not torch.cuda.is_available():
        print("There is no CUDA device: nothing was measured, and no report was written.")
        return
    device = torch.device("cuda:0")
    data: dict[str, Any] = {
        "card": torch.cuda.get_device_name(device),
        "bf16_peak_tflops": round(matrix_peak(device, torch.bfloat16, MATRIX_SIDE) / 1e12, 1),
        "unet": asyncio.run(_measure_unet(device, effort.seconds)),
        "models": [],
    }
    for name in tqdm(MODELS, desc="models"):
        data["models"].append(asyncio.run(_measure(name, device, effort.seconds)))
        # After each, so that a run that is cut short is not lost.
        Report("gpu", data, lines_of(data)).write(folder)


async def _measure(name: str, device: torch.device, seconds: float) -> dict[str, Any]:
    data: dict[str, Any] = {"model": name, "gflop": encoder_flops(name, LETTERBOX.padded) / 1e9}
    weights = random_weights(name)
    data["reference"] = reference_rates(reference_encoder(name, weights), device, LETTERBOX.padded)
    sam = TorchSam(name, weights, str(device))
    data["bare_per_s"] = {count: bare_rate(sam, device, LETTERBOX, count) for count in IMAGES}
    data["prompts_per_s"] = {count: prompts_rate(sam, device, LETTERBOX, count, MAX_IMAGES) for count in PROMPTS}
    runner = SamRunner(CATALOGUE[name], sam, DeviceQueue(sam.device))
    await runner.warm_up()
    data["served"] = {
        count: asdict(await served_rate(through_sam(runner, LETTERBOX), _noise(count, LETTERBOX), seconds))
        for count in IMAGES
    }
    await runner.close(seconds)
    return data


async def _measure_unet(device: torch.device, seconds: float) -> dict[str, Any]:
    entry = CATALOGUE[UNET]
    weights = load_state_dict(ensure_files(entry, "torch", Settings().model_store))
    network = build_unet(entry.architecture, weights)
    data: dict[str, Any] = {"model": UNET, "gflop": flops_of(network, INPUT_SIZE) / 1e9}
    data["reference"] = reference_rates(network, device, INPUT_SIZE)
    unet = TorchUNet(entry.architecture, weights, str(device))
    data["bare_per_s"] = {count: bare_unet_rate(unet, device, UNET_LETTERBOX, count) for count in IMAGES}
    runner = UNetRunner(entry, unet, DeviceQueue(unet.device))
    await runner.warm_up()
    data["served"] = {
        count: asdict(await served_rate(through_unet(runner, UNET_LETTERBOX), _noise(count, UNET_LETTERBOX), seconds))
        for count in IMAGES
    }
    await runner.close(seconds)
    return data


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a run on `device`: the best of up to `_ROUNDS`, after one that does not count."""
    synchronise: Callable[[], None] = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    times: list[float] = []
    while len(times) < 2 or (len(times) <= _ROUNDS and sum(times[1:]) < _ENOUGH_S):
        synchronise()
        started = time.perf_counter()
        run()
        synchronise()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def matrix_peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return the FLOP/s of the product of two square matrices of random numbers, the best of some runs."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: left @ right, device)


def encoder_flops(architecture: str, size: Size) -> int:
    """Return the FLOPs of one image through the encoder: two for each multiply-add of matrices and convolutions."""
    with torch.device("meta"):
        encoder = ARCHITECTURES[architecture]().image_encoder
    return flops_of(encoder, size)


def flops_of(network: nn.Module, size: Size) -> int:
    """Return the FLOPs of one image through a network, which is left alone: a copy of its structure is counted."""
    structure = deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        structure(torch.zeros(1, 3, size.height, size.width, device="meta"))
    return int(counter.get_total_flops())


def random_weights(architecture: str) -> dict[str, Tensor]:
    """Return seeded weights under a checkpoint's names: the time that a network takes does not depend on them."""
    with torch.device("meta"):
        shapes = ARCHITECTURES[architecture]().state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in shapes.items():
        weights[name] = torch.ones(tensor.shape, dtype=tensor.dtype)
        # Scales and variances of normalisations stay ones.
        if tensor.is_floating_point() and (tensor.ndim > 1 or name.endswith("bias")):
            weights[name].normal_(0, 0.02, generator=generator)
    return weights


def reference_encoder(architecture: str, weights: dict[str, Tensor]) -> nn.Module:
    """Return segment-anything's own encoder; for MobileSAM, which it lacks, timm's with SAM's neck."""
    name = architecture.removeprefix("sam-").replace("-", "_")
    known = name in sam_model_registry
    if known:
        with torch.device("meta"):
            encoder = sam_model_registry[name]().image_encoder
    else:
        # Not on the meta device: timm computes indices that no checkpoint has.
        encoder = ARCHITECTURES[architecture]().image_encoder
    tensors = {key.removeprefix(_ENCODER): value for key, value in weights.items() if key.startswith(_ENCODER)}
    encoder.load_state_dict(tensors if known else translate_names(tensors), strict=True, assign=True)
    loaded: nn.Module = encoder.eval().requires_grad_(requires_grad=False)
    return loaded


def reference_rates(
    network: nn.Module, device: torch.device, size: Size, counts: Sequence[int] = IMAGES
) -> dict[str, dict[int, float | None]]:
    """Return images per second of the original network, in float32 and in bfloat16, by batch size."""
    network = deepcopy(network).to(device)
    return {
        kind: {count: eager_rate(network, device, size, count, bf16=kind == "bf16") for count in counts}
        for kind in ("fp32", "bf16")
    }


def eager_rate(network: nn.Module, device: torch.device, size: Size, count: int, *, bf16: bool) -> float | None:
    """Return images per second of a network in eager mode, in batches of `count`; None if out of memory."""
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            batch = torch.randn(count, 3, size.height, size.width, device=device)
            return count / seconds_of(lambda: network(batch), device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def bare_rate(sam: SamBackend, device: torch.device, letterbox: Letterbox, count: int) -> float | None:
    """Return images per second of `encode`, in batches of `count`; None if out of memory."""
    try:
        prepared = [sam.prepare(image, letterbox) for image in _noise(count, letterbox)]
        return count / seconds_of(lambda: sam.encode(prepared), device)
    except DeviceOutOfMemory:
        return None


def bare_unet_rate(unet: UNetBackend, device: torch.device, letterbox: UNetLetterbox, count: int) -> float | None:
    """Return images per second of `infer`, in batches of `count`; None if out of memory."""
    try:
        prepared = [unet.prepare(image, letterbox) for image in _noise(count, letterbox)]
        return count / seconds_of(lambda: unet.infer(prepared), device)
    except DeviceOutOfMemory:
        return None


def prompts_rate(
    sam: SamBackend, device: torch.device, letterbox: Letterbox, prompts: int, max_images: int
) -> float | None:
    """Return prompts per second of `decode` in one batch, over at most `max_images`; None if out of memory."""
    shown = min(prompts, max_images)
    try:
        embeddings = [sam.encode([sam.prepare(image, letterbox)])[0] for image in _noise(shown, letterbox)]
        packed = pack([Prompt((Point(8, 8),))] * prompts, [letterbox] * prompts)
        index = np.arange(prompts) % shown
        return prompts / seconds_of(lambda: sam.decode(embeddings, index, packed), device)
    except DeviceOutOfMemory:
        return None


def through_sam(runner: SamRunner, letterbox: Letterbox) -> Callable[[Pixels], Awaitable[int]]:
    """Return what sends an image through the encoder's queue, preparation included, and returns its batch's size."""

    async def send(image: Pixels) -> int:
        now = time.monotonic()
        context = RequestContext(received=now, arrived=now)
        ticket = runner.reserve_encode(context, letterbox, deadline=None, ready_by=now)
        prepared = await asyncio.to_thread(runner.prepare, image, letterbox)
        return (await runner.encode(ticket, prepared)).batch_size

    return send


def through_unet(runner: UNetRunner, letterbox: UNetLetterbox) -> Callable[[Pixels], Awaitable[int]]:
    """Return what sends an image through the U-Net's queue, as `through_sam` does."""

    async def send(image: Pixels) -> int:
        now = time.monotonic()
        ticket = runner.reserve(RequestContext(received=now, arrived=now), letterbox, deadline=None, ready_by=now)
        prepared = await asyncio.to_thread(runner.prepare, image, letterbox)
        return (await runner.infer(ticket, prepared)).batch_size

    return send


async def served_rate(send: Callable[[Pixels], Awaitable[int]], images: Sequence[Pixels], seconds: float) -> Served:
    """Measure the throughput of callers at a warm runner, one for each image, that send it again and again.

    Args:
        send: sends an image and returns the size of its batch.
        images: one of each caller.
        seconds: for how long images are sent.
    """
    batches: list[int] = []
    started = time.perf_counter()

    async def caller(image: Pixels) -> None:
        while time.perf_counter() < started + seconds:
            batches.append(await send(image))

    await asyncio.gather(*(caller(image) for image in images))
    return Served(len(batches) / (time.perf_counter() - started), sum(batches) / len(batches))


def _noise(count: int, letterbox: Letterbox | UNetLetterbox) -> Sequence[Pixels]:
    """Return seeded noise of the letterbox's size."""
    random = np.random.default_rng(0)
    shape = (letterbox.resized.height, letterbox.resized.width, 3)
    return [random.integers(0, 256, shape, np.uint8) for _ in range(count)]


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """Return the report as Markdown."""
    peak = data["bf16_peak_tflops"]
    encoders, decoders = [], []
    for model in (*data["models"], data["unet"]):
        for count, bare in model["bare_per_s"].items():
            served = model["served"][count]
            through = f"{_rate(served['images_per_s'], model['gflop'], peak)} ({served['batch']:.1f})"
            others = [_rate(model["reference"][kind][count], model["gflop"], peak) for kind in ("fp32", "bf16")]
            encoders.append((model["model"], count, _rate(bare, model["gflop"], peak), through, *others))
    for model in data["models"]:
        rates = model["prompts_per_s"].values()
        decoders.append((model["model"], *("out of memory" if rate is None else f"{rate:.0f}" for rate in rates)))
    prompts = list(data["models"][0]["prompts_per_s"])
    return [
        f"{data['card']}: {peak:g} TFLOP/s in bfloat16 (product of two matrices of {MATRIX_SIDE} x {MATRIX_SIDE}).",
        "",
        f"Images of {INPUT_SIDE} x {INPUT_SIDE} per second ({INPUT_SIZE.width} x {INPUT_SIZE.height} for U-Net), and "
        "the share of that peak. Bare: prepared images in batches of one size. Served: that many callers at the "
        "runner's queue, preparation included, and the mean batch. Reference: the encoder of segment-anything "
        "(MobileSAM's: timm's), the network of segmentation-models-pytorch, with the images on the device.",
        "",
        *table(("model", "images", "bare", "served (batch)", "reference fp32", "reference bf16"), encoders),
        "",
        f"Prompts per second of the decoder in one batch, on at most {MAX_IMAGES} images.",
        "",
        *table(("model", *(f"{count} prompts" for count in prompts)), decoders),
    ]


def _rate(per_second: float | None, gflop: float, peak_tflops: float) -> str:
    if per_second is None:
        return "out of memory"
    return f"{per_second:.1f}, {per_second * gflop / 1000 / peak_tflops:.1%}"


if __name__ == "__main__":
    main(Effort(1, 1.5), REPORTS)
