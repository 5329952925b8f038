"""A SAM 2 or EdgeTAM converted for OpenVINO computes what it computes on PyTorch, with seeded random weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from models.backends.load import ModelStore, load_sam2
from models.backends.torch_sam2 import Sam2Embedding, TorchSam2
from models.catalog import load_catalogue
from models.letterbox import letterbox_for, resize
from models.sam.prompts import pack
from models.sam2.frames import FrameInputs
from models.sam2.memory import TrackState
from models.types import Box, Point, Prompt, Size
from tests.tiny_sam2 import KINDS, SIDE, one_thread, sample_image, write_checkpoint, write_models_file

pytestmark = pytest.mark.slow

SIZE = Size(90, 160)
LETTERBOX = letterbox_for(SIZE, SIDE, "stretch")
CLICKS, BOX = Prompt((Point(40, 30), Point(60, 60, 0))), Prompt(box=Box(12, 10, 60, 70), multimask=False)
GUESS = Prompt(mask=np.random.default_rng(0).normal(0, 5, (SIDE // 4, SIDE // 4)).astype(np.float32))
MOST = 1e-3
"""Largest relative error, of what is largest."""


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", params=KINDS)
def backends(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[TorchSam2, TorchSam2]:
    """The same checkpoint on PyTorch and on OpenVINO."""
    folder = tmp_path_factory.mktemp("converted")
    entry = load_catalogue(write_models_file(folder, write_checkpoint(folder / "tiny", request.param)))["tiny-sam2"]
    store = ModelStore(folder / "cache")
    return load_sam2(entry, "torch", store, device="cpu"), load_sam2(entry, "openvino", store, threads=1)


def error_of(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def embeddings(backend: TorchSam2) -> list[Sam2Embedding]:
    prepared = [backend.prepare(resize(sample_image(seed, SIZE), LETTERBOX), LETTERBOX) for seed in (1, 2)]
    found = backend.encode(prepared)
    return [each for each in found if isinstance(each, Sam2Embedding)]


def test_features_of_all_scales_are_the_same(backends: tuple[TorchSam2, TorchSam2]) -> None:
    torch_, openvino = backends
    assert (torch_.name, openvino.name, openvino.device) == ("torch", "openvino", "cpu")
    for theirs, ours in zip(embeddings(torch_), embeddings(openvino), strict=True):
        for scale in ("fine", "middle", "coarse"):
            assert error_of(getattr(ours, scale).numpy(), getattr(theirs, scale).numpy()) < MOST


@pytest.mark.parametrize("prompts", [[CLICKS, BOX, CLICKS], [BOX], [GUESS, GUESS]], ids=["three", "one", "masks"])
def test_logits_and_scores_are_the_same(backends: tuple[TorchSam2, TorchSam2], prompts: list[Prompt]) -> None:
    index = np.arange(len(prompts)) % 2
    packed = pack(prompts, [LETTERBOX] * len(prompts))
    (theirs, their_scores), (ours, our_scores) = (
        backend.decode(embeddings(backend), index, packed) for backend in backends
    )
    assert error_of(ours, theirs) < MOST
    assert error_of(our_scores, their_scores) < MOST


def test_objects_are_followed_on_embeddings_of_openvino(backends: tuple[TorchSam2, TorchSam2]) -> None:
    found = []
    for backend in backends:
        state = TrackState()
        first, second = embeddings(backend)
        backend.track(state, first, FrameInputs(LETTERBOX, {1: CLICKS}))
        found.append(backend.track(state, second, FrameInputs(LETTERBOX))[0])
    assert found[1].presence == pytest.approx(found[0].presence, rel=MOST, abs=MOST)
    assert error_of(found[1].logits, found[0].logits) < MOST
