"""Leaves: behind hanging fruit, in front of it, and one or two at the stem of picked fruit."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import cv2
import numpy as np

from models.data.samples import InstanceMap
from models.synthetic.fields import Field, blurred, lattice, linear, mix, smoothstep
from models.synthetic.scene import Lighting, Scene
from models.types import Size

_LONG: Final = 256  # length of the sprite of a leaf in pixels


@lru_cache(maxsize=1)
def _leaf() -> tuple[Field, ...]:
    """Return a leaf from its stalk (left) to its tip, and its halved copies.

    Channels: covered share of the pixel; side of the blade, -1 or 1; veins, 0 to 1; 0 at the stalk to 1 at the tip.
    """
    rows, columns = np.mgrid[0 : _LONG // 2, 0:_LONG].astype(np.float32)
    along = (columns + 0.5) / _LONG
    across = (rows + 0.5 - _LONG / 4) / _LONG
    half = 0.62 * np.clip(along, 0, 1) ** 0.6 * np.clip(1 - along, 0, 1) ** 0.72
    covered = np.clip((half - np.abs(across)) * _LONG * 0.5 + 0.5, 0, 1)
    middle = smoothstep(0.012, 0.004, np.abs(across))
    side = np.abs(np.sin((along - 0.55 * np.abs(across)) * 34))
    veins = np.maximum(middle, smoothstep(0.16, 0.0, side) * 0.35)
    sprite = np.stack([covered, np.tanh(across * 60), veins, along], axis=-1).astype(np.float32)
    sprite[:2] = sprite[-2:] = 0
    levels = [sprite]
    while levels[-1].shape[0] > 8:
        levels.append(np.asarray(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)))
    return tuple(levels)


def _draw_leaf(
    canvas: Field, rng: np.random.Generator, stalk: tuple[float, float], *, length: float, angle: float, light: Lighting
) -> tuple[tuple[slice, slice], Field] | None:
    """Draw a leaf from its stalk (in pixels); return its window and the share of each pixel that it covers."""
    height, width = canvas.shape[:2]
    levels = _leaf()
    level = int(np.clip(math.floor(math.log2(max(_LONG / length, 1)) + 0.5), 0, len(levels) - 1))
    sprite = levels[level]
    scale = length / sprite.shape[1]
    narrow = rng.uniform(0.45, 1.0)
    cos, sin = math.cos(angle), math.sin(angle)
    reach = length * 0.3 * narrow
    ends = np.array([[0, -reach], [0, reach], [length, -reach], [length, reach]])
    spots = ends @ np.array([[cos, sin], [-sin, cos]]) + stalk
    low = np.clip(np.floor(spots.min(axis=0)), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(spots.max(axis=0)), 0, (width, height)).astype(int)
    if (high - low).min() < 2:
        return None
    middle = sprite.shape[0] / 2
    matrix = np.array(
        [
            [scale * cos, -scale * narrow * sin, stalk[0] - low[0] + middle * scale * narrow * sin],
            [scale * sin, scale * narrow * cos, stalk[1] - low[1] - middle * scale * narrow * cos],
        ]
    )
    shape = (int(high[0] - low[0]), int(high[1] - low[1]))
    warped = np.asarray(cv2.warpAffine(sprite, matrix, shape, flags=cv2.INTER_LINEAR), np.float32)
    covered, side, veins, along = np.moveaxis(warped, -1, 0)
    ripe = rng.beta(1.2, 1.6)
    green = linear(*(rng.normal(0, 5, 3) + np.array([40 + 70 * ripe, 70 + 75 * ripe, 28 + 22 * ripe])))
    if rng.random() < 0.12:
        green = linear(*rng.uniform((120, 120, 40), (190, 180, 70)))
    facing = rng.uniform(0.15, 1.0)
    tilt = rng.uniform(-0.35, 0.35)
    lamp = light.lamps[0].colour
    brightness = (0.9 * light.sky + facing * lamp) * 0.8
    shade = 1 + tilt * side + 0.5 * veins
    # Wax shines where the blade bends towards the light: a band along one half, or across it.
    blade = rng.uniform(0.2, 0.8) + 0.25 * side
    band = np.exp(-(((along - blade) / rng.uniform(0.12, 0.4)) ** 2)) * (rng.uniform(0, 0.5) ** 2)
    colour = shade[..., None] * (green * brightness) + band[..., None] * lamp
    window = slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))
    mix(canvas[window], colour, covered)
    return window, covered


def paint_foliage(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint a crown of leaves: blurred ones far behind with sky between them, sharp ones nearer."""
    shape = (size.height, size.width)
    unit = math.sqrt(size.pixels)
    gaps = smoothstep(rng.uniform(0.6, 1.6), 2.2, lattice(rng, shape, (9, 9)))
    shade = np.exp(lattice(rng, shape, (6, 6)) * 0.4 + rng.uniform(-0.8, 0.4))
    canvas = np.asarray(shade[..., None] * linear(*rng.uniform((20, 34, 14), (60, 78, 34))), np.float32)
    mix(canvas, linear(*rng.uniform((150, 170, 190), (250, 250, 250))), gaps * rng.uniform(0, 0.9))
    length = rng.uniform(0.16, 0.4)
    number = min(80, round(3.2 / length**2))
    for share, dark in ((0.6, 0.6), (1.0, 1.0)):
        for _ in range(round(number * share)):
            _any_leaf(canvas, rng, length * share * unit, scene.lighting)
        if dark < 1:
            canvas = blurred(canvas, rng.uniform(0.004, 0.02) * unit) * dark
    return canvas


def _any_leaf(
    canvas: Field, rng: np.random.Generator, length: float, light: Lighting
) -> tuple[tuple[slice, slice], Field] | None:
    height, width = canvas.shape[:2]
    x, y = rng.uniform((-0.1 * width, -0.2 * height), (1.1 * width, 1.0 * height)).tolist()
    angle = rng.normal(math.pi / 2, 1.0)  # leaves hang
    return _draw_leaf(canvas, rng, (x, y), length=length * rng.uniform(0.6, 1.2), angle=angle, light=light)


def paint_front_leaves(scene: Scene, canvas: Field, instances: InstanceMap, rng: np.random.Generator) -> None:
    """Hang some leaves in front of the fruit; the pixels they cover no longer belong to a fruit.

    Args:
        scene: the scene.
        canvas: float32 (height, width, 3), painted in place.
        instances: uint16 (height, width), set to 0 behind the leaves.
        rng: random generator.
    """
    unit = math.sqrt(canvas.shape[0] * canvas.shape[1])
    for fruit in scene.fruits:
        for _ in range(int(rng.choice(4, p=[0.35, 0.35, 0.2, 0.1]))):
            around = rng.uniform(0, 2 * math.pi)
            rim = np.array([math.cos(around), math.sin(around)]) * fruit.radius * rng.uniform(0.9, 1.5)
            stalk = (fruit.centre[:2] + rim) * unit + (canvas.shape[1] / 2, canvas.shape[0] / 2)
            length = fruit.radius * unit * rng.uniform(0.8, 1.9)
            inward = rng.normal(around + math.pi, 0.9)
            leaf = _draw_leaf(canvas, rng, (stalk[0], stalk[1]), length=length, angle=inward, light=scene.lighting)
            if leaf is not None:
                window, covered = leaf
                instances[window][covered >= 0.5] = 0
