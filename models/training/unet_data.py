"""Batches of one shape from annotated images and rendered scenes.

Seeds of rendered scenes below 500,000 are reserved for tests and measurements, those from there to 999,999 for
validation, and training uses all above. No scene is ever in two of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from models.data.samples import InstanceMap, Sample
from models.data.sources import OpenedSource
from models.metrics import is_fruit
from models.synthetic import RenderOptions, render
from models.training.augmentation import Augmentation, move_classes, move_instances, move_pixels, place, recolour
from models.training.cut_outs import cut_fruit, number_to_paste, paste_fruits, transfer_lesions
from models.training.fruit_changes import cast_shadows, change_colour, paint_rot
from models.training.image_pool import ImagePool
from models.training.losses import centre_offsets
from models.training.options import LOOKS, Machine, UNetOptions
from models.types import PixelClass, Pixels, SemanticMap, Size
from models.unet.letterbox import unet_letterbox

FIRST_VALIDATION_SEED: Final = 500_000
FIRST_TRAINING_SEED: Final = 1_000_000
_LAST_TRAINING_SEED: Final = 2**53

_INFECTED: Final = RenderOptions(infected_share=0.7)
"""Lesions cover few pixels: more fruits have them in training than in validation, so that each scene teaches more."""

_DIAMETERS: Final = (0.1, 0.9)
"""Diameters of fruits in close-ups, as shares of their side."""

_CLOSER: Final = 0.7
"""Largest logarithm of the scale of a close-up whose fruit is not separated from others."""

_PLAN, _CHANGE = 0, 1  # two independent sequences of random numbers


@dataclass(frozen=True, slots=True)
class Pick:
    """One image of a batch, before it is read.

    Attributes:
        source: index of its source; None for a rendered scene.
        name: name of the image in its set, or the seed of a scene in digits.
        epoch: epoch that shows it.
        index: index among all picks of the epoch.
        crop: shape of its batch.
        scene: size at which a scene is rendered.
        look: number of the close-up, from 0 on; None for the whole image.
    """

    source: int | None
    name: str
    epoch: int
    index: int
    crop: Size
    scene: Size
    look: int | None = None


Example: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Pixels uint8 (height, width, 3), classes uint8 (height, width), and centre offsets float32 (3, height, width)
of `models.training.losses.centre_offsets`; in a batch, one dimension more."""


def count_steps(sources: Sequence[OpenedSource], options: UNetOptions) -> int:
    """Count the batches of an epoch; images that fill no batch are left out of that epoch."""
    shown = sum(round(weight * len(names)) for each in sources for names, weight in each.weighted)
    return (shown + options.rendered) // options.batch


def plan_epoch(sources: Sequence[OpenedSource], options: UNetOptions, epoch: int) -> list[list[Pick]]:
    """Choose and shuffle an epoch's images.

    Args:
        sources: sets with their weights.
        options: options of the run; their seed decides everything.
        epoch: epoch, counted from 0.

    Returns:
        The batches. With a weight of 2.5 every image of a set is shown twice, and half of them a third time.
    """
    rng = np.random.default_rng([options.fit.seed, _PLAN, epoch])
    chosen: list[tuple[int | None, str]] = []
    for number, each in enumerate(sources):
        for names, weight in each.weighted:
            times, left = divmod(round(weight * len(names)), len(names))
            chosen += [(number, name) for name in names] * times
            chosen += [(number, names[index]) for index in rng.choice(len(names), left, replace=False)]
    seeds = rng.integers(FIRST_TRAINING_SEED, _LAST_TRAINING_SEED, options.rendered)
    chosen += [(None, str(seed)) for seed in seeds.tolist()]
    order = rng.permutation(len(chosen)).tolist()
    crops = rng.integers(0, len(options.crops), count_steps(sources, options)).tolist()
    ordered = [chosen[place] for place in order]
    close_ups = rng.random(len(crops)) < (options.close if 4 * epoch < 3 * options.fit.epochs else 0)
    picks = [
        Pick(source, name, epoch, index, options.crops[0], options.crops[0])
        for index, (source, name) in enumerate(ordered)
    ]
    batches = []
    for step, (crop, close) in enumerate(zip(crops, close_ups.tolist(), strict=True)):
        scene = options.crops[crop]
        whole = [
            replace(one, crop=scene, scene=scene) for one in picks[step * options.batch : (step + 1) * options.batch]
        ]
        square = Size(options.close_side, options.close_side)
        looks = [replace(one, crop=square, look=look) for one in whole for look in range(LOOKS)]
        batches.append(looks if close else whole)
    return batches


def load_example(pick: Pick, options: UNetOptions, pool: ImagePool) -> Example:
    """Read or render an image, and change it at random.

    Args:
        pick: image and crop.
        options: options of the run.
        pool: images of the sets.

    Raises:
        DataError: the image cannot be used.
    """
    if pick.source is None:
        sample, scale = _rendered(int(pick.name), pick.scene), 1.0
    else:
        sample = pool.load(pick.source, pick.name)
        scale = unet_letterbox(sample.size, options.area).resized.width / sample.size.width
    look = () if pick.look is None else (pick.look,)
    rng = np.random.default_rng([options.fit.seed, _CHANGE, pick.epoch, pick.index, *look])
    about = None if pick.look is None else _point_of_interest(sample.semantic, rng)
    if about is not None:
        scale = _look_closer(sample, about, scale, options.close_side, rng)
    placement = place(sample.size, pick.crop, scale, options.augmentation, rng, about=about)
    pixels, classes = move_pixels(sample.pixels, placement), move_classes(sample.semantic, placement)
    fruits = None if sample.instance_map is None else move_instances(sample.instance_map, placement)
    pixels, classes, fruits = _with_cut_outs(pixels, classes, fruits, pool, options.augmentation, rng)
    if rng.random() < options.augmentation.fruit_colour:
        pixels = change_colour(pixels, classes, rng)
    if fruits is not None and rng.random() < options.augmentation.rot:
        pixels, classes = paint_rot(pixels, classes, fruits, rng)
    if rng.random() < options.augmentation.shadow:
        pixels = cast_shadows(pixels, rng)
    pixels = recolour(pixels, options.augmentation, rng)
    if fruits is not None and pick.look is not None:
        fruits = _without_cut_off(fruits)
    offsets = centre_offsets(fruits, pick.crop.height, pick.crop.width)
    return torch.from_numpy(pixels), torch.from_numpy(classes), torch.from_numpy(offsets)


def _without_cut_off(fruits: InstanceMap) -> InstanceMap:
    """Remove the fruits at the edge of a close-up: where their centres are cannot be seen there.

    Taught the centre of the visible part instead, a network was measured to divide large fruit into several.
    """
    edge = np.concatenate((fruits[0], fruits[-1], fruits[:, 0], fruits[:, -1]))
    return np.where(np.isin(fruits, edge), np.uint16(0), fruits)


def _with_cut_outs(
    pixels: Pixels,
    classes: SemanticMap,
    fruits: InstanceMap | None,
    pool: ImagePool,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[Pixels, SemanticMap, InstanceMap | None]:
    """Paste fruits of other images into a crop, and transfer lesions to one of its fruits."""
    chance = augmentation.paste if is_fruit(classes).any() else min(1.0, 3 * augmentation.paste)
    if rng.random() < chance:
        cuts = [cut_fruit(pool, rng) for _ in range(number_to_paste(rng))]
        known = np.zeros(classes.shape, np.uint16) if fruits is None else fruits
        pixels, classes, fruits = paste_fruits(pixels, classes, known, [each for each in cuts if each], rng)
    if fruits is not None and fruits.any() and rng.random() < augmentation.lesions:
        donor = cut_fruit(pool, rng, lesions=True)
        if donor is not None:
            number = rng.choice(np.flatnonzero(np.bincount(fruits.ravel())[1:]) + 1)
            pixels, classes = transfer_lesions(pixels, classes, fruits == number, donor, rng)
    return pixels, classes, fruits


@lru_cache(maxsize=1)  # close-ups of one scene follow one another
def _rendered(seed: int, size: Size) -> Sample:
    return render(seed, size, options=_INFECTED)


def _look_closer(
    sample: Sample, about: tuple[float, float], scale: float, side: int, rng: np.random.Generator
) -> float:
    """Choose a scale at which the fruit at a point has a random diameter; near `scale` if it is not separated."""
    number = 0 if sample.instance_map is None else sample.instance_map[int(about[1]), int(about[0])]
    if sample.instance_map is None or not number:
        return scale * float(np.exp(rng.uniform(0, _CLOSER)))
    diameter = 2 * float(np.sqrt(np.count_nonzero(sample.instance_map == number) / np.pi))
    wanted = side * np.exp(rng.uniform(*np.log(_DIAMETERS))) / diameter
    return float(np.clip(wanted, 0.4 * scale, max(2.0, scale)))


def _point_of_interest(semantic: SemanticMap, rng: np.random.Generator) -> tuple[float, float] | None:
    """Choose x and y of a pixel of a lesion or of fruit, with equal probability; None if there is neither."""
    infected = semantic == PixelClass.INFECTED
    wanted = infected if rng.random() < 0.5 and infected.any() else (semantic != PixelClass.BACKGROUND)
    wanted &= semantic != PixelClass.IGNORE
    places = np.flatnonzero(wanted)
    if not len(places):
        return None
    row, column = divmod(int(rng.choice(places)), semantic.shape[1])
    return column + 0.5, row + 0.5


class TrainingBatches:
    """Loads batches, in worker processes if the machine has any.

    Args:
        sources: sets.
        options: options of the run.
        machine: workers and device.
    """

    def __init__(self, sources: Sequence[OpenedSource], options: UNetOptions, machine: Machine) -> None:
        self._plan = _Plan(sources, options)
        self._loader: DataLoader[Example] = DataLoader(
            _Examples(sources, options),
            batch_sampler=self._plan,
            num_workers=machine.workers,
            persistent_workers=machine.workers > 0,
            worker_init_fn=one_thread,
            pin_memory=machine.device.startswith("cuda"),
            generator=torch.Generator(),  # otherwise it would change the state of the run's generator
        )

    def of(self, epoch: int) -> DataLoader[Example]:
        """Return the batches of an epoch."""
        self._plan.epoch = epoch
        return self._loader


def rendered_validation(options: UNetOptions) -> list[Sample]:
    """Render the scenes to validate on, in all shapes in turn; none if there are none to train on."""
    count = options.rendered_validation if options.rendered else 0
    return [render(FIRST_VALIDATION_SEED + index, options.crops[index % len(options.crops)]) for index in range(count)]


def one_thread(_worker: int) -> None:
    """Limit a worker to one thread; more would compete with the training."""
    cv2.setNumThreads(0)


class _Plan(Sampler[list[Pick]]):
    def __init__(self, sources: Sequence[OpenedSource], options: UNetOptions) -> None:
        self.epoch = 0
        self._sources, self._options = sources, options

    def __len__(self) -> int:
        return count_steps(self._sources, self._options)

    def __iter__(self) -> Iterator[list[Pick]]:
        return iter(plan_epoch(self._sources, self._options, self.epoch))


class _Examples(Dataset[Example]):
    def __init__(self, sources: Sequence[OpenedSource], options: UNetOptions) -> None:
        self._options, self._pool = options, ImagePool(sources)

    def __getitem__(self, pick: Pick) -> Example:
        return load_example(pick, self._options, self._pool)
