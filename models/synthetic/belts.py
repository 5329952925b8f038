"""Render what a camera above a belt sees: fruit that moves, rolls and touches, frame by frame, with the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from models.data.samples import Sample
from models.synthetic.fields import generator
from models.synthetic.fruits import fruit_of, shape_of, usual_of
from models.synthetic.layout import Ball
from models.synthetic.painting import paint
from models.synthetic.sampling import lens_of, lighting_of, plain_lens
from models.synthetic.scene import Background, CannotRender, Fruit, RenderOptions, Scene
from models.types import Size

_RADII: Final = (0.10, 0.15)
"""Of fruit, in mean sides: 63 to 95 pixels across at 448 x 224."""

_TRIES: Final = 200
_FROM_ABOVE: Final = math.pi / 2


@dataclass(frozen=True, slots=True)
class BeltOptions:
    """A belt.

    Attributes:
        fps: frames per second.
        seconds: length of the sequence.
        speed: of the belt, mean sides per second, to the right.
        per_second: fruits that enter per second, as far as there is room.
        touching: share of the fruits that touch the one before.
        roll: turns of a fruit per turn that rolling without slipping would take; 0 for fruit that lies still.
        exposure: seconds; the motion blur is what the belt moves in it.
        infected_share: share of the fruits that have lesions.

    Raises:
        CannotRender: a number is out of range.
    """

    fps: float = 15.0
    seconds: float = 4.0
    speed: float = 0.8
    per_second: float = 2.5
    touching: float = 0.3
    roll: float = 0.5
    exposure: float = 0.004
    infected_share: float = 0.4

    def __post_init__(self) -> None:
        for name in ("fps", "seconds", "speed", "per_second"):
            if not getattr(self, name) > 0:
                raise CannotRender(f"{name} must be above 0, got {getattr(self, name)}.")
        for name in ("touching", "infected_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise CannotRender(f"{name} must be 0 to 1, got {getattr(self, name)}.")
        if self.roll < 0 or self.exposure < 0:
            raise CannotRender(f"roll and exposure must be at least 0, got {self.roll} and {self.exposure}.")


@dataclass(frozen=True, slots=True)
class BeltFrame:
    """A frame and the truth of it.

    Attributes:
        number: from 1.
        time: seconds from the first frame.
        sample: the image with its masks.
        fruits: of each instance, in their order, which fruit of the belt it shows, from 1.
    """

    number: int
    time: float
    sample: Sample
    fruits: tuple[int, ...]


def render_belt(seed: int, size: Size, options: BeltOptions | None = None) -> Iterator[BeltFrame]:
    """Render the frames of a belt, one after the other; equal arguments give equal frames.

    The belt's surface stands still: it has no pattern that a tracker could follow.

    Args:
        seed: seed of the random numbers, at least 0.
        size: size of the frames.
        options: the belt; by default that of `BeltOptions`.
    """
    belt = options or BeltOptions()
    extent = math.sqrt(size.width / size.height), math.sqrt(size.height / size.width)
    rng = generator(seed, 21)
    lighting = replace(lighting_of(rng, Background.BELT, _FROM_ABOVE), dapple=0.0)
    lens = replace(
        lens_of(rng, Background.BELT) if belt.exposure else plain_lens(rng),
        motion=1000 * belt.speed * belt.exposure,
        motion_angle=0.0,
    )
    fruits = _fruits(seed, extent, belt)
    for number in range(1, round(belt.seconds * belt.fps) + 1):
        time = (number - 1) / belt.fps
        shown = [
            (which, moved) for which, fruit in enumerate(fruits, start=1) if (moved := _at(fruit, time, belt, extent))
        ]
        scene = Scene(
            extent=extent,
            background=Background.BELT,
            elevation=_FROM_ABOVE,
            pitch_of_rows=0.2,
            fruits=tuple(fruit for _, fruit in shown),
            hand=False,
            lighting=lighting,
            lens=lens,
            key=seed,
        )
        sample = paint(scene, size, f"belt-{seed}-{number:04d}", seed)
        yield BeltFrame(number, time, sample, tuple(_which(each.box, shown, size) for each in sample.instances))


def _fruits(seed: int, extent: tuple[float, float], belt: BeltOptions) -> list[Fruit]:
    """Place fruit along the belt, as it lies when the first frame is taken: x is negative for what comes later."""
    rng = generator(seed, 22)
    usual = usual_of(rng, hanging=False)
    options = RenderOptions(infected_share=belt.infected_share)
    length = belt.speed * belt.seconds + extent[0]
    wanted = max(1, round(belt.per_second * length / belt.speed))
    places: list[tuple[float, float, float]] = []
    for _ in range(wanted):
        radius = float(rng.uniform(*_RADII))
        if (place := _free_place(rng, places, radius, extent, length, belt)) is not None:
            places.append(place)
    fruits = []
    for number, (x, y, radius) in enumerate(sorted(places, reverse=True)):
        own = generator(seed, 23, number)
        shape = shape_of(own, usual, _FROM_ABOVE)
        ball = Ball(x, y, radius, radius, number)
        infected = bool(own.random() < belt.infected_share)
        fruits.append(fruit_of(own, ball, shape, usual, options, infected=infected))
    return fruits


def _free_place(
    rng: np.random.Generator,
    places: list[tuple[float, float, float]],
    radius: float,
    extent: tuple[float, float],
    length: float,
    belt: BeltOptions,
) -> tuple[float, float, float] | None:
    """Find a place beside all others, or at one of them, that lies across the belt in the image."""
    room = extent[1] / 2 - 1.1 * radius
    for _ in range(_TRIES):
        if places and rng.random() < belt.touching:
            x0, y0, other = places[int(rng.integers(len(places)))]
            angle = float(rng.uniform(0, 2 * math.pi))
            x, y = x0 + (radius + other) * math.cos(angle), y0 + (radius + other) * math.sin(angle)
        else:
            x, y = extent[0] / 2 - float(rng.uniform(0, length)), float(rng.uniform(-room, room))
        if abs(y) <= room and all(math.hypot(x - a, y - b) >= 0.98 * (radius + r) for a, b, r in places):
            return x, y, radius
    return None


def _at(fruit: Fruit, time: float, belt: BeltOptions, extent: tuple[float, float]) -> Fruit | None:
    """Return a fruit where the belt has carried it, turned as far as it has rolled; None outside the image."""
    way = belt.speed * time
    x = float(fruit.centre[0]) + way
    if abs(x) > extent[0] / 2 + 1.1 * fruit.radius:
        return None
    angle = belt.roll * way / fruit.radius
    turn = np.array(
        [[math.cos(angle), 0.0, math.sin(angle)], [0.0, 1.0, 0.0], [-math.sin(angle), 0.0, math.cos(angle)]]
    )
    centre = np.array([x, float(fruit.centre[1]), float(fruit.centre[2])])
    return replace(fruit, centre=centre, rotation=fruit.rotation @ turn.T)


def _which(box: tuple[int, int, int, int], shown: list[tuple[int, Fruit]], size: Size) -> int:
    """Return the fruit whose centre, kept within the image, is nearest to that of a box."""
    unit = math.sqrt(size.pixels)
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2

    def distance(fruit: Fruit) -> float:
        reach = fruit.radius * unit
        middle = float(fruit.centre[0]) * unit + size.width / 2
        seen = (max(0.0, middle - reach) + min(float(size.width), middle + reach)) / 2
        return math.hypot(x - seen, y - float(fruit.centre[1]) * unit - size.height / 2)

    return min(shown, key=lambda each: distance(each[1]))[0]
