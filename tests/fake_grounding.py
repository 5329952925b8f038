"""A model of an open vocabulary that knows two colours, whose boxes can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.catalog import Architecture, CatalogueEntry
from models.detector.postprocess import Detection, Thresholds
from models.errors import MalformedPrompt
from models.grounding.build import Phrases
from models.grounding.letterbox import GroundingLetterbox
from models.grounding.postprocess import boxes_of_heat
from models.types import Pixels, Size
from tests.fakes import FakeDevice

LOADED_GROUNDING: Final = CatalogueEntry(
    "any-word", Architecture.GROUNDING_DINO, "CC0-1.0", "model.safetensors", 1, "2a" * 32, ()
)
OTHER_GROUNDING: Final = CatalogueEntry(
    "other-word", Architecture.CLIPSEG, "CC0-1.0", "model.safetensors", 1, "2b" * 32, ()
)

SCORE: Final = 0.75
MOST_LETTERS: Final = 40
_CHANNELS: Final = {"red": 0, "green": 1}


@dataclass
class FakeGrounding(FakeDevice):
    """A backend that finds regions whose colour a noun begins with: "green fruit" is what is green.

    An image is twice as large in its input.
    """

    asked: list[tuple[str, ...]] = field(default_factory=list)
    """Nouns of each image."""

    def letterbox(self, size: Size) -> GroundingLetterbox:
        return GroundingLetterbox(size, Size(2 * size.height, 2 * size.width))

    def read(self, nouns: Sequence[str]) -> Phrases:
        if any(len(noun) > MOST_LETTERS for noun in nouns):
            raise MalformedPrompt(f"text: a noun must have 1 to {MOST_LETTERS} tokens.")
        return Phrases(tuple(nouns), tuple(tuple(noun.encode()) for noun in nouns))

    def prepare(self, pixels: Pixels, letterbox: GroundingLetterbox) -> Pixels:
        assert pixels.shape == (letterbox.resized.height, letterbox.resized.width, 3)
        return pixels

    def infer(self, prepared: Pixels, phrases: Phrases) -> NDArray[np.float32]:
        with self.alone():
            self.wait()
            self.fail([round(float(prepared[..., 2].mean()))])
            self.asked.append(phrases.nouns)
            heat = [prepared[..., _CHANNELS[noun.split()[0]]] > 127 for noun in phrases.nouns]
            return SCORE * np.stack(heat).astype(np.float32)

    def output_values(self, nouns: int) -> int:
        return nouns * 448 * 224

    def boxes(self, output: NDArray[np.float32], letterbox: GroundingLetterbox, kept: Thresholds) -> list[Detection]:
        return boxes_of_heat(output, letterbox.original, kept)
