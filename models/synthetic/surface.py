"""The surface of a fruit: rays against an ellipsoid with a bumpy outline, and the healthy peel on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from models.synthetic.fields import Field, clouds, dot, generator, linear, mix, pores, sampled, smoothstep
from models.synthetic.scene import Fruit, Species, Vector
from models.types import Size

Window: TypeAlias = tuple[slice, slice]
"""Rows and columns of a larger array."""


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """The part of the image that a fruit covers, and the surface that each pixel shows.

    Attributes:
        window: rows and columns of the image.
        pixels: radius of the fruit in pixels.
        x: offset from the fruit's centre to the right, in radii: float32 (height, width), as everything below.
        y: offset down.
        z: offset towards the camera.
        sphere: (3, height, width), unit vectors in the fruit's own frame, its axes stretched to 1.
        normal: (3, height, width), unit vectors in the view frame.
        coverage: share of each pixel that the fruit covers, 0 to 1.
        u: coordinate across the surface in an equal-area projection (Lambert) from the camera; -1.41 to 1.41.
        v: likewise, down.
        noise: (height, width, 3), three fields of unit variance that lie on the surface; see `clouds`.
    """

    window: Window
    pixels: float
    x: Field
    y: Field
    z: Field
    sphere: Field
    normal: Field
    coverage: Field
    u: Field
    v: Field
    noise: Field

    def window_of(self, fruit: Fruit, centre: Vector, reach: float) -> Window | None:
        """Return the rows and columns of the patch that hold all visible surface within a distance of a point.

        Args:
            fruit: the fruit of this patch.
            centre: the point, a unit vector in the fruit's own frame.
            reach: length of the chord in radii.

        Returns:
            The window; None if all of it is on the far side or outside the image.
        """
        x, y, z = fruit.rotation.T @ (fruit.axes * centre)
        if z < -reach:
            return None
        rows = _span(self.y[:, 0], y, reach)
        columns = _span(self.x[0], x, reach)
        return None if rows.start >= rows.stop or columns.start >= columns.stop else (rows, columns)


def _span(line: Field, middle: float, reach: float) -> slice:
    first, last = np.searchsorted(line, (middle - reach * 1.15, middle + reach * 1.15))
    return slice(int(first), int(last))


def outline_of(axes: Vector, rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ellipse (2, 2) that an ellipsoid of radius 1 covers: d @ ellipse @ d is 1 on its outline."""
    stretch = (1 / axes)[:, None] * rotation
    along = stretch[:, 2]
    across = np.eye(3) - np.outer(along, along) / (along @ along)
    outline: NDArray[np.float64] = stretch[:, :2].T @ across @ stretch[:, :2]
    return outline


def patch_of(fruit: Fruit, size: Size) -> Patch | None:
    """Intersect the rays of pixels with a fruit; return None if it is outside the image."""
    unit = math.sqrt(size.pixels)
    radius = fruit.radius * unit
    middle = fruit.centre[:2] * unit + np.array([size.width / 2, size.height / 2])
    reach = radius * 1.2 + 2
    low = np.clip(np.floor(middle - reach), 0, (size.width, size.height)).astype(int)
    high = np.clip(np.ceil(middle + reach), 0, (size.width, size.height)).astype(int)
    if (high - low).min() < 1:
        return None
    columns = ((np.arange(low[0], high[0]) + 0.5 - middle[0]) / radius).astype(np.float32)
    rows = ((np.arange(low[1], high[1]) + 0.5 - middle[1]) / radius).astype(np.float32)
    x, y = np.broadcast_arrays(columns[None], rows[:, None])

    stretch = (1 / fruit.axes)[:, None] * fruit.rotation
    along = stretch[:, 2]
    a = float(along @ along)
    (xx, xy), (_, yy) = outline_of(fruit.axes, fruit.rotation).tolist()
    bumps = _bumps(fruit, x, y)
    ellipse = (xx * x * x + 2 * xy * x * y + yy * y * y) * bumps * bumps  # 1 on the outline
    distance = np.sqrt(ellipse)
    coverage = np.clip((1 - distance) * (radius / math.sqrt(max(xx, yy))) + 0.5, 0, 1)

    # Pixels on the far side of the outline take the surface at the outline.
    inside = bumps / np.maximum(distance, 1)
    ex, ey = x * inside, y * inside
    b = float(stretch[:, 0] @ along) * ex + float(stretch[:, 1] @ along) * ey
    z = (np.sqrt(np.clip(a * (1 - ellipse), 0, None)) - b) * (1 / a)
    sphere = np.stack([row[0] * ex + row[1] * ey + row[2] * z for row in stretch.astype(np.float32)])
    normal = np.stack(
        [row[0] * sphere[0] + row[1] * sphere[1] + row[2] * sphere[2] for row in stretch.T.astype(np.float32)]
    )
    normal *= 1 / np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2)
    flat = 1 / np.sqrt(0.5 + 0.5 * np.sqrt(np.clip(1 - ellipse, 0, 1)))
    u, v = x * flat, y * flat
    noise = sampled(clouds(), u, v, period=3.1, pixel=1 / radius, key=fruit.key)
    window = slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))
    return Patch(window, radius, x, y, z, sphere, normal, coverage.astype(np.float32), u, v, noise)


def _bumps(fruit: Fruit, x: Field, y: Field) -> Field:
    """Return by how much shorter the fruit is in each direction than its ellipse; about 1."""
    rng = generator(fruit.key, 5)
    around = np.arctan2(y, x)
    bumps = np.ones_like(around)
    if fruit.shrivel > 0:
        bumps += 0.05 * fruit.shrivel
        for waves in (3, 4, 7):
            bumps += (0.025 * fruit.shrivel) * (1 + np.cos(waves * around + rng.uniform(0, 7)))
    for waves in (2, 3, 5):
        bumps += rng.normal(0, 0.016 / math.sqrt(waves)) * np.cos(waves * around + rng.uniform(0, 7))
    ends = {Species.LEMON: (0.16, 0.12), Species.MANDARIN: (rng.uniform(0, 0.06), 0.0), Species.ORANGE: (0.0, 0.0)}
    for sign, height in zip((1, -1), ends[fruit.species], strict=True):
        # The nipple of a lemon, the neck of a mandarin: visible as far as it points sideways.
        right, down, _ = fruit.rotation.T @ np.array([0.0, sign * fruit.axes[1], 0.0])
        sideways = math.hypot(right, down)
        if height * sideways > 0.01:
            turned = np.cos(around - math.atan2(down, right))
            bumps -= (height * sideways**3) * np.exp((turned - 1) * 14)
    return bumps


_PALETTES: Final = {
    Species.ORANGE: (
        (0.0, (36, 66, 24)), (0.2, (74, 100, 30)), (0.38, (140, 142, 38)), (0.52, (206, 164, 40)),
        (0.66, (240, 162, 34)), (0.82, (240, 136, 26)), (1.0, (226, 104, 24)),
    ),
    Species.MANDARIN: (
        (0.0, (44, 58, 22)), (0.2, (88, 92, 32)), (0.4, (158, 122, 34)), (0.58, (226, 146, 32)),
        (0.75, (234, 124, 28)), (1.0, (216, 84, 26)),
    ),
    Species.LEMON: (
        (0.0, (40, 84, 28)), (0.3, (112, 138, 36)), (0.55, (196, 192, 48)), (0.8, (238, 212, 52)),
        (1.0, (244, 198, 40)),
    ),
}  # fmt: skip
_STEM: Final = linear(96, 104, 48)
_DRY_STEM: Final = linear(112, 92, 58)
_CUT: Final = linear(176, 158, 108)
_SCAR: Final = linear(92, 66, 36)


@dataclass(slots=True, eq=False)
class Peel:
    """The paint on a fruit; all arrays are float32 and painted in place.

    Attributes:
        albedo: (height, width, 3), share of the light that is reflected, linear.
        gloss: (height, width), strength of the highlights, about 0 to 1.
        relief: (height, width), height over the ellipsoid in radii.
        infected: (height, width), share of lesion, 0 to 1.
    """

    albedo: Field
    gloss: Field
    relief: Field
    infected: Field

    def part(self, window: Window) -> Peel:
        """Return views of the arrays through a window: painting there paints here."""
        return Peel(self.albedo[window], self.gloss[window], self.relief[window], self.infected[window])


def healthy_peel(fruit: Fruit, patch: Patch) -> Peel:
    """Paint healthy peel with wrinkles, stem and blossom end."""
    rng = generator(fruit.key, 1)
    spread = 0.05 + 0.5 * fruit.ripeness * (1 - fruit.ripeness)
    ripe = fruit.ripeness + (spread * rng.uniform(0.1, 0.5)) * patch.noise[..., 0]
    ripe += 0.02 * patch.noise[..., 2]
    # Citrus colours last at the stem, or on the side in the shade.
    shaded_side = rng.normal(0, 0.6, 3) + np.array([0, 0.5, 0])
    ripe -= spread * dot(patch.sphere, shaded_side)
    shades = _palette(fruit.species)
    albedo = shades.take(np.clip(ripe * 255, 0, 255).astype(np.uint8), axis=0)
    brightness = 1 + 0.06 * patch.noise[..., 1]
    glands = sampled(pores(), patch.u, patch.v, period=rng.uniform(1.3, 2.4), pixel=1 / patch.pixels, key=fruit.key + 1)
    deep = rng.uniform(0.15, 1.0)
    brightness -= (0.22 * deep) * (glands - 0.3)
    tint = np.exp(rng.normal(0, (0.08, 0.1, 0.15)) + rng.normal(-0.02, 0.1))
    albedo *= brightness[..., None] * tint.astype(np.float32)
    relief = glands * (-0.011 * deep) + patch.noise[..., 0] * rng.uniform(0.001, 0.007)
    peel = Peel(albedo, np.full_like(relief, fruit.gloss), relief, np.zeros_like(relief))
    _ends(fruit, patch, peel, rng)
    return peel


@lru_cache(maxsize=8)
def _palette(species: Species) -> Field:
    stops = _PALETTES[species]
    where = np.linspace(0, 1, 256)
    colours = np.stack([linear(*colour) for _, colour in stops])
    channels = [np.interp(where, [stop for stop, _ in stops], colours[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _ends(fruit: Fruit, patch: Patch, peel: Peel, rng: np.random.Generator) -> None:
    """Paint the stem end with its wrinkles and button, and the blossom end."""
    cut, dry, button, pit = rng.random() < 0.5, rng.random() < 0.4, rng.uniform(0.055, 0.12), rng.uniform(0, 1)
    for sign in (1.0, -1.0):
        window = patch.window_of(fruit, np.array([0.0, sign, 0.0]), 0.85)
        if window is None:
            continue
        part = peel.part(window)
        right, pole, ahead = patch.sphere[(slice(None), *window)]
        off = np.sqrt(np.maximum(2 - 2 * sign * pole, 0))  # chord from the pole
        around = np.asarray(cv2.phase(right, ahead), np.float32)
        fine = patch.noise[window][..., 2]
        part.relief -= (0.05 * pit + 0.05 * fruit.wrinkles) * np.exp(-((off / 0.2) ** 2))
        if fruit.wrinkles > 0.05:
            waves = int(rng.integers(7, 13))
            folds = np.cos(waves * around + 1.2 * patch.noise[window][..., 1])
            ring = np.exp(-(((off - 0.28) / 0.2) ** 2))
            part.relief += (0.035 * fruit.wrinkles) * folds * ring
        if sign > 0:
            petals = button * (1 + 0.28 * np.cos(5 * around) + 0.12 * fine)
            part.albedo *= 1 - 0.28 * np.exp(-((off / (button * 1.7)) ** 2))[..., None]
            leaf = smoothstep(1.12, 0.92, off / petals)
            mix(part.albedo, _DRY_STEM if dry else _STEM, leaf)
            part.albedo *= (1 + 0.3 * fine * leaf)[..., None]
            wood = smoothstep(0.5, 0.4, off / petals)
            mix(part.albedo, _CUT if cut else _SCAR, wood)
            part.gloss *= 1 - 0.8 * leaf
            part.relief += 0.02 * leaf + 0.02 * wood
        else:
            tip = smoothstep(1.3, 0.6, off / (button * 0.36) + 0.25 * fine)
            mix(part.albedo, _SCAR, tip * 0.8)
