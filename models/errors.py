"""The tree of domain errors.

PomonaError
├── ImageError                    the image cannot be used
│   ├── NotAnImage                bytes that no image format claims
│   ├── UnsupportedImageFormat    an image, but of a kind that is not read here
│   ├── TruncatedImage            an image that ends early or is damaged
│   └── TooManyPixels             larger than the pixel limit, told from its header
├── PromptError                   the prompts cannot be used
│   ├── NoPrompt                  nothing to segment was asked for
│   ├── MalformedPrompt           numbers that make no point, box or mask
│   ├── PromptOutsideImage        a point or a box beyond the image's edge
│   └── TooManyPrompts            more prompts or points than the limit
├── MaskError                     an encoded mask that does not decode
├── UnknownModel                  no catalogue entry of that name
├── WeightsError                  a checkpoint cannot be had or used
│   ├── NoSource                  every source of a checkpoint failed
│   ├── WrongHash                 a file is not the one the catalogue names
│   ├── DiskFull                  no room for a checkpoint or a converted model
│   └── BadCheckpoint             a verified file that does not fit its architecture
├── CatalogueError                the user's models file is wrong
├── DataError                     images or annotations to learn from or measure with cannot be used
└── BackendError                  a device or a compiler failed
    ├── DeviceOutOfMemory         a smaller batch may fit
    └── DeviceBroken              nothing can run on it any more
"""

from __future__ import annotations


class PomonaError(Exception):
    """Base of every error that Pomona raises on purpose.

    Args:
        detail: what was wrong and what would be right, for the person who reads it.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ImageError(PomonaError):
    """The image cannot be used."""


class NotAnImage(ImageError):
    """The bytes are of no image format."""


class UnsupportedImageFormat(ImageError):
    """An image, but of a format or pixel type that is not read here."""


class TruncatedImage(ImageError):
    """An image that ends early or is damaged."""


class TooManyPixels(ImageError):
    """The header announces more pixels than the limit allows."""


class PromptError(PomonaError):
    """The prompts cannot be used."""


class NoPrompt(PromptError):
    """No prompt, or a prompt with neither points, box nor mask."""


class MalformedPrompt(PromptError):
    """Points and labels that do not pair, an empty box, a mask of the wrong size."""


class PromptOutsideImage(PromptError):
    """A point or a box corner lies beyond the image."""


class TooManyPrompts(PromptError):
    """More prompts, or more points in one prompt, than the limit allows."""


class MaskError(PomonaError):
    """An encoded mask that does not decode."""


class UnknownModel(PomonaError):
    """No model of that name is in the catalogue, or it is not loaded."""


class WeightsError(PomonaError):
    """A checkpoint cannot be had or used."""


class NoSource(WeightsError):
    """Every source of a checkpoint failed."""


class WrongHash(WeightsError):
    """A file's SHA-256 is not the one that the catalogue names."""


class DiskFull(WeightsError):
    """The disk has no room for a checkpoint or a converted model."""


class BadCheckpoint(WeightsError):
    """A verified file that does not fit its architecture."""


class CatalogueError(PomonaError):
    """The user's models file is wrong."""


class DataError(PomonaError):
    """Images or annotations to learn from or measure with cannot be used."""


class BackendError(PomonaError):
    """A device or a model compiler failed."""


class DeviceOutOfMemory(BackendError):
    """The device has no memory for this batch; a smaller one may fit."""


class DeviceBroken(BackendError):
    """The device failed for good; the process should be replaced."""
