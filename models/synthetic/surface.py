"""The surface of a fruit: rays against an ellipsoid with a bumpy outline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.synthetic.fields import Field, clouds, generator, sampled
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
    sharp = rng.uniform(28, 70)  # a nipple is 10 to 15 degrees wide
    ends = {
        Species.LEMON: (rng.uniform(0.1, 0.24), rng.uniform(0.03, 0.14), sharp),
        Species.MANDARIN: (rng.uniform(0, 0.06), 0.0, 14.0),
        Species.ORANGE: (0.0, 0.0, 14.0),
        Species.APPLE: (-rng.uniform(0.03, 0.09), -rng.uniform(0.01, 0.06), 7.0),
        Species.PLUM: (0.0, 0.0, 14.0),
    }
    *heights, narrow = ends[fruit.species]
    for sign, height in zip((1, -1), heights, strict=True):
        # The nipple of a lemon, the neck of a mandarin, the hollows of an apple: visible as far as it points sideways.
        right, down, _ = fruit.rotation.T @ np.array([0.0, sign * fruit.axes[1], 0.0])
        sideways = math.hypot(right, down)
        if abs(height) * sideways > 0.01:
            turned = np.cos(around - math.atan2(down, right))
            bumps -= (height * sideways**3) * np.exp((turned - 1) * narrow)
    return bumps
