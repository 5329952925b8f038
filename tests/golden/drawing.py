"""The plain oranges of the stored images: drawn once, for `make_golden.py`; `models.synthetic` draws all others."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.types import Box, Pixels, Size

_LIGHT = np.array([-0.45, -0.6, 0.66], np.float32)
_FRUIT_SHARE = 0.17  # a fruit's mean radius as a share of the image's shorter side


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn image.

    Attributes:
        pixels: uint8 (height, width, 3), RGB.
        instances: uint8 (height, width): 0 for the belt, then 1, 2, … for each fruit's visible part.
    """

    pixels: Pixels
    instances: NDArray[np.uint8]

    def fruit_box(self, number: int) -> Box:
        """The tight half-open box of fruit `number`, from 1."""
        ys, xs = np.nonzero(self.instances == number)
        return Box(float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))


def render_oranges(seed: int, size: Size, fruits: int = 5) -> Scene:
    """Draw `fruits` oranges on a belt; the same arguments give the same image.

    Args:
        seed: of the random numbers.
        size: of the image.
        fruits: how many; later ones lie over earlier ones where they touch.
    """
    rng = np.random.default_rng(seed)
    canvas = _belt(rng, size)
    instances = np.zeros((size.height, size.width), np.uint8)
    unit = min(size.height, size.width)
    for number, (x, y) in enumerate(_places(rng, size, fruits), start=1):
        radius = unit * _FRUIT_SHARE * rng.uniform(0.8, 1.15)
        _draw_orange(canvas, instances, number, (x, y, radius), rng)
    canvas += rng.normal(0, 0.008, canvas.shape).astype(np.float32)
    pixels = (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(pixels, instances)


def _places(rng: np.random.Generator, size: Size, fruits: int) -> list[tuple[float, float]]:
    """Centres that keep apart where there is room: the best of many tries for each."""
    margin = min(size.height, size.width) * _FRUIT_SHARE * 0.9
    low, high = (margin, margin), (size.width - margin, size.height - margin)
    places = [rng.uniform(low, high)]
    while len(places) < fruits:
        tries = rng.uniform(low, high, (64, 2))
        gaps = np.linalg.norm(tries[:, None] - np.array(places)[None], axis=2).min(axis=1)
        places.append(tries[gaps.argmax()])
    return [(float(x), float(y)) for x, y in places]


def _noise(rng: np.random.Generator, size: Size, cell: float) -> NDArray[np.float32]:
    """Smooth noise of unit variance, float32 (height, width); `cell` pixels from bump to bump."""
    small = rng.standard_normal((max(2, int(size.height / cell)), max(2, int(size.width / cell)))).astype(np.float32)
    return np.asarray(cv2.resize(small, (size.width, size.height), interpolation=cv2.INTER_CUBIC), np.float32)


def _belt(rng: np.random.Generator, size: Size) -> NDArray[np.float32]:
    """Dark rubber with ribs across and some dust."""
    rows = np.arange(size.height, dtype=np.float32)[:, None]
    rib = np.sin(rows * (2 * np.pi * 26 / size.height)) * 0.012
    grain = _noise(rng, size, 3) * 0.012 + _noise(rng, size, 90) * 0.02
    grey = 0.24 + rib + grain
    return np.stack([grey * 0.95, grey, grey * 1.1], axis=-1).astype(np.float32)


def _draw_orange(
    canvas: NDArray[np.float32],
    instances: NDArray[np.uint8],
    number: int,
    place: tuple[float, float, float],
    rng: np.random.Generator,
) -> None:
    """Shade a slightly flattened, slightly bumpy sphere into the canvas."""
    x0, y0, radius = place
    height, width = instances.shape
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, flat = rng.uniform(0, np.pi), rng.uniform(0.9, 1.0)
    dx, dy = (xs - x0) / radius, (ys - y0) / radius
    u = dx * np.cos(angle) + dy * np.sin(angle)
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / flat
    around = np.arctan2(v, u)
    outline = 1 + 0.012 * np.sin(3 * around + rng.uniform(0, 6)) + 0.008 * np.sin(5 * around + rng.uniform(0, 6))
    distance = np.sqrt(u * u + v * v) / outline

    shadow = np.exp(-(((dx - 0.2) ** 2 + (dy - 0.28) ** 2) ** 2) * 0.55)
    canvas *= (1 - 0.6 * shadow * (instances == 0))[..., None]

    inside = distance < 1
    z = np.sqrt(np.clip(1 - distance**2, 0, 1))
    size = Size(height, width)
    pores = _noise(rng, size, max(2.0, radius / 28)) * 0.045
    lambert = np.clip(dx * _LIGHT[0] + dy * _LIGHT[1] + z * _LIGHT[2] + pores, 0, 1)
    shine = np.clip(2 * lambert * z - _LIGHT[2], 0, 1) ** 18 * 0.35
    ripeness = np.clip(0.85 + 0.1 * _noise(rng, size, radius) + rng.uniform(-0.15, 0.1), 0, 1)[..., None]
    peel = ripeness * np.array([0.98, 0.52, 0.06]) + (1 - ripeness) * np.array([0.62, 0.62, 0.12])
    calyx = np.exp(-((u - rng.uniform(-0.5, 0.5)) ** 2 + (v - rng.uniform(-0.5, 0.5)) ** 2) * 160)[..., None]
    peel = peel * (1 - calyx) + calyx * np.array([0.33, 0.36, 0.16])
    shaded = peel * (0.22 + 0.85 * lambert)[..., None] + shine[..., None]

    edge = np.clip((1 - distance) * radius, 0, 1)[..., None]  # one pixel of antialiasing
    canvas *= 1 - edge
    canvas += (edge * shaded).astype(np.float32)
    instances[inside] = number
