"""Prompts of different images in batches for the decoder, drawn by lot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from models.letterbox import Letterbox
from models.sam.clicks import centre_of, click_on_error, jittered_box, point_within, training_jitter
from models.training.sam_embeddings import load_embedding
from models.training.sam_images import Fruit, Image
from models.training.seeding import generator_of
from models.types import BACKGROUND, FOREGROUND, Box, Point, Prompt

Task: TypeAlias = tuple[Image, Fruit]
"""A fruit to be prompted for, and its image."""

_BOXES: Final = 0.5
"""Share of prompts that are boxes, as in the paper; the others are points."""

_CENTRES: Final = 0.25
"""Share of the points that are the fruit's centre, where people and detectors aim; the others lie anywhere in it."""

_ORDER, _PROMPTS = 0, 1  # what is drawn by lot for an epoch, each from a generator of its own


@dataclass(frozen=True, slots=True, eq=False)
class PromptBatch:
    """P prompts on I images whose frames are equal in `side` and `padded`.

    Attributes:
        embeddings: float32 (I, 256, h, w).
        image_index: int64 (P,), each prompt's image.
        frames: of each prompt's image.
        prompts: in pixels of the images.
        truth: bool (P, height, width) of size `frame.padded`, the fruit.
        counted: bool (P, height, width), what counts: all but ignored pixels.
        clicks: draws the clicks of later rounds.
    """

    embeddings: Tensor
    image_index: Tensor
    frames: tuple[Letterbox, ...]
    prompts: tuple[Prompt, ...]
    truth: Tensor
    counted: Tensor
    clicks: np.random.Generator


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """What an epoch learns from, in batches of equal size and varying company.

    Attributes:
        groups: tasks whose images can share a batch, each with how often an epoch has it, on average.
        batch: most prompts in a batch.
        seed: of everything drawn by lot.
    """

    groups: tuple[tuple[tuple[Task, ...], tuple[float, ...]], ...]
    batch: int
    seed: int

    @classmethod
    def of(cls, sources: Sequence[tuple[Sequence[Image], float]], *, batch: int, seed: int) -> Tasks:
        """Group all fruits of all images.

        Args:
            sources: images, and how often an epoch shows each, on average.
            batch: most prompts in a batch, at least 1.
            seed: at least 0.
        """
        weighted = [
            ((image, fruit), weight) for images, weight in sources for image in images for fruit in image.fruits
        ]
        weighted.sort(key=lambda each: _shape(each[0]))
        groups = []
        for _, group in groupby(weighted, key=lambda each: _shape(each[0])):
            tasks, weights = zip(*group, strict=True)
            groups.append((tasks, weights))
        return cls(tuple(groups), batch, seed)

    @property
    def steps(self) -> int:
        """Batches in every epoch."""
        return sum(-(-_count(weights) // self.batch) for _, weights in self.groups)

    def batches(self, epoch: int) -> Iterator[PromptBatch]:
        """The batches of an epoch, the same ones whenever it is asked for the same epoch."""
        for number, tasks in enumerate(self._order(epoch)):
            yield assemble(tasks, generator_of(self.seed, epoch, _PROMPTS, number))

    def _order(self, epoch: int) -> list[list[Task]]:
        rng = generator_of(self.seed, epoch, _ORDER)
        batches = []
        for tasks, weights in self.groups:
            shares = np.asarray(weights)
            # Evenly spaced draws: each task as often as its weight says, give or take one.
            places = (np.arange(_count(weights)) + rng.random()) * shares.sum() / _count(weights)
            drawn = np.searchsorted(np.cumsum(shares), places, side="right").clip(max=len(tasks) - 1)
            rng.shuffle(drawn)
            batches += [[tasks[i] for i in drawn[at : at + self.batch]] for at in range(0, len(drawn), self.batch)]
        return [batches[i] for i in rng.permutation(len(batches))]


def assemble(tasks: Sequence[Task], rng: np.random.Generator) -> PromptBatch:
    """Draw a first prompt for each task, and bring together what the decoder and the loss need.

    Args:
        tasks: at least one, of images whose frames are equal in `side` and `padded`.
        rng: draws the prompts, and later clicks.

    Raises:
        CannotTrain: an embedding cannot be read.
    """
    files = list(dict.fromkeys(image.embedding for image, _ in tasks))
    padded = tasks[0][0].frame.padded
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
        frames=tuple(image.frame for image, _ in tasks),
        prompts=tuple(first_prompt(image.frame, fruit, rng) for image, fruit in tasks),
        truth=torch.from_numpy(truth),
        counted=torch.from_numpy(counted),
        clicks=rng,
    )


def first_prompt(frame: Letterbox, fruit: Fruit, rng: np.random.Generator) -> Prompt:
    """A box with jitter or a point, by lot."""
    if rng.random() < _BOXES:
        box = jittered_box(fruit.box, frame.resized, rng, training_jitter(frame.side))
        corners = np.array([(box.x0, box.y0), (box.x1, box.y1)])
        (x0, y0), (x1, y1) = frame.to_image(corners).tolist()
        return Prompt(box=Box(x0, y0, x1, y1))
    x, y = centre_of(fruit.mask) if rng.random() < _CENTRES else point_within(fruit.mask, rng)
    return Prompt(points=(_point(frame, fruit.box[0] + x, fruit.box[1] + y, FOREGROUND),))


def next_prompts(batch: PromptBatch, prompts: Sequence[Prompt], guesses: Tensor, masks: Tensor) -> tuple[Prompt, ...]:
    """Each prompt with its guess as a mask prompt and a click on what is wrong with it.

    Args:
        batch: what is prompted for.
        prompts: of the round before.
        guesses: float32 (P, h, w), the low-resolution logits that answered them.
        masks: bool (P, height, width) of size `frame.padded`, the masks of those logits.

    Returns:
        As many; without a new click where nothing is wrong.
    """
    logits = guesses.detach().float().cpu().numpy()
    predicted, truth, counted = (each.cpu().numpy() for each in (masks, batch.truth, batch.counted))
    following = []
    for row, (prompt, frame) in enumerate(zip(prompts, batch.frames, strict=True)):
        height, width = frame.resized.height, frame.resized.width
        seen, true, counts = (each[row, :height, :width] for each in (predicted, truth, counted))
        click = click_on_error(seen, true, counts, batch.clicks)
        points = prompt.points
        if click is not None:
            points = (*points, _point(frame, click[0], click[1], FOREGROUND if click[2] else BACKGROUND))
        following.append(replace(prompt, points=points, mask=logits[row]))
    return tuple(following)


def _point(frame: Letterbox, x: int, y: int, label: int) -> Point:
    at_x, at_y = frame.to_image((x, y)).tolist()
    return Point(at_x, at_y, label)


def _shape(task: Task) -> tuple[int, int, int]:
    frame = task[0].frame
    return frame.side, frame.padded.height, frame.padded.width


def _count(weights: Sequence[float]) -> int:
    """Tasks that an epoch draws of a group: all weights together, at least one where any is above 0."""
    total = sum(weights)
    return max(1, round(total)) if total > 0 else 0
