"""What carries fruit on a sorting line: belts, rollers and cups."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from models.synthetic.fields import Field, lattice, linear, mix, smoothstep
from models.synthetic.layout import Ground, cup_centres
from models.synthetic.scene import Scene
from models.synthetic.textures import along, picked, scuff, speckled, wave
from models.types import Size

_BELTS: Final = tuple(
    linear(*colour)
    for colour in (
        (44, 46, 50),
        (62, 64, 66),
        (30, 30, 32),
        (34, 74, 58),
        (36, 66, 110),
        (210, 212, 208),
        (150, 152, 150),
        (24, 96, 84),
        (90, 92, 96),
    )
)
_METALS: Final = tuple(
    linear(*colour) for colour in ((168, 170, 174), (120, 124, 128), (70, 72, 76), (206, 206, 200), (52, 84, 130))
)


def belt(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Rubber or plastic, ribbed, woven or smooth, at times with the conveyor's frame."""
    canvas = speckled(scene, size, rng, picked(rng, _BELTS), 0.06)
    if rng.random() < 0.6:
        ribs = wave(size, float(rng.choice([0, math.pi / 2])), rng.uniform(0.012, 0.06))
        canvas *= (1 + rng.uniform(0.03, 0.2) * ribs)[..., None]
    elif rng.random() < 0.5:
        period = rng.uniform(0.01, 0.03)
        weave = wave(size, math.pi / 4, period) * wave(size, -math.pi / 4, period)
        canvas *= (1 + rng.uniform(0.05, 0.25) * weave)[..., None]
    scuff(canvas, rng)
    if rng.random() < 0.35:
        # The frame of the conveyor along one side or both.
        sides = along(size, math.pi / 2) * (1 / scene.extent[1])
        steel = linear(*rng.uniform((90, 90, 94), (190, 192, 196)))
        for sign in (-1, 1) if rng.random() < 0.5 else (1,):
            edge = rng.uniform(0.38, 0.48)
            rail = smoothstep(edge, edge + 0.004, sides * sign)
            mix(canvas, linear(14, 14, 16), smoothstep(edge - 0.02, edge, sides * sign) * 0.7)
            mix(canvas, steel, rail)
    return canvas


def rollers(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Cylinders side by side, lit from above, dark gaps between them."""
    angle = float(rng.choice([0.0, math.pi / 2]))
    metal, gap = picked(rng, _METALS), rng.uniform(0.03, 0.25)
    place = along(size, angle) * (1 / scene.pitch_of_rows) + rng.random()
    number = np.floor(place)
    across = (place - number - 0.5) * (2 / (1 - gap))
    facing = np.sqrt(np.clip(1 - across * across, 0, 1))
    tilt = rng.uniform(-0.6, 0.6)
    light = 0.12 + 0.75 * facing + 0.3 * tilt * across
    glint = np.exp(-(((across - tilt) / rng.uniform(0.08, 0.3)) ** 2)) * rng.uniform(0, 0.6)
    shape = (size.height, size.width)
    cells = (90.0, 3.0) if angle == 0 else (3.0, 90.0)
    worn = 1 + 0.07 * lattice(rng, shape, cells[::-1]) + 0.05 * lattice(rng, shape, (8, 8))
    between = smoothstep(1.0, 0.93, np.abs(across))
    canvas = np.asarray((between * worn * (light + glint))[..., None] * metal)
    mix(canvas, linear(*rng.uniform((6, 6, 8), (40, 40, 44))), 1 - between)
    return canvas


def cups(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Round carriers in rows, dark inside, a bright rim."""
    canvas = speckled(scene, size, rng, picked(rng, _BELTS), 0.05)
    plastic = picked(rng, _BELTS)
    unit = math.sqrt(size.pixels)
    radius = scene.pitch_of_rows * rng.uniform(0.44, 0.49) * unit
    lean = rng.uniform(-0.5, 0.5, 2).tolist()
    for x, y in cup_centres(Ground(scene.extent, scene.elevation), scene.pitch_of_rows):
        middle = np.array([x, y]) * unit + (size.width / 2, size.height / 2)
        low = np.maximum(np.floor(middle - radius * 1.1), 0).astype(int)
        high = np.minimum(np.ceil(middle + radius * 1.1), (size.width, size.height)).astype(int)
        columns = ((np.arange(low[0], high[0]) + 0.5 - middle[0]) / radius).astype(np.float32)
        rows = ((np.arange(low[1], high[1]) + 0.5 - middle[1]) / radius).astype(np.float32)
        right, down = np.broadcast_arrays(columns[None], rows[:, None])
        off = np.sqrt(right * right + down * down)
        leaning = (lean[0] * right + lean[1] * down) / np.maximum(off, 0.05)
        window = canvas[low[1] : high[1], low[0] : high[0]]
        edge = 2 / radius
        window *= (1 - 0.4 * smoothstep(1.12, 1.0, off))[..., None]
        bowl = np.clip(0.3 + 0.45 * off + 0.5 * leaning, 0.08, 1.2)
        mix(window, plastic * bowl[..., None], smoothstep(1, 1 - edge, off))
        rim = smoothstep(0.86 - edge, 0.86, off) * smoothstep(1, 1 - edge, off)
        mix(window, plastic * 1.25, rim * (0.8 - 0.4 * leaning))
    return np.asarray(np.minimum(canvas, 1))
