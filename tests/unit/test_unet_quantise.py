"""A network of two layers that tells pixels by their colour, tried in int8."""

from __future__ import annotations

import json
import logging
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

from models.backends.openvino_device import compile_model, infer
from models.backends.openvino_files import PRECISION, UNET
from models.types import Size
from models.unet.constants import PIXEL_MEAN, PIXEL_STD

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what NNCF imports; no serving process does
    from models.backends.unet_precision import Effort, choose_precision


@pytest.fixture(autouse=True, scope="module")
def other_tests_hear_warnings() -> Iterator[None]:
    """NNCF sets the level of all handlers of the process, which converting has for itself."""
    levels = [(handler, handler.level) for handler in logging.root.handlers]
    yield
    for handler, level in levels:
        handler.setLevel(level)


FEW = Effort(calibration=5, measuring=5, least_iou=0.9, least_speedup=0)


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


def test_a_network_with_clear_answers_is_served_in_int8(served_in_int8: Path) -> None:
    assert sorted(path.name for path in served_in_int8.iterdir()) == sorted([PRECISION, UNET, "unet.bin"])
    assert quantised_inputs(served_in_int8 / UNET) > 0
    told = account(served_in_int8)
    assert told["precision"] == "int8"
    assert told["objection"] is None
    assert told["effort"] == {"calibration": 5, "measuring": 5, "least_iou": 0.9, "least_speedup": 0}
    (trial,) = told["trials"]
    assert trial["agreement"]["images"] == 5
    for name in ("fruit", "infected"):
        assert 0.9 <= trial["agreement"]["iou"][name] <= 1
        assert 0 <= trial["agreement"]["iou_per_image"][name] <= 1
    assert 0 <= trial["agreement"]["equal_counts"] <= 1
    assert trial["float32_ms"] > 0
    assert trial["int8_ms"] > 0


def test_int8_takes_images_of_any_size_and_answers_about_as_float32_does(served_in_int8: Path, tmp_path: Path) -> None:
    write_network(tmp_path)
    for size in (Size(32, 64), Size(96, 32)):
        pixels = np.random.default_rng(0).integers(0, 256, (2, size.height, size.width, 3), np.uint8)
        (expected,) = infer(compile_model(tmp_path / UNET, threads=1), [pixels])
        (found,) = infer(compile_model(served_in_int8 / UNET, threads=1), [pixels])
        assert found.dtype == np.float32
        # Calibrated on few scenes, so colours beyond theirs are clipped: noise has some.
        assert np.abs(found - expected).mean() < 0.1 * np.abs(expected).mean()


@pytest.mark.parametrize(
    ("effort", "words"),
    [
        (Effort(calibration=2, measuring=2, least_iou=1.1, least_speedup=0), "below 1.1"),
        (Effort(calibration=2, measuring=2, least_iou=0.5, least_speedup=1e6), "times as long as float32"),
    ],
    ids=["too different", "too slow"],
)
def test_float32_is_kept_where_int8_does_not_qualify(tmp_path: Path, effort: Effort, words: str) -> None:
    write_network(tmp_path)
    before = (tmp_path / UNET).read_bytes()
    assert not choose_precision(tmp_path, effort)
    assert (tmp_path / UNET).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([PRECISION, UNET, "unet.bin"])
    told = account(tmp_path)
    assert told["precision"] == "fp32"
    assert words in told["objection"]
    assert len(told["trials"]) > 1, "every recipe is tried"
    assert all(words in trial["objection"] for trial in told["trials"])


def test_a_network_that_finds_nothing_is_not_even_tried(tmp_path: Path) -> None:
    write_network(tmp_path, finds_fruit=False)
    assert not choose_precision(tmp_path, FEW)
    told = account(tmp_path)
    assert told["precision"] == "fp32"
    assert told["objection"] == "no fruit and no infected pixel was found to compare"
    assert told["trials"] == []


def test_serving_imports_no_nncf_and_can_tell_nobody_of_its_use() -> None:
    code = "import sys, models.backends.unet_openvino, service.lifecycle\n"
    code += "print('nncf' in sys.modules, 'openvino' in sys.modules, sys.modules['openvino_telemetry'])"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "True", "None"]
