"""Validation of a U-Net on each source of images, with the code that serves it.

Images are shrunk, padded and enlarged again as in serving, and compared at their own size. Each source has its own
measures. The score that chooses the best epoch is the mean over the sources of their mean IoU; each source has the same
weight, however many images it has. The mean IoU of a source is over the pixels of all its images together: of
background, healthy and infected if its annotations separate them, otherwise of background and fruit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

from models.data.samples import InstanceMap, Sample
from models.data.sources import OpenedSource
from models.inspection import inspect
from models.letterbox import resize
from models.metrics import (
    class_confusion,
    fruit_confusion,
    infected_fraction,
    infected_fraction_error,
    iou,
    mean_counted,
    ratio,
)
from models.training.options import Machine
from models.training.trainer import Validation
from models.training.unet_data import one_thread
from models.types import CLASSES, PixelClass, Pixels, SemanticMap
from models.unet.build import PixelsToLogits
from models.unet.instances import MIN_REGION, Cells, fruit_labels
from models.unet.letterbox import INPUT_SIZE, UNetLetterbox, pad, unet_letterbox
from models.unet.postprocess import class_map

SCORE: Final = "the mean over the sources of their mean IoU over pixels"
"""Meaning of `Validation.score`."""

RENDERED: Final = "rendered"
"""Name of the source of rendered scenes."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The prediction of a network for an image, and the truth.

    Attributes:
        source: name of the source of the image.
        predicted: uint8 (height, width) of the image: BACKGROUND, HEALTHY or INFECTED.
        fruits: number of fruits that the network separates.
        truth: annotation of the image.
    """

    source: str
    predicted: SemanticMap
    fruits: int
    truth: Truth


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """An annotation.

    Attributes:
        semantic: uint8 (height, width) of `PixelClass`.
        fruits: number of visible fruits of at least `MIN_REGION` cells; None if fruits are not separated.
        instances: uint16 (height, width), number of the fruit, 0 for none; None if fruits are not separated.
    """

    semantic: SemanticMap
    fruits: int | None
    instances: InstanceMap | None


_Prepared: TypeAlias = tuple[str, Pixels, UNetLetterbox, Truth]


class UNetValidator:
    """Validates networks on the validation parts of sources.

    Args:
        sources: sets; their validation parts are read for each validation.
        rendered: rendered scenes, kept in memory.
        machine: device and workers.
        area: most pixels of an image in the network.
    """

    def __init__(
        self,
        sources: Sequence[OpenedSource],
        rendered: Sequence[Sample],
        machine: Machine,
        area: int = INPUT_SIZE.pixels,
    ) -> None:
        self.names = [
            _group_name(each.name, group) for each in sources for group in each.dataset.grouped(each.validation)
        ]
        self.names += [RENDERED] if rendered else []
        self._device = torch.device(machine.device)
        images = _Images(sources, rendered, area)
        self._loader: DataLoader[_Prepared] = DataLoader(
            images,
            sampler=range(len(images)),
            batch_size=None,  # images of any shape
            num_workers=machine.workers,
            persistent_workers=machine.workers > 0,
            worker_init_fn=one_thread,
            collate_fn=_unchanged,
            generator=torch.Generator(),
        )

    @property
    def panels(self) -> Mapping[str, Sequence[str]]:
        """Names of measures to plot together."""
        return {
            "mean IoU of each source, and their mean": ["score", *(f"{name}/mean_iou" for name in self.names)],
            "IoU of fruit": [f"{name}/fruit_iou" for name in self.names],
            "IoU of healthy and infected": [
                f"{name}/{kind}_iou" for name in self.names for kind in ("healthy", "infected")
            ],
            "share of images with the right number of fruits": [f"{name}/counted_right" for name in self.names],
        }

    def validate(self, network: nn.Module) -> Validation:
        """Validate a network in evaluation mode.

        Args:
            network: network of `models.unet.build` on the device.

        Returns:
            The score, and `SOURCE/MEASURE` for each of `mean_iou`, `fruit_iou`, `background_iou`, `healthy_iou`,
            `infected_iou` (over all pixels), `fruit_iou_per_image`, `infected_iou_per_image` (of images with infected
            pixels), `fraction_error` (of the infected fraction, mean over the images), `false_infected` (share of
            fruit pixels called infected in images without any), `false_fruit` (share of images without fruit in which
            fruit is found), `false_fruit_pixels` (share of their pixels), and `counted_right`, the share of images
            with the right number of separate fruits; NaN where it does not apply.

        Raises:
            DataError: an image cannot be used.
        """
        counts: dict[str, list[_Counts]] = {name: [] for name in self.names}
        for each in self.predictions(network):
            counts[each.source].append(_counts(each))
        measures: dict[str, float] = {}
        for name, counted in counts.items():
            measures |= {f"{name}/{measure}": value for measure, value in _measures(counted).items()}
        means = np.array([measures[f"{name}/mean_iou"] for name in self.names])
        return Validation(float(mean_counted(means)), measures)

    def predictions(self, network: nn.Module) -> Iterator[Prediction]:
        """Predict every image at its own size."""
        for name, output, letterbox, truth in self._outputs(network):
            cells = Cells.of(output, letterbox)
            yield Prediction(name, class_map(cells), int(fruit_labels(cells).max()), truth)

    def fractions(self, network: nn.Module) -> list[tuple[float, float]]:
        """Predict the infected fraction of every annotated fruit of known health that is found, as it is served.

        Returns:
            Predicted and annotated fraction of each, in the order of the images.
        """
        return [
            pair
            for _, output, letterbox, truth in self._outputs(network)
            for pair in _fractions(output, letterbox, truth)
        ]

    def _outputs(self, network: nn.Module) -> Iterator[tuple[str, NDArray[np.float32], UNetLetterbox, Truth]]:
        whole = PixelsToLogits(network).to(self._device)
        with torch.inference_mode():
            for name, pixels, letterbox, truth in self._loader:
                batch = torch.from_numpy(pixels)[None].to(self._device)
                yield name, whole(batch)[0].float().cpu().contiguous().numpy(), letterbox, truth


@dataclass(frozen=True, slots=True, eq=False)
class _Counts:
    """Counts of one image: confusions int64 (3, 3) and (2, 2), fruits found, and what they are compared with."""

    classes: NDArray[np.int64]
    fruit: NDArray[np.int64]
    right: float
    found: int
    fraction_error: float


def _counts(prediction: Prediction) -> _Counts:
    predicted, truth = prediction.predicted, prediction.truth
    classes = class_confusion(predicted, truth.semantic)
    # In an image whose fruit is all of unknown health, background alone would flatter a network.
    if (truth.semantic == PixelClass.FRUIT).any() and not classes[1:].any():
        classes = np.zeros_like(classes)
    right = math.nan if truth.fruits is None else float(prediction.fruits == truth.fruits)
    error = abs(infected_fraction_error(predicted, truth.semantic))
    return _Counts(classes, fruit_confusion(predicted, truth.semantic), right, prediction.fruits, error)


def _measures(counts: Sequence[_Counts]) -> dict[str, float]:
    classes, fruit = np.stack([each.classes for each in counts]), np.stack([each.fruit for each in counts])
    by_class = iou(classes.sum(axis=0))
    background, whole = iou(fruit.sum(axis=0)).tolist()
    # A few false pixels of a class that is nowhere in the truth would make it 0: such pixels have their own measure.
    annotated = classes.sum(axis=0).sum(axis=1) > 0
    known = annotated.any()
    if not known:
        by_class = np.array((background, math.nan, math.nan))
    healthy = classes[~classes[:, PixelClass.INFECTED].any(axis=1)].sum(axis=0)
    empty = ~fruit[:, 1].any(axis=1)
    false_pixels = fruit[empty].sum(axis=0)[0]
    by_image = iou(classes[classes[:, PixelClass.INFECTED].any(axis=1)])[:, PixelClass.INFECTED]
    return {
        "mean_iou": float(mean_counted(by_class[annotated] if known else np.array((background, whole)))),
        "fruit_iou": float(whole),
        "fruit_iou_per_image": float(mean_counted(iou(fruit)[:, 1])),
        **{f"{each.name.lower()}_iou": float(by_class[place]) for place, each in enumerate(CLASSES)},
        "infected_iou_per_image": float(mean_counted(by_image)),
        "fraction_error": float(mean_counted(np.array([each.fraction_error for each in counts]))),
        "false_infected": float(ratio(healthy[1:, PixelClass.INFECTED].sum(), healthy[1:].sum())),
        "false_fruit": float(mean_counted(np.array([each.found > 0 for each in counts], np.float64)[empty])),
        "false_fruit_pixels": float(ratio(false_pixels[1], false_pixels.sum())),
        "counted_right": float(mean_counted(np.array([each.right for each in counts]))),
    }


class _Images(Dataset[_Prepared]):
    def __init__(self, sources: Sequence[OpenedSource], rendered: Sequence[Sample], area: int) -> None:
        self._area = area
        self._listed = [(each, name) for each in sources for name in each.validation]
        self._rendered = rendered

    def __len__(self) -> int:
        return len(self._listed) + len(self._rendered)

    def __getitem__(self, index: int) -> _Prepared:
        if index < len(self._listed):
            source, name = self._listed[index]
            group = _group_name(source.name, source.dataset.groups.get(name, ""))
            return _prepare(group, source.dataset.load(name), self._area)
        return _prepare(RENDERED, self._rendered[index - len(self._listed)], self._area)


def _group_name(source: str, group: str) -> str:
    return f"{source}/{group}" if group else source


def _prepare(name: str, sample: Sample, area: int) -> _Prepared:
    letterbox = unet_letterbox(sample.size, area)
    pixels = pad(resize(sample.pixels, letterbox), letterbox)
    return name, pixels, letterbox, Truth(sample.semantic, _fruits(sample, letterbox), sample.instance_map)


def _fractions(output: NDArray[np.float32], letterbox: UNetLetterbox, truth: Truth) -> Iterator[tuple[float, float]]:
    """Yield predicted and annotated infected fraction of the fruits that match an annotated one at an IoU of 0.5."""
    if truth.instances is None:
        return
    areas = np.bincount(truth.instances.ravel())
    for fruit in inspect(output, letterbox).fruits:
        x0, y0, x1, y1 = fruit.box
        shared = np.bincount(truth.instances[y0:y1, x0:x1][fruit.mask.pixels])
        shared[0] = 0
        number = int(shared.argmax())
        if 2 * shared[number] <= fruit.area + areas[number] - shared[number] or not number:
            continue
        fraction = infected_fraction(truth.semantic[truth.instances == number])
        if not math.isnan(fraction):
            yield fruit.infected_fraction, fraction


def _fruits(sample: Sample, letterbox: UNetLetterbox) -> int | None:
    if sample.instance_map is None:
        return None
    smallest = MIN_REGION * letterbox.original.pixels / letterbox.resized.pixels
    areas = np.bincount(sample.instance_map.ravel())[1:]
    return int(np.count_nonzero(areas >= smallest))


def _unchanged(item: Any) -> Any:
    return item
