"""The interface that every backend of a SAM offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.letterbox import Letterbox
from models.sam.constants import INPUT_SIDE, PADDING_STEP, PIXEL_MEAN, PIXEL_STD
from models.sam.prompts import PackedPrompts
from models.types import Logits, Pixels, Size

BackendName = Literal["torch", "openvino"]

MAX_GRIDS: Final = 8
"""Position grids that a backend keeps, one for each shape of letterbox, 4 MiB at most."""

_SCALE: Final = (1 / np.asarray(PIXEL_STD)).astype(np.float32)
_SHIFT: Final = (-np.asarray(PIXEL_MEAN) / np.asarray(PIXEL_STD)).astype(np.float32)


class Embedding(Protocol):
    """One image's embedding, kept where the backend computes: float32 (256, h, w) of the letterbox's cells.

    4 MiB for the square of 1024.
    """

    @property
    def nbytes(self) -> int:
        """Bytes that it holds on the device."""
        ...


class SamBackend(Protocol):
    """One SAM on one device. `prepare` may be called from any thread, `encode` and `decode` from one at a time."""

    name: BackendName
    device: str
    image_batches: tuple[int, ...]
    """Rising sizes of `encode` batches that may pay; the runner measures which does."""
    prompt_batches: tuple[int, ...]
    """Rising sizes of `decode` batches that may pay; the last keeps memory bounded."""

    flexible: bool
    """Whether letterboxes of any side and padding are taken, in multiples of 64; else only the square of 1024."""

    def prepare(self, pixels: Pixels, letterbox: Letterbox) -> Any:
        """Turn an image into what `encode` takes.

        Args:
            pixels: uint8 (height, width, 3) of size `letterbox.resized`.
            letterbox: how the image lies in the model's square.

        Raises:
            ValueError: pixels of another size, or a letterbox that this model has no answer to.
        """
        ...

    def encode(self, prepared: Sequence[Any]) -> list[Embedding]:
        """Encode prepared images in one batch.

        Args:
            prepared: of images whose letterboxes are equal in `padded`.

        Raises:
            ValueError: the padded sizes differ.
            BackendError: the device failed.
        """
        ...

    def decode(
        self,
        embeddings: Sequence[Embedding],
        image_index: NDArray[np.int64],
        prompts: PackedPrompts,
    ) -> tuple[Logits, NDArray[np.float32]]:
        """Decode P prompts on their images in one batch.

        Args:
            embeddings: of the I images in the batch, h x w cells each, with equal `side` and `padded`.
            image_index: int64 (P,), each prompt's image.
            prompts: P of them, packed for these letterboxes; in all at most the cells of the last of `prompt_batches`
                on the full square.

        Returns:
            logits float32 (P, 4, 4 h, 4 w), padding included, and predicted IoU float32 (P, 4).

        Raises:
            ValueError: embeddings of other cells than the prompts were packed for.
            BackendError: the device failed.
        """
        ...


def check_frame(pixels: Pixels, letterbox: Letterbox, *, flexible: bool) -> None:
    """Refuse an image that an encoder would take and answer wrongly.

    Args:
        pixels: uint8 (height, width, 3).
        letterbox: said to be theirs.
        flexible: see `SamBackend`.

    Raises:
        ValueError: pixels of another size, or a letterbox that this model has no answer to.
    """
    if pixels.shape[:2] != (letterbox.resized.height, letterbox.resized.width):
        raise ValueError(f"pixels of shape {pixels.shape} for a letterbox of {letterbox.resized}")
    padded = letterbox.padded
    if not flexible and (letterbox.side != INPUT_SIDE or padded != Size(INPUT_SIDE, INPUT_SIDE)):
        raise ValueError(
            f"This model's position embeddings are of the padded square of {INPUT_SIDE} pixels; "
            f"it has no answer to {padded.width} x {padded.height} pixels of a square of {letterbox.side}."
        )
    if padded.height % PADDING_STEP or padded.width % PADDING_STEP:
        raise ValueError(f"{padded.width} x {padded.height} pixels are not multiples of {PADDING_STEP}.")


def check_cells(shapes: Sequence[tuple[int, ...]], prompts: PackedPrompts) -> None:
    """Refuse embeddings that `prompts` were not packed for.

    Args:
        shapes: of the embeddings, (256, h, w) each.
        prompts: what is to be decoded on them.

    Raises:
        ValueError: a shape is not of the prompts' cells.
    """
    cells = (prompts.cells.height, prompts.cells.width)
    if any(shape[1:] != cells for shape in shapes):
        raise ValueError(f"embeddings of shapes {shapes} and prompts for {cells} cells do not go together")


def normalise(pixels: Pixels, padded: Size) -> NDArray[np.float32]:
    """Normalise an image and pad it, as segment-anything's `Sam.preprocess`.

    Args:
        pixels: uint8 (height, width, 3), at most of size `padded`.
        padded: what the encoder sees.

    Returns:
        float32 (3, height, width) of size `padded`; zero right of and below the image.
    """
    height, width = pixels.shape[:2]
    normalised = np.zeros((3, padded.height, padded.width), np.float32)
    for channel in range(3):
        inside = normalised[channel, :height, :width]
        np.multiply(pixels[..., channel], _SCALE[channel], out=inside)
        inside += _SHIFT[channel]
    return normalised
