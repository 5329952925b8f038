"""What fruit lies on at home and in the laboratory: tables with things on them, and cloth."""

from __future__ import annotations

import math
from typing import Final

import cv2
import numpy as np

from models.synthetic.fields import Field, blurred, clouds, lattice, linear, mix, sampled, smoothstep
from models.synthetic.scene import Scene
from models.synthetic.textures import along, picked, scuff, speckled, wave
from models.types import Size

_TABLES: Final = tuple(
    linear(*colour)
    for colour in (
        (226, 224, 222),
        (206, 204, 204),
        (236, 234, 228),
        (190, 186, 184),
        (170, 166, 160),
        (120, 122, 126),
        (60, 60, 64),
        (150, 108, 70),
        (110, 74, 46),
        (186, 148, 104),
        (226, 214, 196),
        (40, 36, 34),
    )
)
_CLOTHS: Final = tuple(
    linear(*colour)
    for colour in (
        (220, 218, 214),
        (46, 70, 120),
        (150, 32, 36),
        (86, 92, 70),
        (30, 32, 40),
        (204, 184, 150),
        (112, 104, 126),
        (228, 206, 206),
        (70, 120, 120),
        (120, 96, 70),
    )
)


def table(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Plain or wooden, at times with things that reach into the image."""
    colour = picked(rng, _TABLES[:5] if rng.random() < 0.5 else _TABLES)
    canvas = speckled(scene, size, rng, colour, 0.025)
    wooden = colour[0] > 1.5 * colour[2]
    if wooden:
        angle, key = rng.uniform(0, math.pi), int(rng.integers(1 << 31))
        length, across = along(size, angle), along(size, angle + math.pi / 2)
        unit = 1 / math.sqrt(size.pixels)
        grain = 0.13 * sampled(clouds(), length * 0.12, across, period=1.2, pixel=unit, key=key)[..., 0]
        grain += (
            rng.uniform(0.02, 0.1)
            * sampled(clouds(), length * 0.05, across, period=0.7, pixel=unit, key=key + 1)[..., 2]
        )
        if rng.random() < 0.5:
            boards = np.abs((across * rng.uniform(2, 5)) % 1 - 0.5)
            grain -= 0.7 * smoothstep(0.49, 0.5, boards)
        canvas *= np.exp(grain)[..., None]
    # Light falls off over a table much wider than the image.
    slope = along(size, rng.uniform(0, 2 * math.pi))
    canvas *= np.clip(1 + rng.uniform(0, 0.35) * slope, 0.3, 1.4)[..., None]
    if rng.random() < 0.4:
        scuff(canvas, rng)
    for _ in range(int(rng.choice(4, p=[0.4, 0.3, 0.2, 0.1]))):
        _clutter(canvas, rng)
    if rng.random() < 0.25:
        _cable(canvas, rng)
    return canvas


def _clutter(canvas: Field, rng: np.random.Generator) -> None:
    """A thing that reaches into the image from its border: the table's edge, a keyboard, a box."""
    height, width = canvas.shape[:2]
    unit = math.sqrt(height * width)
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    reach = 0.5 * (width * abs(cos) + height * abs(sin))
    depth = rng.uniform(0.5, 0.98) * reach
    half = rng.uniform(0.2, 3) * unit
    middle = np.array([width / 2, height / 2]) + rng.uniform(-0.3, 0.3) * unit * np.array([-sin, cos])
    corners = [(depth, -half), (depth, half), (depth + 2 * unit, half), (depth + 2 * unit, -half)]
    turned = [middle + np.array([a * cos - b * sin, a * sin + b * cos]) for a, b in corners]
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.array(turned).astype(np.int32)], 255, cv2.LINE_AA)
    weight = mask.astype(np.float32) * (1 / 255)
    shadow = blurred(weight, 0.02 * unit)
    canvas *= (1 - rng.uniform(0, 0.6) * shadow)[..., None]
    tone = rng.uniform(8, 70) if rng.random() < 0.6 else rng.uniform(70, 235)
    colour = linear(*np.clip(tone + rng.normal(0, 18, 3), 2, 245))
    texture = np.ones((height, width), np.float32)
    if rng.random() < 0.5:
        ys, xs = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
        key = unit * rng.uniform(0.03, 0.07)
        a, b = (xs * cos + ys * sin) / key, (ys * cos - xs * sin) / key
        grid = np.minimum(np.abs(a % 1 - 0.5), np.abs(b % 1 - 0.5))
        texture = 0.5 + smoothstep(0.02, 0.1, grid).astype(np.float32)
    mix(canvas, colour * texture[..., None], weight)


def _cable(canvas: Field, rng: np.random.Generator) -> None:
    height, width = canvas.shape[:2]
    unit = math.sqrt(height * width)
    start = np.array([rng.choice([-0.05, 1.05]) * width, rng.uniform(0, 1) * height])
    steps = np.cumsum(np.cumsum(rng.normal(0, 0.03, 70)) * 0.6)
    heading = rng.uniform(0, 2 * math.pi) + steps
    path = start + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1) * unit * 0.014, axis=0)
    mask = np.zeros((height, width), np.uint8)
    thick = max(1, round(unit * 0.006))
    cv2.polylines(mask, [path.astype(np.int32)], isClosed=False, color=255, thickness=thick, lineType=cv2.LINE_AA)
    weight = mask.astype(np.float32) * (1 / 255)
    canvas *= (1 - 0.3 * blurred(weight, 0.012 * unit))[..., None]
    mix(canvas, linear(*[rng.uniform(10, 230)] * 3), weight)


def cloth(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Woven, plain, striped or checked, with folds."""
    canvas = speckled(scene, size, rng, picked(rng, _CLOTHS), 0.03)
    shape = (size.height, size.width)
    angle, period = rng.uniform(0, math.pi), rng.uniform(0.006, 0.02)
    weave = wave(size, angle, period) + wave(size, angle + math.pi / 2, period)
    canvas *= (1 + 0.08 * weave)[..., None]
    if rng.random() < 0.4:
        second, wide = (picked(rng, _CLOTHS)), rng.uniform(0.06, 0.3)
        checks = smoothstep(-0.1, 0.1, wave(size, angle, wide)) * 0.5
        if rng.random() < 0.6:
            checks += smoothstep(-0.1, 0.1, wave(size, angle + math.pi / 2, wide)) * 0.5
        mix(canvas, second, checks * 0.9)
    # Folds: light on the slopes of a smooth height.
    width, height = scene.extent
    folds = lattice(rng, shape, (rng.uniform(1, 6) * height, rng.uniform(1, 6) * width))
    per_side = math.sqrt(size.pixels) / 8
    slope = np.asarray(cv2.Sobel(folds, cv2.CV_32F, *((1, 0) if rng.random() < 0.5 else (0, 1))), np.float32) * per_side
    canvas *= np.clip(1 + rng.uniform(0.005, 0.05) * slope, 0.35, 1.5)[..., None]
    return canvas
