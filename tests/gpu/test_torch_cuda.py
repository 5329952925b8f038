"""The PyTorch backend on a CUDA device: its results compared with the CPU's, and its memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from loadtest.gpu import random_weights
from loadtest.images import render_image
from models.backends.base import Embedding, SamBackend
from models.backends.load import ModelStore, ensure_files
from models.backends.torch_backend import TorchSam
from models.catalog import CATALOGUE
from models.errors import DeviceOutOfMemory
from models.images import decode_resized
from models.letterbox import Letterbox, letterbox_for
from models.sam.attention import bound_attention_memory
from models.sam.build import build_sam
from models.sam.prompts import pack
from models.types import Logits, Pixels, Prompt, Size
from models.weights.checkpoints import load_state_dict
from service.scheduler.queue import run_bisected

DEVICE = torch.device("cuda:0")
IMAGE = Size(1200, 1800)
SQUARE = letterbox_for(Size(1024, 1024))


@pytest.fixture(scope="module")
def weights(model_store: ModelStore) -> dict[str, Tensor]:
    return dict(load_state_dict(ensure_files(CATALOGUE["mobile-sam"], "torch", model_store)))


@pytest.fixture(scope="module")
def sam(weights: dict[str, Tensor]) -> SamBackend:
    return TorchSam("mobile-sam", weights, str(DEVICE))


@pytest.fixture(autouse=True)
def _nothing_is_left_on_the_device() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def noise(seed: int, letterbox: Letterbox) -> Pixels:
    shape = (letterbox.resized.height, letterbox.resized.width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def masks(sam: SamBackend, data: bytes, letterbox: Letterbox, prompt: Prompt) -> tuple[Logits, np.ndarray]:
    embeddings = sam.encode([sam.prepare(decode_resized(data, letterbox.resized, max_pixels=IMAGE.pixels), letterbox)])
    logits, scores = sam.decode(embeddings, np.zeros(1, np.int64), pack([prompt], [letterbox]))
    return logits[0], scores[0]


def distance(ours: Embedding, expected: Embedding) -> float:
    assert isinstance(ours, Tensor)
    assert isinstance(expected, Tensor)
    return float((ours.cpu() - expected.cpu()).norm() / expected.cpu().norm())


@pytest.mark.checkpoint
@pytest.mark.parametrize("padding", ["none", "square"])
def test_masks_in_bfloat16_are_those_of_the_cpu(sam: SamBackend, weights: dict[str, Tensor], padding: str) -> None:
    cpu = TorchSam("mobile-sam", weights, "cpu")
    for seed in range(4):
        image = render_image(seed, IMAGE)
        letterbox = letterbox_for(IMAGE, 1024, "none" if padding == "none" else "square")
        expected, scores = masks(cpu, image.data, letterbox, image.prompt)
        ours, our_scores = masks(sam, image.data, letterbox, image.prompt)
        best = int(scores.argmax())
        one, other = ours[best] > 0, expected[best] > 0
        # bfloat16 emulated on a CPU gave at worst .988 for the best of three masks, and scores off by .025.
        assert (one & other).sum() / (one | other).sum() >= 0.97
        assert np.abs(our_scores - scores).max() <= 0.05


@pytest.mark.checkpoint
def test_batches_of_every_size_give_the_results_of_single_images(sam: SamBackend) -> None:
    prepared = [noise(seed, SQUARE) for seed in range(5)]
    expected = [sam.encode([sam.prepare(image, SQUARE)])[0] for image in prepared]
    for count in range(1, 6):
        ours = sam.encode([sam.prepare(image, SQUARE) for image in prepared[:count]])
        assert len(ours) == count
        assert max(distance(one, other) for one, other in zip(ours, expected, strict=False)) <= 0.03


@pytest.mark.checkpoint
def test_embeddings_stay_on_the_device_each_in_its_own_memory(sam: SamBackend) -> None:
    embeddings = sam.encode([sam.prepare(noise(seed, SQUARE), SQUARE) for seed in range(3)])
    for embedding in embeddings:
        assert isinstance(embedding, Tensor)
        assert embedding.device == DEVICE
        assert embedding.untyped_storage().nbytes() == embedding.nbytes == 4 * 2**20


@pytest.mark.checkpoint
def test_an_embedding_is_not_overwritten_by_the_next_batch(sam: SamBackend) -> None:
    (first,) = sam.encode([sam.prepare(noise(0, SQUARE), SQUARE)])
    assert isinstance(first, Tensor)
    kept = first.clone()
    sam.encode([sam.prepare(noise(1, SQUARE), SQUARE)])
    assert torch.equal(first, kept)


@pytest.mark.checkpoint
def test_images_are_copied_completely_while_other_threads_run_batches(sam: SamBackend) -> None:
    count = 12
    expected = [sam.encode([sam.prepare(noise(seed, SQUARE), SQUARE)])[0] for seed in range(count)]
    prepared: dict[int, object] = {}

    def prepare(seeds: range) -> None:
        for seed in seeds:
            prepared[seed] = sam.prepare(noise(seed, SQUARE), SQUARE)

    threads = [threading.Thread(target=prepare, args=(range(start, count, 3),)) for start in range(3)]
    for thread in threads:
        thread.start()
    ours: dict[int, Embedding] = {}
    while len(ours) < count:
        for seed in [seed for seed in list(prepared) if seed not in ours]:
            (ours[seed],) = sam.encode([prepared[seed]])
    for thread in threads:
        thread.join()
    assert max(distance(ours[seed], expected[seed]) for seed in range(count)) <= 0.03


def test_attention_that_bounds_memory_agrees_in_bfloat16() -> None:
    encoder = build_sam("sam-vit-b", random_weights("sam-vit-b")).encoder.to(DEVICE)
    batch = torch.randn(2, 3, 1024, 1024, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        expected = encoder(batch).float()
        bound_attention_memory(encoder)
        assert float((encoder(batch).float() - expected).norm() / expected.norm()) <= 0.03


@pytest.mark.checkpoint
def test_a_batch_that_the_device_has_no_memory_for_is_split(sam: SamBackend) -> None:
    torch.cuda.empty_cache()
    prepared = [sam.prepare(noise(seed, SQUARE), SQUARE) for seed in range(8)]
    torch.cuda.reset_peak_memory_stats(DEVICE)
    before = torch.cuda.memory_reserved(DEVICE)
    sam.encode(prepared[:2])
    two = torch.cuda.max_memory_reserved(DEVICE) - before
    torch.cuda.empty_cache()
    sizes: list[int] = []

    def encode(batch: list[object]) -> list[Embedding]:
        sizes.append(len(batch))
        return sam.encode(batch)

    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((before + 2 * two) / total, DEVICE)
    try:
        with pytest.raises(DeviceOutOfMemory):
            sam.encode(prepared)
        outcomes = run_bisected(lambda batch: encode(list(batch)), prepared)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    assert sizes[0] == 8
    assert min(sizes) < 8
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
