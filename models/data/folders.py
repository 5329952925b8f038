"""Read annotated images from plain folders.

images/NAME.jpg       photographs, also .png, .webp, .bmp or .tif; may lie in subfolders
masks/NAME.png        index PNG of class values (by default 0 background, 1 healthy, 2 infected, 255 ignore)
instances/NAME.png    optional: 8- or 16-bit index PNG of fruit numbers, 0 for none
split.json            optional; see `models.data.splits`
meta.json             optional: {"NAME": {"kind": "tree", ...}, ...}; images of one kind are a group of their own

Where the mask says ignore inside a fruit of the instances, it is surely fruit, and only its health is unknown: such
pixels become FRUIT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models import images
from models.data.dataset import ClassMap, Dataset, Item, Problem, name_items
from models.data.image_files import list_images, nfc
from models.data.samples import InstanceMap, LabelMaps, list_instances
from models.errors import DataError, ImageError
from models.masks import MAX_PIXELS
from models.types import PixelClass, SemanticMap, Size

# Pillow's names for grey of 1 to 16 bits, and for a palette, of which the indices are read.
_INDEX_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B"})

_UNLISTED = 128  # not a pixel class

META_FILE: Final = "meta.json"
_KIND: Final = re.compile(r"[\w-]+")


@dataclass(frozen=True, slots=True)
class IndexMasks:
    """The index PNGs of one image.

    Attributes:
        mask: file of class values.
        instances: file of fruit numbers, or None.
        classes: meaning of the values.
    """

    mask: Path
    instances: Path | None
    classes: ClassMap

    def rasterise(self, size: Size) -> LabelMaps:
        """Read the files; see `models.data.dataset.Annotation`."""
        semantic = self._semantic(_read_index(self.mask, size))
        if self.instances is None:
            return LabelMaps(semantic)
        numbers: InstanceMap = _read_index(self.instances, size).astype(np.uint16)
        stray = int(np.count_nonzero((numbers != 0) & (semantic == PixelClass.BACKGROUND)))
        if stray:
            raise DataError(
                f"{self.instances.parent.name} and {self.mask.parent.name} differ: {stray} pixels of fruits "
                "are background in the mask"
            )
        semantic[(numbers != 0) & (semantic == PixelClass.IGNORE)] = PixelClass.FRUIT
        return LabelMaps(semantic, list_instances(semantic, numbers), numbers)

    def content(self) -> bytes:
        """Return the bytes of the files."""
        return b"".join(each.read_bytes() for each in (self.mask, self.instances) if each is not None)

    def _semantic(self, values: NDArray[np.integer]) -> SemanticMap:
        table = np.full(np.iinfo(values.dtype).max + 1, _UNLISTED, np.uint8)
        for value, pixel_class in self.classes.values.items():
            if value < table.size:
                table[value] = pixel_class
        semantic: SemanticMap = table[values]
        unlisted = semantic == _UNLISTED
        if unlisted.any():
            found = ", ".join(map(str, np.unique(values[unlisted])[:5]))
            known = ", ".join(f"{value} {each.name.lower()}" for value, each in self.classes.values.items())
            raise DataError(f"the mask {self.mask.name} has values outside the class map: {found} (it has {known})")
        return semantic


def open_folders(root: Path, photographs: Path, classes: ClassMap) -> Dataset:
    """List the images of a folder that have masks.

    Args:
        root: folder of `masks` and, optionally, `instances`.
        photographs: folder of the photographs.
        classes: meaning of the mask values.

    Returns:
        The set. Images without a mask and masks without an image are problems, and so are images that differ only in
        their ending, because they would share a mask.

    Raises:
        DataError: a folder cannot be read.
    """
    masks = _Masks(root / "masks")
    numbers = _Masks(root / "instances") if (root / "instances").is_dir() else None
    items: dict[Path, Item] = {}  # by mask
    problems: list[Problem] = []
    wanted: set[str] = set()
    for image in list_images(photographs):
        relative = image.relative_to(photographs).with_suffix(".png")
        wanted.add(nfc(relative.as_posix()))
        mask = masks.find(relative)
        instances = None if numbers is None else numbers.find(relative)
        if mask is None:
            problems.append(Problem(image, f"has no mask {root / 'masks' / relative}"))
        elif numbers is not None and instances is None:
            missing = root / "instances" / relative
            problems.append(Problem(image, f"has no instances {missing}, although others have"))
        elif mask in items:
            problems.append(Problem(image, f"shares its mask with {items[mask].image.name}; the first counts"))
        else:
            items[mask] = Item(image, IndexMasks(mask, instances, classes))
    stray = [mask for name, mask in masks.by_name.items() if name not in wanted]
    problems += [Problem(mask, f"is a mask without an image in {photographs}") for mask in stray]
    named = name_items(photographs, items.values())
    return Dataset("folders", root, named, tuple(problems), _read_kinds(root / META_FILE, named))


class _Masks:
    """The PNGs of a folder, found by path in any of Unicode's forms."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.by_name = {nfc(each.relative_to(folder).as_posix()): each for each in list_images(folder)}

    def find(self, relative: Path) -> Path | None:
        exact = self._folder / relative
        return exact if exact.is_file() else self.by_name.get(nfc(relative.as_posix()))


def _read_kinds(file: Path, items: Mapping[str, Item]) -> dict[str, str]:
    """Return the kinds of images by name; an image that the file does not list, or without a kind, has none."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{file}: must be a JSON object of objects by image name.")
    kinds = {nfc(name): each["kind"] for name, each in content.items() if isinstance(each, Mapping) and "kind" in each}
    wrong = [name for name, kind in kinds.items() if not isinstance(kind, str) or not _KIND.fullmatch(kind)]
    if wrong:
        raise DataError(f"{file}: kind must be a word of letters, digits, '-' and '_', got {kinds[wrong[0]]!r}.")
    return {name: kinds[nfc(name)] for name in items if nfc(name) in kinds}


def _read_index(path: Path, size: Size) -> NDArray[np.integer]:
    try:
        image = images.load(path.read_bytes(), max_pixels=MAX_PIXELS)
    except (OSError, ImageError) as error:
        raise DataError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    if image.mode not in _INDEX_MODES:
        raise DataError(f"{path.parent.name}/{path.name} must be an index PNG, has mode {image.mode}")
    if (image.height, image.width) != (size.height, size.width):
        raise DataError(
            f"{path.parent.name}/{path.name} has {image.width} x {image.height} pixels, but the upright image "
            f"has {size.width} x {size.height}"
        )
    return np.asarray(image, np.uint8 if image.mode in {"1", "L", "P"} else np.uint16)
