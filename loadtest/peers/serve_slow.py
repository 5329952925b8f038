"""Pomona around a SAM and a U-Net that wait as long as MobileSAM and the small U-Net compute on two quiet cores.

bentoml serve loadtest.peers.serve_slow:Pomona
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtest.peers import BATCH, Work, serve_pomona
from models.backends.base import BackendName, Embedding, UNetBackend
from models.catalog import CatalogueEntry
from models.types import Pixels
from models.unet.constants import OUTPUTS
from models.unet.letterbox import UNetLetterbox, pad

ENCODE_S: Final = 0.45
INFER_S: Final = 0.06
DECODE_MS: Final = 40.0
"""Of one prompt on the full square."""


class SlowSam(serve_pomona.BenchSam):
    """SAM backend whose encoder waits too."""

    prompt_batches: tuple[int, ...] = (1, 2, 4)

    def encode(self, prepared: Sequence[serve_pomona.BenchEmbedding]) -> list[Embedding]:
        """Wait as long as an image takes."""
        time.sleep(ENCODE_S * len(prepared))
        return list(prepared)


class SlowUNet:
    """U-Net backend that waits and finds no fruit."""

    name: BackendName = "openvino"
    device: str = serve_pomona.BenchSam.device
    image_batches: tuple[int, ...] = (1, 2, 4)

    def prepare(self, pixels: Pixels, letterbox: UNetLetterbox) -> Pixels:
        """Pad an image."""
        return pad(pixels, letterbox)

    def infer(self, prepared: Sequence[Pixels]) -> list[NDArray[np.float32]]:
        """Wait as long as the images take; all of them is background."""
        time.sleep(INFER_S * len(prepared))
        outputs = np.zeros((len(prepared), OUTPUTS, *prepared[0].shape[:2]), np.float32)
        outputs[:, 0] = 8.0
        return list(outputs)


def _load_sam(entry: CatalogueEntry, backend: BackendName, model_store: object, **options: object) -> SlowSam:  # noqa: ARG001
    return SlowSam(Work(per_item_ms=DECODE_MS / BATCH))


def _load_unet(entry: CatalogueEntry, backend: BackendName, model_store: object, **options: object) -> UNetBackend:  # noqa: ARG001
    return SlowUNet()


serve_pomona.replace_loading(load_sam=_load_sam, load_unet=_load_unet)

Pomona = serve_pomona.Pomona
