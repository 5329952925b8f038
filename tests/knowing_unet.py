"""A U-Net that predicts the annotation, and images of discs whose measures can be worked out by hand."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.backends.base import BackendName
from models.data.samples import Instance, Sample
from models.evaluation.samples import EncodedSample
from models.masks import bounding_box
from models.types import PixelClass, Pixels, SemanticMap, Size
from models.unet.constants import OFFSET_UNIT
from models.unet.letterbox import UNetLetterbox

DISCS_SIZE = Size(224, 448)
"""A U-Net does not resize images of this size."""


class KnowingUNet:
    """A `UNetBackend` that predicts the annotation of the images it knows, and background for all others."""

    name: BackendName = "torch"
    device = "cpu"
    image_batches: tuple[int, ...] = (1,)

    def __init__(self, *known: Sample) -> None:
        self._known = {sample.pixels.tobytes(): sample for sample in known}

    def prepare(self, pixels: Pixels, frame: UNetLetterbox) -> tuple[bytes, UNetLetterbox]:
        return pixels.tobytes(), frame

    def infer(self, prepared: Sequence[Any]) -> list[NDArray[np.float32]]:
        return [self._output(self._known.get(key), frame) for key, frame in prepared]

    def _output(self, sample: Sample | None, frame: UNetLetterbox) -> NDArray[np.float32]:
        output = np.zeros((5, frame.padded.height, frame.padded.width), np.float32)
        output[0] = 10
        if sample is None:
            return output
        height, width = frame.resized.height, frame.resized.width
        inside = output[:, :height, :width]
        inside[:3] = 10 * (np.arange(3)[:, None, None] == _shrunk(sample.semantic, frame.resized))
        fruits = _shrunk(sample.instance_map, frame.resized)
        ys, xs = np.mgrid[:height, :width].astype(np.float32)
        for number in np.unique(fruits[fruits > 0]):
            mask = fruits == number
            inside[3][mask] = (xs[mask].mean() - xs[mask]) / OFFSET_UNIT
            inside[4][mask] = (ys[mask].mean() - ys[mask]) / OFFSET_UNIT
        return output


def discs(
    *places: tuple[int, int, int], infected: Sequence[int] = (), name: str = "discs", size: Size = DISCS_SIZE
) -> Sample:
    """Return an image of discs.

    Args:
        places: centre x, y and radius of each; later ones lie on top.
        infected: which of them, counted from 0, are infected all over.
        name: of the image; another name is another colour, hence another image.
        size: of the image.
    """
    instances = np.zeros((size.height, size.width), np.uint16)
    for number, (x, y, radius) in enumerate(places, start=1):
        cv2.circle(instances, (x, y), radius, number, cv2.FILLED)
    semantic: SemanticMap = np.where(instances > 0, np.uint8(PixelClass.HEALTHY), np.uint8(PixelClass.BACKGROUND))
    for number in infected:
        semantic[instances == number + 1] = PixelClass.INFECTED
    pixels = np.full((size.height, size.width, 3), sum(name.encode()) % 200, np.uint8)
    pixels[semantic == PixelClass.HEALTHY] = (240, 150, 20)
    pixels[semantic == PixelClass.INFECTED] = (90, 110, 60)
    seen = [number for number in range(1, len(places) + 1) if (instances == number).any()]
    listed = tuple(
        Instance(number, bounding_box(instances == number), PixelClass(int(semantic[instances == number].max())))
        for number in seen
    )
    return Sample(name, pixels, semantic, listed, instances)


def encoded(sample: Sample) -> EncodedSample:
    """Return the image with its file, a PNG, which keeps every pixel."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(sample.pixels).save(buffer, "PNG")
    return EncodedSample(sample, buffer.getvalue())


def _shrunk(labels: NDArray[np.generic] | None, size: Size) -> NDArray[np.uint16]:
    if labels is None:
        return np.zeros((size.height, size.width), np.uint16)
    shape = (size.width, size.height)
    return np.asarray(cv2.resize(labels.astype(np.uint16), shape, interpolation=cv2.INTER_NEAREST_EXACT), np.uint16)
