"""Pomona around models that answer at once, and as a real one would: masks around prompts, fruit by colour.

bentoml serve loadtest.peers.serve_tiny:Pomona
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from loadtest.peers import Work, serve_pomona
from models.backends.base import BackendName, Embedding, UNetBackend
from models.catalog import CatalogueEntry
from models.sam.constants import EMBEDDING_STRIDE, LABEL_FILLER, LABEL_PADDING, LOGITS_STRIDE, MASK_TOKENS
from models.sam.prompts import PackedPrompts
from models.types import Logits, Pixels
from models.unet.constants import OFFSET_UNIT, OUTPUTS
from models.unet.letterbox import UNetLetterbox, pad

_RADIUS: Final = 0.1
"""Of the disc around each point, as a part of the model's square."""

_BRIGHT: Final = 96
"""Least red of a pixel that is fruit."""


class TinySam(serve_pomona.BenchSam):
    """SAM backend whose masks are discs around a prompt's points and corners, or the mask that it was given."""

    prompt_batches: tuple[int, ...] = (1, 2, 4)

    def decode(
        self, embeddings: Sequence[Embedding], image_index: NDArray[np.int64], prompts: PackedPrompts
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Draw the discs; those of the four tokens differ in size."""
        del embeddings
        scale = EMBEDDING_STRIDE // LOGITS_STRIDE
        height, width = scale * prompts.cells.height, scale * prompts.cells.width
        ys, xs = np.mgrid[:height, :width].astype(np.float32) * (LOGITS_STRIDE / prompts.side)
        logits = np.empty((len(image_index), MASK_TOKENS, height, width), np.float32)
        for row, (points, labels) in enumerate(zip(prompts.points, prompts.labels, strict=True)):
            if prompts.mask_inputs is not None:
                logits[row] = prompts.mask_inputs[row]
                continue
            distance = np.full((height, width), 1.0, np.float32)
            for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True):
                if label not in (LABEL_FILLER, LABEL_PADDING, 0):
                    np.minimum(distance, np.hypot(xs - x, ys - y), out=distance)
            for token in range(MASK_TOKENS):
                logits[row, token] = 40 * (_RADIUS * (1 + token / 2) - distance)
        scores = np.asarray([0.5, 0.7, 0.9, 0.8], np.float32)
        return logits, np.tile(scores, (len(image_index), 1))


class TinyUNet:
    """U-Net backend for which bright red is fruit, and infected where it has little green."""

    name: BackendName = "openvino"
    device: str = serve_pomona.BenchSam.device
    image_batches: tuple[int, ...] = (1, 2, 4)

    def prepare(self, pixels: Pixels, letterbox: UNetLetterbox) -> Pixels:
        """Pad an image."""
        return pad(pixels, letterbox)

    def infer(self, prepared: Sequence[Pixels]) -> list[NDArray[np.float32]]:
        """Classify by colour; each region votes for its own centre."""
        return [_classified(pixels) for pixels in prepared]


def _classified(pixels: Pixels) -> NDArray[np.float32]:
    """Return logits and offsets, float32 (5, height, width)."""
    output = np.zeros((OUTPUTS, *pixels.shape[:2]), np.float32)
    red, green = pixels[..., 0].astype(np.float32), pixels[..., 1].astype(np.float32)
    output[1] = (red - _BRIGHT) / 16
    output[2] = output[1] + (red / 3 - green) / 16
    fruit = (output[1:3].max(axis=0) > 0).astype(np.uint8)
    _, regions, _, centres = cv2.connectedComponentsWithStats(fruit)
    ys, xs = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    output[3] = (centres[regions, 0] - xs) * fruit / OFFSET_UNIT
    output[4] = (centres[regions, 1] - ys) * fruit / OFFSET_UNIT
    return output


def _load_sam(entry: CatalogueEntry, backend: BackendName, model_store: object, **options: object) -> TinySam:  # noqa: ARG001
    return TinySam(Work())


def _load_unet(entry: CatalogueEntry, backend: BackendName, model_store: object, **options: object) -> UNetBackend:  # noqa: ARG001
    return TinyUNet()


serve_pomona.replace_loading(load_sam=_load_sam, load_unet=_load_unet)

Pomona = serve_pomona.Pomona
