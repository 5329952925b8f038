"""Results of asking for everything in an image: masks, and a map of edges."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pomona.exports import LabelledMask
from pomona.images import open_png, save_image
from pomona.masks import ScoredMask
from pomona.results import MaskResult, ModelUsed, Result

_MOST_8_BITS = 255
_MOST_16_BITS = 65535


@dataclass(frozen=True)
class ProposedMask(ScoredMask):
    """A mask of something in the image.

    Attributes:
        point: x and y of the grid's point that found it.
    """

    point: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Proposals(MaskResult):
    """Masks of everything in an image.

    Attributes:
        model: that answered.
        masks: best first.
        points_done: points of all grids that were asked.
        points_total: points of all grids.
        degraded: the deadline ended the search early, or `input_size="auto"` took less than the largest size.
    """

    model: ModelUsed
    masks: tuple[ProposedMask, ...]
    points_done: int
    points_total: int
    degraded: bool = False

    def labelled_masks(self) -> tuple[LabelledMask, ...]:
        """Return the masks, the largest first, so that none hides another where they are drawn."""
        ordered = sorted(self.masks, key=lambda mask: -mask.area)
        return tuple(LabelledMask(one.mask, one.box, one.area, "object", one.score, {}) for one in ordered)


@dataclass(frozen=True)
class Progress:
    """What has changed while the service works.

    Attributes:
        points_done: points of all grids that were asked.
        points_total: points of all grids.
        found: masks that are new.
        withdrawn: numbers of masks found earlier, in the order in which they came and from 0, that better ones have
            replaced.
    """

    points_done: int
    points_total: int
    found: tuple[ProposedMask, ...] = ()
    withdrawn: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EdgeMap(Result):
    """The edges of everything in an image.

    Attributes:
        model: that answered.
        edges_png: the map as grey PNG of 8 or 16 bits.
        masks: number of masks whose edges are in the map.
        points_done: points of the grid that were asked.
        points_total: points of the grid.
        degraded: the deadline ended the search early, or `input_size="auto"` took less than the largest size.
    """

    model: ModelUsed
    edges_png: bytes = field(repr=False)
    masks: int
    points_done: int
    points_total: int
    degraded: bool = False

    def map_image(self) -> PIL.Image.Image:
        """Return the map as a grey image: mode L, or I;16 where 16 bits were asked for."""
        return open_png(self.edges_png)

    @cached_property
    def array(self) -> NDArray[np.float32]:
        """The strength of the edge at each pixel: float32 (height, width), 0 to 1."""
        levels = np.asarray(self.map_image())
        most = _MOST_8_BITS if levels.dtype == np.uint8 else _MOST_16_BITS
        shares: NDArray[np.float32] = levels.astype(np.float32) / np.float32(most)
        return shares

    def save(self, path: str | PathLike[str]) -> None:
        """Write the map as an image.

        Raises:
            InvalidArgument: the name has no known extension, or the file cannot be written.
        """
        save_image(self.map_image(), path)

    def to_dict(self) -> dict[str, object]:
        """Return everything but the map as JSON has it."""
        return {
            "request_id": self.request_id,
            "image": {"id": self.image.id, "width": self.image.width, "height": self.image.height},
            "masks": self.masks,
            "points_done": self.points_done,
            "points_total": self.points_total,
            "degraded": self.degraded,
        }
