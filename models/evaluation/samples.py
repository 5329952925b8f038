"""The images of an evaluation, as the files that a service receives: parts of annotated data, and rendered scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from tqdm import tqdm

from models import images
from models.data.dataset import Dataset, Problem, log_warnings, unusable
from models.data.samples import Sample
from models.data.sources import DataSource, find_split
from models.data.splits import TEST, Split, data_hash
from models.errors import DataError, PomonaError
from models.masks import MAX_PIXELS
from models.synthetic import encode_jpeg, render
from models.types import PixelClass, Size

EXTRA_TEST: Final = "extra_test"
"""Part of a split file with images unlike those to train on, measured as a group of its own."""

ALL: Final = "all"
"""Name of the part with every image of the data, whatever its split says."""

RENDERED: Final = "rendered"

FIRST_SEED: Final = 0
END_OF_SEEDS: Final = 500_000
"""Scenes to train and validate on have seeds from here on."""

SIZES: Final = (Size(224, 448), Size(480, 640), Size(768, 1024), Size(640, 480))
"""Of rendered scenes, in turn."""


class CannotEvaluate(PomonaError):
    """Options that contradict each other, or nothing to evaluate."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedSample:
    """An annotated image together with its file.

    Attributes:
        sample: the image and its annotation.
        data: the file.
    """

    sample: Sample
    data: bytes

    def without_instances(self) -> EncodedSample:
        """Return the same image as if its annotation did not separate fruits."""
        return replace(self, sample=replace(self.sample, instances=(), instance_map=None))


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images to measure together, loaded one at a time.

    Attributes:
        name: unique.
        title: heading in the report.
        description: what the images show.
        names: of the images.
        load: returns an image by its name.
        has_instances: whether the annotation of every image separates its fruits.
        kinds: what an image shows, by its name, for those where it is known; kinds are also measured apart.
    """

    name: str
    title: str
    description: str
    names: tuple[str, ...]
    load: Callable[[str], EncodedSample]
    has_instances: bool
    kinds: Mapping[str, str] = field(default_factory=dict)

    def kind_of(self, name: str) -> str:
        """Return the kind of an image, empty if it is not known."""
        return self.kinds.get(name, "")

    def at_most(self, count: int) -> ImageSet:
        """Return so many of the images, evenly spaced; the set itself if it has no more.

        Args:
            count: at least 1.
        """
        total = len(self.names)
        if total <= count:
            return self
        return replace(
            self,
            title=f"{self.title} ({count} of {total})",
            description=f"{count} of {total} images, evenly spaced. {self.description}",
            names=tuple(self.names[place * total // count] for place in range(count)),
        )

    def __iter__(self) -> Iterator[EncodedSample]:
        return map(self.load, self.names)


def data_sets(sources: Sequence[DataSource], parts: Sequence[str], *, progress: bool) -> list[ImageSet]:
    """Open annotated data, and read every image to be measured once, so that broken ones are found first.

    Args:
        sources: the data.
        parts: names of parts of its split, or `ALL`; if empty, "test", and "extra_test" where the split has it.
        progress: show progress bars on a terminal.

    Returns:
        One set for each part of each source.

    Raises:
        DataError: data, a split or images cannot be used; the message names all broken images of a part.
        CannotEvaluate: two sources of the same name.
    """
    names = [source.path.absolute().stem for source in sources]
    if len(set(names)) < len(names):
        raise CannotEvaluate(f"names of --data must be unique, got {', '.join(names)}")
    return [
        each
        for name, source in zip(names, sources, strict=True)
        for each in _parts_of(name, source, parts, progress=progress)
    ]


def rendered_set(count: int) -> ImageSet:
    """Return rendered scenes that no model is trained or validated on, as JPEG files.

    Args:
        count: number of scenes, 1 to 500,000.

    Raises:
        CannotEvaluate: a count out of range.
    """
    if not 1 <= count <= END_OF_SEEDS - FIRST_SEED:
        raise CannotEvaluate(f"the number of rendered scenes must be 1 to {END_OF_SEEDS - FIRST_SEED:,}, got {count}")
    sizes = {str(FIRST_SEED + number): SIZES[number % len(SIZES)] for number in range(count)}
    in_words = ", ".join(f"{size.width} x {size.height}" for size in SIZES)
    return ImageSet(
        name=RENDERED,
        title="Rendered scenes",
        description=(
            f"Scenes from this project's renderer, seeds {FIRST_SEED} to {FIRST_SEED + count - 1}, {in_words} in "
            "turn, as JPEG. No model was trained, validated or chosen on them. Their masks are exact: background, "
            "healthy and infected."
        ),
        names=tuple(sizes),
        load=lambda seed: _encoded(render(int(seed), sizes[seed])),
        has_instances=True,
    )


def _parts_of(name: str, source: DataSource, parts: Sequence[str], *, progress: bool) -> list[ImageSet]:
    dataset = source.open()
    split, divided_by = find_split(dataset, source)
    chosen = list(dict.fromkeys(parts)) or [TEST, *([EXTRA_TEST] if split.parts.get(EXTRA_TEST) else [])]
    return [_part_of(name, dataset, split, (part, divided_by), progress=progress) for part in chosen]


def _part_of(name: str, dataset: Dataset, split: Split, part: tuple[str, str], *, progress: bool) -> ImageSet:
    chosen, divided_by = part
    names = dataset.names if chosen == ALL else split.of(chosen)
    has_instances, has_classes, faulty = _check(dataset, names, f"checking {name}", progress=progress)
    which = "All images" if chosen == ALL else f"Part {chosen!r}, split by {divided_by}"
    classes = "background, healthy and infected" if has_classes else "fruit and background"
    fruits = "and separates fruits" if has_instances else "but does not separate fruits"
    left_out = f" Faulty regions of {faulty} images are left out or ignored." if faulty else ""
    return ImageSet(
        name=f"{name}-{chosen}",
        title=f"Photographs: {name}, {chosen}",
        description=(
            f"{which}. The annotation distinguishes {classes}, {fruits}. "
            f"SHA-256 of images and annotations: {data_hash(dataset, names)[:12]}.{left_out}"
        ),
        names=names,
        load=lambda each: _read(dataset, each),
        has_instances=has_instances,
        kinds=dataset.groups,
    )


def _check(dataset: Dataset, names: Sequence[str], what: str, *, progress: bool) -> tuple[bool, bool, int]:
    """Return whether all images have instances, whether any has health, and the number with faults."""
    broken = [str(problem) for problem in dataset.problems]
    has_instances, has_classes = True, False
    warned: list[Problem] = []
    for name in tqdm(names, desc=what, unit="image", leave=False, disable=None if progress else True):
        try:
            sample = dataset.load(name)
        except DataError as error:
            broken.append(error.detail)
            continue
        if sample.warnings:
            warned.append(Problem(dataset.items[name].image, "; ".join(sample.warnings)))
        has_instances &= sample.instance_map is not None
        has_classes |= bool(np.isin(sample.semantic, (PixelClass.HEALTHY, PixelClass.INFECTED)).any())
    log_warnings(dataset.root, warned)
    if broken:
        raise unusable(dataset.root, broken)
    return has_instances, has_classes, len(warned)


def _read(dataset: Dataset, name: str) -> EncodedSample:
    path = dataset.items[name].image
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return EncodedSample(dataset.load(name), data)


def _encoded(sample: Sample) -> EncodedSample:
    data = encode_jpeg(sample)
    return EncodedSample(replace(sample, pixels=images.decode(data, max_pixels=MAX_PIXELS).pixels), data)
