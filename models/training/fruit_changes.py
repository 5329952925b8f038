"""Random changes of the fruits of an image alone: another colour, rot painted on them, and shadows of leaves.

Photographs of rot are rare, and most show one kind. Here, healthy fruit of any photograph turns soft and brown, dark or
mouldy over a part of it or as a whole; its own light and shade stay. Shadows change no class, so that dark is not rot.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.samples import InstanceMap
from models.types import BinaryMask, PixelClass, Pixels, SemanticMap, Size

_LEAST_PIXELS: Final = 250
"""Smallest fruit on which rot is painted, in pixels of the crop."""

_HUES: Final = 180  # of OpenCV's HSV in uint8: steps of two degrees

_FRUIT_HUES: Final = (-4, 58)
"""From crimson over orange and yellow to green."""


def change_colour(pixels: Pixels, classes: SemanticMap, rng: np.random.Generator) -> Pixels:
    """Turn fruit red, orange, yellow or green: all but its infected pixels, by one random shift of their hue.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        classes: uint8 (height, width) of `PixelClass`.
        rng: random generator.

    Returns:
        uint8 of the same shape.
    """
    fruit = (classes == PixelClass.HEALTHY) | (classes == PixelClass.FRUIT)
    wanted = rng.uniform(*_FRUIT_HUES)
    saturation, value = np.float32(rng.uniform(0.6, 1.2)), np.float32(rng.uniform(0.7, 1.15))
    if not fruit.any():
        return pixels
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(np.float32)
    typical = np.median((hsv[..., 0][fruit] + 40) % _HUES) - 40  # red lies at both ends of the scale
    hsv[..., 0] = (hsv[..., 0] + (wanted - typical)) % _HUES
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
    hsv[..., 2] = np.clip(hsv[..., 2] * value, 0, 255)
    changed = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    return blend(pixels, changed.astype(np.float32), soft(fruit, 0.7))


def paint_rot(
    pixels: Pixels, classes: SemanticMap, instance_map: InstanceMap, rng: np.random.Generator
) -> tuple[Pixels, SemanticMap]:
    """Paint rot on some of the fruits that have no infected pixels.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        classes: uint8 (height, width) of `PixelClass`.
        instance_map: uint16 (height, width), 0 where there is no fruit.
        rng: random generator.

    Returns:
        Pixels and classes; rot is INFECTED, the other pixels keep their class.
    """
    areas = np.bincount(instance_map.ravel())
    infected = set(np.unique(instance_map[classes == PixelClass.INFECTED]).tolist())
    healthy = [int(each) for each in np.flatnonzero(areas >= _LEAST_PIXELS) if each and each not in infected]
    if not healthy:
        return pixels, classes
    count = 1 + rng.binomial(len(healthy) - 1, 0.25)
    pixels, classes = pixels.copy(), classes.copy()
    for number in rng.choice(healthy, min(count, 6), replace=False).tolist():
        _rot_fruit(pixels, classes, instance_map == number, rng)
    return pixels, classes


def cast_shadows(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Darken random leaf-shaped parts of an image.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        rng: random generator.

    Returns:
        uint8 of the same shape.
    """
    height, width = pixels.shape[:2]
    shade = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, 6)):
        centre = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        length = rng.uniform(0.1, 0.5) * max(height, width)
        axes = max(1, int(length / 2)), max(1, int(length * rng.uniform(0.08, 0.3)))
        cv2.ellipse(shade, centre, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    soft = cv2.GaussianBlur(shade.astype(np.float32) / 255, (0, 0), float(rng.uniform(0.5, 6)))
    darkness = rng.uniform(0.3, 0.75)
    factor = 1 - soft * (1 - darkness)
    return np.clip(pixels * factor[..., None], 0, 255).astype(np.uint8)


def _rot_fruit(pixels: Pixels, classes: SemanticMap, fruit: BinaryMask, rng: np.random.Generator) -> None:
    """Paint rot on one fruit, in place."""
    rows, columns = np.flatnonzero(fruit.any(axis=1)), np.flatnonzero(fruit.any(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    mask = fruit[window]
    size = Size(*mask.shape)
    diameter = float(np.sqrt(np.count_nonzero(mask) * 4 / np.pi))
    share = 1.0 if rng.random() < 0.25 else rng.uniform(0.08, 0.95)
    spots = _spread(mask, share, diameter, rng)
    # A sharp border, or one that soaks into the healthy part.
    softness = rng.uniform(0.4, 1.0) if rng.random() < 0.6 else rng.uniform(1.0, max(1.1, 0.08 * diameter))
    alpha = soft(spots, softness) * soft(mask, 0.6)
    part = pixels[window]
    painted = _rotten(part, mask, size, rng)
    strength = np.float32(rng.uniform(0.75, 1.0))
    pixels[window] = blend(part, painted, alpha * strength)
    classes[window][(alpha > 0.5) & mask & (classes[window] != PixelClass.IGNORE)] = PixelClass.INFECTED


def _spread(mask: BinaryMask, share: float, diameter: float, rng: np.random.Generator) -> BinaryMask:
    """Choose the pixels nearest to a random point of the fruit, at distances that noise bends."""
    if share == 1.0:
        return mask
    rows, columns = np.nonzero(mask)
    start = rng.integers(len(rows))
    down, across = np.mgrid[: mask.shape[0], : mask.shape[1]]
    distance = np.hypot(down - rows[start], across - columns[start]) / diameter
    bent = distance + rng.uniform(0.02, 0.2) * _noise(Size(*mask.shape), diameter * rng.uniform(0.08, 0.3), rng)
    return np.asarray(mask & (bent <= np.quantile(bent[mask], share)))


def _rotten(pixels: Pixels, mask: BinaryMask, size: Size, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the fruit in the colour of rot, float32 (height, width, 3), lit as the fruit is."""
    kind = rng.choice(("brown", "brown", "brown", "dark", "mould"))
    if kind == "brown":
        hue, saturation, value = rng.uniform(5, 19), rng.uniform(90, 205), rng.uniform(60, 165)
    elif kind == "dark":
        hue, saturation, value = rng.uniform(0, 20), rng.uniform(20, 140), rng.uniform(15, 60)
    else:
        hue, saturation, value = rng.uniform(20, 110), rng.uniform(0, 80), rng.uniform(90, 225)
    colour = cv2.cvtColor(np.array([[(hue, saturation, value)]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
    light = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32) + 8
    # Relative to the brightness of the fruit: in a dark image, rot is darker too.
    typical = float(np.median(light[mask]))
    relative = np.clip(light / typical, 0.2, 2.5) ** np.float32(rng.uniform(0.4, 1.0))
    exposure = np.clip(typical / 125, 0.45, 1.3) ** rng.uniform(0.3, 1.0)
    diameter = max(4.0, (size.height + size.width) / 2)
    mottle = 1 + rng.uniform(0.02, 0.16) * _noise(size, diameter * rng.uniform(0.03, 0.2), rng)
    mottle += rng.uniform(0, 0.08) * _noise(size, 1.0, rng)
    return np.asarray(colour * np.float32(exposure) * (relative * mottle)[..., None], np.float32)


def _noise(size: Size, scale: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return smooth noise of mean 0 and deviation about 1, float32 (height, width)."""
    coarse = max(2, round(size.height / max(scale, 1)) + 1), max(2, round(size.width / max(scale, 1)) + 1)
    values = rng.standard_normal(coarse, np.float32)
    return np.asarray(cv2.resize(values, (size.width, size.height), interpolation=cv2.INTER_CUBIC), np.float32)


def soft(mask: BinaryMask, deviation: float) -> NDArray[np.float32]:
    """Return a mask with a soft edge: float32 (height, width), 0 to 1, blurred by a standard deviation in pixels."""
    return np.asarray(cv2.GaussianBlur(mask.astype(np.float32), (0, 0), deviation), np.float32)


def blend(below: Pixels, above: NDArray[np.float32], alpha: NDArray[np.float32]) -> Pixels:
    """Mix two images.

    Args:
        below: uint8 (height, width, 3), RGB.
        above: float32 (height, width, 3), 0 to 255.
        alpha: float32 (height, width), 0 to 1, the share of `above`.

    Returns:
        uint8 of the same shape.
    """
    mixed = below + alpha[..., None] * (above - below)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
