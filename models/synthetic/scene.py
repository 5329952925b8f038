"""What is in an image: frozen, free of pixels, the same whatever the image's size.

Lengths are in units of the mean side, the square root of width times height. Positions are in the view frame: x
right, y down, z towards the camera, the image's centre at the origin; the projection is parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.synthetic.fields import Rgb
from models.synthetic.options import Background

Vector: TypeAlias = NDArray[np.float64]
"""float64 (3,)."""


class Species(StrEnum):
    """What kind of citrus."""

    ORANGE = "orange"
    MANDARIN = "mandarin"
    LEMON = "lemon"


class LesionKind(StrEnum):
    """Diseases and injuries of peel; their pixels are infected."""

    MOULD = "mould"
    ROT = "rot"
    CANKER = "canker"
    BLACK_SPOT = "black spot"
    SCAB = "scab"
    SCAR = "scar"


class MarkKind(StrEnum):
    """What lies on peel or looks odd and does no harm; its pixels stay healthy."""

    STICKER = "sticker"
    DROPS = "drops"
    DUST = "dust"
    LEAF_BIT = "leaf fragment"
    WIND_SCAR = "wind scar"


@dataclass(frozen=True, slots=True, eq=False)
class Lesion:
    """One lesion, or one cluster of spots.

    Attributes:
        kind: what it is.
        centre: unit vector in the fruit's own frame.
        radius: length of the chord from the centre to the edge, on a fruit of radius 1.
        key: of its random details.
    """

    kind: LesionKind
    centre: Vector
    radius: float
    key: int


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """A harmless mark; attributes as those of `Lesion`."""

    kind: MarkKind
    centre: Vector
    radius: float
    key: int


@dataclass(frozen=True, slots=True, eq=False)
class Fruit:
    """One fruit: an ellipsoid with a bumpy outline.

    Attributes:
        species: what it is.
        centre: in the view frame.
        radius: of its longest half axis.
        axes: half axes as shares of the radius, along its own x, y, z; the stem is at +y.
        rotation: (3, 3); takes the view frame to the fruit's own.
        ripeness: 0 green to 1 fully coloured.
        gloss: 0 dull to 1 waxed.
        wrinkles: 0 none to 1 deep, around the stem.
        lesions: painted in this order.
        marks: painted over the lesions.
        key: of its random details.
    """

    species: Species
    centre: Vector
    radius: float
    axes: Vector
    rotation: NDArray[np.float64]
    ripeness: float
    gloss: float
    wrinkles: float
    lesions: tuple[Lesion, ...]
    marks: tuple[Mark, ...]
    key: int


@dataclass(frozen=True, slots=True, eq=False)
class Lamp:
    """A distant light.

    Attributes:
        direction: unit vector towards it, in the view frame.
        colour: of its light, times its strength.
        softness: 0 a point, which casts hard shadows, to 1 a wide panel.
    """

    direction: Vector
    colour: Rgb
    softness: float


@dataclass(frozen=True, slots=True, eq=False)
class Lighting:
    """All light.

    Attributes:
        lamps: the first casts shadows.
        sky: light from all over the upper side.
        bounce: light from the ground.
        dapple: 0 even light to 1 sun through leaves.
        key: of the dapples.
    """

    lamps: tuple[Lamp, ...]
    sky: Rgb
    bounce: Rgb
    dapple: float
    key: int


@dataclass(frozen=True, slots=True, eq=False)
class Lens:
    """What the camera does to the light.

    Attributes:
        exposure: factor on all light.
        balance: factors on red, green and blue.
        contrast: 0 none to 1 strong, of the tone curve.
        vignetting: loss of light in the corners, 0 to 1.
        defocus: standard deviation of the blur, in thousandths of the mean side.
        motion: length of the smear, likewise.
        motion_angle: its direction in radians.
        sharpening: 0 none to 1 strong.
        noise: standard deviation at middle grey, 0 to 1 being black to white.
        jpeg_quality: 1 to 100, None for no compression.
    """

    exposure: float
    balance: Rgb
    contrast: float
    vignetting: float
    defocus: float
    motion: float
    motion_angle: float
    sharpening: float
    noise: float
    jpeg_quality: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """All that an image shows.

    Attributes:
        extent: width and height; their product is 1.
        background: what is behind the fruit.
        elevation: of the camera above the ground in radians; half of pi looks straight down.
        pitch_of_rows: distance between rollers or cups; without meaning for other backgrounds.
        fruits: from far to near.
        lighting: all light.
        lens: what the camera does to it.
        key: of the background's random details.
    """

    extent: tuple[float, float]
    background: Background
    elevation: float
    pitch_of_rows: float
    fruits: tuple[Fruit, ...]
    lighting: Lighting
    lens: Lens
    key: int

    @property
    def up(self) -> Vector:
        """Away from the ground, in the view frame."""
        return np.array([0.0, -np.cos(self.elevation), np.sin(self.elevation)])
