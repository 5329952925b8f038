"""Leaves: one by one, as the seamless texture of a thicket, and hanging in front of fruit."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, TypeAlias

import cv2
import numpy as np

from models.data.samples import InstanceMap
from models.synthetic.fields import Field, Rgb, generator, halved, linear, mix, smoothstep
from models.synthetic.scene import Background, Scene

_LONG: Final = 256  # length of the sprite of a leaf in pixels
_TILE: Final = 512  # side of the thicket in pixels
_TILED_LEAVES: Final = 420  # cover five sixths of it
LEAF_OF_TILE: Final = 0.14
"""Mean length of a leaf of the thicket, as a share of the tile."""

_Window: TypeAlias = tuple[slice, slice]


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


def _warped(
    shape: tuple[int, ...], stalk: tuple[float, float], *, length: float, angle: float, breadth: float
) -> tuple[_Window, Field] | None:
    """Turn the sprite; return the window of an image (height, width, ...) that it covers and its channels there."""
    height, width = shape[:2]
    levels = _leaf()
    level = int(np.clip(math.floor(math.log2(max(_LONG / length, 1)) + 0.5), 0, len(levels) - 1))
    sprite = levels[level]
    scale = length / sprite.shape[1]
    cos, sin = math.cos(angle), math.sin(angle)
    reach = length * 0.3 * breadth
    ends = np.array([[0, -reach], [0, reach], [length, -reach], [length, reach]])
    spots = ends @ np.array([[cos, sin], [-sin, cos]]) + stalk
    low = np.clip(np.floor(spots.min(axis=0)), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(spots.max(axis=0)), 0, (width, height)).astype(int)
    if (high - low).min() < 2:
        return None
    middle = sprite.shape[0] / 2
    matrix = np.array(
        [
            [scale * cos, -scale * breadth * sin, stalk[0] - low[0] + middle * scale * breadth * sin],
            [scale * sin, scale * breadth * cos, stalk[1] - low[1] - middle * scale * breadth * cos],
        ]
    )
    across = (int(high[0] - low[0]), int(high[1] - low[1]))
    warped = np.asarray(cv2.warpAffine(sprite, matrix, across, flags=cv2.INTER_LINEAR), np.float32)
    return (slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))), warped


@lru_cache(maxsize=1)
def thicket() -> tuple[Field, ...]:
    """Return seamless leaves, float32 (n, n, 4), and their halved copies, for `sampled`.

    Channels: covered share of the pixel; brightness, about 0.2 to 1.4; place in the palette of `leaf_colours`, 0 to 1;
    share covered by the nearest leaves alone, whose gaps are wide enough for sun to fall through.
    """
    rng = generator(3)
    tile = np.zeros((_TILE, _TILE, 4), np.float32)
    for number in range(_TILED_LEAVES):
        x, y = rng.uniform(0, _TILE, 2).tolist()
        length, angle = LEAF_OF_TILE * _TILE * rng.uniform(0.6, 1.3), rng.normal(math.pi / 2, 1.1)
        breadth, facing, tilt, hue = rng.uniform((0.6, 0.3, -0.3, 0), (1.4, 1.2, 0.3, 1)).tolist()
        copies = [
            (x + right, y + down)
            for right in (-_TILE, 0, _TILE)
            for down in (-_TILE, 0, _TILE)
            if -length < x + right < _TILE + length and -length < y + down < _TILE + length
        ]
        for stalk in copies:
            placed = _warped(tile.shape, stalk, length=length, angle=angle, breadth=breadth)
            if placed is None:
                continue
            window, (covered, side, veins, _) = placed[0], np.moveaxis(placed[1], -1, 0)
            part = tile[window]
            # What lies under the leaf is in its shadow.
            part[..., 1] *= 1 - 0.55 * cv2.blur(covered, (9, 9))
            paint = np.stack([np.ones_like(side), facing * (1 + tilt * side) + 0.2 * veins, hue + 0 * side], -1)
            mix(part[..., :3], paint, covered)
            if number >= _TILED_LEAVES * 0.7:
                np.maximum(part[..., 3], covered, out=part[..., 3])
    return halved(tile)


@lru_cache(maxsize=8)
def leaf_colours(key: int) -> Field:
    """Return the leaves' colours in a scene: float32 (256, 3), from dark over light green to yellow and brown ones."""
    rng = generator(key, 7)
    wilted = 0.03 if rng.random() < 0.55 else rng.uniform(0.08, 0.3) if rng.random() < 0.7 else rng.uniform(0.3, 0.8)
    dull = rng.uniform(0.2, 0.65) if rng.random() < 0.35 else rng.uniform(0, 0.2)
    dark = np.array([40, 70, 28]) + rng.normal(0, (10, 8, 8))
    light = np.array([112, 148, 52]) + rng.normal(0, (22, 16, 14))
    yellow, brown = rng.uniform((150, 130, 40), (205, 190, 80)), rng.uniform((96, 66, 36), (158, 116, 72))
    stops = [0.0, 0.55 * (1 - wilted), 1 - wilted, 1 - 0.6 * wilted, 1.0]
    place = np.linspace(0, 1, 256)
    shades = zip(dark, (0.6 * dark + 0.4 * light), light, yellow, brown, strict=True)
    srgb = np.stack([np.interp(place, stops, list(channel)) for channel in shades], axis=-1)
    grey = srgb.mean(axis=1, keepdims=True)
    return linear(*(srgb + (grey - srgb) * dull).ravel()).reshape(256, 3)


def draw_leaf(
    canvas: Field,
    rng: np.random.Generator,
    stalk: tuple[float, float],
    *,
    length: float,
    angle: float,
    key: int,
    light: tuple[Rgb, Rgb],
) -> tuple[_Window, Field] | None:
    """Draw one leaf.

    Args:
        canvas: linear float32 (height, width, 3), painted in place.
        rng: random generator.
        stalk: x and y of its stalk in pixels.
        length: its length in pixels.
        angle: direction from the stalk to the tip.
        key: key of the scene: leaves of one tree are alike.
        light: light of the sky and of the lamp.

    Returns:
        Its window and the share of each pixel that it covers; None if it is outside the image.
    """
    broad = float(generator(key, 8).uniform(0.6, 1.5))
    breadth = broad * rng.uniform(0.65, 1.1)
    placed = _warped(canvas.shape, stalk, length=length, angle=angle, breadth=breadth)
    if placed is None:
        return None
    window, (covered, side, veins, along) = placed[0], np.moveaxis(placed[1], -1, 0)
    colour = leaf_colours(key)[rng.integers(256)] * np.exp(rng.normal(0, 0.1, 3)).astype(np.float32)
    facing, tilt = rng.uniform(0.15, 1.0), rng.uniform(-0.35, 0.35)
    sky, lamp = light
    brightness = (0.9 * sky + facing * lamp) * 0.8
    shade = 1 + tilt * side + 0.5 * veins
    # Wax shines where the blade bends towards the light: a band along one half, or across it.
    blade = rng.uniform(0.2, 0.8) + 0.25 * side
    band = np.exp(-(((along - blade) / rng.uniform(0.12, 0.4)) ** 2)) * (rng.uniform(0, 0.5) ** 2)
    mix(canvas[window], shade[..., None] * (colour * brightness) + band[..., None] * lamp, covered)
    return window, covered


_FRONT_LEAVES: Final = {
    Background.FOLIAGE: (0.35, 0.35, 0.2, 0.1),
    Background.GRASS: (0.7, 0.2, 0.1, 0.0),
    Background.SOIL: (0.8, 0.2, 0.0, 0.0),
}


def paint_front_leaves(scene: Scene, canvas: Field, instances: InstanceMap, rng: np.random.Generator) -> None:
    """Put leaves in front of some fruit outdoors; the pixels that they cover no longer belong to a fruit.

    Args:
        scene: the scene.
        canvas: float32 (height, width, 3), painted in place.
        instances: uint16 (height, width), set to 0 behind the leaves.
        rng: random generator.
    """
    chances = _FRONT_LEAVES.get(scene.background)
    if chances is None:
        return
    unit = math.sqrt(canvas.shape[0] * canvas.shape[1])
    light = scene.lighting.sky, scene.lighting.lamps[0].colour
    for fruit in scene.fruits:
        for _ in range(int(rng.choice(4, p=chances))):
            around = rng.uniform(0, 2 * math.pi)
            rim = np.array([math.cos(around), math.sin(around)]) * fruit.radius * rng.uniform(0.9, 1.5)
            stalk = (fruit.centre[:2] + rim) * unit + (canvas.shape[1] / 2, canvas.shape[0] / 2)
            length = fruit.radius * unit * rng.uniform(0.8, 1.9)
            inward = rng.normal(around + math.pi, 0.9)
            leaf = draw_leaf(canvas, rng, (stalk[0], stalk[1]), length=length, angle=inward, key=scene.key, light=light)
            if leaf is not None:
                window, covered = leaf
                instances[window][covered >= 0.5] = 0
