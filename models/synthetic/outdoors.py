"""What is behind fruit outdoors: the crown of a tree with sky and ground behind it, grass, and soil."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import cv2
import numpy as np

from models.synthetic.fields import (
    Field,
    blurred,
    clouds,
    generator,
    halved,
    lattice,
    linear,
    mix,
    sampled,
    smoothstep,
)
from models.synthetic.foliage import LEAF_OF_TILE, draw_leaf, leaf_colours, thicket
from models.synthetic.lighting import even_light
from models.synthetic.scene import Scene
from models.types import Size

_TILE: Final = 512
_BLADES: Final = 1100
_STRENGTH_1: Final = (np.full(3, 0.35, np.float32), np.full(3, 0.75, np.float32))
"""Light of sky and lamp on what is lit later."""

_BARK: Final = linear(74, 62, 52)
_SOILS: Final = tuple(
    linear(*colour) for colour in ((120, 84, 62), (150, 96, 72), (108, 104, 98), (172, 150, 122), (70, 56, 46))
)
_STONES: Final = tuple(
    linear(*colour) for colour in ((142, 138, 130), (110, 104, 98), (170, 160, 144), (132, 108, 86), (84, 84, 88))
)


def paint_crown(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint leaves at several distances, branches, and what shows through: shade, sky, grass or soil."""
    unit = math.sqrt(size.pixels)
    canvas = _beyond(scene, size, rng)
    length = math.exp(rng.uniform(math.log(0.05), math.log(0.4)))  # of the near leaves, in mean sides
    dense = rng.uniform(-0.9, 1.4)  # from a few twigs before the sky to a closed crown
    for share, dark in ((rng.uniform(0.25, 0.5), rng.uniform(0.3, 0.95)), (rng.uniform(0.5, 0.9), 1.0)):
        _thicket_layer(scene, canvas, rng, length=length * share, dark=dark, dense=dense)
        if dark < 1 and rng.random() < 0.6:
            canvas = blurred(canvas, rng.uniform(0.001, 0.012) * unit)
        if rng.random() < 0.6:
            _branches(scene, canvas, rng)
    light = scene.lighting.sky, scene.lighting.lamps[0].colour
    for _ in range(min(26, round(0.9 / length**2))):
        x, y = rng.uniform((-0.1 * size.width, -0.2 * size.height), (1.1 * size.width, size.height)).tolist()
        angle = rng.normal(math.pi / 2, 1.0)  # leaves hang
        draw_leaf(
            canvas, rng, (x, y), length=length * unit * rng.uniform(0.6, 1.2), angle=angle, key=scene.key, light=light
        )
    # The crown shades parts of itself.
    cells = 6 * scene.extent[1], 6 * scene.extent[0]
    canvas *= np.exp(rng.uniform(0, 0.5) * lattice(rng, (size.height, size.width), cells))[..., None]
    return canvas


def _beyond(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint what the gaps of a crown show."""
    shape = (size.height, size.width)
    even = even_light(scene)
    kind = rng.choice(3, p=[0.45, 0.35, 0.2])
    if kind == 0:  # the dark inside of the tree
        shade = np.exp(lattice(rng, shape, (6, 6)) * 0.4 + rng.uniform(-1.4, 0.0))
        return np.asarray(shade[..., None] * (linear(*rng.uniform((20, 34, 14), (60, 78, 34))) * even), np.float32)
    blue, cloud = linear(*rng.uniform((70, 130, 200), (150, 195, 240))), linear(238, 242, 246)
    clear = rng.random() < 0.4
    canvas = np.empty((*shape, 3), np.float32)
    canvas[:] = (blue if clear else cloud) * (even.mean() * (rng.uniform(0.7, 1.2) if clear else rng.uniform(1.0, 1.9)))
    if kind == 2:
        horizon = rng.uniform(0.1, 0.8)
        down = ((np.arange(size.height, dtype=np.float32) + 0.5) / size.height)[:, None]
        ground = _turf(scene, size, rng) if rng.random() < 0.6 else _earth(size, rng)
        edge = down + 0.02 * lattice(rng, shape, (2, 12))
        mix(canvas, ground * even, smoothstep(horizon, horizon + 0.03, edge))
    return canvas


def _thicket_layer(
    scene: Scene, canvas: Field, rng: np.random.Generator, *, length: float, dark: float, dense: float
) -> None:
    """Cover the canvas with leaves of a mean length, in mean sides, except for gaps."""
    shape = canvas.shape[:2]
    x, y = _grid(shape)
    key = int(rng.integers(1 << 31))
    leaves = sampled(thicket(), x, y, period=length / LEAF_OF_TILE, pixel=1 / math.sqrt(shape[0] * shape[1]), key=key)
    covered, brightness, place, _ = np.moveaxis(leaves, -1, 0)
    cells = rng.uniform(3, 9)
    crown = lattice(rng, (shape[0], shape[1]), (cells * scene.extent[1], cells * scene.extent[0]))
    # Whole leaves are there or not: each is shifted by its own place in the palette.
    covered = covered * smoothstep(-0.12, 0.12, crown + 1.2 * (place - 0.5) + dense)
    colours = leaf_colours(scene.key).take(np.clip(place * 255, 0, 255).astype(np.uint8), axis=0)
    light = 0.8 * scene.lighting.sky + brightness[..., None] * scene.lighting.lamps[0].colour
    mix(canvas, colours * light * (0.9 * dark), covered)


def _grid(shape: tuple[int, ...]) -> tuple[Field, Field]:
    """Return x and y of the pixels of an image (height, width) in mean sides."""
    unit = math.sqrt(shape[0] * shape[1])
    x, y = np.arange(shape[1], dtype=np.float32) / unit, np.arange(shape[0], dtype=np.float32) / unit
    return np.ascontiguousarray(np.broadcast_to(x, shape)), np.ascontiguousarray(np.broadcast_to(y[:, None], shape))


def _branches(scene: Scene, canvas: Field, rng: np.random.Generator) -> None:
    """Paint bare branches and twigs, thicker towards one end."""
    height, width = canvas.shape[:2]
    unit = math.sqrt(height * width)
    bark = _BARK * np.exp(rng.normal(0, (0.25, 0.2, 0.2))).astype(np.float32)
    light = even_light(scene) * rng.uniform(0.3, 1.0)
    for _ in range(int(rng.integers(1, 6))):
        thick = 0.06 * rng.random() ** 2.5 + 0.004
        heading = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.12, 14))
        steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * (0.09 * unit)
        path = np.cumsum(steps, axis=0) + rng.uniform((0, 0), (width, height)) - steps[:7].sum(axis=0)
        mask = np.zeros((height, width), np.uint8)
        for piece in range(len(path) - 1):
            wide = max(1, round(thick * unit * (1 - 0.6 * piece / len(path))))
            ends = path[piece : piece + 2].astype(int).tolist()
            cv2.line(mask, tuple(ends[0]), tuple(ends[1]), 255, wide, cv2.LINE_8)
        # Round wood is darker at its lower side.
        weight = blurred(mask.astype(np.float32) * (1 / 255), 0.7)
        lower = blurred(weight, max(0.7, thick * unit * 0.3))
        relief = np.roll(lower, max(1, round(thick * unit * 0.3)), axis=0)
        mix(canvas, np.asarray((bark * light) * (1.25 - 0.75 * relief)[..., None], np.float32), weight)


@lru_cache(maxsize=1)
def _blades() -> tuple[Field, ...]:
    """Return seamless grass, float32 (n, n, 3): covered share, brightness, place in a palette; and halved copies."""
    rng = generator(4)
    tile = np.zeros((_TILE, _TILE, 3), np.float32)
    for _ in range(_BLADES):
        length, angle, bend = rng.uniform(30, 110), rng.normal(-math.pi / 2, 0.7), rng.normal(0, 0.25)
        heading = angle + bend * np.arange(7)
        points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1) * (length / 7), axis=0)
        points += rng.uniform(0, _TILE, 2)
        colour = (1.0, rng.uniform(0.3, 1.25), rng.random())
        wide = int(rng.integers(1, 5))
        low, high = np.floor(points.min(axis=0) / _TILE).astype(int), np.floor(points.max(axis=0) / _TILE).astype(int)
        for right in range(low[0], high[0] + 1):
            for down in range(low[1], high[1] + 1):
                path = np.round(points - np.array([right, down]) * _TILE).astype(np.int32)
                cv2.polylines(tile, [path], isClosed=False, color=colour, thickness=wide, lineType=cv2.LINE_8)
    return halved(tile)


def _turf(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint grass in light of strength 1, with dry and bare patches."""
    shape = (size.height, size.width)
    canvas = _earth(size, rng)
    canvas *= 0.6
    x, y = _grid(shape)
    dry = rng.uniform(0, 0.5)
    colours = leaf_colours(scene.key)
    straw = linear(*rng.uniform((150, 130, 80), (200, 180, 120)))
    grown = smoothstep(-1.2, 0.2, lattice(rng, shape, (5, 5)) + rng.uniform(-0.2, 1.8))
    period = math.exp(rng.uniform(math.log(0.25), math.log(1.5)))  # of the tile, in mean sides
    for layer in range(2):
        scale = period * (0.7, 1.0)[layer]
        key = int(rng.integers(1 << 31))
        # Blades stand up in the image: no turning, unlike other textures.
        blades = sampled(_blades(), x, y, period=scale, pixel=1 / math.sqrt(size.pixels), key=key, turned=False)
        covered, brightness, place = np.moveaxis(blades, -1, 0)
        shades = colours.take(np.clip((0.25 + 0.5 * place) * 255, 0, 255).astype(np.uint8), axis=0)
        mix(shades, straw, (place < dry).astype(np.float32) * 0.8)
        mix(canvas, shades * (brightness * (0.75, 1.1)[layer])[..., None], covered * grown)
    return canvas


def _earth(size: Size, rng: np.random.Generator) -> Field:
    """Paint crumbly soil in light of strength 1."""
    colour = _SOILS[rng.integers(len(_SOILS))] * np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
    x, y = _grid((size.height, size.width))
    pixel = 1 / math.sqrt(size.pixels)
    key = int(rng.integers(1 << 31))
    clods = sampled(clouds(), x, y, period=math.exp(rng.uniform(math.log(0.6), math.log(3))), pixel=pixel, key=key)
    rough = rng.uniform(0.1, 0.45) * clods[..., 0] + rng.uniform(0.05, 0.3) * clods[..., 2] + 0.1 * clods[..., 1]
    return np.asarray(np.exp(np.minimum(rough, 1.0))[..., None] * colour, np.float32)


def grass(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint a meadow with fallen leaves and some stones."""
    canvas = _turf(scene, size, rng)
    _litter(scene, canvas, rng, most=6, stones=2)
    return canvas


def soil(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint soil with fallen leaves, twigs, stones and weeds."""
    canvas = _earth(size, rng)
    shape = (size.height, size.width)
    if rng.random() < 0.5:
        x, y = _grid(shape)
        length, key = math.exp(rng.uniform(math.log(0.04), math.log(0.2))), int(rng.integers(1 << 31))
        pixel = 1 / math.sqrt(size.pixels)
        leaves = sampled(thicket(), x, y, period=length / LEAF_OF_TILE, pixel=pixel, key=key)
        lying = smoothstep(0.0, 0.3, lattice(rng, shape, (6, 6)) + rng.uniform(-1.6, 1.0))
        wilted = rng.random() < 0.6
        place = leaves[..., 2] * 0.35 + 0.65 if wilted else leaves[..., 2]
        colours = leaf_colours(scene.key).take(np.clip(place * 255, 0, 255).astype(np.uint8), axis=0)
        mix(canvas, colours * (0.35 + 0.75 * leaves[..., 1, None]), leaves[..., 3] * lying)
    _litter(scene, canvas, rng, most=10, stones=9)
    return canvas


def _litter(scene: Scene, canvas: Field, rng: np.random.Generator, *, most: int, stones: int) -> None:
    """Strew single leaves, twigs and stones."""
    height, width = canvas.shape[:2]
    unit = math.sqrt(height * width)
    wide = math.exp(rng.uniform(math.log(0.015), math.log(0.12)))
    for _ in range(int(rng.integers(0, stones + 1))):
        x, y = rng.uniform((0, 0), (width, height)).tolist()
        paint_stone(canvas, rng, (x, y), max(1.5, wide * unit * rng.uniform(0.4, 1.3)))
    for _ in range(int(rng.integers(0, 7))):
        x, y = rng.uniform((0, 0), (width, height)).tolist()
        angle, length = rng.uniform(0, math.pi), unit * rng.uniform(0.03, 0.3)
        end = (int(x + length * math.cos(angle)), int(y + length * math.sin(angle)))
        thick = max(1, round(unit * rng.uniform(0.001, 0.008)))
        tone = (linear(*rng.uniform((60, 46, 36), (170, 146, 112)))).tolist()
        cv2.line(canvas, (int(x), int(y)), end, tone, thick, cv2.LINE_8)
    for _ in range(int(rng.integers(0, most + 1))):
        x, y = rng.uniform((0, 0), (width, height)).tolist()
        length = unit * math.exp(rng.uniform(math.log(0.04), math.log(0.3)))
        draw_leaf(
            canvas, rng, (x, y), length=length, angle=rng.uniform(0, 2 * math.pi), key=scene.key, light=_STRENGTH_1
        )


def paint_stone(canvas: Field, rng: np.random.Generator, middle: tuple[float, float], radius: float) -> None:
    """Paint a round stone with its shadow: as round as fruit, but grey and rough."""
    height, width = canvas.shape[:2]
    low = np.clip(np.floor(np.array(middle) - 1.6 * radius), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(np.array(middle) + 1.6 * radius), 0, (width, height)).astype(int)
    if (high - low).min() < 2:
        return
    turn, flat, light = rng.uniform(0, math.pi), rng.uniform(0.6, 1), rng.uniform(0, 2 * math.pi)
    x = ((np.arange(low[0], high[0]) + 0.5 - middle[0]) / radius).astype(np.float32)[None]
    y = ((np.arange(low[1], high[1]) + 0.5 - middle[1]) / radius).astype(np.float32)[:, None]
    a, b = x * math.cos(turn) + y * math.sin(turn), (y * math.cos(turn) - x * math.sin(turn)) / flat
    around = np.arctan2(b, a)
    bumps = 1 + 0.07 * np.cos(2 * around + 1) + 0.06 * np.cos(3 * around + turn) + 0.04 * np.cos(5 * around)
    off = np.sqrt(a * a + b * b) * bumps
    part = canvas[low[1] : high[1], low[0] : high[0]]
    part *= (1 - 0.6 * smoothstep(1.5, 0.8, np.hypot(x - 0.2 * math.cos(light), y + 0.2 * math.sin(light))))[..., None]
    upward = np.sqrt(np.clip(1 - off * off, 0, 1))
    lit = 0.35 + 0.5 * upward - 0.45 * (x * math.cos(light) - y * math.sin(light))
    pixel = 1 / radius
    grain = sampled(clouds(), x + 0 * y, y + 0 * x, period=2.5, pixel=pixel, key=int(rng.integers(1 << 31)))
    colour = _STONES[rng.integers(len(_STONES))] * np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
    rough = np.exp(0.12 * grain[..., 0] + 0.15 * grain[..., 2])
    stone = np.clip(lit, 0.1, 1.4) * rough
    mix(part, stone[..., None] * colour, smoothstep(1 + 1.2 * pixel, 1 - 1.2 * pixel, off))
