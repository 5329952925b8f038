"""A U-Net in int8: post-training quantisation (Jacob et al., CVPR 2018) by NNCF.

For the process that converts: NNCF imports much that serving does not need.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import nncf
import openvino

from models.types import Pixels

_CONVOLUTIONS: Final = frozenset(("Convolution", "GroupConvolution"))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which layers keep float32.

    Attributes:
        int8_in: which layers get int8, in words.
        float32: pattern of the PyTorch modules whose convolutions do.
    """

    int8_in: str
    float32: re.Pattern[str]


RECIPES: Final = (
    Recipe(
        "all but the encoder's first layers and the head",
        re.compile(r"segmentation_head|encoder\.(features\.[01]\.|conv1|bn1|layer1\.)"),
    ),
    Recipe("the decoder but its last block", re.compile(r"segmentation_head|encoder\.|decoder\.blocks\.4\.")),
)
"""The faster first. Measured on MobileNetV2: its first two blocks in int8 double what fruit's IoU loses, and cost
little in float32. A head in int8 moves no mask, but votes: equally many fruits in 28 of 40 scenes instead of 32."""


def quantised(model: openvino.Model, images: Sequence[Pixels], recipe: Recipe) -> openvino.Model:
    """Quantise weights and activations.

    Args:
        model: in float32, uint8 pixels to float32 logits; left as it is.
        images: to calibrate with, uint8 (1, height, width, 3) each, at least one.
        recipe: which layers keep float32.

    Returns:
        The same with int8 in the other layers' convolutions.
    """
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(names=_names_of(model, recipe.float32), validate=False),
        )


def _names_of(model: openvino.Model, modules: re.Pattern[str]) -> list[str]:
    """Convolutions of these modules.

    A convolution into which constants were folded has a name without meaning; what follows it has its module's, the
    convolution's own or that of the normalisation next to it.
    """
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() in _CONVOLUTIONS:
            followers = (target.get_node() for target in node.output(0).get_target_inputs())
            if any(modules.search(each.get_friendly_name()) for each in (node, *followers)):
                found.append(node.get_friendly_name())
    return found
