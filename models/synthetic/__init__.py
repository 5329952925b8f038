"""Render images of citrus and apples with exact masks, for tests, demonstrations and training."""

from __future__ import annotations

import math
from typing import Final

from models.data.samples import Sample
from models.synthetic.output import encode_jpeg
from models.synthetic.painting import paint
from models.synthetic.sampling import sample_scene
from models.synthetic.scene import Background, CannotRender, Layout, RenderOptions, Species
from models.types import Size

__all__ = ["Background", "CannotRender", "Layout", "RenderOptions", "Species", "encode_jpeg", "render"]

_SIZE: Final = Size(224, 448)
_SHORTEST: Final = 16
_LONGEST: Final = 8192


def render(seed: int, size: Size = _SIZE, *, options: RenderOptions | None = None) -> Sample:
    """Render an image of fruit and its exact masks.

    Equal arguments give equal bytes with the same versions of numpy and OpenCV on the same kind of processor, whatever
    the number of threads. What is in the image, where, and how it is lit depends only on the seed, the options and the
    proportions: another size of the same proportions shows the same scene, except for noise and the grain of
    backgrounds.

    Args:
        seed: seed of the random numbers, at least 0.
        size: size of the image, 16 to 8192 pixels a side; by default 448 wide and 224 high.
        options: what is fixed; by default nothing is.

    Returns:
        The image, its semantic map and its visible instances with their map. Only the pixels of a lesion or of rot are
        infected, without the yellow halo around spots. Stickers, drops, dust, leaf fragments, russet, wind scars and
        stems on a fruit are part of it and healthy; leaves and fingers in front of it are background. An instance is
        infected if any of its pixels is.

    Raises:
        CannotRender: the seed or the size is out of range.
    """
    if seed < 0:
        raise CannotRender(f"seed must be at least 0, got {seed}.")
    if min(size.height, size.width) < _SHORTEST or max(size.height, size.width) > _LONGEST:
        raise CannotRender(
            f"Each side of the image must be {_SHORTEST} to {_LONGEST} pixels, got {size.width} x {size.height}."
        )
    extent = math.sqrt(size.width / size.height), math.sqrt(size.height / size.width)
    scene = sample_scene(seed, extent, RenderOptions() if options is None else options)
    return paint(scene, size, f"rendered-{seed}", seed)
