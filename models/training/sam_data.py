"""Training data of a SAM's mask decoder: cached embeddings, fruit masks at the model's resolution, batches of prompts.

Embeddings are computed once, because the encoder does not learn. They are kept on disk as float16, one file an image,
in a folder named after the model's revision and the letterbox.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Final, TypeAlias

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from models.backends.base import SamBackend
from models.data.dataset import Dataset
from models.data.samples import Sample
from models.letterbox import Letterbox, Padding, letterbox_for, resize
from models.masks import bounding_box
from models.sam.clicks import centre_of, click_on_error, jittered_box, point_within, training_jitter
from models.sam.constants import LOGITS_STRIDE
from models.training.errors import CannotTrain
from models.types import BACKGROUND, FOREGROUND, BinaryMask, Box, PixelClass, Pixels, Point, Prompt, Size

_NAME = "embedding"


class EmbeddingStore:
    """Embeddings of images on disk; missing ones are computed.

    Args:
        folder: folder of the store, made when needed.
        revision: revision of the model.
        side: side of the model's square.
        padding: padding of the images.
        open_backend: loads the encoder; called at most once, and only if an embedding is missing.

    Attributes:
        side: side of the model's square.
    """

    def __init__(
        self, folder: Path, *, revision: str, side: int, padding: Padding, open_backend: Callable[[], SamBackend]
    ) -> None:
        self._folder = folder / f"{revision}-{side}-{padding}"
        self.side: Final = side
        self._padding: Padding = padding
        self._open_backend = open_backend
        self._backend: SamBackend | None = None

    def ensure(self, pixels: Pixels) -> tuple[Letterbox, Path]:
        """Find the embedding of an image by its content, or compute and store it.

        Args:
            pixels: uint8 (height, width, 3).

        Returns:
            The letterbox of the image and the file of the embedding, for `load_embedding`.

        Raises:
            CannotTrain: the embedding is not finite in float16.
            BackendError: the encoder cannot be loaded or fails.
            OSError: the file cannot be written.
        """
        letterbox = letterbox_for(Size(*pixels.shape[:2]), self.side, self._padding)
        content = hashlib.sha256(f"{pixels.shape} ".encode())
        content.update(np.ascontiguousarray(pixels).data)
        file = self._folder / f"{content.hexdigest()[:32]}.safetensors"
        if not file.is_file():
            self._write(file, self._encode(pixels, letterbox))
        return letterbox, file

    def _encode(self, pixels: Pixels, letterbox: Letterbox) -> Tensor:
        if self._backend is None:
            self._backend = self._open_backend()
        (embedding,) = self._backend.encode([self._backend.prepare(resize(pixels, letterbox), letterbox)])
        return torch.as_tensor(embedding).to("cpu", torch.float16)

    def _write(self, file: Path, embedding: Tensor) -> None:
        if not bool(torch.isfinite(embedding).all()):
            raise CannotTrain("The embedding of an image must be finite in float16.")
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file({_NAME: embedding.contiguous()}, part)
        part.replace(file)


def load_embedding(file: Path) -> Tensor:
    """Read an embedding.

    Args:
        file: file from `EmbeddingStore.ensure`.

    Returns:
        float32 (256, h, w).

    Raises:
        CannotTrain: the file is missing or damaged.
    """
    try:
        embedding: Tensor = load_file(file)[_NAME]
        return embedding.float()
    except (OSError, KeyError, SafetensorError) as error:
        raise CannotTrain(f"{file}: the embedding cannot be read ({error}); delete it and resume the run.") from error


_log = logging.getLogger("pomona.training")

_SMALLEST: Final = LOGITS_STRIDE**2
"""Smallest area in pixels of the resized image: a smaller fruit has no logit of its own to learn from."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingFruit:
    """One fruit, in pixels of the resized image.

    Attributes:
        box: half-open box of the mask.
        mask: bool, cropped to the box.
    """

    box: tuple[int, int, int, int]
    mask: BinaryMask


@dataclass(frozen=True, slots=True, eq=False)
class TrainingImage:
    """An image to learn from.

    Attributes:
        letterbox: letterbox of the image.
        embedding: file of its embedding.
        fruits: fruits that are large enough to learn from.
        ignored: bool of size `letterbox.resized`, pixels that do not count; None if all count.
    """

    letterbox: Letterbox
    embedding: Path
    fruits: tuple[TrainingFruit, ...]
    ignored: BinaryMask | None


def load_images(dataset: Dataset, names: Sequence[str], store: EmbeddingStore) -> tuple[TrainingImage, ...]:
    """Read images to learn from, and encode those whose embeddings are missing.

    Args:
        dataset: set whose annotations separate fruits.
        names: names of the images.
        store: store of embeddings.

    Returns:
        The images with at least one fruit.

    Raises:
        CannotTrain: the annotation does not separate fruits.
        DataError: an image or its annotation cannot be used.
        BackendError: the encoder cannot be loaded or fails.
        OSError: an embedding cannot be written.
    """
    images, left_out = [], 0
    for name in tqdm(names, desc="encoding", unit="image", leave=False, disable=None):
        sample = dataset.load(name)
        check_separated(sample, dataset.root)
        letterbox, embedding = store.ensure(sample.pixels)
        image = TrainingImage(letterbox, embedding, fruits_of(sample, letterbox), _ignored(sample, letterbox))
        left_out += len(sample.instances) - len(image.fruits)
        if image.fruits:
            images.append(image)
    if left_out:
        _log.warning("%s: %d fruits are too small to learn from at this input size", dataset.root, left_out)
    return tuple(images)


def check_separated(sample: Sample, root: Path) -> None:
    """Reject an image whose annotation does not separate fruits.

    Raises:
        CannotTrain: it has no instance map.
    """
    if sample.instance_map is None:
        raise CannotTrain(
            f"{root}: the annotation of {sample.name} must separate fruits. Use Label Studio's or COCO's JSON, or a "
            "folder with 'instances' beside 'masks'."
        )


def fruits_of(sample: Sample, letterbox: Letterbox) -> tuple[TrainingFruit, ...]:
    """Resize each fruit to the resolution of the model: a pixel belongs to it if at least half of it does.

    Args:
        sample: sample with an instance map.
        letterbox: letterbox of its image.

    Returns:
        The fruits in the order of `sample.instances`, without those of fewer than 16 counted pixels.
    """
    if sample.instance_map is None:
        return ()
    counted = sample.semantic != PixelClass.IGNORE
    fruits = []
    for instance in sample.instances:
        mask = _resized((sample.instance_map == instance.id) & counted, letterbox)
        x0, y0, x1, y1 = box = bounding_box(mask)
        cut = mask[y0:y1, x0:x1].copy()
        if np.count_nonzero(cut) >= _SMALLEST:
            fruits.append(TrainingFruit(box, cut))
    return tuple(fruits)


def _ignored(sample: Sample, letterbox: Letterbox) -> BinaryMask | None:
    ignored = sample.semantic == PixelClass.IGNORE
    return _resized(ignored, letterbox) if ignored.any() else None


def _resized(mask: BinaryMask, letterbox: Letterbox) -> BinaryMask:
    size = (letterbox.resized.width, letterbox.resized.height)
    share = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    return np.asarray(share >= 128)


Task: TypeAlias = tuple[TrainingImage, TrainingFruit]
"""A fruit to prompt for, and its image."""

_BOXES: Final = 0.5
"""Share of the prompts that are boxes, as in the paper; the others are points."""

_CENTRES: Final = 0.25
"""Share of the points at the centre of the fruit, where people and detectors aim; the others lie anywhere in it."""

_ORDER, _PROMPTS = 0, 1  # independent sequences of random numbers of an epoch


@dataclass(frozen=True, slots=True, eq=False)
class PromptBatch:
    """P prompts on I images whose letterboxes are equal in `side` and `padded`.

    Attributes:
        embeddings: float32 (I, 256, h, w).
        image_index: int64 (P,), image of each prompt.
        letterboxes: letterbox of each prompt's image.
        prompts: prompts in pixels of the images.
        truth: bool (P, height, width) of size `letterbox.padded`, the fruit.
        counted: bool (P, height, width), pixels that count: all but ignored ones.
        clicks: random generator of the clicks of later rounds.
    """

    embeddings: Tensor
    image_index: Tensor
    letterboxes: tuple[Letterbox, ...]
    prompts: tuple[Prompt, ...]
    truth: Tensor
    counted: Tensor
    clicks: np.random.Generator


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """Everything that an epoch learns from, in batches that differ from epoch to epoch.

    Attributes:
        groups: tasks whose images can share a batch, and how often an epoch has each, on average.
        batch: largest number of prompts in a batch.
        seed: seed of everything random.
    """

    groups: tuple[tuple[tuple[Task, ...], tuple[float, ...]], ...]
    batch: int
    seed: int

    @classmethod
    def of(cls, sources: Sequence[tuple[Sequence[TrainingImage], float]], *, batch: int, seed: int) -> Tasks:
        """Group all fruits of all images.

        Args:
            sources: images, and how often an epoch shows each, on average.
            batch: largest number of prompts in a batch, at least 1.
            seed: seed, at least 0.

        Raises:
            CannotTrain: no image shows a fruit.
        """
        weighted = [
            ((image, fruit), weight) for images, weight in sources for image in images for fruit in image.fruits
        ]
        if not weighted:
            raise CannotTrain("At least one image to train on must show a fruit.")
        weighted.sort(key=lambda each: _shape(each[0]))
        groups = []
        for _, group in groupby(weighted, key=lambda each: _shape(each[0])):
            tasks, weights = zip(*group, strict=True)
            groups.append((tasks, weights))
        return cls(tuple(groups), batch, seed)

    @property
    def steps(self) -> int:
        """Number of batches in every epoch."""
        return sum(-(-_count(weights) // self.batch) for _, weights in self.groups)

    def batches(self, epoch: int) -> Iterator[PromptBatch]:
        """Return the batches of an epoch; equal epochs give equal batches."""
        for number, tasks in enumerate(self._order(epoch)):
            yield assemble(tasks, np.random.default_rng([self.seed, epoch, _PROMPTS, number]))

    def _order(self, epoch: int) -> list[list[Task]]:
        rng = np.random.default_rng([self.seed, epoch, _ORDER])
        batches = []
        for tasks, weights in self.groups:
            shares = np.asarray(weights)
            # Systematic sampling: each task as often as its weight says, give or take one.
            places = (np.arange(_count(weights)) + rng.random()) * shares.sum() / _count(weights)
            chosen = np.searchsorted(np.cumsum(shares), places, side="right").clip(max=len(tasks) - 1)
            rng.shuffle(chosen)
            batches += [[tasks[i] for i in chosen[at : at + self.batch]] for at in range(0, len(chosen), self.batch)]
        return [batches[i] for i in rng.permutation(len(batches))]


def assemble(tasks: Sequence[Task], rng: np.random.Generator) -> PromptBatch:
    """Choose a first prompt for each task, and collect what the decoder and the loss need.

    Args:
        tasks: at least one task, of images whose letterboxes are equal in `side` and `padded`.
        rng: random generator of the prompts and of later clicks.

    Raises:
        CannotTrain: an embedding cannot be read.
    """
    files = list(dict.fromkeys(image.embedding for image, _ in tasks))
    padded = tasks[0][0].letterbox.padded
    truth = np.zeros((len(tasks), padded.height, padded.width), np.bool_)
    counted = np.ones_like(truth)
    for row, (image, fruit) in enumerate(tasks):
        x0, y0, x1, y1 = fruit.box
        truth[row, y0:y1, x0:x1] = fruit.mask
        if image.ignored is not None:
            height, width = image.ignored.shape
            counted[row, :height, :width] = ~image.ignored
    return PromptBatch(
        embeddings=torch.stack([load_embedding(file) for file in files]),
        image_index=torch.tensor([files.index(image.embedding) for image, _ in tasks]),
        letterboxes=tuple(image.letterbox for image, _ in tasks),
        prompts=tuple(first_prompt(image.letterbox, fruit, rng) for image, fruit in tasks),
        truth=torch.from_numpy(truth),
        counted=torch.from_numpy(counted),
        clicks=rng,
    )


def first_prompt(letterbox: Letterbox, fruit: TrainingFruit, rng: np.random.Generator) -> Prompt:
    """Choose a box with jitter or a point at random."""
    if rng.random() < _BOXES:
        box = jittered_box(fruit.box, letterbox.resized, rng, training_jitter(letterbox.side))
        (x0, y0), (x1, y1) = letterbox.to_image(((box.x0, box.y0), (box.x1, box.y1))).tolist()
        return Prompt(box=Box(x0, y0, x1, y1))
    x, y = centre_of(fruit.mask) if rng.random() < _CENTRES else point_within(fruit.mask, rng)
    return Prompt(points=(_point(letterbox, fruit.box[0] + x, fruit.box[1] + y, FOREGROUND),))


def next_prompts(batch: PromptBatch, prompts: Sequence[Prompt], guesses: Tensor, masks: Tensor) -> tuple[Prompt, ...]:
    """Extend each prompt by its answer as a mask prompt and a click on an error of it.

    Args:
        batch: batch of the prompts.
        prompts: prompts of the previous round.
        guesses: float32 (P, h, w), low-resolution logits of their answers.
        masks: bool (P, height, width) of size `letterbox.padded`, masks of those logits.

    Returns:
        One prompt for each; without a new click if nothing is wrong.
    """
    logits = guesses.detach().float().cpu().numpy()
    predicted, truth, counted = (each.cpu().numpy() for each in (masks, batch.truth, batch.counted))
    following = []
    for row, (prompt, letterbox) in enumerate(zip(prompts, batch.letterboxes, strict=True)):
        height, width = letterbox.resized.height, letterbox.resized.width
        answered, true, counts = (each[row, :height, :width] for each in (predicted, truth, counted))
        click = click_on_error(answered, true, counts, batch.clicks)
        points = prompt.points
        if click is not None:
            points = (*points, _point(letterbox, click[0], click[1], FOREGROUND if click[2] else BACKGROUND))
        following.append(replace(prompt, points=points, mask=logits[row]))
    return tuple(following)


def _point(letterbox: Letterbox, x: int, y: int, label: int) -> Point:
    at_x, at_y = letterbox.to_image((x, y)).tolist()
    return Point(at_x, at_y, label)


def _shape(task: Task) -> tuple[int, int, int]:
    letterbox = task[0].letterbox
    return letterbox.side, letterbox.padded.height, letterbox.padded.width


def _count(weights: Sequence[float]) -> int:
    """Return the number of tasks of a group in an epoch: the sum of the weights, at least 1 if any is above 0."""
    total = sum(weights)
    return max(1, round(total)) if total > 0 else 0
