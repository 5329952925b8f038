"""Pomona itself, from its endpoints to its scheduler and cache, around the benchmark's model instead of a loaded SAM.

bentoml serve loadtest.peers.serve_pomona:Pomona
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtest.peers import BATCH, Work
from models.backends.base import BackendName, Embedding, SamBackend
from models.catalog import CatalogueEntry
from models.letterbox import Letterbox
from models.sam.constants import EMBEDDING_STRIDE, INPUT_SIDE, LOGITS_STRIDE, MASK_TOKENS
from models.sam.prompts import PackedPrompts
from models.types import Logits, Pixels, Size
from service import app, lifecycle

_OUTSIDE: Final = -8.0
"""Logit of every pixel: all masks are empty, as the other servers' answers are."""

_SQUARE: Final = Size(INPUT_SIDE // EMBEDDING_STRIDE, INPUT_SIDE // EMBEDDING_STRIDE)
"""Size in cells of the full square."""


@dataclass(frozen=True, slots=True)
class BenchEmbedding:
    """Holds nothing."""

    nbytes: int = 1


class BenchSam:
    """SAM backend that encodes at no cost and decodes at the cost of the benchmark's model."""

    name: BackendName = "openvino"
    device: str = "bench"
    image_batches: tuple[int, ...] = (1,)
    prompt_batches: tuple[int, ...] = (1,)
    """Counted in full squares: one is `BATCH` of the benchmark's images."""
    flexible: bool = True
    stretched_to: int | None = None

    def __init__(self, work: Work) -> None:
        self._work = work

    def prepare(self, pixels: Pixels, letterbox: Letterbox) -> BenchEmbedding:  # noqa: ARG002 (the interface's)
        """Prepare nothing."""
        return BenchEmbedding()

    def encode(self, prepared: Sequence[BenchEmbedding]) -> list[Embedding]:
        """Encode nothing."""
        return list(prepared)

    def decode(
        self,
        embeddings: Sequence[Embedding],  # noqa: ARG002 (the interface's)
        image_index: NDArray[np.int64],
        prompts: PackedPrompts,
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Wait as long as the batch takes, and return empty masks."""
        count = len(image_index)
        self._work.run(round(count * BATCH * prompts.cells.pixels / _SQUARE.pixels))
        scale = EMBEDDING_STRIDE // LOGITS_STRIDE
        shape = (count, MASK_TOKENS, scale * prompts.cells.height, scale * prompts.cells.width)
        return np.full(shape, _OUTSIDE, np.float32), np.ones((count, MASK_TOKENS), np.float32)


def _load(entry: CatalogueEntry, backend: BackendName, model_store: object, **options: object) -> SamBackend:  # noqa: ARG001
    return BenchSam(Work.from_environment())


def _no_files(*arguments: object) -> Path:  # noqa: ARG001
    return Path()


def replace_in_lifecycle(**replacements: Callable[..., object]) -> None:
    """Replace what loads models; all else is the service as it is.

    Raises:
        AttributeError: the service has no such function any more.
    """
    for name, replacement in replacements.items():
        if not hasattr(lifecycle, name):
            raise AttributeError(f"service.lifecycle must have {name} to be replaced by the benchmark's")
        setattr(lifecycle, name, replacement)


replace_in_lifecycle(load_sam=_load, ensure_files=_no_files)

Pomona = app.Pomona
