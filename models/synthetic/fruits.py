"""Draw a random fruit: its shape, its ripeness, and what is wrong with it or lies on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.synthetic.fields import generator, tangents
from models.synthetic.layout import Ball
from models.synthetic.scene import (
    Fruit,
    Lesion,
    LesionKind,
    Mark,
    MarkKind,
    RenderOptions,
    Rot,
    RotKind,
    Species,
    Vector,
)

_Kind = TypeVar("_Kind")

_SPECIES: Final = {Species.ORANGE: 0.38, Species.MANDARIN: 0.32, Species.LEMON: 0.13, Species.APPLE: 0.17}
_GREEN_ON_TREES: Final = 0.45  # share of images with unripe fruit: it is the hardest to tell from leaves
_GREEN_PICKED: Final = 0.06
_LESIONS: Final = {
    LesionKind.MOULD: 0.18,
    LesionKind.ROT: 0.18,
    LesionKind.CANKER: 0.16,
    LesionKind.BLACK_SPOT: 0.14,
    LesionKind.SCAB: 0.1,
    LesionKind.NET: 0.08,
    LesionKind.SOOT: 0.08,
    LesionKind.SCAR: 0.08,
}
_LESION_RADII: Final = {
    LesionKind.MOULD: (0.18, 0.85),
    LesionKind.ROT: (0.15, 0.8),
    LesionKind.CANKER: (0.2, 0.9),
    LesionKind.BLACK_SPOT: (0.25, 1.0),
    LesionKind.SCAB: (0.3, 1.0),
    LesionKind.NET: (0.4, 1.5),
    LesionKind.SOOT: (0.4, 1.5),
    LesionKind.SCAR: (0.2, 0.6),
}
_MARKS: Final = {
    MarkKind.STICKER: 0.2,
    MarkKind.DROPS: 0.2,
    MarkKind.DUST: 0.2,
    MarkKind.LEAF_BIT: 0.15,
}
_MARK_RADII: Final = {
    MarkKind.STICKER: (0.16, 0.34),
    MarkKind.DROPS: (0.4, 1.2),
    MarkKind.DUST: (0.4, 1.2),
    MarkKind.LEAF_BIT: (0.12, 0.4),
    MarkKind.WIND_SCAR: (0.3, 0.9),
    MarkKind.RUSSET: (0.5, 2.2),
}
_ROTTEN: Final = 0.35  # share of the infected fruits with large rot: what lines sort out, and most of the rotten pixels
_ROTS: Final = {RotKind.SOFT: 0.68, RotKind.MOULD: 0.32}
_COVERS: Final = {RotKind.SOFT: (0.2, 0.85), RotKind.MOULD: (0.5, 1.0)}
_WHOLLY: Final = 0.12  # share of soft rots that have covered all


@dataclass(frozen=True, slots=True)
class Usual:
    """What the fruits of one image have in common; where they are `mixed`, a few are of another species."""

    species: Species
    ripeness: float
    spread: float
    blush: float
    mixed: bool


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """Half axes and rotation of a fruit that has no place yet; see `Fruit`."""

    species: Species
    axes: Vector
    rotation: NDArray[np.float64]


def pick(rng: np.random.Generator, shares: dict[_Kind, float]) -> _Kind:
    """Choose a key; its value is its share."""
    chances = np.array(list(shares.values()))
    return list(shares)[int(rng.choice(len(chances), p=chances / chances.sum()))]


def usual_of(rng: np.random.Generator, *, hanging: bool, species: Species | None = None) -> Usual:
    """Draw what the fruits of an image have in common; on trees much fruit is green still."""
    drawn = pick(rng, _SPECIES)
    green = rng.random() < (_GREEN_ON_TREES if hanging else _GREEN_PICKED)
    ripeness = rng.beta(1, 7) if green else rng.beta(2.6, 0.9)
    spread = rng.uniform(0, 0.25) if rng.random() < 0.7 else 0.5
    if green:
        spread *= 0.4
    blush = 0.0 if rng.random() < 0.3 else rng.random()
    return Usual(species or drawn, ripeness, spread, blush, mixed=species is None)


def shape_of(rng: np.random.Generator, usual: Usual, elevation: float | None) -> Shape:
    """Draw half axes and rotation: flat fruit lies on its flat side, long fruit on its long side, round fruit anyhow.

    Args:
        rng: random generator.
        usual: what the fruits of the image have in common.
        elevation: angle of the camera above the ground; None for hanging fruit.
    """
    other = pick(rng, _SPECIES) if rng.random() < 0.08 else usual.species
    species = other if usual.mixed else usual.species
    poles = {
        Species.ORANGE: rng.uniform(0.9, 1.07),
        Species.MANDARIN: rng.uniform(0.72, 0.92),
        Species.LEMON: rng.uniform(1.12, 1.4),
        Species.APPLE: rng.uniform(0.8, 1.0),
    }
    pole = rng.uniform(1.0, 1.3) if species is Species.PLUM else poles[species]
    axes = np.array([1.0, pole, rng.uniform(0.96, 1.0)])
    axes /= axes.max() * (1.15 if species is Species.LEMON else 1)  # room for its nipple
    stem = rng.standard_normal(3)
    if elevation is not None and species is not Species.ORANGE and rng.random() < 0.85:
        up = np.array([0.0, -math.cos(elevation), math.sin(elevation)])
        if species in {Species.MANDARIN, Species.APPLE}:
            stem = up * (1 if rng.random() < 0.6 else -1) + 0.25 * stem
        else:
            stem -= 0.9 * (stem @ up) * up
    elif elevation is None:
        stem = np.array([0.0, -1.0, 0.0]) + 0.35 * stem
    stem /= np.linalg.norm(stem)
    first, second = tangents(stem, rng.uniform(0, 2 * math.pi))
    return Shape(species, axes, np.stack([first, stem, second]))


def fruit_of(
    rng: np.random.Generator, ball: Ball, shape: Shape, usual: Usual, options: RenderOptions, *, infected: bool
) -> Fruit:
    """Draw what a fruit of a shape and a place looks like."""
    key = int(rng.integers(1 << 31))
    decay = generator(key, 4)  # of its own, so that an infected fruit is otherwise the healthy one
    rot = _rot(decay, shape.rotation, options.rot_cover) if infected else None
    with_lesions = infected and options.rot_cover is None and (rot is None or decay.random() < 0.3)
    return Fruit(
        species=shape.species,
        centre=np.array([ball.x, ball.y, ball.z]),
        radius=ball.radius,
        axes=shape.axes,
        rotation=shape.rotation,
        ripeness=float(np.clip(usual.ripeness + rng.normal(0, usual.spread), 0, 1)),
        blush=float(np.clip(usual.blush + rng.normal(0, 0.12), 0, 1)),
        gloss=rng.beta(1.6, 1.8),
        wrinkles=rng.beta(1, 2) if shape.species is Species.MANDARIN else 0.2 * rng.beta(1, 4),
        shrivel=decay.random() if rot is not None and decay.random() < rot.cover - 0.2 else 0.0,
        rot=rot,
        lesions=_lesions(generator(key, 2), shape.rotation) if with_lesions else (),
        marks=_marks(generator(key, 3), shape.rotation, options.russet_share) if options.distractors else (),
        key=key,
    )


def _rot(rng: np.random.Generator, rotation: NDArray[np.float64], cover: float | None) -> Rot | None:
    """Draw a large rot; without a cover that is asked for, most fruits have none."""
    if cover is None and rng.random() >= _ROTTEN:
        return None
    kind = pick(rng, _ROTS)
    centre, key = _seen(rng, rotation, -0.1), int(rng.integers(1 << 31))
    if cover is None:
        cover = 1.0 if kind is RotKind.SOFT and rng.random() < _WHOLLY else rng.uniform(*_COVERS[kind])
    return Rot(kind, centre, cover, key)


def _seen(rng: np.random.Generator, rotation: NDArray[np.float64], nearness: float) -> Vector:
    """Draw a visible direction in the fruit's own frame; a nearness of 1 faces the camera, 0 is at the rim."""
    z = rng.uniform(nearness, 1)
    angle, across = rng.uniform(0, 2 * math.pi), math.sqrt(1 - z * z)
    seen: Vector = rotation @ np.array([across * math.cos(angle), across * math.sin(angle), z])
    return seen


def _lesions(rng: np.random.Generator, rotation: NDArray[np.float64]) -> tuple[Lesion, ...]:
    """Draw lesions of mostly one kind; the first is on the visible side."""
    kind = pick(rng, _LESIONS)
    lesions = []
    for number in range(1 + int(rng.random() < 0.3) + int(rng.random() < 0.15)):
        if number and rng.random() < 0.3:
            kind = pick(rng, _LESIONS)
        low, high = _LESION_RADII[kind]
        radius = low + (high - low) * rng.beta(1.2, 1.6)
        centre = _seen(rng, rotation, 0.35 if number == 0 else -0.3)
        lesions.append(Lesion(kind, centre, radius, int(rng.integers(1 << 31))))
    return tuple(lesions)


def _marks(rng: np.random.Generator, rotation: NDArray[np.float64], russet_share: float) -> tuple[Mark, ...]:
    kinds = [pick(rng, _MARKS) for _ in range(int(rng.choice(4, p=[0.55, 0.3, 0.11, 0.04])))]
    if rng.random() < russet_share:
        kinds.append(MarkKind.RUSSET if rng.random() < 0.6 else MarkKind.WIND_SCAR)
    marks = []
    for kind in kinds:
        low, high = _MARK_RADII[kind]
        marks.append(Mark(kind, _seen(rng, rotation, 0.0), rng.uniform(low, high), int(rng.integers(1 << 31))))
    return tuple(marks)
