"""A hand that holds a fruit: forearm and palm behind it, finger tips in front of it."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.data.samples import InstanceMap
from models.synthetic.fields import Field, Rgb, generator, linear, mix, smoothstep
from models.synthetic.scene import Fruit, Scene

_SKINS: Final = tuple(
    linear(*colour)
    for colour in ((238, 194, 164), (224, 172, 138), (198, 140, 104), (160, 108, 78), (112, 74, 54), (78, 52, 40))
)
_GLOVES: Final = (linear(52, 104, 176), linear(226, 228, 226), linear(40, 42, 46), linear(70, 130, 90))
_BEYOND: Final = 3.0  # mean sides: outside of any image that is at most eight times as long as wide
_GLOVED: Final = 0.25  # share of hands in gloves: sorters and pickers wear them


def paint_palm(scene: Scene, fruit: Fruit, canvas: Field, instances: InstanceMap) -> None:
    """Paint what of the hand is behind the fruit; its pixels belong to no fruit.

    Args:
        scene: the scene.
        fruit: the fruit that is held, nearer than all others.
        canvas: linear float32 (height, width, 3), painted in place.
        instances: uint16 (height, width), set to 0 behind the hand.
    """
    rng, wrist = _hand(scene)
    toward = np.array([math.cos(wrist), math.sin(wrist)])
    centre, radius = fruit.centre[:2], fruit.radius
    palm, elbow = centre + 0.85 * radius * toward, centre + _BEYOND * toward
    skin = _skin(rng)
    _limb(scene, canvas, instances, np.array([palm + 0.6 * radius * toward, elbow]), 0.5 * radius, skin)
    _limb(scene, canvas, instances, np.array([palm, palm + 0.1 * radius * toward]), 0.85 * radius, skin)


def paint_fingers(scene: Scene, fruit: Fruit, canvas: Field, instances: InstanceMap) -> None:
    """Paint the fingers in front of the fruit; the arguments are those of `paint_palm`."""
    rng, wrist = _hand(scene)
    skin = _skin(rng)
    centre, radius = fruit.centre[:2], fruit.radius
    thick = radius * rng.uniform(0.14, 0.19)
    side = 1 if rng.random() < 0.5 else -1
    first, between, reach = rng.uniform(0.35, 0.7), rng.uniform(0.32, 0.44), rng.uniform(0.5, 0.85)
    fingers = [(side * (first + between * number), reach + 0.06 * number) for number in range(int(rng.integers(2, 5)))]
    thumb = (-side * rng.uniform(0.5, 1.1), reach)
    for turn, tip in (*fingers, thumb):
        joints = ((0.45 * turn, 1.35), (turn, 1.1), (1.08 * turn, tip))
        path = [(math.cos(wrist + angle) * away, math.sin(wrist + angle) * away) for angle, away in joints]
        wide = thick * (1.15 if turn == thumb[0] else rng.uniform(0.9, 1.05))
        _limb(scene, canvas, instances, centre + radius * np.array(path), wide, skin)


def _hand(scene: Scene) -> tuple[np.random.Generator, float]:
    """Return the random generator of the hand and the direction in the image that it comes from, mostly below."""
    rng = generator(scene.key, 9)
    return rng, float(rng.normal(math.pi / 2, 0.9))


def _skin(rng: np.random.Generator) -> Rgb:
    colours = _GLOVES if rng.random() < _GLOVED else _SKINS
    return np.asarray(colours[rng.integers(len(colours))] * np.exp(rng.normal(0, 0.06, 3)), np.float32)


def _limb(
    scene: Scene, canvas: Field, instances: InstanceMap, path: NDArray[np.float64], thick: float, colour: Rgb
) -> None:
    """Paint a rounded limb of a radius along the points of a path (n, 2), all in mean sides."""
    height, width = canvas.shape[:2]
    unit = math.sqrt(height * width)
    points, radius = path * unit + (width / 2, height / 2), thick * unit
    low = np.clip(np.floor(points.min(axis=0) - 1.5 * radius), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(points.max(axis=0) + 1.5 * radius), 0, (width, height)).astype(int)
    if (high - low).min() < 1:
        return
    x = (np.arange(low[0], high[0], dtype=np.float32) + 0.5)[None]
    y = (np.arange(low[1], high[1], dtype=np.float32) + 0.5)[:, None]
    nearest = np.full((y.shape[0], x.shape[1]), np.inf, np.float32)
    right, down = np.zeros_like(nearest), np.zeros_like(nearest)
    for (x0, y0), (x1, y1) in zip(points[:-1].tolist(), points[1:].tolist(), strict=True):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
        off_x, off_y = x - x0 - along * dx, y - y0 - along * dy
        off = np.sqrt(off_x * off_x + off_y * off_y)
        nearer = off < nearest
        nearest[nearer], right[nearer], down[nearer] = off[nearer], off_x[nearer], off_y[nearer]
    away = nearest * (1 / radius)
    upward = np.sqrt(np.clip(1 - away * away, 0, 1))
    lamp = scene.lighting.lamps[0]
    lx, ly, lz = lamp.direction.tolist()
    toward = (right * (lx / radius) + down * (ly / radius) + upward * lz + 0.3) * (1 / 1.3)  # skin scatters light
    light = np.clip(toward, 0, 1)[..., None] * lamp.colour + (0.4 + 0.6 * upward)[..., None] * scene.lighting.sky
    window = slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))
    canvas[window] *= (1 - 0.35 * smoothstep(1.5, 0.9, away))[..., None]  # its shadow
    covered = np.clip((1 - away) * radius + 0.5, 0, 1)
    mix(canvas[window], np.asarray(colour * light, np.float32), covered)
    instances[window][covered >= 0.5] = 0
