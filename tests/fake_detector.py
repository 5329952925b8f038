"""A detector whose boxes can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.catalog import Architecture, CatalogueEntry
from models.detector.letterbox import DetectorLetterbox
from models.detector.postprocess import BOX_VALUES, cell_count
from models.types import Pixels, Size
from service.runners.detector import DetectorRunner
from service.scheduler.queue import BatchResult, DeviceQueue, Ticket
from tests.fakes import FakeDevice, FakePeel, Tally

LOADED_DETECTOR: Final = CatalogueEntry("fruit-detector", Architecture.YOLOX, "CC0-1.0", "fruit.onnx", 1, "0f" * 32, ())
OTHER_DETECTOR: Final = CatalogueEntry("nut-detector", Architecture.YOLOX, "CC0-1.0", "nut.onnx", 1, "1a" * 32, ())

CLASSES: Final = ("orange", "apple")
SCORES: Final = (0.75, 0.5)
"""Of oranges and apples."""

INPUT_SIZE: Final = Size(448, 448)
_STRIDE: Final = 8


@dataclass
class FakeDetector(FakeDevice):
    """A backend that finds green regions as oranges and red ones as apples, in an input of `INPUT_SIZE`.

    Its output has the layout of YOLOX's. An image's mark is its mean blue.
    """

    input_size: Size = INPUT_SIZE
    classes: tuple[str, ...] = CLASSES
    infer_s_per_image: float = 0.0

    def prepare(self, pixels: Pixels, letterbox: DetectorLetterbox) -> FakePeel:
        assert pixels.shape == (letterbox.resized.height, letterbox.resized.width, 3)
        self.prepares += 1
        padded = np.zeros((letterbox.padded.height, letterbox.padded.width, 3), np.float32)
        padded[: letterbox.resized.height, : letterbox.resized.width] = pixels
        return FakePeel(padded, round(float(pixels[..., 2].mean())))

    def infer(self, prepared: Sequence[FakePeel]) -> list[NDArray[np.float32]]:
        self.encodes.append(len(prepared))
        self.encoded += [peel.mark for peel in prepared]
        with self.alone():
            self.wait()
            self.clock.leap(len(prepared) * self.infer_s_per_image)
            self.fail([peel.mark for peel in prepared])
            return [self._output(peel.pixels) for peel in prepared]

    def forget(self) -> None:
        """Count calls from here."""
        self.prepares = 0
        self.encodes, self.encoded = [], []

    def _output(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        output = np.zeros((cell_count(self.input_size), BOX_VALUES + len(self.classes)), np.float32)
        columns = self.input_size.width // _STRIDE
        for number, channel in enumerate((1, 0)):
            inside = (pixels[..., channel] > 127).view(np.uint8)
            _, _, stats, _ = cv2.connectedComponentsWithStats(inside)
            for x, y, width, height, _ in stats[1:].tolist():
                column, row = (x + width / 2) / _STRIDE, (y + height / 2) / _STRIDE
                cell = output[int(row) * columns + int(column)]
                cell[:4] = column % 1, row % 1, math.log(width / _STRIDE), math.log(height / _STRIDE)
                cell[4], cell[BOX_VALUES + number] = 1, SCORES[number]
        return output


class WatchedDetectorRunner(DetectorRunner):
    """Counts images that wait for the device, or ran."""

    backend: FakeDetector

    def __init__(self, entry: CatalogueEntry, backend: FakeDetector, queue: DeviceQueue) -> None:
        super().__init__(entry, backend, queue)
        self.images = Tally()

    async def infer(self, ticket: Ticket, prepared: Any) -> BatchResult[NDArray[np.float32]]:
        self.images.add()
        return await super().infer(ticket, prepared)
