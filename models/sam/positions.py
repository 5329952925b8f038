"""Where the cells of an embedding lie, as SAM's decoder is told, without PyTorch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.sam.constants import EMBEDDING_STRIDE
from models.types import Size


def position_grid(matrix: NDArray[np.float32], side: int, cells: Size) -> NDArray[np.float32]:
    """Encode the centres of an embedding's cells, as segment-anything's `PositionEmbeddingRandom` does.

    Positions are fractions of the square, so that a smaller embedding has the top left part of the square's grid.

    Args:
        matrix: float32 (2, 128), the checkpoint's random frequencies.
        side: side of the model's square in pixels.
        cells: size of the embedding.

    Returns:
        float32 (1, height * width, 256), -1 to 1, row by row.
    """
    stride = EMBEDDING_STRIDE / side
    ys = (np.arange(cells.height) + 0.5) * stride
    xs = (np.arange(cells.width) + 0.5) * stride
    along_x, along_y = (2 * math.pi * np.outer(2 * at - 1, row) for at, row in zip((xs, ys), matrix, strict=True))
    angles = (along_y[:, None] + along_x[None, :]).reshape(1, cells.pixels, -1)
    grid: NDArray[np.float32] = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
    return grid
