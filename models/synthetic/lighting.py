"""Light on fruit, and the shadows that fruit casts on the ground and on its neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from models.synthetic.fields import Field, Rgb, blurred, clouds, dot, resized, sampled, smoothstep
from models.synthetic.foliage import thicket
from models.synthetic.peel import Peel
from models.synthetic.scene import Fruit, Lamp, Lighting, Scene, Vector
from models.synthetic.surface import Patch
from models.types import Size

_LEAF_SHADOWS: Final = 1.6  # period of the shadows: leaves of a fifth of the mean side
_PENUMBRA: Final = 0.006  # in mean sides
_STEEPEST: Final = 1.2  # steepest slope of the relief that still shades well


def shade(fruit: Fruit, patch: Patch, peel: Peel, lighting: Lighting, up: Vector, others: Sequence[Fruit]) -> Field:
    """Compute the light that a fruit reflects to the camera.

    Args:
        fruit: the fruit.
        patch: its surface.
        peel: the paint on it.
        lighting: all light.
        up: unit vector away from the ground.
        others: the fruits around it.

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
    # A thin film of wax reflects the sky at grazing angles (Schlick's approximation).
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
    """Return the normals of the surface with its relief, from the slope of the relief in the image."""
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
    """Return Blinn's highlight in two widths: wax, and the broad sheen of rough peel."""
    half = lamp.direction + np.array([0, 0, 1])
    half /= np.linalg.norm(half)
    cosine = np.clip(dot(normal, half), 0, 1)
    sharp = 2 ** round(6.5 - 2.5 * lamp.softness)
    broad, narrow = _power(cosine, 8), _power(cosine, sharp)
    return 0.09 * broad + (1.1 - 0.7 * lamp.softness) * narrow


def _power(base: Field, exponent: int) -> Field:
    """Raise `base` to a power of two."""
    while exponent > 1:
        base = base * base
        exponent //= 2
    return base


def _shaded_by(fruit: Fruit, patch: Patch, others: Sequence[Fruit], lamp: Lamp) -> tuple[Field, Field]:
    """Return the shares of sky and lamp that other fruits, taken as balls, leave; computed on every fourth pixel."""
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
        square = np.maximum(dx * dx + dy * dy + dz * dz, size * size)
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
    """Return the share of sunlight that leaves let through at (x, y), 0 to 1; `pixel` is the length of a pixel."""
    if lighting.leafy:
        # The sun is no point: the outline of a leaf some way off is a little soft.
        leaves = sampled(thicket(), x, y, period=_LEAF_SHADOWS, pixel=max(pixel, _PENUMBRA), key=lighting.key)
        return np.asarray(1 - lighting.dapple * leaves[..., 3])
    noise = sampled(clouds(), x, y, period=2.0, pixel=pixel, key=lighting.key)
    return 1 - lighting.dapple * smoothstep(0.3, -0.3, noise[..., 0] + 0.15 * noise[..., 1])


Outline: TypeAlias = NDArray[np.float64]
"""Points in the view frame: (n, 2); or one coordinate of them: (n,)."""

_SHORT: Final = 128  # mean side in pixels of the coarse image that shadows are drawn on
_POINTS: Final = np.linspace(0, 2 * math.pi, 24, endpoint=False)


def ground_light(scene: Scene, size: Size) -> Field:
    """Compute the light that reaches the ground: float32 (height, width, 3)."""
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
    """Compute the light on the ground where nothing casts a shadow."""
    light = scene.lighting.sky.copy()
    for lamp in scene.lighting.lamps:
        light += lamp.colour * max(float(lamp.direction @ scene.up), 0.15)
    return light


def _on_ground(scene: Scene, x: Outline, away: Outline, foot: tuple[float, float]) -> Outline:
    """Project ground coordinates around a foot to the view frame."""
    return np.stack([foot[0] + x, foot[1] - away * math.sin(scene.elevation)], axis=-1)


def _cast(fruit: Fruit, scene: Scene, direction: Vector) -> Outline:
    """Return the outline of the shadow on the ground: (n, 2) in the view frame."""
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
    """Return where the fruit stands, in the view frame."""
    x, y, _ = fruit.centre - scene.up * (fruit.centre @ scene.up)
    return float(x), float(y)


def _fill(mask: Field, outline: Outline, unit: float) -> None:
    shift = 4
    middle = np.array([mask.shape[1], mask.shape[0]]) / 2
    points = np.round((outline * unit + middle - 0.5) * (1 << shift)).astype(np.int32)
    cv2.fillPoly(mask, [points], 1.0, cv2.LINE_8, shift)
