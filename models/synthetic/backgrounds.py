"""What is behind the fruit: belts, rollers and cups of sorting lines, tables, crates, cloth, plain white or black."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import cv2
import numpy as np

from models.synthetic.fields import Field, Rgb, blurred, clouds, lattice, linear, mix, sampled, smoothstep
from models.synthetic.layout import Ground, cup_centres
from models.synthetic.outdoors import grass, paint_crown, soil
from models.synthetic.scene import Background, Scene
from models.types import Size


def speckle(scene: Scene, size: Size, rng: np.random.Generator, colour: Rgb, strength: float) -> Field:
    """Paint one colour with stains and grain."""
    shape = (size.height, size.width)
    width, height = scene.extent
    stains = lattice(rng, shape, (4 * height, 4 * width)) * (rng.uniform(0.2, 1) * strength)
    stains += lattice(rng, shape, (300 * height, 300 * width)) * (rng.uniform(0, 0.8) * strength)
    return np.asarray(np.maximum(1 + stains, 0.05)[..., None] * colour, np.float32)


def pick_colour(rng: np.random.Generator, colours: tuple[Rgb, ...]) -> Rgb:
    """Choose one of the colours and change it a little."""
    jitter = np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)
    return np.asarray(np.minimum(colours[rng.integers(len(colours))] * jitter, 0.9))


def along(size: Size, angle: float) -> Field:
    """Return how far each pixel is along a direction, in mean sides from the centre."""
    unit = math.sqrt(size.pixels)
    x = (np.arange(size.width, dtype=np.float32) + 0.5 - size.width / 2) / unit * math.cos(angle)
    y = (np.arange(size.height, dtype=np.float32) + 0.5 - size.height / 2) / unit * math.sin(angle)
    return np.asarray(x[None] + y[:, None], np.float32)


def wave(size: Size, angle: float, period: float) -> Field:
    """Return a sine across the image; 0 if it would be finer than the pixels."""
    pixels = period * math.sqrt(size.pixels)
    strength = min(max((pixels - 2) / 2, 0.0), 1.0)
    return np.asarray(strength * np.sin(along(size, angle) * (2 * math.pi / period)))


def scuff(canvas: Field, rng: np.random.Generator) -> None:
    """Paint scratches and crumbs, small and blurred into the surface."""
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


_BELTS: Final = tuple(linear(*colour) for colour in (
    (44, 46, 50), (62, 64, 66), (30, 30, 32), (34, 74, 58), (36, 66, 110), (210, 212, 208),
    (150, 152, 150), (24, 96, 84), (90, 92, 96),
))  # fmt: skip
_METALS: Final = tuple(
    linear(*colour) for colour in ((168, 170, 174), (120, 124, 128), (70, 72, 76), (206, 206, 200), (52, 84, 130))
)


def belt(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint rubber or plastic: ribbed, woven or smooth, sometimes with the frame of the conveyor."""
    canvas = speckle(scene, size, rng, pick_colour(rng, _BELTS), 0.06)
    if rng.random() < 0.6:
        ribs = wave(size, float(rng.choice([0, math.pi / 2])), rng.uniform(0.012, 0.06))
        canvas *= (1 + rng.uniform(0.03, 0.2) * ribs)[..., None]
    elif rng.random() < 0.5:
        period = rng.uniform(0.01, 0.03)
        weave = wave(size, math.pi / 4, period) * wave(size, -math.pi / 4, period)
        canvas *= (1 + rng.uniform(0.05, 0.25) * weave)[..., None]
    scuff(canvas, rng)
    if rng.random() < 0.35:
        # The frame of the conveyor along one side or both.
        sides = along(size, math.pi / 2) * (1 / scene.extent[1])
        steel = linear(*rng.uniform((90, 90, 94), (190, 192, 196)))
        for sign in (-1, 1) if rng.random() < 0.5 else (1,):
            edge = rng.uniform(0.38, 0.48)
            rail = smoothstep(edge, edge + 0.004, sides * sign)
            mix(canvas, linear(14, 14, 16), smoothstep(edge - 0.02, edge, sides * sign) * 0.7)
            mix(canvas, steel, rail)
    return canvas


def rollers(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint cylinders side by side, lit from above, with dark gaps between them."""
    angle = float(rng.choice([0.0, math.pi / 2]))
    metal, gap = pick_colour(rng, _METALS), rng.uniform(0.03, 0.25)
    place = along(size, angle) * (1 / scene.pitch_of_rows) + rng.random()
    number = np.floor(place)
    across = (place - number - 0.5) * (2 / (1 - gap))
    facing = np.sqrt(np.clip(1 - across * across, 0, 1))
    tilt = rng.uniform(-0.6, 0.6)
    light = 0.12 + 0.75 * facing + 0.3 * tilt * across
    glint = np.exp(-(((across - tilt) / rng.uniform(0.08, 0.3)) ** 2)) * rng.uniform(0, 0.6)
    shape = (size.height, size.width)
    cells = (90.0, 3.0) if angle == 0 else (3.0, 90.0)
    worn = 1 + 0.07 * lattice(rng, shape, cells[::-1]) + 0.05 * lattice(rng, shape, (8, 8))
    between = smoothstep(1.0, 0.93, np.abs(across))
    canvas = np.asarray((between * worn * (light + glint))[..., None] * metal)
    mix(canvas, linear(*rng.uniform((6, 6, 8), (40, 40, 44))), 1 - between)
    return canvas


def cups(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint round carriers in rows, dark inside, with a bright rim."""
    canvas = speckle(scene, size, rng, pick_colour(rng, _BELTS), 0.05)
    plastic = pick_colour(rng, _BELTS)
    unit = math.sqrt(size.pixels)
    radius = scene.pitch_of_rows * rng.uniform(0.44, 0.49) * unit
    lean = rng.uniform(-0.5, 0.5, 2).tolist()
    for x, y in cup_centres(Ground(scene.extent, scene.elevation), scene.pitch_of_rows):
        middle = np.array([x, y]) * unit + (size.width / 2, size.height / 2)
        low = np.maximum(np.floor(middle - radius * 1.1), 0).astype(int)
        high = np.minimum(np.ceil(middle + radius * 1.1), (size.width, size.height)).astype(int)
        columns = ((np.arange(low[0], high[0]) + 0.5 - middle[0]) / radius).astype(np.float32)
        rows = ((np.arange(low[1], high[1]) + 0.5 - middle[1]) / radius).astype(np.float32)
        right, down = np.broadcast_arrays(columns[None], rows[:, None])
        off = np.sqrt(right * right + down * down)
        leaning = (lean[0] * right + lean[1] * down) / np.maximum(off, 0.05)
        window = canvas[low[1] : high[1], low[0] : high[0]]
        edge = 2 / radius
        window *= (1 - 0.4 * smoothstep(1.12, 1.0, off))[..., None]
        bowl = np.clip(0.3 + 0.45 * off + 0.5 * leaning, 0.08, 1.2)
        mix(window, plastic * bowl[..., None], smoothstep(1, 1 - edge, off))
        rim = smoothstep(0.86 - edge, 0.86, off) * smoothstep(1, 1 - edge, off)
        mix(window, plastic * 1.25, rim * (0.8 - 0.4 * leaning))
    return np.asarray(np.minimum(canvas, 1))


_TABLES: Final = tuple(linear(*colour) for colour in (
    (226, 224, 222), (206, 204, 204), (236, 234, 228), (190, 186, 184), (170, 166, 160), (120, 122, 126),
    (60, 60, 64), (150, 108, 70), (110, 74, 46), (186, 148, 104), (226, 214, 196), (40, 36, 34),
))  # fmt: skip
_CLOTHS: Final = tuple(linear(*colour) for colour in (
    (220, 218, 214), (46, 70, 120), (150, 32, 36), (86, 92, 70), (30, 32, 40), (204, 184, 150),
    (112, 104, 126), (228, 206, 206), (70, 120, 120), (120, 96, 70),
))  # fmt: skip


def table(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint a plain or wooden table, sometimes with objects that reach into the image."""
    colour = pick_colour(rng, _TABLES[:5] if rng.random() < 0.5 else _TABLES)
    canvas = speckle(scene, size, rng, colour, 0.025)
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
    if rng.random() < 0.2:
        _lid(canvas, rng)
    return canvas


def _clutter(canvas: Field, rng: np.random.Generator) -> None:
    """Paint an object that reaches into the image from its border: a table edge, a keyboard, a box."""
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


def _lid(canvas: Field, rng: np.random.Generator) -> None:
    """Paint a round flat thing: a lid, a plate, a saucer."""
    height, width = canvas.shape[:2]
    unit = math.sqrt(height * width)
    middle = rng.uniform((0, 0), (width, height))
    radius = unit * rng.uniform(0.04, 0.3)
    x = ((np.arange(width) + 0.5 - middle[0]) / radius).astype(np.float32)[None]
    y = ((np.arange(height) + 0.5 - middle[1]) / radius).astype(np.float32)[:, None]
    off = np.hypot(x, y / rng.uniform(0.7, 1))
    canvas *= (1 - rng.uniform(0.1, 0.5) * smoothstep(1.25, 0.9, np.hypot(x - 0.06, y - 0.08)))[..., None]
    tone = rng.uniform(20, 240)
    colour = linear(*np.clip(tone + rng.normal(0, 25, 3), 2, 245))
    rim = rng.uniform(0.6, 0.97)
    shade = 1 + rng.uniform(-0.3, 0.3) * smoothstep(rim - 0.04, rim, off) + 0.1 * x
    mix(canvas, np.minimum(shade[..., None] * colour, 1), smoothstep(1 + 1 / radius, 1 - 1 / radius, off))


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
    """Paint woven cloth: plain, striped or checked, with folds."""
    canvas = speckle(scene, size, rng, pick_colour(rng, _CLOTHS), 0.03)
    shape = (size.height, size.width)
    angle, period = rng.uniform(0, math.pi), rng.uniform(0.006, 0.02)
    weave = wave(size, angle, period) + wave(size, angle + math.pi / 2, period)
    canvas *= (1 + 0.08 * weave)[..., None]
    if rng.random() < 0.4:
        second, wide = (pick_colour(rng, _CLOTHS)), rng.uniform(0.06, 0.3)
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


_WOODS: Final = tuple(linear(*colour) for colour in (
    (196, 160, 112), (160, 118, 78), (120, 84, 56), (182, 168, 146), (176, 136, 92), (214, 190, 150),
))  # fmt: skip


def crate(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint the bottom of a crate: boards with gaps, or cardboard, between walls that throw shade."""
    wood = pick_colour(rng, _WOODS)
    canvas = speckle(scene, size, rng, wood, 0.05)
    angle = float(rng.choice([0, math.pi / 2])) + rng.normal(0, 0.06)
    unit, key = 1 / math.sqrt(size.pixels), int(rng.integers(1 << 31))
    length, across = along(size, angle), along(size, angle + math.pi / 2)
    if rng.random() < 0.7:
        grain = sampled(clouds(), length * 0.1, across, period=rng.uniform(0.5, 1.5), pixel=unit, key=key)
        canvas *= np.exp(rng.uniform(0.05, 0.2) * grain[..., 0] + rng.uniform(0.02, 0.12) * grain[..., 2])[..., None]
        place = across * (1 / rng.uniform(0.12, 0.4)) + rng.random()
        number = np.floor(place)
        canvas *= (1 + 0.12 * np.sin(number * 12.9898))[..., None]  # boards differ a little
        gap = rng.uniform(0.01, 0.12)
        mix(
            canvas,
            linear(*rng.uniform((8, 8, 8), (50, 44, 38))),
            smoothstep(0.5 - gap, 0.5, np.abs(place - number - 0.5)),
        )
    else:
        canvas *= (1 + rng.uniform(0, 0.12) * wave(size, angle, rng.uniform(0.01, 0.04)))[..., None]
    for sign in (-1, 1) if rng.random() < 0.5 else (1,):
        beside = along(size, angle + math.pi / 2) * sign
        edge = rng.uniform(0.3, 0.5) * scene.extent[1 if abs(math.cos(angle)) > 0.5 else 0]
        canvas *= (1 - rng.uniform(0.2, 0.7) * smoothstep(edge - 0.15, edge, beside))[..., None]
        wall = wood * rng.uniform(0.6, 1.3)
        mix(canvas, np.minimum(wall, 0.9), smoothstep(edge, edge + 0.006, beside))
    return canvas


def paint_ground(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint what is behind the fruit, in light of strength 1: linear float32 (height, width, 3)."""
    return _PAINTERS[scene.background](scene, size, rng)


def _white(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    del scene
    return np.full((size.height, size.width, 3), rng.uniform(0.85, 1.0), np.float32)


def _black(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    del scene
    return np.full((size.height, size.width, 3), max(0.0, rng.uniform(-0.02, 0.02)), np.float32)


_PAINTERS: Final[Mapping[Background, Callable[[Scene, Size, np.random.Generator], Field]]] = MappingProxyType(
    {
        Background.BELT: belt,
        Background.ROLLERS: rollers,
        Background.CUPS: cups,
        Background.TABLE: table,
        Background.CLOTH: cloth,
        Background.CRATE: crate,
        Background.FOLIAGE: paint_crown,
        Background.GRASS: grass,
        Background.SOIL: soil,
        Background.WHITE: _white,
        Background.BLACK: _black,
    }
)
