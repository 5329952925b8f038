"""The parts of a user's data to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

from models.data.dataset import ClassMap, Dataset, unusable
from models.data.sources import DataSource, find_split, open_dataset
from models.data.splits import TEST, Split, data_hash
from models.errors import DataError
from models.evaluation.errors import CannotEvaluate
from models.evaluation.shots import ImageSet, Shot
from models.types import PixelClass

EXTRA_TEST: Final = "extra_test"
"""Part of a split file: images unlike those to train on, measured as a set of their own."""

ALL: Final = "all"
"""Every image of the data, whatever its split says."""


def data_sets(sources: Sequence[DataSource], parts: Sequence[str], *, progress: bool) -> list[ImageSet]:
    """Open a user's data, and read every image that will be measured on once.

    Args:
        sources: the data.
        parts: names of parts of its split, or `ALL`; if empty, "test", and "extra_test" where the split has it.
        progress: draw bars on a terminal.

    Returns:
        A set for each part of each source.

    Raises:
        DataError: data, a split or images cannot be used; all broken images of a part are named.
        CannotEvaluate: two sources of the same name.
    """
    names = [source.path.absolute().stem for source in sources]
    if len(set(names)) < len(names):
        raise CannotEvaluate(f"Several --data are called {', '.join(names)}; the results could not be told apart.")
    return [
        each
        for name, source in zip(names, sources, strict=True)
        for each in _sets_of(name, source, parts, progress=progress)
    ]


def _sets_of(name: str, source: DataSource, parts: Sequence[str], *, progress: bool) -> list[ImageSet]:
    dataset = open_dataset(source.path, classes=ClassMap.of(source.classes), images=source.images)
    split, divided_by = find_split(dataset, source)
    wanted = list(dict.fromkeys(parts)) or [TEST, *([EXTRA_TEST] if split.parts.get(EXTRA_TEST) else [])]
    return [_part(name, dataset, split, (part, divided_by), progress=progress) for part in wanted]


def _part(name: str, dataset: Dataset, split: Split, part: tuple[str, str], *, progress: bool) -> ImageSet:
    chosen, divided_by = part
    names = dataset.names if chosen == ALL else split.of(chosen)
    told_apart, known = _check(dataset, names, f"checking {name}", progress=progress)
    which = "all images" if chosen == ALL else f"the part {chosen!r}, divided by {divided_by}"
    return ImageSet(
        name=f"{name}-{chosen}",
        title=f"Photographs: {name}, {chosen}",
        description=(
            f"{which[0].upper()}{which[1:]}. The annotation tells "
            + ("background, healthy and infected" if known else "fruit from background")
            + (", and fruits from one another" if told_apart else ", but no fruits from one another")
            + f". SHA-256 of images and annotations {data_hash(dataset, names)[:12]}."
        ),
        names=names,
        load=lambda each: _read(dataset, each),
        told_apart=told_apart,
    )


def _check(dataset: Dataset, names: Sequence[str], what: str, *, progress: bool) -> tuple[bool, bool]:
    """Whether all images tell fruits apart, and whether healthy and infected are told in any."""
    broken = [str(problem) for problem in dataset.problems]
    told_apart, known = True, False
    for name in tqdm(names, desc=what, unit="image", leave=False, disable=None if progress else True):
        try:
            sample = dataset.load(name)
        except DataError as error:
            broken.append(error.detail)
            continue
        told_apart &= sample.instance_map is not None
        known |= not bool((sample.semantic == PixelClass.FRUIT).any())
    if broken:
        raise unusable(dataset.root, broken)
    return told_apart, known


def _read(dataset: Dataset, name: str) -> Shot:
    path: Path = dataset.items[name].image
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    return Shot(dataset.load(name), data)
