"""From light to the bytes of an image."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import cv2
import numpy as np

from models.errors import PomonaError
from models.synthetic.fields import Field, blurred
from models.synthetic.scene import Lens
from models.types import Pixels

_STEPS: Final = 4096


def photographed(light: Field, lens: Lens, rng: np.random.Generator) -> Pixels:
    """Take the image.

    Args:
        light: float32 (height, width, 3), linear, 1 for white paper in the light; overwritten.
        lens: what the camera does.
        rng: of the noise.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    height, width = light.shape[:2]
    unit = math.sqrt(height * width)
    light *= lens.balance * lens.exposure
    if lens.vignetting > 0:
        down = ((np.arange(height, dtype=np.float32) + 0.5) / height - 0.5) ** 2
        across = ((np.arange(width, dtype=np.float32) + 0.5) / width - 0.5) ** 2
        light *= (1 - (lens.vignetting * 2) * (down[:, None] + across[None]))[..., None]
    light = blurred(light, lens.defocus * unit / 1000)
    if lens.motion * unit / 1000 > 1.5:
        light = _smeared(light, lens.motion * unit / 1000, lens.motion_angle)
    image = _tone(lens.contrast).take(np.clip(light * (_STEPS / 2), 0, _STEPS - 1).astype(np.uint16))
    if lens.sharpening > 0:
        soft = blurred(image, 1.2 * max(1.0, unit / 700))
        image += (image - soft) * (lens.sharpening)
    if lens.noise > 0:
        # Shot noise grows with the light, gamma shrinks it in the highlights: about even in the image.
        noise = rng.standard_normal(image.shape, np.float32)
        noise *= (lens.noise) * (1.2 - 0.7 * image)
        image += noise
    image *= 255
    image += 0.5
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return pixels if lens.jpeg_quality is None else _compressed(pixels, lens.jpeg_quality)


def jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encode RGB pixels as JPEG, quality 1 to 100."""
    done, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise PomonaError(f"OpenCV could not encode {pixels.shape[1]} x {pixels.shape[0]} pixels as JPEG.")
    return encoded.tobytes()


def _compressed(pixels: Pixels, quality: int) -> Pixels:
    decoded = cv2.imdecode(np.frombuffer(jpeg(pixels, quality), np.uint8), cv2.IMREAD_COLOR_RGB)
    return np.asarray(decoded, np.uint8)


def _smeared(light: Field, length: float, angle: float) -> Field:
    side = int(length) // 2 * 2 + 3
    kernel = np.zeros((side, side), np.float32)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    first, last = (np.round((side // 2 + sign * reach) * 16).astype(int).tolist() for sign in (-1, 1))
    cv2.line(kernel, tuple(first), tuple(last), 1.0, 1, cv2.LINE_8, 4)
    return np.asarray(cv2.filter2D(light, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE), np.float32)


@lru_cache(maxsize=64)
def _tone(contrast: float) -> Field:
    """The curve of sRGB with a soft shoulder above white and, with contrast, an S: light of 0 to 2 gives 0 to 1."""
    light = np.arange(_STEPS) * (2 / _STEPS)
    shoulder = np.where(light < 0.7, light, 0.7 + 0.3 * (1 - np.exp(-(light - 0.7) / 0.3)))
    srgb = np.where(shoulder <= 0.0031308, shoulder * 12.92, 1.055 * shoulder ** (1 / 2.4) - 0.055)
    curved = srgb * srgb * (3 - 2 * srgb)
    return np.asarray(srgb + (curved - srgb) * 0.7 * contrast, np.float32)
