"""A SAM small enough to train in a second: the real decoder with 32 channels, on embeddings of colours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor

from models.backends.base import BackendName, Embedding, normalise
from models.data.dataset import ClassMap
from models.data.samples import Sample
from models.data.sources import DataSource, OpenedSource, open_dataset, open_sources
from models.letterbox import Letterbox, Padding
from models.sam.constants import EMBEDDING_STRIDE
from models.sam.decoder import PromptDecoder
from models.sam.prompts import PackedPrompts
from models.synthetic import Layout, RenderOptions, render
from models.synthetic.output import write_sample
from models.training.sam_data import EmbeddingStore
from models.types import Logits, Pixels, Size

CHANNELS = 32
SIDE = 192
IMAGE = Size(128, 192)
_SCENES = RenderOptions(layout=Layout.APART, infected_share=0, distractors=False, camera=False)


def tiny_decoder(seed: int = 0) -> PromptDecoder:
    """Untrained, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prompts = PromptEncoder(
            embed_dim=CHANNELS, image_embedding_size=(12, 12), input_image_size=(SIDE, SIDE), mask_in_chans=4
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=64, num_heads=2)
        masks = MaskDecoder(transformer_dim=CHANNELS, transformer=transformer, iou_head_hidden_dim=32)
    return PromptDecoder(prompts, masks).eval()


class ColourEncoder:
    """See `SamBackend`: a cell's embedding is a fixed mixture of its mean colour; it counts the images."""

    name: BackendName = "torch"
    device = "cpu"
    image_batches: tuple[int, ...] = (1,)
    prompt_batches: tuple[int, ...] = (1,)
    flexible = True
    stretched_to: int | None = None

    def __init__(self) -> None:
        self.encoded = 0
        self._mixture = np.random.default_rng(0).normal(0, 1, (CHANNELS, 3)).astype(np.float32)

    def prepare(self, pixels: Pixels, letterbox: Letterbox) -> NDArray[np.float32]:
        return normalise(pixels, letterbox.padded)

    def encode(self, prepared: Sequence[NDArray[np.float32]]) -> list[Embedding]:
        self.encoded += len(prepared)
        return [self._embedding(image) for image in prepared]

    def decode(
        self, embeddings: Sequence[Embedding], image_index: NDArray[np.int64], prompts: PackedPrompts
    ) -> tuple[Logits, NDArray[np.float32]]:
        raise NotImplementedError

    def _embedding(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        cells = [length // EMBEDDING_STRIDE for length in image.shape[1:]]
        shape = (3, cells[0], EMBEDDING_STRIDE, cells[1], EMBEDDING_STRIDE)
        return np.tensordot(self._mixture, image.reshape(shape).mean(axis=(2, 4)), axes=1)


def tiny_store(
    folder: Path, encoder: ColourEncoder, *, side: int = SIDE, padding: Padding = "none", revision: str = "0123456789ab"
) -> EmbeddingStore:
    """A store of that encoder's embeddings."""
    return EmbeddingStore(folder, revision=revision, side=side, padding=padding, open_backend=lambda: encoder)


def scene(seed: int, size: Size = IMAGE, fruits: int = 3) -> Sample:
    """Healthy fruits that lie apart."""
    return render(seed, size, options=replace(_SCENES, fruits=fruits))


def write_scenes(folder: Path, count: int, size: Size = IMAGE, fruits: int = 3) -> OpenedSource:
    """A folder of scenes as a set, the last quarter of them to validate on."""
    samples = [scene(seed, size, fruits) for seed in range(count)]
    for sample in samples:
        write_sample(folder, sample)
    names = [sample.name for sample in samples]
    kept = max(1, count // 4)
    listed = {"train": names[:-kept], "val": names[-kept:], "test": []}
    (folder / "split.json").write_text(json.dumps(listed))
    (opened,) = open_sources([DataSource(folder)])
    return opened


def write_image(folder: Path, sample: Sample, classes: Mapping[str, str] = MappingProxyType({})) -> OpenedSource:
    """Write a set of one image, both to train and to validate on."""
    write_sample(folder, sample)
    if sample.instance_map is None:
        (folder / "instances").rmdir()
    dataset = open_dataset(folder, classes=ClassMap.of(classes))
    return OpenedSource("one", DataSource(folder), dataset, (sample.name,), (sample.name,), "hand", "")


class BoxDecoder(PromptDecoder):
    """Answers a box with just that box, and anything else with nothing, in a known way.

    Token 0 and token 2 have the box, tokens 1 and 3 nothing; the scores are 0.9, 0.8, 0.6, 0.5.
    """

    scores = (0.9, 0.8, 0.6, 0.5)
    right: tuple[int, ...] = (0, 2)
    """The tokens that have the box."""

    def forward(
        self,
        embeddings: Tensor,
        image_index: Tensor,  # noqa: ARG002 the decoder's signature
        points: Tensor,
        labels: Tensor,
        image_pe: Tensor,  # noqa: ARG002
        mask_inputs: Tensor | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        height, width = (4 * length for length in embeddings.shape[-2:])
        side = SIDE / 4
        ys, xs = (torch.arange(length) + 0.5 for length in (height, width))
        logits = torch.full((len(labels), 4, height, width), -10.0)
        for row, column in torch.nonzero(labels == 2).tolist():
            (x0, y0), (x1, y1) = (points[row, column : column + 2] * side).tolist()
            inside = ((ys > y0) & (ys < y1))[:, None] & ((xs > x0) & (xs < x1))[None]
            logits[row, self.right] = torch.where(inside, 10.0, -10.0)
        return logits, torch.tensor(self.scores).expand(len(labels), -1)
