"""Domain errors.

PomonaError
├── ImageError                    the image cannot be used
│   ├── NotAnImage                bytes of no known image format
│   ├── UnsupportedImageFormat    an image in an unsupported format or pixel type
│   ├── TruncatedImage            an image that ends early or is damaged
│   ├── TooManyPixels             larger than the pixel limit, according to its header
│   └── ImageTooComplex           decoding it would cost much more than its pixels need
├── DecodingStopped               the caller no longer needs the image
├── PromptError                   the prompts cannot be used
│   ├── NoPrompt                  there is nothing to segment
│   ├── MalformedPrompt           numbers that form no valid point, box or mask
│   ├── PromptOutsideImage        a point or a box beyond the image's edge
│   └── TooManyPrompts            more prompts or points than the limit
├── MaskError                     an encoded mask that does not decode
├── UnknownModel                  no catalogue entry of that name
├── WeightsError                  a checkpoint cannot be fetched or used
│   ├── NoSource                  every source of a checkpoint failed
│   ├── WrongHash                 a file's SHA-256 differs from the catalogue's
│   ├── DiskFull                  no room for a checkpoint or a converted model
│   ├── UnusableFile              a name that is of no checkpoint in the folder of models
│   └── BadCheckpoint             a verified file that does not fit its architecture
├── CatalogueError                the user's models file is wrong
├── DataError                     images or annotations for training or evaluation cannot be used
└── BackendError                  a device or a compiler failed
    ├── DeviceOutOfMemory         a smaller batch may fit
    └── DeviceBroken              the device cannot run anything any more
"""

from __future__ import annotations

import errno
from typing import Final

NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
"""Numbers of the system's errors that mean `DiskFull`."""


class PomonaError(Exception):
    """Base of every error that Pomona raises on purpose.

    Args:
        detail: message for people: what must hold and what was given.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ImageError(PomonaError):
    """The image cannot be used."""


class NotAnImage(ImageError):
    """The bytes are in no known image format."""


class UnsupportedImageFormat(ImageError):
    """The image has an unsupported format or pixel type."""


class TruncatedImage(ImageError):
    """The image ends early or is damaged."""


class TooManyPixels(ImageError):
    """The header announces more pixels than the limit allows."""


class ImageTooComplex(ImageError):
    """Decoding the image, or reading its header, would cost much more than its pixels need."""


class DecodingStopped(PomonaError):
    """The caller said that it no longer needs the image."""


class PromptError(PomonaError):
    """The prompts cannot be used."""


class NoPrompt(PromptError):
    """There is no prompt, or a prompt has neither points, box nor mask."""


class MalformedPrompt(PromptError):
    """A prompt has unpaired points and labels, an empty box, or a mask of the wrong size."""


class PromptOutsideImage(PromptError):
    """A point or a box corner lies beyond the image."""


class TooManyPrompts(PromptError):
    """There are more prompts, or more points in one prompt, than the limit allows."""


class MaskError(PomonaError):
    """An encoded mask cannot be decoded."""


class UnknownModel(PomonaError):
    """The named model is not in the catalogue, or not loaded."""


class WeightsError(PomonaError):
    """A checkpoint cannot be fetched or used."""


class NoSource(WeightsError):
    """Every source of a checkpoint failed."""


class WrongHash(WeightsError):
    """A file's SHA-256 differs from the one in the catalogue."""


class DiskFull(WeightsError):
    """The disk has no room for a checkpoint or a converted model."""


class UnusableFile(WeightsError):
    """The name is of no checkpoint in the folder of models."""


class BadCheckpoint(WeightsError):
    """A verified checkpoint does not fit its architecture."""


class CatalogueError(PomonaError):
    """The user's models file is wrong."""


class DataError(PomonaError):
    """Images or annotations for training or evaluation cannot be used."""


class BackendError(PomonaError):
    """A device or a model compiler failed."""


class DeviceOutOfMemory(BackendError):
    """The device has not enough memory for this batch; a smaller one may fit."""


class DeviceBroken(BackendError):
    """The device failed permanently; the process must be replaced."""
