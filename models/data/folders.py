"""Plain folders -> items.

images/NAME.jpg       photographs, in folders of their own if wanted; or .png, .webp, .bmp, .tif
masks/NAME.png        index PNG: what every pixel shows, by value (0 background, 1 healthy, 2 infected, unless told)
instances/NAME.png    optional: 8- or 16-bit index PNG, the number of the fruit, 0 for none
split.json            optional; see `models.data.splits`
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import images
from models.data.dataset import ClassMap, Dataset, Item, Problem, name_items
from models.data.image_files import list_images
from models.data.regions import Drawn, list_instances
from models.data.samples import InstanceMap
from models.errors import DataError, ImageError
from models.masks import MAX_PIXELS
from models.types import PixelClass, SemanticMap, Size

# Pillow's names for grey of 1 to 16 bits, and for a palette, whose indices count.
_INDEX_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B"})

_UNLISTED = 128  # no pixel class


@dataclass(frozen=True, slots=True)
class IndexMasks:
    """Index PNGs of one image.

    Attributes:
        mask: the file of classes.
        instances: the file of fruit numbers, or None.
        classes: what the values mean.
    """

    mask: Path
    instances: Path | None
    classes: ClassMap

    def draw(self, size: Size) -> Drawn:
        """Read them; see `models.data.dataset.Annotation`."""
        semantic = self._semantic(_read_index(self.mask, size))
        if self.instances is None:
            return Drawn(semantic)
        numbers: InstanceMap = _read_index(self.instances, size).astype(np.uint16)
        stray = int(np.count_nonzero((numbers != 0) & (semantic == PixelClass.BACKGROUND)))
        if stray:
            raise DataError(
                f"{self.instances.parent.name} and {self.mask.parent.name} differ: {stray} pixels of fruits "
                "are background in the mask"
            )
        return Drawn(semantic, list_instances(semantic, numbers), numbers)

    def content(self) -> bytes:
        """The files' bytes."""
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
            raise DataError(f"the mask {self.mask.name} has values that the class map has not: {found} ({known})")
        return semantic


def open_folders(root: Path, photographs: Path, classes: ClassMap) -> Dataset:
    """List the images of a folder that have masks.

    Args:
        root: holds `masks` and maybe `instances`.
        photographs: the folder of photographs.
        classes: what the masks' values mean.

    Returns:
        The set. An image without mask and a mask without image are problems; so are two images that differ in
        their ending only, as one mask cannot be of both.

    Raises:
        DataError: a folder cannot be read.
    """
    items: dict[Path, Item] = {}  # by mask
    problems: list[Problem] = []
    numbered = (root / "instances").is_dir()
    found = list_images(photographs)
    for image in found:
        relative = image.relative_to(photographs).with_suffix(".png")
        mask, instances = root / "masks" / relative, root / "instances" / relative
        if not mask.is_file():
            problems.append(Problem(image, f"has no mask {mask}"))
        elif numbered and not instances.is_file():
            problems.append(Problem(image, f"has no instances {instances}, though others have"))
        elif mask in items:
            problems.append(Problem(image, f"shares its mask with {items[mask].image.name}; the first counts"))
        else:
            items[mask] = Item(image, IndexMasks(mask, instances if numbered else None, classes))
    wanted = {image.relative_to(photographs).with_suffix(".png") for image in found}
    stray = [mask for mask in list_images(root / "masks") if mask.relative_to(root / "masks") not in wanted]
    problems += [Problem(mask, f"is a mask without an image in {photographs}") for mask in stray]
    return Dataset("folders", root, name_items(photographs, items.values()), tuple(problems))


def _read_index(path: Path, size: Size) -> NDArray[np.integer]:
    try:
        image = images.load(path.read_bytes(), max_pixels=MAX_PIXELS)
    except (OSError, ImageError) as error:
        raise DataError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    if image.mode not in _INDEX_MODES:
        raise DataError(f"{path.parent.name}/{path.name} has colours (mode {image.mode}); an index PNG is right")
    if (image.height, image.width) != (size.height, size.width):
        raise DataError(
            f"{path.parent.name}/{path.name} has {image.width} x {image.height} pixels, but the upright image "
            f"has {size.width} x {size.height}"
        )
    return np.asarray(image, np.uint8 if image.mode in {"1", "L", "P"} else np.uint16)
