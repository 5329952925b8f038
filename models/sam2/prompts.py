"""Adapts packed prompts to SAM 2's prompt encoder. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.sam.constants import LABEL_FILLER, LABEL_PADDING
from models.sam.prompts import PackedPrompts


def with_padding_points(prompts: PackedPrompts) -> PackedPrompts:
    """Return prompts with the padding points that SAM 2 expects: one after points or a box, two where there are none.

    SAM, for which they were packed, expects one after points alone.
    """
    real = (prompts.labels >= 0).sum(axis=1)
    wanted = np.where(real > 0, 1, 2)
    width = max(prompts.labels.shape[1], int((real + wanted).max()))
    labels = np.full((len(real), width), LABEL_FILLER, np.int64)
    points = np.zeros((len(real), width, 2), np.float32)
    used = prompts.labels.shape[1]
    labels[:, :used] = np.where(prompts.labels >= 0, prompts.labels, LABEL_FILLER)
    points[:, :used] = np.where(labels[:, :used, None] >= 0, prompts.points, 0)
    column = np.arange(width)
    padding = (column >= real[:, None]) & (column < (real + wanted)[:, None])
    labels[padding] = LABEL_PADDING
    return replace(prompts, points=points, labels=labels)
