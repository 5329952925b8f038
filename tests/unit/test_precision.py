"""The trial of int8: a network of two layers that classifies pixels by colour, and comparisons of results."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset15 as ops

from models.backends.converted_models import PRECISION, UNET
from models.backends.precision import Agreement, Answer, Effort, choose_precision, nothing_to_compare, too_inaccurate
from models.unet.constants import PIXEL_MEAN, PIXEL_STD
from models.unet.letterbox import unet_letterbox
from tests.knowing_unet import KnowingUNet, discs

pytestmark = pytest.mark.slow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the converting process ignores them too
    import nncf  # noqa: F401


@pytest.fixture(autouse=True, scope="module")
def log_levels_are_restored() -> Iterator[None]:
    """NNCF sets the level of all handlers of the process, which converting has for itself."""
    levels = [(handler, handler.level) for handler in logging.root.handlers]
    yield
    for handler, level in levels:
        handler.setLevel(level)


FEW = Effort(calibration=5, measuring=5, most_loss=0.1, least_speedup=0)


def write_network(folder: Path, *, finds_fruit: bool = True) -> None:
    """Orange is healthy, dark infected, all else background: margins of colour, times 4."""
    colours = np.array([[1, 0, -1], [-1, -1, -1]], np.float32)  # orange, dark
    head = np.zeros((5, 2), np.float32)
    head[1, 0], head[2, 1] = 4, 4
    bias = np.zeros(5, np.float32)
    bias[0] = 4 if finds_fruit else 1000
    pixels = ops.parameter([-1, -1, -1, 3], openvino.Type.u8, "pixels")
    planes = ops.transpose(ops.convert(pixels, openvino.Type.f32), ops.constant(np.array([0, 3, 1, 2])))
    plain = ops.divide(
        ops.subtract(planes, ops.constant(np.array(PIXEL_MEAN, np.float32)[None, :, None, None])),
        ops.constant(np.array(PIXEL_STD, np.float32)[None, :, None, None]),
    )
    seen = ops.relu(_convolution(plain, colours, "layer"))
    logits = ops.add(_convolution(seen, head, "segmentation_head"), ops.constant(bias[None, :, None, None]))
    openvino.save_model(openvino.Model([logits], [pixels]), folder / UNET, compress_to_fp16=False)


def _convolution(value: openvino.Node, weights: np.ndarray[Any, Any], name: str) -> openvino.Node:
    node = ops.convolution(value, ops.constant(weights[:, :, None, None]), [1, 1], [0, 0], [0, 0], [1, 1])
    node.set_friendly_name(name)
    return node


def quantised_inputs(path: Path) -> int:
    return sum(node.get_type_name() == "FakeQuantize" for node in openvino.Core().read_model(path).get_ops())


def account(folder: Path) -> Any:
    return json.loads((folder / PRECISION).read_text())


@pytest.fixture(scope="module")
def served_in_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    write_network(folder)
    assert choose_precision(folder, FEW)
    return folder


def test_a_network_that_stays_as_right_is_served_in_int8(served_in_int8: Path) -> None:
    assert sorted(path.name for path in served_in_int8.iterdir()) == sorted([PRECISION, UNET, "unet.bin"])
    assert quantised_inputs(served_in_int8 / UNET) > 0
    report = account(served_in_int8)
    assert report["precision"] == "int8"
    assert report["objection"] is None
    assert report["effort"] == {"calibration": 5, "measuring": 5, "most_loss": 0.1, "least_speedup": 0}
    trial = report["trial"]
    assert trial["agreement"]["images"] == trial["float32"]["images"] == trial["int8"]["images"] == 5
    for name in ("fruit", "infected"):
        assert trial["int8"]["iou"][name] >= trial["float32"]["iou"][name] - 0.1
        assert 0 < trial["float32"]["iou"][name] < trial["agreement"]["iou"][name] <= 1
        assert 0 <= trial["agreement"]["iou_per_image"][name] <= 1
    assert 0 <= trial["agreement"]["equal_counts"] <= 1
    assert trial["float32_ms"] > 0
    assert trial["int8_ms"] > 0


@pytest.mark.parametrize(
    ("effort", "words"),
    [
        (Effort(calibration=2, measuring=2, most_loss=-1.1, least_speedup=0), "above -1.1"),
        (Effort(calibration=2, measuring=2, most_loss=0.5, least_speedup=1e6), "times as long as float32"),
    ],
    ids=["too inaccurate", "too slow"],
)
def test_float32_is_kept_where_int8_does_not_qualify(tmp_path: Path, effort: Effort, words: str) -> None:
    write_network(tmp_path)
    before = (tmp_path / UNET).read_bytes()
    assert not choose_precision(tmp_path, effort)
    assert (tmp_path / UNET).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([PRECISION, UNET, "unet.bin"])
    report = account(tmp_path)
    assert report["precision"] == "fp32"
    assert words in report["objection"]
    assert words in report["trial"]["objection"]


def test_a_network_that_finds_nothing_is_not_tried(tmp_path: Path) -> None:
    write_network(tmp_path, finds_fruit=False)
    assert not choose_precision(tmp_path, FEW)
    report = account(tmp_path)
    assert report["precision"] == "fp32"
    assert report["objection"] == "no fruit and no infected pixel was found to compare"
    assert report["trial"] is None


def test_serving_imports_no_nncf_and_no_telemetry() -> None:
    code = "import sys, models.backends.openvino_backend, service.lifecycle\n"
    code += "print('nncf' in sys.modules, 'openvino' in sys.modules, sys.modules['openvino_telemetry'])"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "True", "None"]


# Agreement

SIDE = 10


def answer(healthy: int, infected: int, fruits: int = 1) -> Answer:
    """The first pixels of an image of 100 are healthy, the next infected."""
    classes = np.zeros(SIDE * SIDE, np.uint8)
    classes[:healthy] = 1
    classes[healthy : healthy + infected] = 2
    return Answer(classes.reshape(SIDE, SIDE), fruits)


def test_pixels_are_counted_over_all_images_and_in_each() -> None:
    # Fruit 50 and 40 pixels, then 10 and 10; infected 20 and 10, of which 10 are the same, then none.
    agreement = Agreement.between([answer(30, 20), answer(10, 0)], [answer(30, 10, fruits=2), answer(10, 0)])
    assert (agreement.images, agreement.equal_counts) == (2, 0.5)
    assert agreement.iou == pytest.approx({"fruit": 50 / 60, "healthy": 1, "infected": 10 / 20})
    assert agreement.iou_per_image == pytest.approx({"fruit": (40 / 50 + 1) / 2, "healthy": 1, "infected": 10 / 20})


@pytest.mark.parametrize(
    ("healthy", "infected", "words"),
    [(0, 0, "no fruit and no infected"), (10, 0, "no infected"), (10, 1, None)],
)
def test_a_mask_that_is_empty_everywhere_cannot_be_judged(healthy: int, infected: int, words: str | None) -> None:
    agreement = Agreement.between([answer(healthy, infected)] * 2, [answer(healthy, infected)] * 2)
    found = nothing_to_compare(agreement)
    assert found is None if words is None else found == f"{words} pixel was found to compare"
    assert (too_inaccurate(agreement, agreement) is None) == (words is None)


@pytest.mark.parametrize(
    ("fruit", "infected", "words"),
    [
        (0.895, 0.395, None),
        (0.95, 0.45, None),  # better than float32
        (0.8801, 0.4, "0.0199 of fruit: above 0.01"),
        (0.9, 0.1, "0.3000 of infected: above 0.01"),
        (0.8, 0.2, "0.1000 of fruit, 0.2000 of infected: above 0.01"),
        (0.9, math.nan, "nan of infected: above 0.01"),
    ],
)
def test_neither_fruit_nor_infected_may_lose_too_much(fruit: float, infected: float, words: str | None) -> None:
    def right(fruit: float, infected: float) -> Agreement:
        return Agreement(1, {"fruit": fruit, "healthy": 0.5, "infected": infected}, {}, 0.0)

    found = too_inaccurate(right(0.9, 0.4), right(fruit, infected))
    assert found is None if words is None else found == f"int8 loses IoU with the truth, {words}"


def test_an_answer_is_computed_as_in_serving() -> None:
    truth = discs((60, 60, 40), (130, 60, 40), (330, 120, 50), infected=[2])
    letterbox = unet_letterbox(truth.size)
    knowing = KnowingUNet(truth)
    (output,) = knowing.infer([knowing.prepare(truth.pixels, letterbox)])
    classes, fruits = Answer.of(output, letterbox)
    np.testing.assert_array_equal(classes, truth.semantic)
    assert fruits == 3
    assert Answer.of(np.zeros_like(output), letterbox).fruits == 0
