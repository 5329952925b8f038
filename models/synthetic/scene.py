"""What an image shows: the options that a caller fixes, and the scene, free of pixels and of the image's size.

Lengths are in units of the mean side, the square root of width times height. Positions are in the view frame: x
right, y down, z towards the camera, the image's centre at the origin; the projection is parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.errors import PomonaError
from models.synthetic.fields import Rgb

MAX_FRUITS: Final = 24
_LEAST_ROT: Final = 0.05  # less than this is a lesion


class CannotRender(PomonaError):
    """The seed, the size or the options of a rendering are out of range."""


class Background(StrEnum):
    """What is behind the fruit."""

    BELT = "belt"
    ROLLERS = "rollers"
    CUPS = "cups"
    TABLE = "table"
    CLOTH = "cloth"
    CRATE = "crate"
    FOLIAGE = "foliage"
    GRASS = "grass"
    SOIL = "soil"
    WHITE = "white"
    BLACK = "black"


class Species(StrEnum):
    """Species of fruit: citrus, apples so that shape and skin vary, and plums only where they are asked for."""

    ORANGE = "orange"
    MANDARIN = "mandarin"
    LEMON = "lemon"
    APPLE = "apple"
    PLUM = "plum"


class Layout(StrEnum):
    """How the fruits lie.

    LOOSE fruits may touch, hide parts of one another and cross the border of the image; some are 12 pixels wide at
    448 x 224, some larger than the image, and some in a hand. The others lie entirely inside the image, and are of
    medium size if asked for: APART with gaps between them, TOUCHING side by side, PILED on top of one another.
    """

    LOOSE = "loose"
    APART = "apart"
    TOUCHING = "touching"
    PILED = "piled"


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """What is fixed about an image; everything else is random.

    Attributes:
        background: what is behind the fruit; None for any.
        fruits: number of fruits, 0 to 24; None for 0 to 12. Leaves may hide one completely.
        layout: how the fruits lie; None for any. With None, cups and foliage place fruit in their own way.
        infected_share: share of the fruits that have lesions, 0 to 1; a share that gives no whole number of fruits is
            rounded up or down at random. Hidden lesions do not show, so fewer fruits may look infected.
        rot_cover: share of the visible surface of each infected fruit that one large rot or mould covers, 0.05 to 1;
            None for any lesions, large rot among them.
        russet_share: share of the fruits that have russet or wind scars, which are harmless, 0 to 1.
        distractors: whether fruit has harmless marks: russet, wind scars, stickers, drops, dust, leaf fragments.
        camera: whether there is blur, noise, vignetting and JPEG compression.
        species: of all fruits; None for any but plums, so that plums are fruit that no model was trained on.

    Raises:
        CannotRender: a number is out of range, or fruit in cups cannot have the layout.
    """

    background: Background | None = None
    fruits: int | None = None
    layout: Layout | None = None
    infected_share: float = 0.45
    rot_cover: float | None = None
    russet_share: float = 0.2
    distractors: bool = True
    camera: bool = True
    species: Species | None = None

    def __post_init__(self) -> None:
        if self.fruits is not None and not 0 <= self.fruits <= MAX_FRUITS:
            raise CannotRender(f"fruits must be 0 to {MAX_FRUITS}, got {self.fruits}.")
        if not 0 <= self.infected_share <= 1:
            raise CannotRender(f"infected_share must be 0 to 1, got {self.infected_share}.")
        if self.rot_cover is not None and not _LEAST_ROT <= self.rot_cover <= 1:
            raise CannotRender(f"rot_cover must be {_LEAST_ROT} to 1, got {self.rot_cover}.")
        if not 0 <= self.russet_share <= 1:
            raise CannotRender(f"russet_share must be 0 to 1, got {self.russet_share}.")
        if self.background is Background.CUPS and self.layout not in {None, Layout.APART}:
            raise CannotRender(f"layout must be apart with cups, got {self.layout}.")


Vector: TypeAlias = NDArray[np.float64]
"""float64 (3,)."""


class LesionKind(StrEnum):
    """Diseases and injuries of peel; their pixels are infected."""

    MOULD = "mould"
    ROT = "rot"
    CANKER = "canker"
    BLACK_SPOT = "black spot"
    SCAB = "scab"
    NET = "net"
    SOOT = "soot"
    SCAR = "scar"


class RotKind(StrEnum):
    """Decay of a large part of a fruit; its pixels are infected."""

    SOFT = "soft rot"
    MOULD = "mould"


class MarkKind(StrEnum):
    """What lies on peel or looks odd but is harmless; its pixels stay healthy."""

    STICKER = "sticker"
    DROPS = "drops"
    DUST = "dust"
    LEAF_BIT = "leaf fragment"
    WIND_SCAR = "wind scar"
    RUSSET = "russet"


@dataclass(frozen=True, slots=True, eq=False)
class Lesion:
    """One lesion, or one cluster of spots.

    Attributes:
        kind: kind of lesion.
        centre: unit vector in the fruit's own frame.
        radius: length of the chord from the centre to the edge, on a fruit of radius 1.
        key: key of its random details.
    """

    kind: LesionKind
    centre: Vector
    radius: float
    key: int


@dataclass(frozen=True, slots=True, eq=False)
class Rot:
    """Decay of a large part of a fruit.

    Attributes:
        kind: kind of rot.
        centre: where it began: unit vector in the fruit's own frame.
        cover: share of the visible surface that it covers, 0 to 1.
        key: key of its random details.
    """

    kind: RotKind
    centre: Vector
    cover: float
    key: int


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """A harmless mark; its attributes are those of `Lesion`."""

    kind: MarkKind
    centre: Vector
    radius: float
    key: int


@dataclass(frozen=True, slots=True, eq=False)
class Fruit:
    """One fruit: an ellipsoid with a bumpy outline.

    Attributes:
        species: species of the fruit.
        centre: centre in the view frame.
        radius: length of its longest half axis.
        axes: half axes as shares of the radius, along its own x, y, z; the stem is at +y.
        rotation: (3, 3) matrix from the view frame to the fruit's own frame.
        ripeness: 0 green to 1 fully coloured.
        blush: 0 none to 1 wholly red; apples only.
        gloss: 0 dull to 1 waxed.
        wrinkles: 0 none to 1 deep, around the stem.
        shrivel: 0 plump to 1 shrunk, with an uneven outline.
        rot: large rot; None for none.
        lesions: painted over the rot, in this order.
        marks: russet and wind scars are painted under rot and lesions, all others over them.
        key: key of its random details.
    """

    species: Species
    centre: Vector
    radius: float
    axes: Vector
    rotation: NDArray[np.float64]
    ripeness: float
    blush: float
    gloss: float
    wrinkles: float
    shrivel: float
    rot: Rot | None
    lesions: tuple[Lesion, ...]
    marks: tuple[Mark, ...]
    key: int


@dataclass(frozen=True, slots=True, eq=False)
class Lamp:
    """A distant light.

    Attributes:
        direction: unit vector towards it, in the view frame.
        colour: colour of its light times its strength.
        softness: 0 for a point, which casts hard shadows, to 1 for a wide panel.
    """

    direction: Vector
    colour: Rgb
    softness: float


@dataclass(frozen=True, slots=True, eq=False)
class Lighting:
    """All light.

    Attributes:
        lamps: the first casts shadows.
        sky: diffuse light from above.
        bounce: light from the ground.
        dapple: 0 for even light to 1 for sun through leaves.
        leafy: whether the dapples have the outlines of near leaves; else they are patches.
        key: key of the dapples.
    """

    lamps: tuple[Lamp, ...]
    sky: Rgb
    bounce: Rgb
    dapple: float
    leafy: bool
    key: int


@dataclass(frozen=True, slots=True, eq=False)
class Lens:
    """What the camera does to the light.

    Attributes:
        exposure: factor on all light.
        balance: factors on red, green and blue.
        contrast: contrast of the tone curve, 0 for none to 1 for strong.
        vignetting: loss of light in the corners, 0 to 1.
        defocus: standard deviation of the blur, in thousandths of the mean side.
        motion: length of the motion blur, likewise.
        motion_angle: its direction in radians.
        sharpening: 0 for none to 1 for strong.
        haze: stray light, 0 to 1 being white paper.
        noise: standard deviation at middle grey, 0 to 1 being black to white.
        jpeg_quality: 1 to 100; None for no compression.
    """

    exposure: float
    balance: Rgb
    contrast: float
    vignetting: float
    defocus: float
    motion: float
    motion_angle: float
    sharpening: float
    haze: float
    noise: float
    jpeg_quality: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Everything that an image shows.

    Attributes:
        extent: width and height; their product is 1.
        background: what is behind the fruit.
        elevation: angle of the camera above the ground in radians; pi / 2 looks straight down.
        pitch_of_rows: distance between rollers or cups; unused with other backgrounds.
        fruits: from far to near.
        hand: whether a hand holds the nearest fruit.
        lighting: all light.
        lens: what the camera does to it.
        key: key of the random details of the background.
    """

    extent: tuple[float, float]
    background: Background
    elevation: float
    pitch_of_rows: float
    fruits: tuple[Fruit, ...]
    hand: bool
    lighting: Lighting
    lens: Lens
    key: int

    @property
    def up(self) -> Vector:
        """Unit vector away from the ground, in the view frame."""
        return np.array([0.0, -np.cos(self.elevation), np.sin(self.elevation)])
