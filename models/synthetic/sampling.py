"""Draw a random scene: what it shows, how many, where, how it is lit and how it is photographed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.synthetic.fields import Rgb, generator, tangents
from models.synthetic.layout import Ball, Body, Ground, arrange, cup_centres
from models.synthetic.scene import (
    Background,
    Fruit,
    Lamp,
    Layout,
    Lens,
    Lesion,
    LesionKind,
    Lighting,
    Mark,
    MarkKind,
    RenderOptions,
    Scene,
    Species,
    Vector,
)
from models.synthetic.surface import outline_of

_Kind = TypeVar("_Kind")

_BACKGROUNDS: Final = {
    Background.BELT: 0.2,
    Background.ROLLERS: 0.12,
    Background.CUPS: 0.07,
    Background.TABLE: 0.24,
    Background.CLOTH: 0.1,
    Background.FOLIAGE: 0.13,
    Background.WHITE: 0.08,
    Background.BLACK: 0.06,
}
_COUNTS: Final = np.array([0.03, 0.17, 0.13, 0.13, 0.12, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.03, 0.03])
_SPECIES: Final = {Species.ORANGE: 0.45, Species.MANDARIN: 0.42, Species.LEMON: 0.13}
_LAYOUTS: Final = {Layout.LOOSE: 0.4, Layout.APART: 0.2, Layout.TOUCHING: 0.25, Layout.PILED: 0.15}
_LESIONS: Final = {
    LesionKind.MOULD: 0.22,
    LesionKind.ROT: 0.18,
    LesionKind.CANKER: 0.2,
    LesionKind.BLACK_SPOT: 0.17,
    LesionKind.SCAB: 0.13,
    LesionKind.SCAR: 0.1,
}
_LESION_RADII: Final = {
    LesionKind.MOULD: (0.18, 0.85),
    LesionKind.ROT: (0.15, 0.8),
    LesionKind.CANKER: (0.2, 0.9),
    LesionKind.BLACK_SPOT: (0.25, 1.0),
    LesionKind.SCAB: (0.3, 1.0),
    LesionKind.SCAR: (0.2, 0.6),
}
_MARKS: Final = {
    MarkKind.STICKER: 0.2,
    MarkKind.DROPS: 0.2,
    MarkKind.DUST: 0.2,
    MarkKind.LEAF_BIT: 0.15,
    MarkKind.WIND_SCAR: 0.25,
}
_MARK_RADII: Final = {
    MarkKind.STICKER: (0.16, 0.34),
    MarkKind.DROPS: (0.4, 1.2),
    MarkKind.DUST: (0.4, 1.2),
    MarkKind.LEAF_BIT: (0.12, 0.4),
    MarkKind.WIND_SCAR: (0.3, 0.9),
}
_SMALLEST: Final = 0.02  # a radius as a share of the image's width


@dataclass(frozen=True, slots=True)
class _Usual:
    """What the fruits of one image have in common."""

    species: Species
    ripeness: float
    spread: float


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    species: Species
    axes: Vector
    rotation: NDArray[np.float64]


def sample_scene(seed: int, extent: tuple[float, float], options: RenderOptions) -> Scene:
    """Draw a random scene; equal arguments give equal scenes.

    Args:
        seed: seed of the random numbers.
        extent: width and height; their product is 1.
        options: what is fixed.
    """
    rng = generator(seed, 0)
    background = _pick(rng, _BACKGROUNDS) if options.background is None else options.background
    count = int(rng.choice(len(_COUNTS), p=_COUNTS)) if options.fruits is None else options.fruits
    elevation = _elevation(rng, background)
    ground = Ground(extent, elevation)
    lighting = lighting_of(rng, background, elevation)
    usual = _Usual(_pick(rng, _SPECIES), rng.beta(2.6, 0.9), rng.uniform(0, 0.25) if rng.random() < 0.7 else 0.5)
    resting = None if background is Background.FOLIAGE else elevation
    shapes = [_shape(generator(seed, 1, number), usual.species, resting) for number in range(count)]
    balls, pitch = _balls(rng, ground, background, shapes, options.layout)
    infected = _infected(rng, count, options.infected_share)
    fruits = tuple(
        _fruit(
            generator(seed, 5, ball.number),
            ball,
            shapes[ball.number],
            usual,
            infected=bool(infected[ball.number]),
            marks=options.distractors,
        )
        for ball in balls
    )
    lens = lens_of(generator(seed, 2), background) if options.camera else plain_lens(generator(seed, 2))
    return Scene(extent, background, elevation, pitch, fruits, lighting, lens, int(rng.integers(1 << 31)))


def _pick(rng: np.random.Generator, shares: dict[_Kind, float]) -> _Kind:
    chances = np.array(list(shares.values()))
    return list(shares)[int(rng.choice(len(chances), p=chances / chances.sum()))]


def _elevation(rng: np.random.Generator, background: Background) -> float:
    if background in {Background.CUPS, Background.ROLLERS}:
        return math.pi / 2
    if background is Background.FOLIAGE:
        return math.radians(10)
    return math.pi / 2 if rng.random() < 0.45 else math.radians(rng.uniform(38, 85))


def _balls(
    rng: np.random.Generator, ground: Ground, background: Background, shapes: Sequence[_Shape], layout: Layout | None
) -> tuple[list[Ball], float]:
    """Return the places of the fruits, and the distance between cups or rollers."""
    count, smallest = len(shapes), _SMALLEST * ground.extent[0]
    fitting = min(0.46 / math.sqrt(max(count, 1)), 0.48 * min(ground.extent))
    if count <= 2 and layout in {None, Layout.LOOSE} and rng.random() < 0.2:
        fitting *= 1.7  # a close-up: the fruit fills the image
    radius = max(smallest, fitting * math.exp(rng.uniform(math.log(0.38), 0)))
    radii = radius * rng.uniform(0.82, 1.12, count)
    radii[rng.random(count) < 0.1] *= 0.6
    np.maximum(radii, smallest, out=radii)
    if background is Background.CUPS:
        return _in_cups(rng, ground, radii, 2.5 * radius)
    chosen = _pick(rng, _LAYOUTS) if layout is None else layout
    pitch = radius * rng.uniform(0.7, 1.7)
    if background is Background.FOLIAGE:
        ground = Ground(ground.extent, math.pi / 2)
    bodies = [Body(r, outline_of(s.axes, s.rotation)) for r, s in zip(radii.tolist(), shapes, strict=True)]
    return arrange(rng, ground, bodies, chosen), pitch


def _in_cups(
    rng: np.random.Generator, ground: Ground, radii: NDArray[np.float64], pitch: float
) -> tuple[list[Ball], float]:
    while len(cup_centres(ground, pitch)) < len(radii):
        pitch *= 0.95
    places = cup_centres(ground, pitch)
    chosen = rng.choice(len(places), len(radii), replace=False).tolist()
    fitting = np.minimum(radii, pitch * 0.42).tolist()
    balls = []
    for number, (cup, radius) in enumerate(zip(chosen, fitting, strict=True)):
        x, y = places[cup]
        balls.append(Ball(x, y, radius, radius, number))
    return balls, pitch


def _infected(rng: np.random.Generator, count: int, share: float) -> NDArray[np.bool_]:
    wanted = share * count
    number = int(wanted) + int(rng.random() < wanted - int(wanted))
    return np.isin(np.arange(count), rng.permutation(count)[:number])


def _shape(rng: np.random.Generator, usual: Species, elevation: float | None) -> _Shape:
    """Draw half axes and rotation: flat fruit lies on its flat side, long fruit on its long side, round fruit anyhow.

    Args:
        rng: random generator.
        usual: species of most fruit of the image.
        elevation: angle of the camera above the ground; None for hanging fruit.
    """
    species = _pick(rng, _SPECIES) if rng.random() < 0.08 else usual
    pole = {
        Species.ORANGE: rng.uniform(0.9, 1.07),
        Species.MANDARIN: rng.uniform(0.72, 0.92),
        Species.LEMON: rng.uniform(1.2, 1.45),
    }[species]
    axes = np.array([1.0, pole, rng.uniform(0.96, 1.0)])
    axes /= axes.max() * (1.1 if species is Species.LEMON else 1)  # room for its nipple
    stem = rng.standard_normal(3)
    if elevation is not None and species is not Species.ORANGE and rng.random() < 0.85:
        up = np.array([0.0, -math.cos(elevation), math.sin(elevation)])
        if species is Species.MANDARIN:
            stem = up * (1 if rng.random() < 0.6 else -1) + 0.25 * stem
        else:
            stem -= 0.9 * (stem @ up) * up
    elif elevation is None:
        stem = np.array([0.0, -1.0, 0.0]) + 0.35 * stem
    stem /= np.linalg.norm(stem)
    first, second = tangents(stem, rng.uniform(0, 2 * math.pi))
    return _Shape(species, axes, np.stack([first, stem, second]))


def _fruit(rng: np.random.Generator, ball: Ball, shape: _Shape, usual: _Usual, *, infected: bool, marks: bool) -> Fruit:
    key = int(rng.integers(1 << 31))
    return Fruit(
        species=shape.species,
        centre=np.array([ball.x, ball.y, ball.z]),
        radius=ball.radius,
        axes=shape.axes,
        rotation=shape.rotation,
        ripeness=float(np.clip(usual.ripeness + rng.normal(0, usual.spread), 0, 1)),
        gloss=rng.beta(1.6, 1.8),
        wrinkles=rng.beta(1, 2) if shape.species is Species.MANDARIN else 0.2 * rng.beta(1, 4),
        lesions=_lesions(generator(key, 2), shape.rotation) if infected else (),
        marks=_marks(generator(key, 3), shape.rotation) if marks else (),
        key=key,
    )


def _seen(rng: np.random.Generator, rotation: NDArray[np.float64], nearness: float) -> Vector:
    """Draw a visible direction in the fruit's own frame; a nearness of 1 faces the camera, 0 is at the rim."""
    z = rng.uniform(nearness, 1)
    angle, across = rng.uniform(0, 2 * math.pi), math.sqrt(1 - z * z)
    seen: Vector = rotation @ np.array([across * math.cos(angle), across * math.sin(angle), z])
    return seen


def _lesions(rng: np.random.Generator, rotation: NDArray[np.float64]) -> tuple[Lesion, ...]:
    """Draw lesions of mostly one kind; the first is on the visible side."""
    kind = _pick(rng, _LESIONS)
    lesions = []
    for number in range(1 + int(rng.random() < 0.3) + int(rng.random() < 0.15)):
        if number and rng.random() < 0.3:
            kind = _pick(rng, _LESIONS)
        low, high = _LESION_RADII[kind]
        radius = low + (high - low) * rng.beta(1.2, 1.6)
        centre = _seen(rng, rotation, 0.35 if number == 0 else -0.3)
        lesions.append(Lesion(kind, centre, radius, int(rng.integers(1 << 31))))
    return tuple(lesions)


def _marks(rng: np.random.Generator, rotation: NDArray[np.float64]) -> tuple[Mark, ...]:
    marks = []
    for _ in range(int(rng.choice(4, p=[0.45, 0.33, 0.15, 0.07]))):
        kind = _pick(rng, _MARKS)
        low, high = _MARK_RADII[kind]
        marks.append(Mark(kind, _seen(rng, rotation, 0.0), rng.uniform(low, high), int(rng.integers(1 << 31))))
    return tuple(marks)


def _tinted(rng: np.random.Generator, strength: float, spread: float) -> Rgb:
    """Draw light between candle and overcast sky."""
    warmth = rng.normal(0, spread)
    return np.array([math.exp(warmth), 1, math.exp(-1.3 * warmth)], np.float32) * strength


def lighting_of(rng: np.random.Generator, background: Background, elevation: float) -> Lighting:
    """Draw a key lamp, sometimes a second and a third, sky and bounce."""
    lamps = []
    outside = background is Background.FOLIAGE
    count = 1 if outside else int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15]))
    for number in range(count):
        height = math.radians(rng.uniform(28, 82))
        around = rng.uniform(0, 2 * math.pi)
        if outside:
            around = rng.uniform(1.15, 1.85) * math.pi  # the sun stands on the camera's side, or to the side
        x, away, up = math.cos(height) * math.cos(around), math.cos(height) * math.sin(around), math.sin(height)
        sin, cos = math.sin(elevation), math.cos(elevation)
        direction = np.array([x, -(away * sin + up * cos), up * sin - away * cos])
        strength = rng.uniform(0.55, 1.3) if number == 0 else rng.uniform(0.15, 0.5)
        lamps.append(Lamp(direction, _tinted(rng, strength, 0.08), 0.1 if outside else float(rng.beta(1.5, 1.5))))
    sky = rng.uniform(0.2, 0.6)
    bounce = {Background.BLACK: 0.01, Background.WHITE: 0.55, Background.TABLE: 0.4}.get(background, 0.15)
    dapple = float(rng.uniform(0.5, 1)) if rng.random() < (0.55 if outside else 0.06) else 0.0
    return Lighting(
        lamps=tuple(lamps),
        sky=_tinted(rng, sky, 0.12),
        bounce=_tinted(rng, bounce * rng.uniform(0.5, 1), 0.08),
        dapple=dapple,
        key=int(rng.integers(1 << 31)),
    )


def plain_lens(rng: np.random.Generator) -> Lens:
    """Return a perfect camera."""
    return Lens(rng.uniform(0.85, 1.1), np.ones(3, np.float32), 0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None)


def lens_of(rng: np.random.Generator, background: Background) -> Lens:
    """Draw a camera: mostly a good one, sometimes a bad one."""
    line = background in {Background.BELT, Background.ROLLERS, Background.CUPS}
    defocus = rng.uniform(0.3, 1.6) if rng.random() < 0.85 else rng.uniform(1.6, 6)
    return Lens(
        exposure=math.exp(rng.normal(-0.05, 0.25)),
        balance=np.array([math.exp(rng.normal(0, 0.06)), 1, math.exp(rng.normal(0, 0.09))], np.float32),
        contrast=rng.uniform(0, 1),
        vignetting=rng.uniform(0, 0.5) if rng.random() < 0.6 else 0.0,
        defocus=defocus,
        motion=rng.uniform(2, 14) if rng.random() < (0.3 if line else 0.1) else 0.0,
        motion_angle=0.0 if line else rng.uniform(0, math.pi),
        sharpening=rng.uniform(0, 1) if rng.random() < 0.5 else 0.0,
        noise=math.exp(rng.uniform(math.log(0.003), math.log(0.04))),
        jpeg_quality=int(rng.integers(45, 98)),
    )
