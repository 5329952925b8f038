"""The skin of apples: smooth, with a blush in stripes, pale dots, a hollow with the stalk and one with the calyx."""

from __future__ import annotations

import math
from typing import Final

import cv2
import numpy as np

from models.synthetic.fields import Field, clouds, dot, generator, linear, mix, pores, sampled, smoothstep
from models.synthetic.peel import Peel
from models.synthetic.scene import Fruit
from models.synthetic.surface import Patch

_GREEN: Final = linear(86, 124, 38)
_MIDDLE: Final = linear(172, 186, 78)
_YELLOW: Final = linear(232, 200, 98)
_REDS: Final = tuple(linear(*colour) for colour in ((150, 18, 26), (186, 34, 36), (206, 78, 62), (112, 14, 30)))
_RUSSET: Final = linear(158, 124, 74)
_STALK: Final = linear(88, 62, 38)
_SEPALS: Final = linear(74, 60, 40)
_DOTS: Final = linear(226, 210, 170)


def apple_skin(fruit: Fruit, patch: Patch) -> Peel:
    """Paint the healthy skin of an apple."""
    rng = generator(fruit.key, 1)
    noise = patch.noise
    ripe = np.clip(fruit.ripeness + 0.06 * noise[..., 0], 0, 1)[..., None]
    ground = np.where(
        ripe < 0.5, _GREEN + (_MIDDLE - _GREEN) * (2 * ripe), _MIDDLE + (_YELLOW - _MIDDLE) * (2 * ripe - 1)
    )
    albedo = np.asarray(ground * (1 + 0.04 * noise[..., 1])[..., None], np.float32)
    if fruit.blush > 0.02:
        _blush(fruit, patch, albedo, rng)
    dots = sampled(pores(), patch.u, patch.v, period=rng.uniform(2.6, 5.5), pixel=1 / patch.pixels, key=fruit.key + 1)
    mix(albedo, _DOTS, smoothstep(0.62, 0.85, dots) * rng.uniform(0, 0.5))
    relief = np.asarray(noise[..., 0] * rng.uniform(0.0005, 0.004), np.float32)
    peel = Peel(albedo, np.full_like(relief, 0.25 + 0.75 * fruit.gloss), relief, np.zeros_like(relief))
    _hollow(patch, fruit, peel, rng, sign=1)
    _hollow(patch, fruit, peel, rng, sign=-1)
    return peel


def _blush(fruit: Fruit, patch: Patch, albedo: Field, rng: np.random.Generator) -> None:
    """Redden the sunny side: washed, or in stripes from stalk to calyx."""
    right, pole, ahead = patch.sphere
    away = 1 / np.sqrt(np.maximum(right * right + ahead * ahead, 0.004))
    # Around the axis the noise closes on itself; along the axis it hardly changes.
    stripes = sampled(
        clouds(), right * away + 0.12 * pole, ahead * away, period=rng.uniform(1.6, 3), pixel=0.012, key=fruit.key + 2
    )
    sunny = dot(patch.sphere, rng.normal(0, 0.5, 3) + np.array([0, 0.3, 0]))
    striped = rng.uniform(0, 0.7)
    dense = sunny + 0.12 * patch.noise[..., 0] + striped * (0.7 * stripes[..., 2] + 0.5 * stripes[..., 1])
    dense += 3.2 * fruit.blush - 1.6
    weight = smoothstep(-0.5, rng.uniform(0.3, 0.9), np.asarray(dense, np.float32))
    red = _REDS[rng.integers(len(_REDS))] * np.exp(rng.normal(0, 0.1, 3)).astype(np.float32)
    mix(albedo, red * (1 + 0.1 * stripes[..., 1])[..., None], weight * rng.uniform(0.8, 0.97))


def _hollow(patch: Patch, fruit: Fruit, peel: Peel, rng: np.random.Generator, *, sign: int) -> None:
    """Paint the hollow at an end: with russet and the stalk at the top, with dry sepals below."""
    axis = np.array([0.0, float(sign), 0.0])
    wide, deep, lean = rng.uniform(0.2, 0.34), rng.uniform(0.5, 1), rng.normal(0, 0.5)
    window = patch.window_of(fruit, axis, 3 * wide)
    if window is None:
        return
    part = peel.part(window)
    right, pole, ahead = patch.sphere[(slice(None), *window)]
    off = np.sqrt(np.maximum(2 - 2 * sign * pole, 0))  # chord from the pole
    around = np.asarray(cv2.phase(right, ahead), np.float32)
    fine = patch.noise[window][..., 2]
    bell = np.exp(-((off / wide) ** 2))
    part.relief -= (0.16 if sign > 0 else 0.1) * deep * bell
    part.albedo *= (1 - (0.65 * deep) * np.exp(-((off / (0.55 * wide)) ** 2)))[..., None]
    if sign < 0:
        sepals = 0.3 * wide * (1 + 0.5 * np.cos(5 * around) + 0.2 * fine)
        mix(part.albedo, _SEPALS, smoothstep(1.15, 0.85, off / sepals))
        return
    star = smoothstep(1.2, 0.3, off / (wide * (0.9 + 0.25 * np.cos(4 * around) + 0.2 * fine)))
    mix(part.albedo, _RUSSET, star * rng.uniform(0, 0.6))
    x, y, z = fruit.rotation.T @ (fruit.axes * axis)
    if z < -0.2:
        return
    angle = math.atan2(y, x) + lean
    across, down = patch.x[window] - x, patch.y[window] - y
    along = across * math.cos(angle) + down * math.sin(angle)
    beside = np.abs(down * math.cos(angle) - across * math.sin(angle))
    length, half = rng.uniform(0.1, 0.4), rng.uniform(0.018, 0.035)
    stalk = smoothstep(half * 1.3, half * 0.8, beside) * (along > -half) * smoothstep(length, length - half, along)
    mix(part.albedo, _STALK * (0.7 + 0.5 * rng.random()), np.asarray(stalk, np.float32))
    part.relief += 0.03 * stalk
    part.gloss *= 1 - 0.8 * stalk
