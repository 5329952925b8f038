"""Tries a converted U-Net in int8, and keeps it if it is as right as float32 and faster.

Both are run on the same rendered scenes, whose exact masks say how right they are, through serving's own code; NNCF
calibrates on others (post-training quantisation, Jacob et al., CVPR 2018). Scenes are rendered, from fixed seeds: a
machine of a line has no annotated photographs. NNCF and the renderer are imported only by the process that converts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import openvino
from numpy.typing import NDArray

from models.backends.converted_models import PRECISION, UNET
from models.backends.openvino_backend import compile_model, infer, save_model
from models.letterbox import resize
from models.metrics import class_confusion, fruit_confusion, iou, mean_counted
from models.types import PixelClass, Pixels, SemanticMap, Size
from models.unet.instances import Cells, fruit_labels
from models.unet.letterbox import INPUT_SIZE, UNetLetterbox, pad, unet_letterbox
from models.unet.postprocess import class_map

MOST_LOSS: Final = 0.01
"""Most IoU with the scenes' exact masks that int8 may lose against float32, for fruit and for infected pixels."""

SHAPES: Final = (Size(224, 448), Size(448, 224), Size(270, 360), Size(360, 270), Size(300, 300))
"""Sizes of the rendered images, in turn: 2:1 to 1:2, with and without padding."""

FIRST_CALIBRATION_SEED: Final = 480_000
FIRST_MEASURING_SEED: Final = 490_000
"""First seeds of rendered scenes; `models.training.unet_images` lists which seeds are reserved for what."""

_DECISIVE: Final = ("fruit", "infected")

_ROUNDS: Final = 20
"""Runs of each network to time, alternating; the medians count."""

_CONVOLUTIONS: Final = frozenset(("Convolution", "GroupConvolution"))

_LOG = logging.getLogger("pomona.openvino")


class Answer(NamedTuple):
    """A network's result for one image: the class of each pixel, and the number of fruits."""

    classes: SemanticMap
    fruits: int

    @classmethod
    def of(cls, output: NDArray[np.float32], letterbox: UNetLetterbox) -> Answer:
        """Compute it from the output of `UNetBackend.infer`."""
        cells = Cells.of(output, letterbox)
        return cls(class_map(cells), int(fruit_labels(cells).max(initial=0)))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Comparison of a network's results with another's for the same images, or with the truth.

    IoU compares the pixels of a class, or of fruit (healthy or infected): 0 to 1, NaN if neither has any.

    Attributes:
        images: number of images.
        iou: by "fruit" and class, over the pixels of all images together.
        iou_per_image: the same for each image, averaged over those in which either has any.
        equal_counts: share of the images with equal numbers of fruits.
    """

    images: int
    iou: Mapping[str, float]
    iou_per_image: Mapping[str, float]
    equal_counts: float

    @classmethod
    def between(cls, some: Sequence[Answer], others: Sequence[Answer]) -> Agreement:
        """Compare results for the same images in the same order, at least one."""
        pairs = list(zip(some, others, strict=True))
        classes = np.stack([class_confusion(one.classes, other.classes) for one, other in pairs])
        fruit = np.stack([fruit_confusion(one.classes, other.classes) for one, other in pairs])
        return cls(
            images=len(pairs),
            iou=_named(iou(fruit.sum(axis=0)), iou(classes.sum(axis=0))),
            iou_per_image=_named(mean_counted(iou(fruit).T), mean_counted(iou(classes).T)),
            equal_counts=float(np.mean([one.fruits == other.fruits for one, other in pairs])),
        )


def _named(fruit: NDArray[np.float64], classes: NDArray[np.float64]) -> dict[str, float]:
    by_class = {each.name.lower(): float(classes[each]) for each in (PixelClass.HEALTHY, PixelClass.INFECTED)}
    return {"fruit": float(fruit[1]), **by_class}


def nothing_to_compare(agreement: Agreement) -> str | None:
    """Return which decisive masks are empty in all images, in one line, or None."""
    empty = [name for name in _DECISIVE if math.isnan(agreement.iou[name])]
    return f"no {' and no '.join(empty)} pixel was found to compare" if empty else None


def too_inaccurate(float32: Agreement, int8: Agreement, most_loss: float = MOST_LOSS) -> str | None:
    """Return which decisive masks of int8 are too much worse than those of float32, in one line, or None.

    Args:
        float32: agreement of float32 with the truth.
        int8: agreement of int8 with the truth of the same images.
        most_loss: most IoU to lose for fruit and for infected pixels, each over the pixels of all images.
    """
    losses = {name: float32.iou[name] - int8.iou[name] for name in _DECISIVE}
    high = [f"{loss:.4f} of {name}" for name, loss in losses.items() if not loss <= most_loss]
    return f"int8 loses IoU with the truth, {', '.join(high)}: above {most_loss:g}" if high else None


_FLOAT32: Final = re.compile(r"segmentation_head|encoder\.")
"""PyTorch modules whose convolutions stay in float32: the decoder has seven eighths of MobileNetV2's multiplications.
With the encoder but its first blocks in int8 as well, lesions on photographs lost 0.025 of their IoU instead of 0.004
(docs/accuracy.md). A head in int8 changes no mask, but offsets: equal numbers of fruits in 28 of 40 scenes instead of
32."""


@dataclass(frozen=True, slots=True)
class Effort:
    """Size of a trial, and the requirements for int8.

    Attributes:
        calibration: number of rendered scenes to calibrate on, at least 1.
        measuring: number of other scenes on which int8 and float32 are compared with the truth, at least 1.
        most_loss: most IoU to lose, see `too_inaccurate`.
        least_speedup: least ratio of the times of float32 and int8 on this machine.
    """

    calibration: int = 48
    measuring: int = 48
    most_loss: float = MOST_LOSS
    least_speedup: float = 1.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What int8 was measured to be.

    Attributes:
        agreement: agreement with float32, which does not decide.
        float32: agreement of float32 with the truth.
        int8: agreement of int8 with the truth.
        float32_ms: median time of an image of 448 x 224.
        int8_ms: the same in int8.
        objection: why this model is not used, or None.
    """

    agreement: Agreement
    float32: Agreement
    int8: Agreement
    float32_ms: float
    int8_ms: float
    objection: str | None


def choose_precision(folder: Path, effort: Effort) -> bool:
    """Replace a float32 network by int8 if that qualifies, and write a report into `PRECISION`.

    Args:
        folder: folder with a `UNET` in float32.
        effort: size of the trial, and requirements.

    Returns:
        Whether `UNET` is int8 now.

    Raises:
        BackendError: OpenVINO cannot run a network.
    """
    bench = _Bench(folder / UNET, effort)
    objection, trial = bench.objection(), None
    if objection is None:
        candidate = folder / "candidate.xml"
        trial = bench.trial(candidate)
        objection = trial.objection
        _move(candidate, folder / UNET if objection is None else None)
    _LOG.info("served in %s", "int8" if objection is None else f"float32: {objection}")
    report = {
        "precision": "fp32" if objection else "int8",
        "objection": objection,
        "effort": dataclasses.asdict(effort),
        "trial": None if trial is None else dataclasses.asdict(trial),
    }
    (folder / PRECISION).write_text(json.dumps(_without_nan(report), indent=1) + "\n")
    return objection is None


class _Scene(NamedTuple):
    """A rendered scene as a network's input: uint8 (1, height, width, 3) of the letterbox's `padded`; and the truth."""

    letterbox: UNetLetterbox
    padded: Pixels
    truth: Answer


class _Bench:
    """The network in float32 and its results on the scenes, to compare int8 with."""

    def __init__(self, path: Path, effort: Effort) -> None:
        self._effort = effort
        self._model = openvino.Core().read_model(path)
        self._float32 = compile_model(path)
        self._scenes = list(_scenes(FIRST_MEASURING_SEED, effort.measuring))
        self._answers = _answers(self._float32, self._scenes)
        _LOG.info("%d rendered scenes run in float32", effort.measuring)

    def objection(self) -> str | None:
        """Return why no int8 network can qualify, or None."""
        return nothing_to_compare(Agreement.between(self._answers, self._answers))

    def trial(self, candidate: Path) -> Trial:
        """Quantise into the `.xml` file `candidate`, and measure the result."""
        started = time.monotonic()
        calibration = [scene.padded for scene in _scenes(FIRST_CALIBRATION_SEED, self._effort.calibration)]
        save_model(_quantise(self._model, calibration), candidate)
        int8 = compile_model(candidate)
        answers, truths = _answers(int8, self._scenes), [scene.truth for scene in self._scenes]
        agreement = Agreement.between(self._answers, answers)
        right, right_in_int8 = (Agreement.between(each, truths) for each in (self._answers, answers))
        float32_ms, int8_ms = _median_ms(self._float32, int8)
        _LOG.info(
            "int8: IoU with the truth %.4f of fruit, %.4f of infected, float32 %.4f and %.4f; %.2f times as fast "
            "(%.0f s)",
            *(each.iou[name] for each in (right_in_int8, right) for name in _DECISIVE),
            float32_ms / int8_ms,
            time.monotonic() - started,
        )
        objection = too_inaccurate(right, right_in_int8, self._effort.most_loss)
        if objection is None and float32_ms < self._effort.least_speedup * int8_ms:
            objection = f"int8 takes {int8_ms / float32_ms:.2f} times as long as float32"
        return Trial(agreement, right, right_in_int8, float32_ms, int8_ms, objection)


def _quantise(model: openvino.Model, images: Sequence[Pixels]) -> openvino.Model:
    """Quantise weights and activations of all but the `_FLOAT32` modules.

    Args:
        model: network in float32; not changed.
        images: images to calibrate on, uint8 (1, height, width, 3) each, at least one.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(names=_convolutions_of(model, _FLOAT32), validate=False),
        )


def _convolutions_of(model: openvino.Model, modules: re.Pattern[str]) -> list[str]:
    """Return the names of the convolutions of these modules.

    A convolution into which constants were folded has a meaningless name; the node that follows it is named after its
    module, the convolution's own or that of the normalisation next to it.
    """
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() in _CONVOLUTIONS:
            followers = (target.get_node() for target in node.output(0).get_target_inputs())
            if any(modules.search(each.get_friendly_name()) for each in (node, *followers)):
                found.append(node.get_friendly_name())
    return found


def _scenes(first_seed: int, count: int) -> Iterator[_Scene]:
    from models.synthetic import render

    for seed, shape in zip(range(first_seed, first_seed + count), itertools.cycle(SHAPES), strict=False):
        letterbox, sample = unet_letterbox(shape), render(seed, shape)
        truth = Answer(sample.semantic, len(sample.instances))
        yield _Scene(letterbox, pad(resize(sample.pixels, letterbox), letterbox)[None], truth)


def _answers(request: openvino.InferRequest, scenes: Sequence[_Scene]) -> list[Answer]:
    return [Answer.of(infer(request, [scene.padded])[0][0], scene.letterbox) for scene in scenes]


def _median_ms(*requests: openvino.InferRequest) -> list[float]:
    """Time networks in turn, so that other work on the machine slows all of them alike."""
    pixels = np.zeros((1, INPUT_SIZE.height, INPUT_SIZE.width, 3), np.uint8)
    times: list[list[float]] = [[] for _ in requests]
    for _ in range(_ROUNDS):
        for request, measured in zip(requests, times, strict=True):
            started = time.perf_counter()
            infer(request, [pixels])
            measured.append(1000 * (time.perf_counter() - started))
    return [statistics.median(measured) for measured in times]


def _move(model: Path, to: Path | None) -> None:
    """Rename both files of an OpenVINO model, or remove them."""
    for suffix in (".xml", ".bin"):
        if to is None:
            model.with_suffix(suffix).unlink()
        else:
            model.with_suffix(suffix).replace(to.with_suffix(suffix))


def _without_nan(value: Any) -> Any:
    """Replace NaN, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
