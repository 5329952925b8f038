"""Random numbers, noise and colours that the renderer paints with."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.float32]
"""float32 (height, width), or (height, width, channels)."""

Rgb: TypeAlias = NDArray[np.float32]
"""float32 (3,): linear light, 1 for white paper in light of strength 1."""

_TILE: Final = 512
_PORES: Final = 44  # from one side of a tile to the other


def generator(*key: int) -> np.random.Generator:
    """Return the random generator of a key. The algorithm is named so that the numbers stay the same."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def linear(*srgb: float) -> Rgb:
    """Convert an sRGB colour, 0 to 255, to linear light (IEC 61966-2-1)."""
    share = np.clip(np.array(srgb) / 255, 0, 1)
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4).astype(np.float32)


def dot(sphere: Field, vector: NDArray[np.float64]) -> Field:
    """Return the inner product of unit vectors (3, height, width) with one vector."""
    x, y, z = vector.astype(np.float32)
    return np.asarray(x * sphere[0] + y * sphere[1] + z * sphere[2])


def chord(sphere: Field, centre: NDArray[np.float64]) -> Field:
    """Return the chord lengths from points on the unit sphere (3, height, width) to `centre`."""
    return np.asarray(np.sqrt(np.maximum(2 - 2 * dot(sphere, centre), 0)))


def tangents(centre: NDArray[np.float64], angle: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two orthogonal unit vectors tangent to the sphere at `centre`, the first rotated by `angle`."""
    helper = np.eye(3)[int(np.abs(centre).argmin())]
    first = np.cross(centre, helper)
    first /= np.linalg.norm(first)
    second = np.cross(centre, first)
    return first * math.cos(angle) + second * math.sin(angle), second * math.cos(angle) - first * math.sin(angle)


def smoothstep(low: float, high: float, values: Field) -> Field:
    """Interpolate smoothly (Hermite) from 0 below `low` to 1 above `high`; `low` may be above `high`."""
    t = (values - low) * (1 / (high - low))
    np.clip(t, 0, 1, out=t)
    return np.asarray(t * t * (3 - 2 * t))


def mix(base: Field, colour: Field, weight: Field) -> None:
    """Blend a colour into `base` (height, width, 3) by `weight` (height, width), 0 to 1, in place."""
    base += (colour - base) * weight[..., None]


def resized(field: Field, shape: tuple[int, ...], interpolation: int = cv2.INTER_CUBIC) -> Field:
    """Resize to (height, width)."""
    return np.asarray(cv2.resize(field, (shape[1], shape[0]), interpolation=interpolation), np.float32)


def blurred(field: Field, sigma: float) -> Field:
    """Blur with a Gaussian; wide ones at a lower resolution, which is cheaper and looks the same."""
    if sigma < 0.2:
        return field
    if sigma > 4:
        height, width = field.shape[:2]
        scale = 2 / sigma
        small = resized(field, (max(1, round(height * scale)), max(1, round(width * scale))), cv2.INTER_AREA)
        return resized(blurred(small, 2.0), field.shape, cv2.INTER_LINEAR)
    return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.float32)


def lattice(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[float, float]) -> Field:
    """Return smooth noise of about unit variance with `cells` (down, across) bumps, whatever the resolution."""
    down, across = (max(2, min(1024, round(count) + 1)) for count in cells)
    small = rng.standard_normal((down, across), np.float32)
    shrinks = down > shape[0] or across > shape[1]
    return resized(small, shape, cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


@lru_cache(maxsize=1)
def clouds() -> tuple[Field, ...]:
    """Return seamless noise, float32 (n, n, 3) of unit variance, and its halved copies.

    The first two channels are clouds of all sizes, the third has only small grains.
    """
    rng = generator(1)
    down = np.fft.fftfreq(_TILE)[:, None] * _TILE
    across = np.fft.rfftfreq(_TILE)[None] * _TILE
    frequency = np.hypot(down, across)
    frequency[0, 0] = 1
    coarse = frequency**-2.3 * (frequency >= 3) * np.exp(-((frequency / 120) ** 2))
    fine = frequency**-0.7 * (frequency >= 24) * np.exp(-((frequency / 160) ** 2))
    channels = []
    for spectrum in (coarse, coarse, fine):
        white = np.fft.rfft2(rng.standard_normal((_TILE, _TILE)))
        noise = np.fft.irfft2(white * spectrum, s=(_TILE, _TILE))
        channels.append(noise / noise.std())
    return halved(np.stack(channels, axis=-1).astype(np.float32))


@lru_cache(maxsize=1)
def pores() -> tuple[Field, ...]:
    """Return seamless oil glands of peel, float32 (n, n), depth 0 to about 1, and their halved copies."""
    rng = generator(2)
    cell = _TILE / _PORES
    rows, columns = np.mgrid[0:_PORES, 0:_PORES].astype(np.float64)
    offset = rng.uniform(-0.42, 0.42, (2, _PORES, _PORES))
    y = ((rows + 0.5 + offset[0]) * cell).astype(int) % _TILE
    x = ((columns + 0.5 * (rows % 2) + 0.5 + offset[1]) * cell).astype(int) % _TILE
    dots = np.zeros((_TILE, _TILE))
    dots[y, x] = rng.uniform(0.25, 1.0, y.shape)
    distance = np.fft.fftfreq(_TILE) * _TILE
    bell = np.exp(-(distance[:, None] ** 2 + distance[None] ** 2) / (2 * (cell * 0.24) ** 2))
    depth = np.fft.irfft2(np.fft.rfft2(dots) * np.fft.rfft2(bell), s=(_TILE, _TILE))
    return halved(depth.astype(np.float32))


def halved(tile: Field) -> tuple[Field, ...]:
    """Return a square tile and its halved copies, down to a side of 8."""
    levels = [tile]
    while levels[-1].shape[0] > 8:
        side = levels[-1].shape[0] // 2
        levels.append(resized(levels[-1], (side, side), cv2.INTER_AREA))
    return tuple(levels)


def sampled(
    tile: tuple[Field, ...], u: Field, v: Field, *, period: float, pixel: float, key: int, turned: bool = True
) -> Field:
    """Sample a seamless tile.

    Args:
        tile: the tile and its halved copies.
        u: first coordinate, float32 (height, width).
        v: second coordinate, likewise.
        period: length in u and v that the whole tile covers.
        pixel: length in u and v of one pixel of the image; chooses the copy, which avoids aliasing.
        key: key of a random offset and rotation.
        turned: whether the tile is rotated too.

    Returns:
        float32 (height, width, channels of the tile).
    """
    level = int(np.clip(np.floor(np.log2(max(pixel * _TILE / period, 1)) + 0.5), 0, len(tile) - 1))
    source = tile[level]
    side = source.shape[0]
    angle, *offset = generator(key).uniform(0, (2 * np.pi, side, side)).tolist()
    angle *= turned
    cos, sin = math.cos(angle) * side / period, math.sin(angle) * side / period
    x = cos * u + (-sin) * v + offset[0]
    y = sin * u + cos * v + offset[1]
    x -= np.floor(x / side) * side
    y -= np.floor(y / side) * side
    return np.asarray(cv2.remap(source, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.float32)
