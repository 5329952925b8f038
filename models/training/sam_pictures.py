"""Annotated pictures as a SAM's decoder learns from them: an embedding, and the fruit at the model's resolution."""

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
from models.data.samples import PixelClass, Sample
from models.masks import bounding_box
from models.sam.constants import LOGITS_STRIDE
from models.training.errors import CannotTrain
from models.training.sam_embeddings import EmbeddingStore
from models.transforms import Frame
from models.types import BinaryMask

_log = logging.getLogger("pomona.training")

_SMALLEST: Final = LOGITS_STRIDE**2
"""Pixels of the model's picture: what is smaller has no cell of its own to be learned from."""


@dataclass(frozen=True, slots=True, eq=False)
class Fruit:
    """One fruit, in pixels of the picture as the model sees it.

    Attributes:
        box: half-open box of the mask.
        mask: bool, the box's part of the picture.
    """

    box: tuple[int, int, int, int]
    mask: BinaryMask


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture to learn from.

    Attributes:
        frame: how it lies in the model's square.
        embedding: file of its embedding.
        fruits: those large enough to be learned from.
        ignored: bool of size `frame.resized`, pixels that do not count; None where all do.
    """

    frame: Frame
    embedding: Path
    fruits: tuple[Fruit, ...]
    ignored: BinaryMask | None


def load_pictures(dataset: Dataset, names: Sequence[str], store: EmbeddingStore) -> tuple[Picture, ...]:
    """Read pictures to learn from, and encode those whose embeddings are missing.

    Args:
        dataset: with fruits told apart.
        names: of its pictures.
        store: of embeddings.

    Returns:
        Those with at least one fruit.

    Raises:
        CannotTrain: fruits are not told apart, or there are none.
        DataError: a picture or its annotation cannot be used.
        BackendError: the encoder cannot be loaded, or failed.
        OSError: an embedding cannot be written.
    """
    pictures, left_out = [], 0
    for name in tqdm(names, desc="encoding", unit="picture", leave=False, disable=None):
        sample = dataset.load(name)
        check_told_apart(sample, dataset.root)
        frame, embedding = store.ensure(sample.pixels)
        picture = Picture(frame, embedding, fruits_of(sample, frame), _ignored(sample, frame))
        left_out += len(sample.instances) - len(picture.fruits)
        if picture.fruits:
            pictures.append(picture)
    if not pictures:
        raise CannotTrain(f"{dataset.root}: no picture shows a fruit.")
    if left_out:
        _log.warning("%s: %d fruits are too small to be learned at this input size", dataset.root, left_out)
    return tuple(pictures)


def check_told_apart(sample: Sample, root: Path) -> None:
    """Refuse a picture of which nobody said which pixels belong to which fruit.

    Raises:
        CannotTrain: it has no instance map.
    """
    if sample.instance_map is None:
        raise CannotTrain(
            f"{root}: {sample.name} does not tell fruits apart. Label Studio's and COCO's JSON do, and a folder with "
            "'instances' beside 'masks' does."
        )


def fruits_of(sample: Sample, frame: Frame) -> tuple[Fruit, ...]:
    """Bring each fruit to the model's resolution: a pixel belongs to it where at least half of it does.

    Args:
        sample: with an instance map.
        frame: of its picture.

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


def _ignored(sample: Sample, frame: Frame) -> BinaryMask | None:
    ignored = sample.semantic == PixelClass.IGNORE
    return _resized(ignored, frame) if ignored.any() else None


def _resized(mask: BinaryMask, frame: Frame) -> BinaryMask:
    size = (frame.resized.width, frame.resized.height)
    share = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    return np.asarray(share >= 128)
