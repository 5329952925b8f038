"""Shows a U-Net an image at three scales and takes the mean of what it sees: multi-scale inference.

False fruit of one scale is seldom there at the others, and the mean separates healthy from infected fruit better; but
fruit of a few cells is lost at the smallest scale. So that scale has a say in whether a region is fruit and what is
infected, and none in where its outline is. `docs/accuracy.md` has the figures of this and of what else was tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.types import CLASSES, Size
from models.unet.constants import OUTPUTS
from models.unet.instances import doubtful_cells
from models.unet.letterbox import STRIDE, UNetLetterbox, input_area, unet_letterbox

SCALES: Final = (1.0, 0.5, 2.0)
"""Areas of the inputs, as shares of the model's own. That one is the first: the others are resized to its cells."""


def unet_scales(size: Size, area: int | None = None) -> tuple[UNetLetterbox, ...]:
    """Fit an image into a U-Net's input at every scale.

    Args:
        size: size of the image.
        area: most pixels of the model's own input, padding included; at least 1024. None for that of `INPUT_SIZE`.

    Returns:
        A letterbox for each of `SCALES`, in that order.
    """
    own = input_area(area)
    return tuple(unet_letterbox(size, max(round(scale * own), STRIDE**2)) for scale in SCALES)


def mean_of_scales(outputs: Sequence[NDArray[np.float32]], letterboxes: Sequence[UNetLetterbox]) -> NDArray[np.float32]:
    """Compute what a U-Net sees at all scales together, as if it were one output.

    Args:
        outputs: float32 (5, height, width) each, of size `padded` of its letterbox, from `UNetBackend.infer`.
        letterboxes: of `unet_scales`.

    Returns:
        float32 (5, height, width) like the first output: logits, that of background being 0, and centre offsets.

    Raises:
        ValueError: there are not as many outputs as letterboxes, or one has another size.
    """
    whole = letterboxes[0]
    seen = [_resized(*each, whole) for each in zip(outputs, letterboxes, strict=True)]
    fine = np.mean(
        [cells for cells, each in zip(seen, letterboxes, strict=True) if each.padded.pixels >= whole.padded.pixels],
        axis=0,
    )
    margins: NDArray[np.float32] = np.mean([_margins(cells) for cells in seen], axis=0)
    fruit = _margins(fine).max(axis=0)
    doubtful = doubtful_cells(fruit > 0, margins.max(axis=0))
    if doubtful is not None:
        np.minimum(fruit, 0, out=fruit, where=doubtful)
    infected = margins[1] - margins[0]
    mean = np.zeros((OUTPUTS, whole.padded.height, whole.padded.width), np.float32)
    there = mean[:, : whole.resized.height, : whole.resized.width]
    there[1] = fruit - np.maximum(infected, 0)
    there[2] = fruit + np.minimum(infected, 0)
    there[len(CLASSES) :] = fine[len(CLASSES) :]
    return mean


def _margins(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits of healthy and infected less the background's."""
    margins: NDArray[np.float32] = cells[1 : len(CLASSES)] - cells[0]
    return margins


def _resized(output: NDArray[np.float32], letterbox: UNetLetterbox, whole: UNetLetterbox) -> NDArray[np.float32]:
    """Return the cells of an output that lie on the image, resized to those of another letterbox."""
    expected = (OUTPUTS, letterbox.padded.height, letterbox.padded.width)
    if output.shape != expected:
        raise ValueError(f"the output must have the shape {expected}, got {output.shape}")
    to, of = whole.resized, letterbox.resized
    cells = output[:, : of.height, : of.width]
    if of == to:
        return cells
    how = cv2.INTER_AREA if to.pixels < of.pixels else cv2.INTER_LINEAR
    resized = np.stack([cv2.resize(each, (to.width, to.height), interpolation=how) for each in cells])
    # Offsets are in cells.
    resized[len(CLASSES) :] *= to.width / of.width
    return resized
