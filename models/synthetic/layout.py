"""Where fruit lies: places of balls on a ground that the camera sees at an angle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.synthetic.scene import Layout

_TRIES: Final = 60
_SHRINK: Final = 0.93
_BUMPY: Final = 1.1  # bumps reach beyond the ball
_DISC: Final = np.array(
    [(x, y) for x in np.linspace(-0.9, 0.9, 9) for y in np.linspace(-0.9, 0.9, 9) if x * x + y * y < 0.8]
)
_TOUCH: Final = 0.96  # of the sum of the radii: fruit is not as round as its ball


@dataclass(frozen=True, slots=True)
class Ground:
    """A plane seen by a camera at `elevation` radians above it.

    Attributes:
        extent: width and height of the image.
        elevation: angle of the camera; pi / 2 looks straight down.
    """

    extent: tuple[float, float]
    elevation: float

    def seen(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """Project a point `y` away from and `z` above the ground's origin to x, y, z of the view frame."""
        sin, cos = math.sin(self.elevation), math.cos(self.elevation)
        return x, -(y * sin + z * cos), z * sin - y * cos

    def away(self, y: float, z: float) -> float:
        """Return how far away on the ground a point at height `z` is that is seen at `y` below the centre."""
        return -(y + z * math.cos(self.elevation)) / math.sin(self.elevation)


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """A fruit to place.

    Attributes:
        radius: radius of the ball around it.
        outline: (2, 2); an offset d in the image, in radii, is inside the outline if d @ outline @ d < 1.
    """

    radius: float
    outline: NDArray[np.float64]

    def reach(self, right: float, down: float) -> float:
        """Return the distance from its centre to its outline in a direction of the image."""
        direction = np.array([right, down]) / max(math.hypot(right, down), 1e-9)
        return self.radius / math.sqrt(float(direction @ self.outline @ direction))


@dataclass(frozen=True, slots=True)
class Ball:
    """The place of one fruit in the view frame; `number` is the index of the fruit."""

    x: float
    y: float
    z: float
    radius: float
    number: int

    def hides(self, other: Ball) -> bool:
        """Tell whether most of `other` is behind this ball."""
        return math.hypot(self.x - other.x, self.y - other.y) < 0.8 * max(self.radius, other.radius)


def arrange(rng: np.random.Generator, ground: Ground, bodies: Sequence[Body], layout: Layout) -> list[Ball]:
    """Find a place for every body; all bodies shrink together until there is one.

    Args:
        rng: random generator.
        ground: the ground that they lie on.
        bodies: fruits of the wanted sizes.
        layout: how they lie.

    Returns:
        One ball for each body, from far to near.
    """
    while True:
        if layout is Layout.TOUCHING:
            balls = _touching(rng, ground, bodies)
        else:
            balls = _dropped(rng, ground, [body.radius for body in bodies], layout)
        if balls is not None:
            balls = sorted(balls, key=lambda ball: ball.z)
            if all(_shown(ball, balls[nearer:], ground) for nearer, ball in enumerate(balls, start=1)):
                return balls
        bodies = [Body(body.radius * _SHRINK, body.outline) for body in bodies]


def _shown(ball: Ball, nearer: Sequence[Ball], ground: Ground) -> bool:
    """Tell whether at least a sixth of a ball is inside the image and not hidden by nearer ones."""
    points = np.array([ball.x, ball.y]) + _DISC * ball.radius
    seen = (np.abs(points) < np.array(ground.extent) / 2).all(axis=1)
    for other in nearer:
        seen &= np.hypot(*(points - [other.x, other.y]).T) > other.radius
    return bool(seen.mean() > 1 / 6)


def _dropped(rng: np.random.Generator, ground: Ground, radii: Sequence[float], layout: Layout) -> list[Ball] | None:
    """Drop one after the other straight down at random places, until it lies where it may stay."""
    balls: list[Ball] = []
    lying: list[tuple[float, float, float, float]] = []
    spread = np.array(ground.extent) * (1.0 if layout is not Layout.PILED else rng.uniform(0.4, 0.9))
    for number, radius in enumerate(radii):
        for _ in range(_TRIES):
            over = radius * 0.35 if layout is Layout.LOOSE else -radius * _BUMPY
            room = np.minimum(spread / 2 + over, np.array(ground.extent) / 2 + over)
            if layout is not Layout.LOOSE and room.min() <= 0:
                return None
            x, y = rng.uniform(-np.maximum(room, 0), np.maximum(room, 0)).tolist()
            away = ground.away(y, radius)
            height = radius
            for other_x, other_away, other_height, other_radius in lying:
                apart, touch = math.hypot(x - other_x, away - other_away), _TOUCH * (radius + other_radius)
                if apart < touch:
                    height = max(height, other_height + math.sqrt(touch**2 - apart**2))
            ball = Ball(*ground.seen(x, away, height), radius, number)
            if _may_stay(ball, balls, height, layout, ground):
                balls.append(ball)
                lying.append((x, away, height, radius))
                break
        else:
            return None
    return balls


def _may_stay(ball: Ball, others: Sequence[Ball], height: float, layout: Layout, ground: Ground) -> bool:
    if layout is Layout.APART:
        return all(
            math.hypot(ball.x - other.x, ball.y - other.y) > _BUMPY * (ball.radius + other.radius) for other in others
        )
    if any(ball.hides(other) for other in others):
        return False
    if layout is Layout.PILED:
        return _inside(ball, ground)
    return height < ball.radius * 1.6


def _touching(rng: np.random.Generator, ground: Ground, bodies: Sequence[Body]) -> list[Ball] | None:
    """Push each against one that is already placed, then move all into the image."""
    lying: list[tuple[float, float]] = []
    for body in bodies:
        for _ in range(_TRIES):
            if not lying:
                lying.append((0.0, 0.0))
                break
            chosen = int(rng.integers(len(lying)))
            anchor, (x0, y0) = bodies[chosen], lying[chosen]
            angle = rng.uniform(0, 2 * math.pi)
            right, away = math.cos(angle), math.sin(angle)
            seen = right, -away * math.sin(ground.elevation)
            # Feet of balls of different radii are closer than their centres; fruits are closer still than their balls.
            near = (body.reach(*seen) + anchor.reach(*seen)) / (body.radius + anchor.radius)
            reach = 2 * math.sqrt(body.radius * anchor.radius) * min(near, 1.0) * 0.99
            x, y = x0 + reach * right, y0 + reach * away
            if all(
                math.hypot(x - a, y - b) >= 1.85 * math.sqrt(body.radius * bodies[number].radius)
                for number, (a, b) in enumerate(lying)
                if number != chosen
            ):
                lying.append((x, y))
                break
        else:
            return None
    balls = [
        Ball(*ground.seen(x, y, body.radius), body.radius, number)
        for number, ((x, y), body) in enumerate(zip(lying, bodies, strict=True))
    ]
    return _moved_inside(rng, ground, balls)


def _moved_inside(rng: np.random.Generator, ground: Ground, balls: Sequence[Ball]) -> list[Ball] | None:
    if not balls:
        return []
    low = np.min([(ball.x - ball.radius * _BUMPY, ball.y - ball.radius * _BUMPY) for ball in balls], axis=0)
    high = np.max([(ball.x + ball.radius * _BUMPY, ball.y + ball.radius * _BUMPY) for ball in balls], axis=0)
    room = np.array(ground.extent) * 0.98 - (high - low)
    if room.min() < 0:
        return None
    right, down = (-(low + high) / 2 + rng.uniform(-room / 2, room / 2)).tolist()
    nearer = down / math.tan(ground.elevation)
    moved = [replace(ball, x=ball.x + right, y=ball.y + down, z=ball.z + nearer) for ball in balls]
    hidden = any(one.hides(other) for one in moved for other in moved if one is not other)
    return None if hidden else moved


def _inside(ball: Ball, ground: Ground) -> bool:
    width, height = ground.extent
    return abs(ball.x) + ball.radius * _BUMPY <= width / 2 and abs(ball.y) + ball.radius * _BUMPY <= height / 2


def cup_centres(ground: Ground, pitch: float) -> list[tuple[float, float]]:
    """Return the centres of the cups that lie entirely inside the image."""
    columns, rows = (max(1, math.floor(length / pitch)) for length in ground.extent)
    return [
        ((column - (columns - 1) / 2) * pitch, (row - (rows - 1) / 2) * pitch)
        for row in range(rows)
        for column in range(columns)
    ]
