"""Which class each cell of a U-Net's output favours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.types import CLASSES
from models.unet.constants import OUTPUTS
from models.unet.letterbox import UNetLetterbox


def unpadded(output: NDArray[np.float32], letterbox: UNetLetterbox) -> NDArray[np.float32]:
    """What lies on the image itself.

    Args:
        output: float32 (5, height, width) of size `letterbox.padded`.
        letterbox: of the image.

    Returns:
        A view of size `letterbox.resized`.

    Raises:
        ValueError: an output of another size.
    """
    if output.shape != (OUTPUTS, letterbox.padded.height, letterbox.padded.width):
        raise ValueError(f"an output of shape {output.shape} for a letterbox of {letterbox.padded}")
    return output[:, : letterbox.resized.height, : letterbox.resized.width]


def against_background(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """By how much healthy and infected win against the background: two maps are cheaper to enlarge than three.

    Args:
        cells: float32 (3 or more, height, width), the logits of the classes first.

    Returns:
        float32 (2, height, width).
    """
    against: NDArray[np.float32] = cells[1 : len(CLASSES)] - cells[0]
    return against


def favoured(healthy: NDArray[np.float32], infected: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The class of the largest logit, the first of equal ones.

    Args:
        healthy: by how much it wins against the background, any shape.
        infected: likewise.

    Returns:
        uint8 of the same shape: BACKGROUND, HEALTHY or INFECTED.
    """
    classes = (infected > healthy).view(np.uint8)
    classes += 1
    classes *= np.maximum(healthy, infected) > 0
    return classes
