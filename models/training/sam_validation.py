"""How good a SAM's masks are for prompts as a service gets them, and how true its scores.

Every fruit is asked for twice: by a box with jitter, the same at every validation and for every input size, and by its
centre. Masks are made and compared at the size of the image, as the service makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.data.dataset import Dataset, Item
from models.errors import DataError
from models.evaluation.calibration import calibrate
from models.letterbox import Letterbox
from models.masks import bounding_box
from models.metrics import mask_iou
from models.sam.clicks import centre_of, jittered_box, training_jitter
from models.sam.decoder import PromptDecoder
from models.sam.postprocess import masks_of
from models.sam.prompts import pack
from models.training.errors import CannotTrain
from models.training.fitting import Validation
from models.training.sam_embeddings import EmbeddingStore, load_embedding
from models.training.sam_images import check_told_apart
from models.training.sam_step import decode
from models.training.seeding import generator_of
from models.types import BinaryMask, Mask, PixelClass, Point, Prompt

PANELS: Final[Mapping[str, Sequence[str]]] = MappingProxyType({
    "mean IoU by box": ["box_iou", "box_iou_single", "box_iou_oracle"],
    "mean IoU by centre point": ["point_iou", "point_iou_single", "point_iou_oracle"],
    "predicted and true IoU": [
        "score_error", "score_bias", "score_correlation", "chosen_score_error", "chosen_score_correlation",
    ],
})  # fmt: skip

SCORE: Final = "the mean of `box_iou` and `point_iou`"

MEASURES: Final[Mapping[str, str]] = MappingProxyType({
    "box_iou": "mean IoU of the best of three masks, as the model scores them, for boxes with jitter",
    "box_iou_single": "the same of the mask for clear prompts",
    "box_iou_oracle": "the same of the three masks' truly best",
    "point_iou": "mean IoU of the best of three masks, as the model scores them, for the fruit's centre",
    "point_iou_single": "the same of the mask for clear prompts",
    "point_iou_oracle": "the same of the three masks' truly best",
    "score_error": "mean absolute difference of predicted and true IoU, of all four masks of every prompt",
    "score_bias": "mean predicted less mean true IoU of them",
    "score_correlation": "Pearson's correlation of both",
    "chosen_score_error": "mean absolute difference of predicted and true IoU, of the best-scored mask of every prompt",
    "chosen_score_correlation": "Pearson's correlation of both; low where all chosen masks are about equally good",
})  # fmt: skip

_PROMPTS: Final = 8
"""Most prompts in one call of the decoder: they bound the memory."""

_SEED: Final = 0
"""Of the boxes' jitter: the same for every run, so that runs can be compared."""


@dataclass(frozen=True, slots=True)
class _Image:
    """An image to validate on: its embedding, and the annotation that is drawn again whenever it is needed."""

    item: Item
    frame: Letterbox
    embedding: Path


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one prompt gave: true and predicted IoU of the three masks, best score first, and of the single one."""

    ious: tuple[float, float, float, float]
    scores: tuple[float, float, float, float]


class Validator:
    """Images to validate on.

    Args:
        sources: sets and the names of their images to validate on.
        store: of embeddings.
        device: of the networks that will be judged.

    Raises:
        CannotTrain: fruits are not told apart, or there are none.
        DataError: an image or its annotation cannot be used.
        BackendError: the encoder cannot be loaded, or failed.
        OSError: an embedding cannot be written.
    """

    def __init__(
        self, sources: Sequence[tuple[Dataset, Sequence[str]]], store: EmbeddingStore, *, device: torch.device
    ) -> None:
        self._device = device
        self._images: list[_Image] = []
        for dataset, names in sources:
            for name in names:
                sample = dataset.load(name)
                check_told_apart(sample, dataset.root)
                if sample.instances:
                    self._images.append(_Image(dataset.items[name], *store.ensure(sample.pixels)))
        if not self._images:
            raise CannotTrain("No image to validate on shows a fruit.")

    def validate(self, network: nn.Module) -> Validation:
        """Ask for every fruit.

        Args:
            network: a `PromptDecoder` on the device.

        Returns:
            `MEASURES`, and `SCORE`.

        Raises:
            CannotTrain: an embedding cannot be read, or all fruits are of ignored pixels.
            DataError: an annotation cannot be drawn any more.
        """
        if not isinstance(network, PromptDecoder):
            raise TypeError(f"{type(network).__name__} is no decoder of prompts")
        boxes: list[_Answer] = []
        points: list[_Answer] = []
        for number, image in enumerate(self._images):
            by_box, by_point = self._ask(network, image, generator_of(_SEED, number))
            boxes += by_box
            points += by_point
        if not boxes:
            raise CannotTrain("No image to validate on shows a fruit that counts.")
        means = {f"box_{name}": value for name, value in _means(boxes).items()}
        means |= {f"point_{name}": value for name, value in _means(points).items()}
        answers = boxes + points
        scores = np.array([answer.scores for answer in answers])
        ious = np.array([answer.ious for answer in answers])
        agreement, chosen = calibrate(scores.ravel(), ious.ravel()), calibrate(scores[:, 0], ious[:, 0])
        measures = {
            **means,
            "score_error": agreement.mean_absolute_error,
            "score_bias": agreement.bias,
            "score_correlation": agreement.correlation,
            "chosen_score_error": chosen.mean_absolute_error,
            "chosen_score_correlation": chosen.correlation,
        }
        return Validation((measures["box_iou"] + measures["point_iou"]) / 2, measures)

    def _ask(
        self, decoder: PromptDecoder, image: _Image, rng: np.random.Generator
    ) -> tuple[list[_Answer], list[_Answer]]:
        size = image.frame.original
        try:
            drawn = image.item.annotation.draw(size)
        except OSError as error:
            raise DataError(f"{image.item.image}: its annotation cannot be read ({error.strerror}).") from error
        if drawn.instance_map is None:
            raise DataError(f"{image.item.image}: its annotation has changed: fruits are not told apart any more.")
        ignored = drawn.semantic == PixelClass.IGNORE
        masks = [(each.box, (drawn.instance_map == each.id) & ~ignored) for each in drawn.instances]
        fruits = [(box, mask) for box, mask in masks if mask.any()]
        if not fruits:
            return [], []
        side = max(size.height, size.width)
        boxes = [Prompt(box=jittered_box(box, size, rng, training_jitter(side))) for box, _ in fruits]
        points = [Prompt(points=(_centre(box, mask),)) for box, mask in fruits]

        logits, scores = _decoded(decoder, image, boxes + points, self._device)
        answers = [
            _answer(row, score, image.frame, mask, ignored)
            for row, score, (_, mask) in zip(logits, scores, fruits * 2, strict=True)
        ]
        return answers[: len(fruits)], answers[len(fruits) :]


def _decoded(
    decoder: PromptDecoder, image: _Image, prompts: Sequence[Prompt], device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    embedding: Tensor = load_embedding(image.embedding)[None].to(device)
    logits: list[NDArray[np.float32]] = []
    scores: list[NDArray[np.float32]] = []
    for start in range(0, len(prompts), _PROMPTS):
        some = prompts[start : start + _PROMPTS]
        packed = pack(some, [image.frame] * len(some))
        index = torch.zeros(len(packed.labels), dtype=torch.int64, device=device)
        given = decode(decoder, embedding, index, packed)
        logits.append(given[0].float().cpu().numpy())
        scores.append(given[1].float().cpu().numpy())
    return np.concatenate(logits), np.concatenate(scores)


def _centre(box: tuple[int, int, int, int], mask: BinaryMask) -> Point:
    x0, y0, x1, y1 = box
    x, y = centre_of(mask[y0:y1, x0:x1])
    return Point(x0 + x, y0 + y)


def _answer(
    logits: NDArray[np.float32], scores: NDArray[np.float32], frame: Letterbox, truth: BinaryMask, ignored: BinaryMask
) -> _Answer:
    masks = (*masks_of(logits, scores, frame, multimask=True), *masks_of(logits, scores, frame, multimask=False))
    box = bounding_box(truth)
    first, second, third, single = (_iou(mask, truth, box, ignored) for mask in masks)
    best, middle, worst, alone = (mask.score for mask in masks)
    return _Answer((first, second, third, single), (best, middle, worst, alone))


def _iou(mask: Mask, truth: BinaryMask, box: tuple[int, int, int, int], ignored: BinaryMask) -> float:
    """Looked at within the box of both: outside it there is nothing to count."""
    left, top, right, bottom = mask.box if mask.area else box
    rows = slice(min(top, box[1]), max(bottom, box[3]))
    columns = slice(min(left, box[0]), max(right, box[2]))
    return mask_iou(mask.pixels[rows, columns], truth[rows, columns], ignored=ignored[rows, columns])


def _means(answers: Sequence[_Answer]) -> dict[str, float]:
    ious = np.array([answer.ious for answer in answers], np.float64)
    best, single, oracle = ious[:, 0].mean(), ious[:, 3].mean(), ious[:, :3].max(axis=1).mean()
    return {"iou": float(best), "iou_single": float(single), "iou_oracle": float(oracle)}
