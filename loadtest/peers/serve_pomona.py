"""Pomona itself, door, pipeline, queue and cache, with the benchmark's model in place of a loaded SAM.

bentoml serve loadtest.peers.serve_pomona:Pomona
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtest.peers.model import BATCH, Work
from models.backends.base import BackendName, Embedding, SamBackend
from models.catalog import CatalogueEntry
from models.letterbox import Letterbox
from models.sam.constants import EMBEDDING_STRIDE, INPUT_SIDE, LOGITS_STRIDE, MASK_TOKENS
from models.sam.prompts import PackedPrompts
from models.types import Logits, Pixels, Size
from service import app, lifecycle

_OUTSIDE: Final = -8.0
"""A logit: every mask is empty, as the other servers' answers are."""


_SQUARE: Final = Size(INPUT_SIDE // EMBEDDING_STRIDE, INPUT_SIDE // EMBEDDING_STRIDE)
"""Cells of the full square."""


@dataclass(frozen=True, slots=True)
class _Embedding:
    nbytes: int = 1


class BenchSam:
    """Encodes at no cost; decodes at the benchmark's."""

    name: BackendName = "openvino"
    device: str = "bench"
    image_batches: tuple[int, ...] = (1,)
    prompt_batches: tuple[int, ...] = (1,)
    """On the full square, which is `BATCH` on the benchmark's image."""
    flexible: bool = True

    def __init__(self, work: Work) -> None:
        self._work = work

    def prepare(self, pixels: Pixels, frame: Letterbox) -> _Embedding:  # noqa: ARG002 (the interface's)
        """Nothing to prepare."""
        return _Embedding()

    def encode(self, prepared: Sequence[_Embedding]) -> list[Embedding]:
        """Nothing to encode."""
        return list(prepared)

    def decode(
        self,
        embeddings: Sequence[Embedding],  # noqa: ARG002 (the interface's)
        image_index: NDArray[np.int64],
        prompts: PackedPrompts,
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Take the batch's time and find nothing."""
        count = len(image_index)
        self._work.run(round(count * BATCH * prompts.cells.pixels / _SQUARE.pixels))
        scale = EMBEDDING_STRIDE // LOGITS_STRIDE
        shape = (count, MASK_TOKENS, scale * prompts.cells.height, scale * prompts.cells.width)
        return np.full(shape, _OUTSIDE, np.float32), np.ones((count, MASK_TOKENS), np.float32)


def _load(entry: CatalogueEntry, backend: BackendName, model_store: object, **options: object) -> SamBackend:  # noqa: ARG001
    return BenchSam(Work.told())


def _no_files(*wanted: object) -> Path:  # noqa: ARG001
    return Path()


# The one seam: what loads a model. All else is the service as it is.
for name, instead in (("load_sam", _load), ("ensure_files", _no_files)):
    if not hasattr(lifecycle, name):
        raise RuntimeError(f"service.lifecycle has no {name} any more")
    setattr(lifecycle, name, instead)

Pomona = app.Pomona
