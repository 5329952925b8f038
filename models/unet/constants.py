"""Numbers that every U-Net here is trained and served with."""

from __future__ import annotations

from typing import Final

PIXEL_MEAN: Final = (123.675, 116.28, 103.53)
PIXEL_STD: Final = (58.395, 57.12, 57.375)
"""Of RGB in 0 to 255: torchvision's ImageNet mean (0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225)
times 255, with which the encoders' ImageNet weights were trained."""

PADDING: Final = (124, 116, 104)
"""Colour of the padding right of and below an image: the mean, which is 0 for the network, in whole numbers."""

OUTPUTS: Final = 5
"""Channels of a U-Net: logits of background, healthy and infected, then each cell's vote, right and down, for the
middle of its fruit."""

OFFSET_UNIT: Final = 32.0
"""Cells that a vote of 1 reaches: keeps votes of fruits of all sizes within a few units."""
