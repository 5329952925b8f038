"""Numbers that all U-Nets are trained and served with."""

from __future__ import annotations

from typing import Final

PIXEL_MEAN: Final = (123.675, 116.28, 103.53)
PIXEL_STD: Final = (58.395, 57.12, 57.375)
"""ImageNet statistics of RGB in 0 to 255: torchvision's mean (0.485, 0.456, 0.406) and standard deviation (0.229,
0.224, 0.225) times 255, with which the encoders' ImageNet weights were trained."""

PADDING: Final = (124, 116, 104)
"""Colour of the padding right of and below an image: the rounded mean, which is normalised to about 0."""

OUTPUTS: Final = 5
"""Channels of a U-Net's output: logits of background, healthy and infected, then each cell's offset, right and down, to
the centre of its fruit."""

OFFSET_UNIT: Final = 32.0
"""Cells per unit of an offset, so that offsets in fruits of all sizes are a few units."""
