"""Renders images of citrus with exact masks: for tests, demonstrations and training; anybody may pass them on."""

from __future__ import annotations

import math
from typing import Final

from models.data.samples import Sample
from models.synthetic.camera import jpeg
from models.synthetic.options import Background, CannotRender, Layout, RenderOptions
from models.synthetic.painting import paint
from models.synthetic.sampling import sample_scene
from models.types import Size

__all__ = ["Background", "CannotRender", "Layout", "RenderOptions", "encode_jpeg", "render"]

_SIZE: Final = Size(224, 448)
_SHORTEST: Final = 16
_LONGEST: Final = 8192


def render(seed: int, size: Size = _SIZE, *, options: RenderOptions | None = None) -> Sample:
    """Render an image of citrus and its exact masks.

    Equal arguments give equal bytes with the same versions of numpy and OpenCV on the same kind of processor, whatever
    the number of threads. What is in the image, where, and how it is lit depends on the seed, the options and the
    proportions alone: another size of the same proportions shows the same scene, except for noise and the grain of
    backgrounds.

    Args:
        seed: of the random numbers, at least 0.
        size: of the image, 16 to 8192 pixels a side; by default 448 wide and 224 high.
        options: what is fixed; by default nothing is.

    Returns:
        The image with its semantic map (of a lesion's pixels only, without the yellow halo around spots, is
        infected), and the instances that are seen with their map. Stickers, drops, dust, leaf fragments, wind scars
        and stems that lie on a fruit are part of it and healthy; leaves that hang before it are background. An
        instance is infected where any of its pixels is.

    Raises:
        CannotRender: the seed or the size is outside its range.
    """
    if seed < 0:
        raise CannotRender(f"The seed {seed}: it must be at least 0.")
    if min(size.height, size.width) < _SHORTEST or max(size.height, size.width) > _LONGEST:
        raise CannotRender(f"{size.width} x {size.height} pixels: each side must be {_SHORTEST} to {_LONGEST}.")
    extent = math.sqrt(size.width / size.height), math.sqrt(size.height / size.width)
    scene = sample_scene(seed, extent, RenderOptions() if options is None else options)
    return paint(scene, size, f"rendered-{seed}", seed)


def encode_jpeg(sample: Sample, quality: int = 92) -> bytes:
    """Encode a sample's image as JPEG.

    Args:
        sample: its pixels are encoded.
        quality: 1 to 100.
    """
    return jpeg(sample.pixels, quality)
