"""The interfaces that backends of each family implement, and the checks and preprocessing that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.detector.letterbox import DetectorLetterbox
from models.detector.postprocess import Detection, Thresholds
from models.grounding.build import Phrases
from models.grounding.letterbox import GroundingLetterbox
from models.letterbox import INPUT_SIDE, PADDING_STEP, Letterbox
from models.sam.constants import PIXEL_MEAN, PIXEL_STD
from models.sam.prompts import PackedPrompts
from models.sam2.frames import FrameInputs, TrackedMask
from models.sam2.memory import TrackState
from models.types import Logits, Pixels, Size
from models.unet.letterbox import UNetLetterbox

BackendName = Literal["torch", "openvino"]

MAX_GRIDS: Final = 8
"""Position grids that a backend caches, one per shape of letterbox, at most 4 MiB each."""

_SCALE: Final = (1 / np.asarray(PIXEL_STD)).astype(np.float32)
_SHIFT: Final = (-np.asarray(PIXEL_MEAN) / np.asarray(PIXEL_STD)).astype(np.float32)


class Embedding(Protocol):
    """One image's embedding in the device's memory: float32 (256, h, w) for h x w cells of the letterbox.

    It takes 4 MiB for the square of 1024; SAM 2's, with features at two finer scales, 16 MiB.
    """

    @property
    def nbytes(self) -> int:
        """Size in bytes on the device."""
        ...


class SamBackend(Protocol):
    """One SAM on one device. `prepare` is thread-safe; `encode` and `decode` may be called by one thread at a time."""

    name: BackendName
    device: str
    image_batches: tuple[int, ...]
    """Candidate sizes of `encode` batches, rising; the runner measures which size pays."""

    prompt_batches: tuple[int, ...]
    """Candidate sizes of `decode` batches, rising; the last one bounds memory."""

    flexible: bool
    """Whether letterboxes of any side and padding in multiples of 64 are supported, or only one square."""

    stretched_to: int | None
    """Side of the square that all images are stretched to, as for SAM 2; None where they keep their proportions."""

    def prepare(self, pixels: Pixels, letterbox: Letterbox) -> Any:
        """Convert an image to the input of `encode`.

        Args:
            pixels: uint8 (height, width, 3) of size `letterbox.resized`.
            letterbox: letterbox of the image.

        Raises:
            ValueError: the pixels have another size, or the model does not support the letterbox.
        """
        ...

    def encode(self, prepared: Sequence[Any]) -> list[Embedding]:
        """Encode prepared images in one batch.

        Args:
            prepared: results of `prepare` for letterboxes of equal `padded`.

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
            embeddings: embeddings of the batch's images, h x w cells each, with equal `side` and `padded`.
            image_index: int64 (P,), each prompt's image.
            prompts: P prompts, packed for these letterboxes; together at most as many cells as the last of
                `prompt_batches` has on the full square.

        Returns:
            logits float32 (P, 4, 4 h, 4 w), padding included, and predicted IoU float32 (P, 4).

        Raises:
            ValueError: the embeddings have other cells than the prompts were packed for.
            BackendError: the device failed.
        """
        ...


class Sam2Backend(SamBackend, Protocol):
    """One SAM 2 on one device, which also follows objects; `track` is for the thread that encodes and decodes."""

    side: int
    """Of the square that images are stretched to."""

    @property
    def object_bytes(self) -> int | None:
        """Most bytes that are remembered of an object; None where the checkpoint has no memory and cannot track."""
        ...

    def track(self, state: TrackState, embedding: Embedding, inputs: FrameInputs) -> list[TrackedMask]:
        """Find the objects of a video on its next frame.

        Args:
            state: of the video.
            embedding: of the frame.
            inputs: what is said about it.

        Raises:
            ValueError: the checkpoint has no memory.
            BackendError: the device failed; `state` is as before.
        """
        ...


class UNetBackend(Protocol):
    """One U-Net on one device. `prepare` is thread-safe; `infer` may be called by one thread at a time."""

    name: BackendName
    device: str
    image_batches: tuple[int, ...]
    """Candidate sizes of `infer` batches, rising; the runner measures which size pays."""

    def prepare(self, pixels: Pixels, letterbox: UNetLetterbox) -> Any:
        """Convert an image to the input of `infer`.

        Args:
            pixels: uint8 (height, width, 3) of size `letterbox.resized`.
            letterbox: letterbox of the image.

        Raises:
            ValueError: the pixels have another size.
        """
        ...

    def infer(self, prepared: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Run the network on prepared images in one batch.

        Args:
            prepared: results of `prepare` for letterboxes of equal `padded`.

        Returns:
            for each image float32 (5, height, width) of `padded`: logits of background, healthy and infected, then
            offsets right and down, see `models.unet.instances`.

        Raises:
            ValueError: the padded sizes differ.
            BackendError: the device failed.
        """
        ...


class DetectorBackend(Protocol):
    """One detector on one device. `prepare` is thread-safe; `infer` may be called by one thread at a time."""

    name: BackendName
    device: str
    image_batches: tuple[int, ...]
    """Candidate sizes of `infer` batches, rising; the runner measures which size pays."""

    input_size: Size
    """Size of the input, the same for all images."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of the output."""

    def prepare(self, pixels: Pixels, letterbox: DetectorLetterbox) -> Any:
        """Convert an image to the input of `infer`.

        Args:
            pixels: uint8 (height, width, 3) of size `letterbox.resized`.
            letterbox: letterbox of the image, for `input_size`.

        Raises:
            ValueError: the pixels have another size.
        """
        ...

    def infer(self, prepared: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Run the network on prepared images.

        Returns:
            for each image float32 (cells, 5 + classes), see `models.detector.postprocess.detections`.

        Raises:
            BackendError: the device failed.
        """
        ...


class GroundingBackend(Protocol):
    """One model of an open vocabulary on one device. `infer` may be called by one thread at a time."""

    name: BackendName
    device: str
    image_batches: tuple[int, ...]
    """Candidate sizes of `infer` batches: one image with its own nouns."""

    def letterbox(self, size: Size) -> GroundingLetterbox:
        """Fit an image of a size into the network's input."""
        ...

    def read(self, nouns: Sequence[str]) -> Phrases:
        """Return nouns as the network reads them; for one thread.

        Args:
            nouns: at least one.

        Raises:
            MalformedPrompt: they are more than the network can read.
        """
        ...

    def prepare(self, pixels: Pixels, letterbox: GroundingLetterbox) -> Any:
        """Convert an image to the input of `infer`; thread-safe.

        Args:
            pixels: uint8 (height, width, 3) of size `letterbox.resized`.
            letterbox: of the image.

        Raises:
            ValueError: the pixels have another size.
        """
        ...

    def infer(self, prepared: Any, phrases: Phrases) -> NDArray[np.float32]:
        """Look for what nouns name in an image.

        Returns:
            the input of `boxes`, with `output_values` numbers.

        Raises:
            BackendError: the device failed.
        """
        ...

    def output_values(self, nouns: int) -> int:
        """Return the number of values of the output for so many nouns."""
        ...

    def boxes(self, output: NDArray[np.float32], letterbox: GroundingLetterbox, kept: Thresholds) -> list[Detection]:
        """Return what was found, best first; the classes are the nouns in their order. Thread-safe."""
        ...


def check_letterbox(pixels: Pixels, letterbox: Letterbox, *, flexible: bool) -> None:
    """Check an image that an encoder would accept but encode wrongly.

    Args:
        pixels: uint8 (height, width, 3).
        letterbox: the letterbox given for the image.
        flexible: see `SamBackend`.

    Raises:
        ValueError: the pixels have another size, or the model does not support the letterbox.
    """
    resized, padded = letterbox.resized, letterbox.padded
    if pixels.shape[:2] != (resized.height, resized.width):
        raise ValueError(f"the pixels must have the shape {(resized.height, resized.width, 3)}, got {pixels.shape}")
    if not flexible and not letterbox.is_reference:
        raise ValueError(
            f"this model's position embeddings require the padded square of {INPUT_SIDE} pixels, "
            f"got {padded.width} x {padded.height} pixels of a square of {letterbox.side}"
        )
    if padded.height % PADDING_STEP or padded.width % PADDING_STEP:
        raise ValueError(f"padded sizes must be multiples of {PADDING_STEP}, got {padded.width} x {padded.height}")


def check_cells(shapes: Sequence[tuple[int, ...]], prompts: PackedPrompts) -> None:
    """Check that embeddings have the cells that `prompts` were packed for.

    Args:
        shapes: shapes of the embeddings, (256, h, w) each.
        prompts: prompts to decode on them.

    Raises:
        ValueError: a shape has other cells.
    """
    cells = (prompts.cells.height, prompts.cells.width)
    if any(shape[1:] != cells for shape in shapes):
        raise ValueError(f"the embeddings must have {cells} cells, as the prompts were packed for, got shapes {shapes}")


def normalise(pixels: Pixels, padded: Size) -> NDArray[np.float32]:
    """Normalise an image and pad it, as segment-anything's `Sam.preprocess`.

    Args:
        pixels: uint8 (height, width, 3), at most of size `padded`.
        padded: size of the encoder's input.

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


def stack(prepared: Sequence[Pixels]) -> Pixels:
    """Stack padded images to one batch.

    Args:
        prepared: uint8 (height, width, 3) each.

    Returns:
        uint8 (images, height, width, 3).

    Raises:
        ValueError: their sizes differ.
    """
    if len({image.shape for image in prepared}) > 1:
        raise ValueError("images of different padded sizes must go into separate batches")
    return np.stack(prepared)
