"""Converts colours to sRGB by the ICC profile of a file."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from threading import Lock
from typing import Final, Literal, TypeAlias

import numpy as np
import PIL.Image
from PIL import ImageCms

_Mode: TypeAlias = Literal["L", "RGB", "CMYK"]

_MODES: Final[dict[bytes, _Mode]] = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
_MAX_BYTES: Final = 4 << 20  # profiles of printers have 0.5 to 2 MB, of screens and cameras a few KB
KEPT: Final = 32
"""Profiles whose transform is remembered."""

_STEPS: Final = (0, 16, 32, 64, 96, 128, 160, 192, 224, 240, 255)
_UNSEEN: Final = 1
"""Steps of 255 by which a profile may differ from sRGB and count as sRGB: rounding in the profile's own curves."""

_SRGB: Final = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


class _Transforms:
    """Transforms to sRGB by the hash of their profile; the least recently used are forgotten."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[tuple[bytes, str], ImageCms.ImageCmsTransform | None] = OrderedDict()

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._known)

    def find(self, profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
        """Return the transform of images of `mode`; None where colours stay as they are."""
        key = (hashlib.sha256(profile).digest(), mode)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        made = _make(profile, mode)
        with self._lock:
            self._known[key] = made
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        return made


TRANSFORMS: Final = _Transforms()


def to_srgb(image: PIL.Image.Image, profile: bytes | None) -> PIL.Image.Image:
    """Convert an image to sRGB by its ICC profile, with the perceptual intent.

    Args:
        image: of mode L, RGB or CMYK, 8 bits; any other is returned as it is.
        profile: the ICC profile that came with the image, or None.

    Returns:
        An image of mode RGB; or the image itself where there is no profile, the profile is sRGB, damaged, larger than
        4 MiB or of another colour space than the image's, or it is made of floating-point elements (`mpet`), which
        have no bound on their time.
    """
    if profile is None or len(profile) > _MAX_BYTES or _MODES.get(profile[16:20]) != image.mode:
        return image
    transform = TRANSFORMS.find(profile, image.mode)
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


def _make(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if b"mpet" in profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB")
        probe = _probe(mode)
        before, after = probe.convert("RGB"), ImageCms.applyTransform(probe, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if after is None:
        return None
    difference = np.abs(np.asarray(before, np.int16) - np.asarray(after, np.int16))
    return None if difference.max() <= _UNSEEN else transform


def _probe(mode: str) -> PIL.Image.Image:
    """Return an image with colours from all over the space."""
    steps = np.array(_STEPS, np.uint8)
    bands = PIL.Image.new(mode, (1, 1)).getbands()
    colours = np.stack(np.meshgrid(*[steps] * len(bands)), axis=-1).reshape(1, -1, len(bands))
    return PIL.Image.fromarray(colours[..., 0] if len(bands) == 1 else colours, mode)
