"""Grounding DINO and CLIPSeg on PyTorch, in float32: what a text names, found by the networks of `transformers`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.backends.base import BackendName, GroundingBackend
from models.backends.torch_backend import inference_on, to_host
from models.detector.postprocess import Detection, Thresholds
from models.errors import MalformedPrompt
from models.grounding.build import GROUNDING_DINO, GroundingParts, Phrases, build_grounding, read_phrases
from models.grounding.letterbox import GroundingLetterbox, fitted, stretched
from models.grounding.postprocess import BOX_VALUES, boxes_of_heat, boxes_of_queries
from models.types import Pixels, Size

_SHORTEST: Final = 800
_LONGEST: Final = 1333
"""Sides of Grounding DINO's input where the folder does not say."""

_CLIPSEG_SIDE: Final = 352
"""Side of CLIPSeg's input where the folder does not say."""

_MEAN: Final = (0.485, 0.456, 0.406)
_DEVIATION: Final = (0.229, 0.224, 0.225)
"""Of ImageNet's colours, 0 to 1, where the folder does not say."""

_CLIP_TOKENS: Final = 75
"""Of a noun: CLIP reads 77, two of which begin and end it."""


@dataclass(frozen=True, slots=True)
class _Normalised:
    """float32 (1, 3, height, width) on the host."""

    pixels: Tensor


class _TorchGrounding(ABC):
    """What both networks share: the device, and colours as they were trained with.

    Args:
        parts: network and tokenizer.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        BackendError: the device failed.
    """

    name: BackendName = "torch"
    image_batches: tuple[int, ...] = (1,)

    def __init__(self, parts: GroundingParts, device: str) -> None:
        self.device = device
        self._device = torch.device(device)
        self._tokenizer = parts.tokenizer
        self._preprocessing = parts.preprocessing
        mean = parts.preprocessing.get("image_mean", _MEAN)
        deviation = parts.preprocessing.get("image_std", _DEVIATION)
        self._mean, self._deviation = (torch.tensor(each, dtype=torch.float32) for each in (mean, deviation))
        with inference_on(self._device):
            self._network = parts.network.to(self._device)

    def prepare(self, pixels: Pixels, letterbox: GroundingLetterbox) -> _Normalised:
        """Normalise an image, see `GroundingBackend.prepare`."""
        resized = letterbox.resized
        if pixels.shape != (resized.height, resized.width, 3):
            raise ValueError(f"the pixels must have the shape {(resized.height, resized.width, 3)}, got {pixels.shape}")
        shares = torch.from_numpy(pixels.astype(np.float32)) / 255
        return _Normalised(((shares - self._mean) / self._deviation).movedim(-1, 0)[None].contiguous())

    def infer(self, prepared: _Normalised, phrases: Phrases) -> NDArray[np.float32]:
        """Look for what nouns name, see `GroundingBackend.infer`."""
        with inference_on(self._device):
            return to_host(self._find(prepared.pixels.to(self._device), phrases))

    @abstractmethod
    def _find(self, pixels: Tensor, phrases: Phrases) -> Tensor:
        """Return the output; on the device."""

    def _ids(self, *tokens: int) -> Tensor:
        return torch.tensor([tokens], dtype=torch.int64, device=self._device)


class TorchGroundingDino(_TorchGrounding):
    """Implements `GroundingBackend`: boxes of 900 queries, each with a probability of every noun."""

    def __init__(self, parts: GroundingParts, device: str) -> None:
        super().__init__(parts, device)
        size = parts.preprocessing.get("size", {})
        self._shortest = int(size.get("shortest_edge", _SHORTEST))
        self._longest = int(size.get("longest_edge", _LONGEST))
        self._most_tokens = int(parts.network.config.max_text_len)
        self._queries = int(parts.network.config.num_queries)
        (self._separator,) = parts.tokenizer(".", add_special_tokens=False).input_ids

    def letterbox(self, size: Size) -> GroundingLetterbox:
        """Fit an image into the input, in its own proportions."""
        return fitted(size, self._shortest, self._longest)

    def read(self, nouns: Sequence[str]) -> Phrases:
        """Read nouns, which the network sees as one text, each followed by a full stop."""
        phrases = read_phrases(self._tokenizer, nouns, self._most_tokens)
        total = sum(len(tokens) + 1 for tokens in phrases.tokens) + 2
        if total > self._most_tokens:
            raise MalformedPrompt(f"text must have at most {self._most_tokens} tokens together, got {total}.")
        return phrases

    def output_values(self, nouns: int) -> int:
        """Return the number of values of an output."""
        return self._queries * (BOX_VALUES + nouns)

    def boxes(self, output: NDArray[np.float32], letterbox: GroundingLetterbox, kept: Thresholds) -> list[Detection]:
        """Return the objects of an output, see `GroundingBackend.boxes`."""
        return boxes_of_queries(output, letterbox.original, kept)

    def _find(self, pixels: Tensor, phrases: Phrases) -> Tensor:
        ids = [self._tokenizer.cls_token_id]
        places = []
        for tokens in phrases.tokens:
            places.append(slice(len(ids), len(ids) + len(tokens)))
            ids += [*tokens, self._separator]
        read = self._ids(*ids, self._tokenizer.sep_token_id)
        height, width = pixels.shape[2:]
        answer = self._network(
            pixel_values=pixels,
            pixel_mask=torch.ones((1, height, width), dtype=torch.int64, device=self._device),
            input_ids=read,
            token_type_ids=torch.zeros_like(read),
            attention_mask=torch.ones_like(read),
        )
        tokens_of_queries = answer.logits[0].sigmoid()
        nouns = [tokens_of_queries[:, place].amax(dim=1) for place in places]
        return torch.cat([answer.pred_boxes[0], torch.stack(nouns, dim=1)], dim=1)


class TorchClipSeg(_TorchGrounding):
    """Implements `GroundingBackend`: a heat map of each noun, of which regions become boxes."""

    def __init__(self, parts: GroundingParts, device: str) -> None:
        super().__init__(parts, device)
        size = parts.preprocessing.get("size", {})
        self._side = int(size.get("height", _CLIPSEG_SIDE))

    def letterbox(self, size: Size) -> GroundingLetterbox:
        """Stretch an image to the square that the network sees."""
        return stretched(size, self._side)

    def read(self, nouns: Sequence[str]) -> Phrases:
        """Read nouns, each of which is a text of its own."""
        return read_phrases(self._tokenizer, nouns, _CLIP_TOKENS)

    def output_values(self, nouns: int) -> int:
        """Return the number of values of an output."""
        return nouns * self._side * self._side

    def boxes(self, output: NDArray[np.float32], letterbox: GroundingLetterbox, kept: Thresholds) -> list[Detection]:
        """Return the objects of an output, see `GroundingBackend.boxes`."""
        return boxes_of_heat(output, letterbox.original, kept)

    def _find(self, pixels: Tensor, phrases: Phrases) -> Tensor:
        # One by one: the memory is then that of one noun, however many there are.
        return torch.stack([self._heat(pixels, tokens) for tokens in phrases.tokens])

    def _heat(self, pixels: Tensor, tokens: Sequence[int]) -> Tensor:
        read = self._ids(self._tokenizer.bos_token_id, *tokens, self._tokenizer.eos_token_id)
        answer: Any = self._network(input_ids=read, attention_mask=torch.ones_like(read), pixel_values=pixels)
        heat: Tensor = answer.logits.sigmoid()
        return heat.reshape(heat.shape[-2:])


def load_torch_grounding(architecture: str, folder: Path, device: str) -> GroundingBackend:
    """Load Grounding DINO or CLIPSeg from a folder.

    Raises:
        BackendError, BadCheckpoint: see `build_grounding`.
    """
    parts = build_grounding(architecture, folder)
    return TorchGroundingDino(parts, device) if architecture == GROUNDING_DINO else TorchClipSeg(parts, device)
