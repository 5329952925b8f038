"""Detectors with YOLOX's layout on OpenVINO's CPU plugin, which reads their ONNX files as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from models.backends.base import BackendName
from models.backends.openvino_backend import core, cpu_options, infer
from models.detector.classes import COCO_CLASSES
from models.detector.letterbox import DetectorLetterbox, to_input
from models.detector.postprocess import BOX_VALUES, STRIDES, cell_count
from models.errors import BackendError, BadCheckpoint
from models.types import Pixels, Size


class OpenVinoDetector:
    """Implements `DetectorBackend`.

    Args:
        path: ONNX file as YOLOX's export writes it, with the decoding of boxes left out; or a model of OpenVINO's.
        classes: names in the order of the output; empty for those of COCO.
        threads: CPU threads of one inference; 0 for all cores.

    Raises:
        BadCheckpoint: the file is no such network, or has another number of classes.
        BackendError: OpenVINO cannot compile it.
    """

    name: BackendName = "openvino"
    device = "cpu"
    image_batches: tuple[int, ...] = (1,)
    """YOLOX's export is fixed to one image: with more, its output mixes them."""

    def __init__(self, path: Path, *, classes: Sequence[str] = (), threads: int = 0) -> None:
        self.classes: tuple[str, ...] = tuple(classes) or COCO_CLASSES
        try:
            model = core().read_model(path)
        except RuntimeError as error:
            raise BadCheckpoint(f"{path} must be an ONNX file that OpenVINO can read: {_first_line(error)}") from error
        self.input_size = _checked(model, path, self.classes)
        try:
            self._network = core().compile_model(model, "CPU", cpu_options(threads, bf16=False)).create_infer_request()
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot compile {path}: {_first_line(error)}") from error

    def prepare(self, pixels: Pixels, letterbox: DetectorLetterbox) -> NDArray[np.float32]:
        """Pad an image, see `DetectorBackend.prepare`."""
        return to_input(pixels, letterbox)

    def infer(self, prepared: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Run the network image by image, see `DetectorBackend.infer`."""
        return [infer(self._network, [image[None]])[0][0] for image in prepared]


def _checked(model: openvino.Model, path: Path, classes: Sequence[str]) -> Size:
    """Return the size of a network's input, once its input and its output are those of YOLOX.

    Raises:
        BadCheckpoint: they are not.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise BadCheckpoint(
            f"{path} must have one input and one output, got {len(model.inputs)} and {len(model.outputs)}"
        )
    shape = model.inputs[0].partial_shape
    if shape.rank.is_dynamic or len(shape) != 4 or shape[2].is_dynamic or shape[3].is_dynamic:
        raise BadCheckpoint(
            f"the input of {path} must have the shape 1, 3, height, width with fixed sides, got {shape}"
        )
    size = Size(shape[2].get_length(), shape[3].get_length())
    if size.height % STRIDES[-1] or size.width % STRIDES[-1]:
        raise BadCheckpoint(f"the sides of the input of {path} must be multiples of {STRIDES[-1]}, got {shape}")
    try:
        model.reshape([1, 3, size.height, size.width])
    except RuntimeError as error:
        raise BadCheckpoint(f"the input of {path} must take one image of three channels, got {shape}") from error
    wanted, found = (1, cell_count(size), BOX_VALUES + len(classes)), model.outputs[0].partial_shape
    if found.is_dynamic or tuple(found.to_shape()) != wanted:
        raise BadCheckpoint(
            f"the output of {path} must have the shape {wanted}: one row per cell of strides {STRIDES}, with "
            f"{BOX_VALUES} values and the scores of {len(classes)} classes; got {found}. 'classes' in the models file "
            "names the classes of a network that was not trained on COCO."
        )
    return size


def _first_line(error: RuntimeError) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
