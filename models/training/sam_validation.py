"""Validation of a SAM: how good its masks are for typical prompts, and how accurate its scores.

Every fruit is prompted for twice: by a box with jitter, the same at every validation and for every input size, and by
its centre. Masks are made and compared at the size of the image, as the service makes them. Each source has its own
measures, and if there are several input sizes, each source has them for each. The score that chooses the best epoch is
the smallest gain over the original model among all of these, by box and by centre: a model with a score above 0 is
better on every set at every size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.backends.base import MAX_GRIDS
from models.data.dataset import Item
from models.data.sources import OpenedSource
from models.errors import DataError
from models.evaluation.calibration import calibrate
from models.letterbox import Letterbox
from models.masks import bounding_box
from models.metrics import mask_iou
from models.sam.clicks import centre_point, jittered_box, training_jitter
from models.sam.decoder import PromptDecoder
from models.sam.postprocess import masks_of
from models.sam.prompts import PackedPrompts, pack, position_grid
from models.training.errors import CannotTrain
from models.training.sam_data import EmbeddingStore, check_separated, load_embedding
from models.training.trainer import Validation
from models.types import BinaryMask, Mask, PixelClass, Prompt, Size

_PANELS: Final[Mapping[str, Sequence[str]]] = MappingProxyType({
    "mean IoU by box": ["box_iou", "box_iou_single", "box_iou_oracle"],
    "mean IoU by centre point": ["point_iou", "point_iou_single", "point_iou_oracle"],
    "predicted and true IoU": [
        "score_error", "score_bias", "score_correlation", "chosen_score_error", "chosen_score_correlation",
    ],
})  # fmt: skip

_JUDGED: Final = ("box_iou_single", "point_iou")
"""Measures of what is used: of a box, as `/v1/inspect` prompts, the mask for clear prompts; of a click the best-scored
of three, because it is ambiguous."""

SCORE: Final = (
    "the smallest gain over the original model among the sources and input sizes, in `box_iou_single` or `point_iou`"
)

MEASURES: Final[Mapping[str, str]] = MappingProxyType({
    "box_iou": "mean IoU of the best-scored of three masks, for boxes with jitter",
    "box_iou_single": "mean IoU of the mask for clear prompts, for these boxes",
    "box_iou_oracle": "mean IoU of the truly best of three masks, for these boxes",
    "point_iou": "mean IoU of the best-scored of three masks, for the centre of the fruit",
    "point_iou_single": "mean IoU of the mask for clear prompts, for the centre",
    "point_iou_oracle": "mean IoU of the truly best of three masks, for the centre",
    "score_error": "mean absolute difference of predicted and true IoU, of all four masks of every prompt",
    "score_bias": "mean predicted IoU less mean true IoU of these masks",
    "score_correlation": "Pearson's correlation of predicted and true IoU of these masks",
    "chosen_score_error": "mean absolute difference of predicted and true IoU, of the best-scored mask of every prompt",
    "chosen_score_correlation": "Pearson's correlation for these; low if all of these masks are about equally good",
})  # fmt: skip

_PROMPTS: Final = 8
"""Largest number of prompts in a call of the decoder, which bounds the memory."""

_SEED: Final = 0
"""Seed of the jitter of boxes: the same for every run, so that runs can be compared."""


@dataclass(frozen=True, slots=True)
class _Image:
    """An image to validate on: its embedding, and the annotation, which is rasterised whenever it is needed."""

    item: Item
    letterbox: Letterbox
    embedding: Path


@dataclass(frozen=True, slots=True)
class _Answer:
    """True and predicted IoU of the three masks of a prompt, best score first, and of the single one."""

    ious: tuple[float, float, float, float]
    scores: tuple[float, float, float, float]


class SamValidator:
    """Validates decoders on the validation parts of sources.

    Args:
        sources: sets; those without a fruit to validate on are left out.
        stores: stores of embeddings, one for each input size.
        original: decoder of the model to start from, on the device; the score is the gain over it.
        device: device of the networks.

    Attributes:
        before: measures of the original model.

    Raises:
        CannotTrain: the annotation does not separate fruits, or there are none.
        DataError: an image or its annotation cannot be used.
        BackendError: the encoder cannot be loaded or fails.
        OSError: an embedding cannot be written.
    """

    def __init__(
        self,
        sources: Sequence[OpenedSource],
        stores: Sequence[EmbeddingStore],
        *,
        original: PromptDecoder,
        device: torch.device,
    ) -> None:
        self._device = device
        images = {
            each.name if len(stores) == 1 else f"{each.name} at {store.side}": tuple(_images(each, store))
            for each in sources
            for store in stores
        }
        self._sources = {name: some for name, some in images.items() if some}
        if not self._sources:
            raise CannotTrain("At least one image to validate on must show a fruit.")
        with torch.inference_mode():
            self.before: Final[Mapping[str, float]] = self._measure(original)

    @property
    def panels(self) -> Mapping[str, Sequence[str]]:
        """Names of measures to plot together."""
        return {
            "smallest gain over the original model": ["score"],
            **{
                title: [f"{name}/{measure}" for name in self._sources for measure in measures]
                for title, measures in _PANELS.items()
            },
        }

    def validate(self, network: nn.Module) -> Validation:
        """Prompt for every fruit.

        Args:
            network: a `PromptDecoder` on the device.

        Returns:
            The score, see `SCORE`, and `SOURCE/MEASURE` for each of `MEASURES`, or `SOURCE at SIDE/MEASURE`.

        Raises:
            CannotTrain: an embedding cannot be read, or all fruits are ignored.
            DataError: an annotation can no longer be read.
        """
        if not isinstance(network, PromptDecoder):
            raise TypeError(f"network must be a PromptDecoder, got {type(network).__name__}")
        measures = self._measure(network)
        judged = [f"{name}/{measure}" for name in self._sources for measure in _JUDGED]
        return Validation(min(measures[each] - self.before[each] for each in judged), measures)

    def _measure(self, decoder: PromptDecoder) -> dict[str, float]:
        return {
            f"{name}/{measure}": value
            for name, images in self._sources.items()
            for measure, value in self._measure_source(decoder, name, images).items()
        }

    def _measure_source(self, decoder: PromptDecoder, name: str, images: Sequence[_Image]) -> dict[str, float]:
        boxes: list[_Answer] = []
        points: list[_Answer] = []
        for number, image in enumerate(images):
            by_box, by_point = self._answers(decoder, image, np.random.default_rng([_SEED, number]))
            boxes += by_box
            points += by_point
        if not boxes:
            raise CannotTrain(f"{name}: at least one image to validate on must show a fruit that is not ignored.")
        means = {f"box_{name}": value for name, value in _means(boxes).items()}
        means |= {f"point_{name}": value for name, value in _means(points).items()}
        answers = boxes + points
        scores = np.array([answer.scores for answer in answers])
        ious = np.array([answer.ious for answer in answers])
        agreement, chosen = calibrate(scores.ravel(), ious.ravel()), calibrate(scores[:, 0], ious[:, 0])
        return {
            **means,
            "score_error": agreement.mean_absolute_error,
            "score_bias": agreement.bias,
            "score_correlation": agreement.correlation,
            "chosen_score_error": chosen.mean_absolute_error,
            "chosen_score_correlation": chosen.correlation,
        }

    def _answers(
        self, decoder: PromptDecoder, image: _Image, rng: np.random.Generator
    ) -> tuple[list[_Answer], list[_Answer]]:
        size = image.letterbox.original
        try:
            labels = image.item.annotation.rasterise(size)
        except OSError as error:
            raise DataError(f"{image.item.image}: its annotation cannot be read ({error.strerror}).") from error
        if labels.instance_map is None:
            raise DataError(f"{image.item.image}: its annotation has changed and no longer separates fruits.")
        ignored = labels.semantic == PixelClass.IGNORE
        masks = [(each.box, (labels.instance_map == each.id) & ~ignored) for each in labels.instances]
        fruits = [(box, mask) for box, mask in masks if mask.any()]
        if not fruits:
            return [], []
        jitter = training_jitter(max(size.height, size.width))
        boxes = [Prompt(box=jittered_box(box, size, rng, jitter)) for box, _ in fruits]
        points = [Prompt(points=(centre_point(mask, box),)) for box, mask in fruits]

        logits, scores = _decoded(decoder, image, boxes + points, self._device)
        answers = [
            _answer(row, score, image.letterbox, mask, ignored)
            for row, score, (_, mask) in zip(logits, scores, fruits * 2, strict=True)
        ]
        return answers[: len(fruits)], answers[len(fruits) :]


def _images(source: OpenedSource, store: EmbeddingStore) -> Iterator[_Image]:
    for name in source.validation:
        sample = source.dataset.load(name)
        check_separated(sample, source.dataset.root)
        if sample.instances:
            yield _Image(source.dataset.items[name], *store.ensure(sample.pixels))


def _decoded(
    decoder: PromptDecoder, image: _Image, prompts: Sequence[Prompt], device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    embedding: Tensor = load_embedding(image.embedding)[None].to(device)
    logits: list[NDArray[np.float32]] = []
    scores: list[NDArray[np.float32]] = []
    for start in range(0, len(prompts), _PROMPTS):
        some = prompts[start : start + _PROMPTS]
        packed = pack(some, [image.letterbox] * len(some))
        index = torch.zeros(len(packed.labels), dtype=torch.int64, device=device)
        predicted = decode(decoder, embedding, index, packed)
        logits.append(predicted[0].float().cpu().numpy())
        scores.append(predicted[1].float().cpu().numpy())
    return np.concatenate(logits), np.concatenate(scores)


def _answer(
    logits: NDArray[np.float32],
    scores: NDArray[np.float32],
    letterbox: Letterbox,
    truth: BinaryMask,
    ignored: BinaryMask,
) -> _Answer:
    masks = (
        *masks_of(logits, scores, letterbox, multimask=True),
        *masks_of(logits, scores, letterbox, multimask=False),
    )
    box = bounding_box(truth)
    first, second, third, single = (_iou(mask, truth, box, ignored) for mask in masks)
    best, middle, worst, alone = (mask.score for mask in masks)
    return _Answer((first, second, third, single), (best, middle, worst, alone))


def _iou(mask: Mask, truth: BinaryMask, box: tuple[int, int, int, int], ignored: BinaryMask) -> float:
    """Compute the IoU within the box of both; outside it there is nothing to count."""
    left, top, right, bottom = mask.box if mask.area else box
    rows = slice(min(top, box[1]), max(bottom, box[3]))
    columns = slice(min(left, box[0]), max(right, box[2]))
    return mask_iou(mask.pixels[rows, columns], truth[rows, columns], ignored=ignored[rows, columns])


def _means(answers: Sequence[_Answer]) -> dict[str, float]:
    ious = np.array([answer.ious for answer in answers], np.float64)
    best, single, oracle = ious[:, 0].mean(), ious[:, 3].mean(), ious[:, :3].max(axis=1).mean()
    return {"iou": float(best), "iou_single": float(single), "iou_oracle": float(oracle)}


def decode(
    decoder: PromptDecoder, embeddings: Tensor, image_index: Tensor, packed: PackedPrompts
) -> tuple[Tensor, Tensor]:
    """Run a decoder on packed prompts; see `PromptDecoder.forward`."""
    device = embeddings.device
    grid = _grid(decoder.position_matrix.cpu().numpy().tobytes(), packed.side, packed.cells)
    masks = None if packed.mask_inputs is None else torch.from_numpy(packed.mask_inputs).to(device)
    logits, scores = decoder(
        embeddings,
        image_index,
        torch.from_numpy(packed.points).to(device),
        torch.from_numpy(packed.labels).to(device),
        torch.from_numpy(grid).to(device),
        masks,
    )
    return logits, scores


@lru_cache(MAX_GRIDS)
def _grid(matrix: bytes, side: int, cells: Size) -> NDArray[np.float32]:
    """Cache the grid as an array, because a tensor made in inference mode cannot be trained with."""
    return position_grid(np.frombuffer(matrix, np.float32).reshape(2, -1), side, cells)
