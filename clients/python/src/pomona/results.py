"""What is answered. All of it is frozen; masks are decoded when they are looked at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pomona.drawn import Answer, Drawn
from pomona.facts import Capture, Labelled, ModelUsed
from pomona.images import Picture
from pomona.masks import Mask, PixelBox, ScoredMask

FruitClass: TypeAlias = Literal["healthy", "infected"]


@dataclass(frozen=True)
class Fruit:
    """One fruit.

    Attributes:
        id: 1 and up, from left to right by the middle of the box.
        box: tight and half-open.
        area: pixels in the mask.
        mask: of the picture's size; no pixel is in two masks.
        infected_mask: what of it is infected.
        infected_fraction: 0 to 1: infected pixels / pixels of the fruit.
        fruit_class: healthy or infected, as the service draws the line.
        confidence: 0 to 1: mean probability of fruit over the fruit.
        grade: its name, or `reject`.
        truncated: the mask touches the picture's edge.
        refined: the SAM drew the mask.
    """

    id: int
    box: PixelBox
    area: int
    mask: Mask
    infected_mask: Mask
    infected_fraction: float
    fruit_class: FruitClass
    confidence: float
    grade: str
    truncated: bool = False
    refined: bool = False

    @property
    def array(self) -> NDArray[np.bool_]:
        """The pixels, bool (height, width) of the picture's size, decoded at the first look."""
        return self.mask.array

    def save(self, path: str | PathLike[str]) -> None:
        """Write the mask as a picture, white where the fruit is; see `Mask.save`."""
        self.mask.save(path)


@dataclass(frozen=True)
class Region:
    """A connected region of fruit; fruits that touch are one.

    Attributes:
        region_class: healthy or infected.
        box: half-open, to about a cell of what the network saw.
        area: pixels, as exact.
        score: 0 to 1: mean probability of fruit in the region.
    """

    region_class: FruitClass
    box: PixelBox
    area: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Segmentation(Drawn):
    """Masks for prompts.

    Attributes:
        model: that answered.
        results: for each prompt its masks, best first.
        degraded: True where `input_size="auto"` took less than the largest size to meet the deadline.
    """

    model: ModelUsed
    results: tuple[tuple[ScoredMask, ...], ...]
    degraded: bool = False

    @property
    def masks(self) -> tuple[ScoredMask, ...]:
        """All masks: those of the first prompt, best first, then those of the next."""
        return tuple(mask for masks in self.results for mask in masks)

    @property
    def best(self) -> tuple[ScoredMask, ...]:
        """The best mask of each prompt."""
        return tuple(masks[0] for masks in self.results)

    def labelled(self) -> tuple[Labelled, ...]:
        """The best mask of each prompt."""
        return tuple(Labelled(best.mask, best.box, best.area, "object", best.score, {}) for best in self.best)


@dataclass(frozen=True, kw_only=True)
class Inspection(Drawn):
    """Every fruit of a picture.

    Attributes:
        fruits: from left to right.
        unet: what found them.
        sam: what drew their outlines; None where the U-Net did.
        mode: the one that was used.
        degraded: mode `auto` gave less than without the deadline or the load.
        reason: why, or None.
        capture: what was said of the frame.
    """

    fruits: tuple[Fruit, ...]
    unet: ModelUsed
    sam: ModelUsed | None = None
    mode: Literal["fast", "accurate"] = "fast"
    degraded: bool = False
    reason: str | None = None
    capture: Capture = field(default_factory=Capture)

    def labelled(self) -> tuple[Labelled, ...]:
        """Each fruit, by its class."""
        return tuple(
            Labelled(
                fruit.mask,
                fruit.box,
                fruit.area,
                fruit.fruit_class,
                fruit.confidence,
                {"grade": fruit.grade, "infected_fraction": fruit.infected_fraction},
                fruit.infected_mask,
            )
            for fruit in self.fruits
        )


@dataclass(frozen=True, kw_only=True)
class SemanticMap(Drawn):
    """Which pixels are healthy fruit, which infected.

    Attributes:
        model: that answered.
        healthy: where healthy fruit is.
        infected: where infected fruit is.
        healthy_area: pixels.
        infected_area: pixels.
        objects: connected regions of fruit.
    """

    model: ModelUsed
    healthy: Mask
    infected: Mask
    healthy_area: int
    infected_area: int
    objects: tuple[Region, ...] = ()

    @cached_property
    def array(self) -> NDArray[np.uint8]:
        """Classes as uint8 (height, width): 0 background, 1 healthy, 2 infected."""
        return self.healthy.array + 2 * self.infected.array.astype(np.uint8)

    def labelled(self) -> tuple[Labelled, ...]:
        """Each class that is somewhere in the picture; its score is 1, as a class has none."""
        both = (("healthy", self.healthy, self.healthy_area), ("infected", self.infected, self.infected_area))
        return tuple(Labelled(mask, mask.box, area, name, 1.0, {}) for name, mask, area in both if area)

    def index_map(self) -> NDArray[np.uint16]:
        """Classes as uint16 (height, width): 0 background, 1 healthy, 2 infected."""
        return self.array.astype(np.uint16)


@dataclass(frozen=True, kw_only=True)
class Embedding(Answer):
    """A picture that the service has encoded, to be given to `segment` instead of the picture.

    Attributes:
        model: that encoded it.
        picture: what was sent, to send it again should the service have forgotten it; `forgetful()` is without.
    """

    model: ModelUsed
    picture: Picture | None = None

    def forgetful(self) -> Embedding:
        """The same without the picture's bytes; then `UnknownImageId` is raised where the service has forgotten it."""
        return dataclasses.replace(self, picture=None)


@dataclass(frozen=True)
class Model:
    """A model of the catalogue.

    Attributes:
        name: of the catalogue.
        family: `sam` answers `segment` and `embed`, `unet` answers `semantic`; both answer `inspect`.
        revision: first 12 hex digits of the checkpoint's SHA-256.
        licence: of the checkpoint.
        loaded: whether it answers.
        device: where it runs; None where not loaded.
        backend: what runs it; None where not loaded.
    """

    name: str
    family: str
    revision: str
    licence: str
    loaded: bool
    device: str | None
    backend: str | None
