"""How well a U-Net does on each source of images, seen as serving sees them.

Images are shrunk, padded and enlarged again by serving's own code, and compared at their own size. Each source has
measures of its own; the score that chooses the best epoch is the mean over the sources of their mean IoU, each source
weighing the same however many images it has. A source's mean IoU is over the pixels of all its images together: of
background, healthy and infected where its annotations tell them apart, else of background and fruit.
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

from models.data.samples import Sample
from models.data.sources import OpenedSource
from models.letterbox import resize
from models.metrics import class_confusion, fruit_confusion, iou, mean_counted
from models.training.fitting import Validation
from models.training.machine import Machine
from models.training.unet_images import one_thread
from models.types import CLASSES, PixelClass, Pixels, SemanticMap
from models.unet.build import PixelsToLogits
from models.unet.instances import MIN_REGION, fruit_labels
from models.unet.letterbox import UNetLetterbox, pad, unet_letterbox
from models.unet.postprocess import class_map

SCORE: Final = "the mean over the sources of their mean IoU over pixels"
"""What `Validation.score` is, in words."""

RENDERED: Final = "rendered"
"""Name of the source of rendered scenes."""


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What a network says of one image, and what is right.

    Attributes:
        source: name of the image's source.
        predicted: uint8 (height, width) of the image's size: BACKGROUND, HEALTHY or INFECTED.
        fruits: how many the network tells apart.
        truth: the annotation.
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
        fruits: how many are seen with at least `MIN_REGION` cells; None where fruits were not told apart.
    """

    semantic: SemanticMap
    fruits: int | None


_Seen: TypeAlias = tuple[str, Pixels, UNetLetterbox, Truth]


class UNetValidation:
    """Judges networks on the validation parts.

    Args:
        sources: sets; their validation parts are read again for each network.
        rendered: scenes, kept in memory.
        machine: device and workers.
    """

    def __init__(self, sources: Sequence[OpenedSource], rendered: Sequence[Sample], machine: Machine) -> None:
        self.names = [each.name for each in sources] + ([RENDERED] if rendered else [])
        self._device = torch.device(machine.device)
        images = _Images(sources, rendered)
        self._loader: DataLoader[_Seen] = DataLoader(
            images,
            sampler=range(len(images)),
            batch_size=None,  # images of any shape
            num_workers=machine.workers,
            persistent_workers=machine.workers > 0,
            worker_init_fn=one_thread,
            collate_fn=_as_it_is,
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
            "share of images with all fruits told apart": [f"{name}/counted_right" for name in self.names],
        }

    def of(self, network: nn.Module) -> Validation:
        """Validator a network in evaluation mode.

        Args:
            network: as `models.unet.build` gives it, on the device.

        Returns:
            `SOURCE/MEASURE` for each of `mean_iou`, `fruit_iou`, `background_iou`, `healthy_iou`, `infected_iou` (over
            all pixels), `fruit_iou_per_image`, and `counted_right`, the share of images in which as many fruits are
            told apart as are seen; NaN where it does not count.

        Raises:
            DataError: an image cannot be used.
        """
        counts: dict[str, list[_Counts]] = {name: [] for name in self.names}
        for judged in self.judgements(network):
            counts[judged.source].append(_counts(judged))
        measures: dict[str, float] = {}
        for name, counted in counts.items():
            measures |= {f"{name}/{measure}": value for measure, value in _measures(counted).items()}
        means = np.array([measures[f"{name}/mean_iou"] for name in self.names])
        return Validation(float(mean_counted(means)), measures)

    def judgements(self, network: nn.Module) -> Iterator[Judged]:
        """What the network says of every image, at the image's own size."""
        whole = PixelsToLogits(network).to(self._device)
        with torch.inference_mode():
            for name, pixels, frame, truth in self._loader:
                batch = torch.from_numpy(pixels)[None].to(self._device)
                output = whole(batch)[0].float().cpu().contiguous().numpy()
                yield Judged(name, class_map(output, frame), int(fruit_labels(output, frame).max()), truth)


@dataclass(frozen=True, slots=True, eq=False)
class _Counts:
    """Of one image: confusions, int64 (3, 3) and (2, 2), and whether the number of fruits is right."""

    classes: NDArray[np.int64]
    fruit: NDArray[np.int64]
    right: float


def _counts(judged: Judged) -> _Counts:
    predicted, truth = judged.predicted, judged.truth
    # Of an image whose fruit is not told apart, background alone would say too much good of a network.
    unknown = (truth.semantic == PixelClass.FRUIT).any()
    size = (len(CLASSES), len(CLASSES))
    classes = np.zeros(size, np.int64) if unknown else class_confusion(predicted, truth.semantic)
    right = math.nan if truth.fruits is None else float(judged.fruits == truth.fruits)
    return _Counts(classes, fruit_confusion(predicted, truth.semantic), right)


def _measures(counts: Sequence[_Counts]) -> dict[str, float]:
    classes, fruit = np.stack([each.classes for each in counts]), np.stack([each.fruit for each in counts])
    by_class = iou(classes.sum(axis=0))
    background, whole = iou(fruit.sum(axis=0)).tolist()
    known = classes.any()
    if not known:
        by_class = np.array((background, math.nan, math.nan))
    return {
        "mean_iou": float(mean_counted(by_class if known else np.array((background, whole)))),
        "fruit_iou": float(whole),
        "fruit_iou_per_image": float(mean_counted(iou(fruit)[:, 1])),
        **{f"{each.name.lower()}_iou": float(by_class[place]) for place, each in enumerate(CLASSES)},
        "counted_right": float(mean_counted(np.array([each.right for each in counts]))),
    }


class _Images(Dataset[_Seen]):
    def __init__(self, sources: Sequence[OpenedSource], rendered: Sequence[Sample]) -> None:
        self._listed = [(each, name) for each in sources for name in each.validation]
        self._rendered = rendered

    def __len__(self) -> int:
        return len(self._listed) + len(self._rendered)

    def __getitem__(self, index: int) -> _Seen:
        if index < len(self._listed):
            source, name = self._listed[index]
            return _seen(source.name, source.dataset.load(name))
        return _seen(RENDERED, self._rendered[index - len(self._listed)])


def _seen(name: str, sample: Sample) -> _Seen:
    frame = unet_letterbox(sample.size)
    return name, pad(resize(sample.pixels, frame), frame), frame, Truth(sample.semantic, _fruits(sample, frame))


def _fruits(sample: Sample, frame: UNetLetterbox) -> int | None:
    if sample.instance_map is None:
        return None
    smallest = MIN_REGION * frame.original.pixels / frame.resized.pixels
    areas = np.bincount(sample.instance_map.ravel())[1:]
    return int(np.count_nonzero(areas >= smallest))


def _as_it_is(item: Any) -> Any:
    return item
