"""Annotated images as a SAM's decoder learns from them: an embedding, and the fruit at the model's resolution."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from tqdm import tqdm

from models.data.dataset import Dataset
from models.data.samples import Sample
from models.letterbox import Letterbox
from models.masks import bounding_box
from models.sam.constants import LOGITS_STRIDE
from models.training.errors import CannotTrain
from models.training.sam_embeddings import EmbeddingStore
from models.types import BinaryMask, PixelClass

_log = logging.getLogger("pomona.training")

_SMALLEST: Final = LOGITS_STRIDE**2
"""Pixels of the model's image: what is smaller has no cell of its own to be learned from."""


@dataclass(frozen=True, slots=True, eq=False)
class Fruit:
    """One fruit, in pixels of the image as the model sees it.

    Attributes:
        box: half-open box of the mask.
        mask: bool, the box's part of the image.
    """

    box: tuple[int, int, int, int]
    mask: BinaryMask


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image to learn from.

    Attributes:
        frame: how it lies in the model's square.
        embedding: file of its embedding.
        fruits: those large enough to be learned from.
        ignored: bool of size `frame.resized`, pixels that do not count; None where all do.
    """

    frame: Letterbox
    embedding: Path
    fruits: tuple[Fruit, ...]
    ignored: BinaryMask | None


def load_images(dataset: Dataset, names: Sequence[str], store: EmbeddingStore) -> tuple[Image, ...]:
    """Read images to learn from, and encode those whose embeddings are missing.

    Args:
        dataset: with fruits told apart.
        names: of its images.
        store: of embeddings.

    Returns:
        Those with at least one fruit.

    Raises:
        CannotTrain: fruits are not told apart, or there are none.
        DataError: an image or its annotation cannot be used.
        BackendError: the encoder cannot be loaded, or failed.
        OSError: an embedding cannot be written.
    """
    images, left_out = [], 0
    for name in tqdm(names, desc="encoding", unit="image", leave=False, disable=None):
        sample = dataset.load(name)
        check_told_apart(sample, dataset.root)
        frame, embedding = store.ensure(sample.pixels)
        image = Image(frame, embedding, fruits_of(sample, frame), _ignored(sample, frame))
        left_out += len(sample.instances) - len(image.fruits)
        if image.fruits:
            images.append(image)
    if not images:
        raise CannotTrain(f"{dataset.root}: no image shows a fruit.")
    if left_out:
        _log.warning("%s: %d fruits are too small to be learned at this input size", dataset.root, left_out)
    return tuple(images)


def check_told_apart(sample: Sample, root: Path) -> None:
    """Refuse an image of which nobody said which pixels belong to which fruit.

    Raises:
        CannotTrain: it has no instance map.
    """
    if sample.instance_map is None:
        raise CannotTrain(
            f"{root}: {sample.name} does not tell fruits apart. Label Studio's and COCO's JSON do, and a folder with "
            "'instances' beside 'masks' does."
        )


def fruits_of(sample: Sample, frame: Letterbox) -> tuple[Fruit, ...]:
    """Bring each fruit to the model's resolution: a pixel belongs to it where at least half of it does.

    Args:
        sample: with an instance map.
        frame: of its image.

    Returns:
        In the order of `sample.instances`, without those of fewer than 16 counted pixels.
    """
    if sample.instance_map is None:
        return ()
    counted = sample.semantic != PixelClass.IGNORE
    fruits = []
    for instance in sample.instances:
        mask = _resized((sample.instance_map == instance.id) & counted, frame)
        x0, y0, x1, y1 = box = bounding_box(mask)
        cut = mask[y0:y1, x0:x1].copy()
        if np.count_nonzero(cut) >= _SMALLEST:
            fruits.append(Fruit(box, cut))
    return tuple(fruits)


def _ignored(sample: Sample, frame: Letterbox) -> BinaryMask | None:
    ignored = sample.semantic == PixelClass.IGNORE
    return _resized(ignored, frame) if ignored.any() else None


def _resized(mask: BinaryMask, frame: Letterbox) -> BinaryMask:
    size = (frame.resized.width, frame.resized.height)
    share = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    return np.asarray(share >= 128)
