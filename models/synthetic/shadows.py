"""Shadows of fruit on what it lies on."""

from __future__ import annotations

import math
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from models.synthetic.fields import Field, Rgb, blurred, resized
from models.synthetic.scene import Fruit, Scene, Vector
from models.types import Size

Outline: TypeAlias = NDArray[np.float64]
"""Points in the view frame: (n, 2); or one coordinate of them: (n,)."""

_SHORT: Final = 128  # mean side in pixels of the coarse image that shadows are drawn on
_POINTS: Final = np.linspace(0, 2 * math.pi, 24, endpoint=False)


def ground_light(scene: Scene, size: Size) -> Field:
    """Light that reaches the ground: float32 (height, width, 3)."""
    share = min(1.0, _SHORT / math.sqrt(size.pixels))
    shape = max(1, round(size.height * share)), max(1, round(size.width * share))
    unit = math.sqrt(shape[0] * shape[1])
    lighting = scene.lighting
    light = np.zeros((*shape, 3), np.float32)
    for lamp in lighting.lamps:
        upward = float(lamp.direction @ scene.up)
        lit = np.ones(shape, np.float32)
        for fruit in scene.fruits:
            mask = np.zeros(shape, np.float32)
            _fill(mask, _cast(fruit, scene, lamp.direction), unit)
            lit *= 1 - blurred(mask, max(0.5, fruit.radius * unit * (0.05 + 0.35 * lamp.softness)))
        light += lit[..., None] * lamp.colour * max(upward, 0.15)
    sky = np.ones(shape, np.float32)
    for fruit in scene.fruits:
        near = min(1.0, fruit.radius / float(fruit.centre @ scene.up))
        for reach, darkness in ((1.15, 0.45), (0.62, 0.6)):
            mask = np.zeros(shape, np.float32)
            _fill(mask, _foot(fruit, scene, reach), unit)
            sky *= 1 - (darkness * near**2) * blurred(mask, max(0.5, fruit.radius * unit * 0.3 * reach))
    light += sky[..., None] * lighting.sky
    light *= 0.25 + 0.75 * sky[..., None]
    return resized(light, (size.height, size.width), cv2.INTER_LINEAR)


def even_light(scene: Scene) -> Rgb:
    """Light on the ground where nothing casts a shadow."""
    light = scene.lighting.sky.copy()
    for lamp in scene.lighting.lamps:
        light += lamp.colour * max(float(lamp.direction @ scene.up), 0.15)
    return light


def _on_ground(scene: Scene, x: Outline, away: Outline, foot: tuple[float, float]) -> Outline:
    """Ground coordinates around a foot, as the camera sees them."""
    return np.stack([foot[0] + x, foot[1] - away * math.sin(scene.elevation)], axis=-1)


def _cast(fruit: Fruit, scene: Scene, direction: Vector) -> Outline:
    """Outline of the shadow on the ground: (n, 2) in the view frame."""
    ground_away = np.array([0.0, -math.sin(scene.elevation), -math.cos(scene.elevation)])
    upward = max(float(direction @ scene.up), 0.3)
    right, away = float(direction[0]), float(direction @ ground_away)
    height = float(fruit.centre @ scene.up)
    flat = math.hypot(right, away)
    along = np.array([right, away]) / max(flat, 1e-6)
    long = fruit.radius / upward
    a, b = np.cos(_POINTS) * long * 0.95, np.sin(_POINTS) * fruit.radius * 0.95
    x = along[0] * a - along[1] * b - right / upward * height
    y = along[1] * a + along[0] * b - away / upward * height
    return _on_ground(scene, x, y, _foot_of(fruit, scene))


def _foot(fruit: Fruit, scene: Scene, reach: float) -> Outline:
    radius = fruit.radius * reach
    return _on_ground(scene, np.cos(_POINTS) * radius, np.sin(_POINTS) * radius, _foot_of(fruit, scene))


def _foot_of(fruit: Fruit, scene: Scene) -> tuple[float, float]:
    """Where the fruit stands, in the view frame."""
    x, y, _ = fruit.centre - scene.up * (fruit.centre @ scene.up)
    return float(x), float(y)


def _fill(mask: Field, outline: Outline, unit: float) -> None:
    shift = 4
    middle = np.array([mask.shape[1], mask.shape[0]]) / 2
    points = np.round((outline * unit + middle - 0.5) * (1 << shift)).astype(np.int32)
    cv2.fillPoly(mask, [points], 1.0, cv2.LINE_8, shift)
