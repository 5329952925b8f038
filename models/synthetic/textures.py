"""Plain surfaces: one colour with stains, grain, waves and scratches."""

from __future__ import annotations

import math

import cv2
import numpy as np

from models.synthetic.fields import Field, Rgb, blurred, lattice
from models.synthetic.scene import Scene
from models.types import Size


def speckled(scene: Scene, size: Size, rng: np.random.Generator, colour: Rgb, strength: float) -> Field:
    """One colour with stains and grain."""
    shape = (size.height, size.width)
    width, height = scene.extent
    stains = lattice(rng, shape, (4 * height, 4 * width)) * (rng.uniform(0.2, 1) * strength)
    stains += lattice(rng, shape, (300 * height, 300 * width)) * (rng.uniform(0, 0.8) * strength)
    return np.asarray(np.maximum(1 + stains, 0.05)[..., None] * colour, np.float32)


def picked(rng: np.random.Generator, colours: tuple[Rgb, ...]) -> Rgb:
    """One of the colours, a little changed."""
    jitter = np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)
    return np.asarray(np.minimum(colours[rng.integers(len(colours))] * jitter, 0.9))


def along(size: Size, angle: float) -> Field:
    """How far each pixel is along a direction, in mean sides from the centre."""
    unit = math.sqrt(size.pixels)
    x = (np.arange(size.width, dtype=np.float32) + 0.5 - size.width / 2) / unit * math.cos(angle)
    y = (np.arange(size.height, dtype=np.float32) + 0.5 - size.height / 2) / unit * math.sin(angle)
    return np.asarray(x[None] + y[:, None], np.float32)


def wave(size: Size, angle: float, period: float) -> Field:
    """A sine across the image; none where it would be finer than the pixels."""
    pixels = period * math.sqrt(size.pixels)
    strength = min(max((pixels - 2) / 2, 0.0), 1.0)
    return np.asarray(strength * np.sin(along(size, angle) * (2 * math.pi / period)))


def scuff(canvas: Field, rng: np.random.Generator) -> None:
    """Scratches and crumbs, drawn small and blurred into the surface."""
    height, width = canvas.shape[:2]
    unit = math.sqrt(height * width)
    layer = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(0, 26))):
        x, y = rng.uniform((0, 0), (width, height))
        length, angle = unit * rng.uniform(0.004, 0.18) ** rng.uniform(1, 1.6), rng.uniform(0, math.pi)
        end = (int(x + length * math.cos(angle)), int(y + length * math.sin(angle)))
        thick = max(1, round(unit * rng.uniform(0.001, 0.005)))
        cv2.line(layer, (int(x), int(y)), end, float(rng.uniform(-1, 1)), thick, cv2.LINE_8)
    layer = blurred(layer, unit * 0.0016) * rng.uniform(0.05, 0.35)
    canvas *= np.exp(layer)[..., None]
