"""Tries a converted U-Net in int8, and keeps that where it answers as float32 does, in less time.

Both are run on the same rendered scenes, through serving's own code; NNCF is calibrated on others.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import openvino
from numpy.typing import NDArray

from models.backends.openvino_device import compile_model, infer
from models.backends.openvino_files import PRECISION, UNET
from models.backends.unet_agreement import LEAST_IOU, Agreement, Answer, too_different, unjudgeable
from models.backends.unet_quantise import RECIPES, Recipe, quantised
from models.letterbox import resize
from models.synthetic import render
from models.types import Pixels, Size
from models.unet.letterbox import INPUT_SIZE, UNetLetterbox, pad, unet_letterbox

SHAPES: Final = (Size(224, 448), Size(448, 224), Size(270, 360), Size(360, 270), Size(300, 300))
"""Of images, in turn: 2:1 to 1:2, with and without padding."""

FIRST_CALIBRATION_SEED: Final = 480_000
FIRST_MEASURING_SEED: Final = 490_000
"""Of rendered scenes; `models.training.unet_data` says which seeds are whose."""

_ROUNDS: Final = 20
"""Runs of each network to time, in turn; the medians count."""

_LOG = logging.getLogger("pomona.openvino")


@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly int8 is tried, and what it has to reach.

    Attributes:
        calibration: rendered scenes that NNCF sees, at least 1.
        measuring: other scenes on which int8 is compared with float32, at least 1.
        least_iou: of the masks of fruit and of infected pixels, see `models.backends.unet_agreement.objection`.
        least_speedup: time of float32 by that of int8; they are measured on this machine.
    """

    calibration: int = 48
    measuring: int = 48
    least_iou: float = LEAST_IOU
    least_speedup: float = 1.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one recipe.

    Attributes:
        int8_in: which layers were int8.
        agreement: with float32.
        float32_ms: median time of an image of 448 x 224.
        int8_ms: the same in int8.
        objection: why this is not served, or None.
    """

    int8_in: str
    agreement: Agreement
    float32_ms: float
    int8_ms: float
    objection: str | None


def choose_precision(folder: Path, effort: Effort) -> bool:
    """Put int8 in the place of float32 where it qualifies, and write into `PRECISION` how that was decided.

    One recipe after the other is tried, until there is no objection.

    Args:
        folder: with a `UNET` in float32, uint8 pixels to float32 logits.
        effort: how many scenes, and what is asked.

    Returns:
        Whether `UNET` is int8 now.

    Raises:
        BackendError: OpenVINO cannot run a network.
    """
    bench = _Bench(folder / UNET, effort)
    trials: list[Trial] = []
    against = bench.objection()
    for recipe in RECIPES if against is None else ():
        candidate = folder / f"candidate{len(trials)}.xml"
        trials.append(bench.trial(recipe, candidate))
        against = trials[-1].objection
        if against is None:
            _move(candidate, folder / UNET)
            break
        _move(candidate, None)
    _LOG.info("served in float32: %s" if against else "served in int8: %s", against or trials[-1].int8_in)
    account = {
        "precision": "fp32" if against else "int8",
        "objection": against,
        "effort": dataclasses.asdict(effort),
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    (folder / PRECISION).write_text(json.dumps(_without_nan(account), indent=1) + "\n")
    return against is None


class _Bench:
    """Where int8 is tried: the network in float32, and its answers to scenes."""

    def __init__(self, path: Path, effort: Effort) -> None:
        self._effort = effort
        self._model = openvino.Core().read_model(path)
        self._float32 = compile_model(path)
        self._scenes = list(_scenes(FIRST_MEASURING_SEED, effort.measuring))
        self._answers = _answers(self._float32, self._scenes)
        self._calibration: list[Pixels] = []
        _LOG.info("%d rendered scenes answered in float32", effort.measuring)

    def objection(self) -> str | None:
        """Why no int8 can qualify, or None."""
        return unjudgeable(Agreement.between(self._answers, self._answers))

    def trial(self, recipe: Recipe, candidate: Path) -> Trial:
        """Quantise by `recipe` into the `.xml` file `candidate`, and measure that."""
        if not self._calibration:
            scenes = _scenes(FIRST_CALIBRATION_SEED, self._effort.calibration)
            self._calibration = [scene.padded for scene in scenes]
        started = time.monotonic()
        openvino.save_model(quantised(self._model, self._calibration, recipe), candidate, compress_to_fp16=False)
        int8 = compile_model(candidate)
        agreement = Agreement.between(self._answers, _answers(int8, self._scenes))
        float32_ms, int8_ms = _median_ms(self._float32, int8)
        _LOG.info(
            "int8 in %s: IoU %.4f of fruit, %.4f of infected; equal counts in %.0f %%; %.2f times as fast (%.0f s)",
            recipe.int8_in,
            agreement.iou["fruit"],
            agreement.iou["infected"],
            100 * agreement.equal_counts,
            float32_ms / int8_ms,
            time.monotonic() - started,
        )
        against = too_different(agreement, self._effort.least_iou)
        if against is None and float32_ms < self._effort.least_speedup * int8_ms:
            against = f"int8 takes {int8_ms / float32_ms:.2f} times as long as float32"
        return Trial(recipe.int8_in, agreement, float32_ms, int8_ms, against)


def _move(model: Path, to: Path | None) -> None:
    """Rename both files of an OpenVINO model, or remove them."""
    for suffix in (".xml", ".bin"):
        if to is None:
            model.with_suffix(suffix).unlink()
        else:
            model.with_suffix(suffix).replace(to.with_suffix(suffix))


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


class _Scene(NamedTuple):
    """A rendered scene as a network sees it: uint8 (1, height, width, 3) of the letterbox's `padded`."""

    letterbox: UNetLetterbox
    padded: Pixels


def _scenes(first_seed: int, count: int) -> Iterator[_Scene]:
    for seed, shape in zip(range(first_seed, first_seed + count), itertools.cycle(SHAPES), strict=False):
        letterbox = unet_letterbox(shape)
        yield _Scene(letterbox, pad(resize(render(seed, shape).pixels, letterbox), letterbox)[None])


def _answers(request: openvino.InferRequest, scenes: Sequence[_Scene]) -> list[Answer]:
    return [Answer.of(_run(request, scene.padded)[0], scene.letterbox) for scene in scenes]


def _run(request: openvino.InferRequest, pixels: Pixels) -> NDArray[np.float32]:
    (output,) = infer(request, [pixels])
    return output


def _median_ms(*requests: openvino.InferRequest) -> list[float]:
    """Of each network, run in turn: what else the machine does slows all of them alike."""
    pixels = np.zeros((1, INPUT_SIZE.height, INPUT_SIZE.width, 3), np.uint8)
    times: list[list[float]] = [[] for _ in requests]
    for _ in range(_ROUNDS):
        for request, measured in zip(requests, times, strict=True):
            started = time.perf_counter()
            _run(request, pixels)
            measured.append(1000 * (time.perf_counter() - started))
    return [statistics.median(measured) for measured in times]
