"""Draw a random scene: what it shows, how many, where, how it is lit and how it is photographed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.synthetic.fields import Rgb, generator
from models.synthetic.fruits import Shape, fruit_of, pick, shape_of, usual_of
from models.synthetic.layout import Ball, Body, Ground, arrange, cup_centres
from models.synthetic.scene import (
    MAX_FRUITS,
    Background,
    Lamp,
    Layout,
    Lens,
    Lighting,
    RenderOptions,
    Scene,
)
from models.synthetic.surface import outline_of

_BACKGROUNDS: Final = {
    Background.BELT: 0.15,
    Background.ROLLERS: 0.09,
    Background.CUPS: 0.05,
    Background.TABLE: 0.17,
    Background.CLOTH: 0.06,
    Background.CRATE: 0.05,
    Background.FOLIAGE: 0.22,
    Background.GRASS: 0.05,
    Background.SOIL: 0.05,
    Background.WHITE: 0.07,
    Background.BLACK: 0.04,
}
_HANDS: Final = frozenset({Background.TABLE, Background.CRATE, Background.CLOTH, Background.FOLIAGE, Background.WHITE})
_HELD: Final = 0.15  # share of the scenes with few fruits in which a hand holds one
_MOST_BY_HAND: Final = 3  # fruits
_HAND_HOLDS: Final = (0.07, 0.42)  # radii in mean sides
_OUTDOORS: Final = frozenset({Background.FOLIAGE, Background.GRASS, Background.SOIL})
_COUNTS: Final = np.array([0.2, 0.13, 0.13, 0.12, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.03, 0.03])
"""Chances of 1 to 12 fruits."""

_NO_FRUIT: Final = 0.05  # share of the scenes without fruit
_NO_FRUIT_OUTDOORS: Final = 0.18  # leaves, stones and shade look more like fruit than belts do
_MANY: Final = 0.2  # share of the scenes among leaves with up to 24 small fruits
_LAYOUTS: Final = {Layout.LOOSE: 0.4, Layout.APART: 0.2, Layout.TOUCHING: 0.25, Layout.PILED: 0.15}
_SMALLEST: Final = 0.019  # a radius, in mean sides: a fruit is 12 pixels wide at 448 x 224
_FAR: Final = 0.25  # share of the scenes that show small fruit
_NEAR: Final = 0.2  # share of the scenes with one or two fruits that are close-ups


def sample_scene(seed: int, extent: tuple[float, float], options: RenderOptions) -> Scene:
    """Draw a random scene; equal arguments give equal scenes.

    Args:
        seed: seed of the random numbers.
        extent: width and height; their product is 1.
        options: what is fixed.
    """
    rng = generator(seed, 0)
    background = pick(rng, _BACKGROUNDS) if options.background is None else options.background
    count = _count(rng, background) if options.fruits is None else options.fruits
    elevation = _elevation(rng, background)
    ground = Ground(extent, elevation)
    lighting = lighting_of(rng, background, elevation)
    usual = usual_of(rng, hanging=background is Background.FOLIAGE, species=options.species)
    resting = None if background is Background.FOLIAGE else elevation
    shapes = [shape_of(generator(seed, 1, number), usual, resting) for number in range(count)]
    balls, pitch = _balls(rng, ground, background, shapes, options.layout)
    infected = _infected(rng, count, options.infected_share)
    fruits = tuple(
        fruit_of(
            generator(seed, 5, ball.number),
            ball,
            shapes[ball.number],
            usual,
            options,
            infected=bool(infected[ball.number]),
        )
        for ball in balls
    )
    lens = lens_of(generator(seed, 2), background) if options.camera else plain_lens(generator(seed, 2))
    hand = _by_hand(rng, background, balls, options.layout)
    return Scene(extent, background, elevation, pitch, fruits, hand, lighting, lens, int(rng.integers(1 << 31)))


def _count(rng: np.random.Generator, background: Background) -> int:
    if rng.random() < (_NO_FRUIT_OUTDOORS if background in _OUTDOORS else _NO_FRUIT):
        return 0
    if background is Background.FOLIAGE and rng.random() < _MANY:
        return int(rng.integers(8, MAX_FRUITS + 1))
    return 1 + int(rng.choice(len(_COUNTS), p=_COUNTS / _COUNTS.sum()))


def _by_hand(rng: np.random.Generator, background: Background, balls: Sequence[Ball], layout: Layout | None) -> bool:
    """Tell whether a hand holds the nearest fruit: one of few, neither tiny nor too large for a hand."""
    if background not in _HANDS or layout not in {None, Layout.LOOSE} or not 1 <= len(balls) <= _MOST_BY_HAND:
        return False
    smallest, largest = _HAND_HOLDS
    return smallest < balls[-1].radius < largest and bool(rng.random() < _HELD)


def _elevation(rng: np.random.Generator, background: Background) -> float:
    if background in {Background.CUPS, Background.ROLLERS}:
        return math.pi / 2
    if background is Background.FOLIAGE:
        return math.radians(10)
    return math.pi / 2 if rng.random() < 0.45 else math.radians(rng.uniform(38, 85))


def _balls(
    rng: np.random.Generator, ground: Ground, background: Background, shapes: Sequence[Shape], layout: Layout | None
) -> tuple[list[Ball], float]:
    """Return the places of the fruits, and the distance between cups or rollers."""
    count = len(shapes)
    fitting = min(0.46 / math.sqrt(max(count, 1)), 0.48 * min(ground.extent))
    radius = fitting * math.exp(rng.uniform(math.log(0.38), 0))
    if layout in {None, Layout.LOOSE}:
        if 1 <= count <= 2 and rng.random() < _NEAR:
            radius = fitting * math.exp(rng.uniform(0, math.log(2.4)))  # fruit fills the image and reaches beyond it
        elif rng.random() < _FAR:
            radius = fitting * math.exp(rng.uniform(math.log(0.09), math.log(0.4)))
    radii = radius * rng.uniform(0.82, 1.12, count)
    radii[rng.random(count) < 0.1] *= 0.6
    np.maximum(radii, _SMALLEST, out=radii)
    if background is Background.CUPS:
        return _in_cups(rng, ground, radii, 2.5 * radius)
    chosen = pick(rng, _LAYOUTS) if layout is None else layout
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


def _tinted(rng: np.random.Generator, strength: float, spread: float) -> Rgb:
    """Draw light between candle and overcast sky."""
    warmth = rng.normal(0, spread)
    return np.array([math.exp(warmth), 1, math.exp(-1.3 * warmth)], np.float32) * strength


def lighting_of(rng: np.random.Generator, background: Background, elevation: float) -> Lighting:
    """Draw a key lamp, sometimes a second and a third, sky and bounce."""
    lamps = []
    outside = background in _OUTDOORS
    count = 1 if outside else int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15]))
    for number in range(count):
        height = math.radians(rng.uniform(28, 82))
        around = rng.uniform(0, 2 * math.pi)
        if background is Background.FOLIAGE:
            around = rng.uniform(1.15, 1.85) * math.pi  # the sun stands on the camera's side, or to the side
        x, away, up = math.cos(height) * math.cos(around), math.cos(height) * math.sin(around), math.sin(height)
        sin, cos = math.sin(elevation), math.cos(elevation)
        direction = np.array([x, -(away * sin + up * cos), up * sin - away * cos])
        strength = rng.uniform(0.55, 1.3) if number == 0 else rng.uniform(0.15, 0.5)
        lamps.append(Lamp(direction, _tinted(rng, strength, 0.08), 0.1 if outside else float(rng.beta(1.5, 1.5))))
    sky = rng.uniform(0.2, 0.6)
    bounce = {Background.BLACK: 0.01, Background.WHITE: 0.55, Background.TABLE: 0.4}.get(background, 0.15)
    dapple = float(rng.uniform(0.5, 1)) if rng.random() < (0.55 if outside else 0.12) else 0.0
    return Lighting(
        lamps=tuple(lamps),
        sky=_tinted(rng, sky, 0.12),
        bounce=_tinted(rng, bounce * rng.uniform(0.5, 1), 0.08),
        dapple=dapple,
        leafy=bool(rng.random() < 0.6),
        key=int(rng.integers(1 << 31)),
    )


def plain_lens(rng: np.random.Generator) -> Lens:
    """Return a perfect camera."""
    return Lens(rng.uniform(0.85, 1.1), np.ones(3, np.float32), 0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None)


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
        haze=rng.uniform(0.0, 0.06) if rng.random() < 0.2 else 0.0,
        noise=math.exp(rng.uniform(math.log(0.003), math.log(0.04))),
        jpeg_quality=int(rng.integers(45, 98)),
    )
