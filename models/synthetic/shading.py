"""Light on fruit: lamps, sky, bounce, shine, and what neighbours take away of them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from models.synthetic.fields import Field, clouds, dot, resized, sampled, smoothstep
from models.synthetic.peel import Peel
from models.synthetic.scene import Fruit, Lamp, Lighting, Vector
from models.synthetic.surface import Patch

_STEEPEST = 1.2  # slope of the relief that still shades well


def shaded(fruit: Fruit, patch: Patch, peel: Peel, lighting: Lighting, up: Vector, others: Sequence[Fruit]) -> Field:
    """Light that the fruit sends to the camera.

    Args:
        fruit: the one that is drawn.
        patch: its surface.
        peel: what is painted on it.
        lighting: all light.
        up: unit vector away from the ground.
        others: the fruit around it.

    Returns:
        float32 (height, width, 3), linear.
    """
    normal = _bumped(patch, peel.relief)
    open_sky, open_lamp = _shaded_by(fruit, patch, others, lighting.lamps[0])
    if lighting.dapple > 0:
        right, down = fruit.centre[:2].tolist()
        x, y = patch.x * fruit.radius + right, patch.y * fruit.radius + down
        open_lamp = open_lamp * dapples(lighting, x, y, fruit.radius / patch.pixels)
    upward = dot(normal, up)
    above = 0.5 + 0.5 * upward
    light = above[..., None] * lighting.sky + (1 - above)[..., None] * lighting.bounce
    light *= open_sky[..., None]
    # A thin film of wax mirrors the sky where it is seen from the side (Schlick's approximation).
    glance = (1 - np.clip(patch.normal[2], 0, 1)) ** 4 * peel.gloss * open_sky * 0.22
    shine = glance[..., None] * lighting.sky
    for number, lamp in enumerate(lighting.lamps):
        toward = dot(normal, lamp.direction)
        wrap = 0.05 + 0.4 * lamp.softness
        lit = np.clip((toward + wrap) / (1 + wrap), 0, 1)
        reach = open_lamp if number == 0 else open_sky
        light += (lit * reach)[..., None] * lamp.colour
        shine += (_mirrored(normal, lamp) * peel.gloss * reach * (lit > 0))[..., None] * lamp.colour
    return np.asarray(peel.albedo * light + shine, np.float32)


def _bumped(patch: Patch, relief: Field) -> Field:
    """Normals of the surface with its relief, from the slope of the relief in the image."""
    scale = patch.pixels / 8  # Sobel's kernel sums to 8
    limit = _STEEPEST
    across = np.clip(np.asarray(cv2.Sobel(relief, cv2.CV_32F, 1, 0, scale=scale), np.float32), -limit, limit)
    down = np.clip(np.asarray(cv2.Sobel(relief, cv2.CV_32F, 0, 1, scale=scale), np.float32), -limit, limit)
    normal = patch.normal.copy()
    facing = np.clip(normal[2], 0.15, 1)
    normal[0] -= across * facing
    normal[1] -= down * facing
    normal *= 1 / np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2)
    return normal


def _mirrored(normal: Field, lamp: Lamp) -> Field:
    """Blinn's highlight of two widths: wax and the broad sheen of rough peel."""
    half = lamp.direction + np.array([0, 0, 1])
    half /= np.linalg.norm(half)
    cosine = np.clip(dot(normal, half), 0, 1)
    sharp = 2 ** round(6.5 - 2.5 * lamp.softness)
    broad, narrow = _power(cosine, 8), _power(cosine, sharp)
    return 0.09 * broad + (1.1 - 0.7 * lamp.softness) * narrow


def _power(base: Field, exponent: int) -> Field:
    """Base to a power of two."""
    while exponent > 1:
        base = base * base
        exponent //= 2
    return base


def _shaded_by(fruit: Fruit, patch: Patch, others: Sequence[Fruit], lamp: Lamp) -> tuple[Field, Field]:
    """Shares of the sky and of the lamp that other fruit, taken as balls, leave; computed on every fourth pixel."""
    step = 1 if min(patch.x.shape) < 24 else 4
    thin = (slice(None, None, step), slice(None, None, step))
    x, y, z = patch.x[thin], patch.y[thin], patch.z[thin]
    nx, ny, nz = patch.normal[(slice(None), *thin)]
    sky, lit = np.ones_like(x), np.ones_like(x)
    lx, ly, lz = lamp.direction.astype(np.float32)
    blur = 0.08 + 0.5 * lamp.softness
    for other in others:
        away = (other.centre - fruit.centre) / fruit.radius
        size = float(other.radius / fruit.radius * other.axes.min())
        if np.linalg.norm(away) > 2 + 4 * size:
            continue
        dx, dy, dz = (shift - place for shift, place in zip(away.tolist(), (x, y, z), strict=True))
        square = np.maximum(dx * dx + dy * dy + dz * dz, (size * size))
        # A ball hides the share of the sky that its disc covers, weighted by the cosine (Quilez, sphere occlusion).
        hidden = np.clip((nx * dx + ny * dy + nz * dz) / np.sqrt(square), 0, 1) * (size * size) / square
        sky *= 1 - 0.85 * hidden
        forward = dx * lx + dy * ly + dz * lz
        if forward.max() > 0:
            past = np.sqrt(np.maximum(square - forward * forward, 0))
            lit *= 1 - (1 - smoothstep(size * (1 - blur), size * (1 + blur), past)) * (forward > 0)
    if step > 1 and others:
        sky, lit = (resized(field, patch.x.shape, cv2.INTER_LINEAR) for field in (sky, lit))
    elif step > 1:
        return np.ones_like(patch.x), np.ones_like(patch.x)
    return sky, lit


def dapples(lighting: Lighting, x: Field, y: Field, pixel: float) -> Field:
    """Share of the sun that leaves let through at (x, y) of the view frame, 0 to 1; `pixel` is one pixel's length."""
    noise = sampled(clouds(), x, y, period=2.0, pixel=pixel, key=lighting.key)
    return 1 - lighting.dapple * smoothstep(0.3, -0.3, noise[..., 0] + 0.15 * noise[..., 1])
