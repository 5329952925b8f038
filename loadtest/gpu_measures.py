"""What `loadtest.gpu` measures, on any device and at any size."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.backends.base import SamBackend
from models.errors import DeviceOutOfMemory
from models.letterbox import Letterbox
from models.sam.build import ARCHITECTURES
from models.sam.prompts import pack
from models.sam.tiny_vit import translate_names
from models.types import Pixels, Point, Prompt, Size
from service.runners.sam import SamRunner
from service.work import Terms

_ENCODER = "image_encoder."


@dataclass(frozen=True, slots=True)
class Served:
    """What callers get who each hand in their next image when they have an answer.

    Attributes:
        images_per_s: of all callers together.
        batch: images in the batch of an answer, on average.
    """

    images_per_s: float
    batch: float


def seconds_of(run: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Seconds that a run takes on `device`: the best of some rounds, after one that does not count."""
    synchronise: Callable[[], None] = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    times = []
    for _ in range(rounds + 1):
        synchronise()
        started = time.perf_counter()
        run()
        synchronise()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def matrix_peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of the product of two square matrices of random numbers, the best of some runs."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: left @ right, device)


def encoder_flops(architecture: str, size: Size) -> int:
    """FLOPs of one image through the encoder: two for each product and sum of its matrices and convolutions."""
    with torch.device("meta"):
        encoder = ARCHITECTURES[architecture]().image_encoder.eval()
        image = torch.zeros(1, 3, size.height, size.width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(image)
    return int(counter.get_total_flops())


def random_weights(architecture: str) -> dict[str, Tensor]:
    """Seeded weights under a checkpoint's names: how long a network takes does not depend on them."""
    with torch.device("meta"):
        shapes = ARCHITECTURES[architecture]().state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in shapes.items():
        weights[name] = torch.ones(tensor.shape, dtype=tensor.dtype)
        # Ones are right for the scales and variances of normalisations.
        if tensor.is_floating_point() and (tensor.ndim > 1 or name.endswith("bias")):
            weights[name].normal_(0, 0.02, generator=generator)
    return weights


def reference_encoder(architecture: str, weights: dict[str, Tensor]) -> nn.Module:
    """segment-anything's own encoder; for MobileSAM, which it lacks, timm's with SAM's neck."""
    name = architecture.removeprefix("sam-").replace("-", "_")
    known = name in sam_model_registry
    if known:
        with torch.device("meta"):
            encoder = sam_model_registry[name]().image_encoder
    else:
        # Not without memory: timm computes indices that no checkpoint has.
        encoder = ARCHITECTURES[architecture]().image_encoder
    tensors = {key.removeprefix(_ENCODER): value for key, value in weights.items() if key.startswith(_ENCODER)}
    encoder.load_state_dict(tensors if known else translate_names(tensors), strict=True, assign=True)
    loaded: nn.Module = encoder.eval().requires_grad_(requires_grad=False)
    return loaded


def eager_rate(encoder: nn.Module, device: torch.device, size: Size, count: int, *, bf16: bool) -> float | None:
    """Images per second of an encoder on `device` as it is, in batches of `count`; None where memory is short."""
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            batch = torch.randn(count, 3, size.height, size.width, device=device)
            return count / seconds_of(lambda: encoder(batch), device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def bare_rate(sam: SamBackend, device: torch.device, frame: Letterbox, count: int) -> float | None:
    """Images per second of `encode`, in batches of `count`; None where memory is short."""
    try:
        prepared = [sam.prepare(image, frame) for image in images(count, frame)]
        return count / seconds_of(lambda: sam.encode(prepared), device)
    except DeviceOutOfMemory:
        return None


async def served_rate(runner: SamRunner, frame: Letterbox, in_flight: int, seconds: float) -> Served:
    """Images through the runner's queue, preparation included.

    Args:
        runner: warmed up.
        frame: of all images.
        in_flight: callers.
        seconds: for how long they go on asking.
    """
    batches: list[int] = []
    started = time.perf_counter()

    async def caller(image: Pixels) -> None:
        while time.perf_counter() < started + seconds:
            now = time.monotonic()
            place = runner.reserve_encode(Terms(now), frame, ready_by=now)
            prepared = await asyncio.to_thread(runner.prepare, image, frame)
            batches.append((await runner.encode(place, prepared)).batch)

    await asyncio.gather(*(caller(image) for image in images(in_flight, frame)))
    return Served(len(batches) / (time.perf_counter() - started), sum(batches) / len(batches))


def prompts_rate(
    sam: SamBackend, device: torch.device, frame: Letterbox, prompts: int, most_images: int
) -> float | None:
    """Prompts per second of `decode` in one batch, spread over at most so many images; None where memory is short."""
    shown = min(prompts, most_images)
    try:
        embeddings = [
            embedding for image in images(shown, frame) for embedding in sam.encode([sam.prepare(image, frame)])
        ]
        packed = pack([Prompt((Point(8, 8),))] * prompts, [frame] * prompts)
        index = np.arange(prompts) % shown
        return prompts / seconds_of(lambda: sam.decode(embeddings, index, packed), device)
    except DeviceOutOfMemory:
        return None


def images(count: int, frame: Letterbox) -> Sequence[Pixels]:
    """Seeded noise of the frame's size."""
    random = np.random.default_rng(0)
    shape = (frame.resized.height, frame.resized.width, 3)
    return [random.integers(0, 256, shape, np.uint8) for _ in range(count)]
