"""Letterbox, output to boxes, nouns, and a tiny network of YOLOX's layout on OpenVINO."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import openvino
import openvino.opset13 as ops
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from models.backends.base import BackendName
from models.backends.load import ModelStore, load_detector
from models.backends.openvino_detector import OpenVinoDetector
from models.catalog import load_catalogue
from models.detector.classes import COCO_CLASSES
from models.detector.letterbox import detector_letterbox, to_input
from models.detector.nouns import find_class, nouns_of, similar_classes
from models.detector.postprocess import STRIDES, Thresholds, cell_count, detections, suppress
from models.errors import BadCheckpoint, CatalogueError
from models.letterbox import resize
from models.types import Box, Size
from tests.annotated import YOLOX_NANO, needs_yolox_nano

INPUT: Final = Size(64, 96)
LETTERBOX: Final = detector_letterbox(Size(128, 192), INPUT)
"""One pixel of the input is two by two of the image."""

THREE: Final = ("orange", "apple", "leaf")


def output_of(*objects: tuple[int, int, int, Box, float, int]) -> NDArray[np.float32]:
    """An output for `INPUT` and three classes: stride, row, column, box in pixels of the input, score, class."""
    output = np.zeros((cell_count(INPUT), 8), np.float32)
    for stride, row, column, box, score, class_id in objects:
        before = sum((INPUT.height // s) * (INPUT.width // s) for s in STRIDES if s < stride)
        cell = output[before + row * (INPUT.width // stride) + column]
        cell[0] = (box.x0 + box.x1) / 2 / stride - column
        cell[1] = (box.y0 + box.y1) / 2 / stride - row
        cell[2] = math.log((box.x1 - box.x0) / stride)
        cell[3] = math.log((box.y1 - box.y0) / stride)
        cell[4], cell[5 + class_id] = 0.5, score / 0.5
    return output


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        (Size(800, 1200), Size(277, 416)),
        (Size(1200, 800), Size(416, 277)),
        (Size(416, 416), Size(416, 416)),
        (Size(1, 4000), Size(1, 416)),
        (Size(10, 20), Size(208, 416)),
    ],
)
def test_an_image_fits_into_the_input_with_its_proportions(size: Size, resized: Size) -> None:
    letterbox = detector_letterbox(size, Size(416, 416))
    assert (letterbox.original, letterbox.resized, letterbox.padded) == (size, resized, Size(416, 416))


def test_an_input_is_blue_green_red_with_grey_right_of_and_below_the_image() -> None:
    letterbox = detector_letterbox(Size(1, 2), Size(32, 32))
    pixels = np.full((16, 32, 3), (10, 20, 30), np.uint8)
    prepared = to_input(pixels, letterbox)
    assert prepared.shape == (3, 32, 32)
    assert prepared[:, :16].reshape(3, -1).T.tolist() == [[30, 20, 10]] * (16 * 32)
    assert (prepared[:, 16:] == 114).all()
    with pytest.raises(ValueError, match="shape"):
        to_input(pixels[:15], letterbox)


@pytest.mark.parametrize(("stride", "row", "column"), [(8, 2, 3), (16, 1, 2), (32, 0, 1)])
def test_a_cell_of_any_grid_becomes_a_box_in_pixels_of_the_image(stride: int, row: int, column: int) -> None:
    (found,) = detections(output_of((stride, row, column, Box(20, 12, 44, 28), 0.4, 2)), LETTERBOX, Thresholds())
    assert found.class_id == 2
    assert found.score == pytest.approx(0.4)
    assert (found.box.x0, found.box.y0, found.box.x1, found.box.y1) == pytest.approx((40, 24, 88, 56), abs=1e-3)


def test_boxes_are_clipped_to_the_image_and_those_outside_it_left_out() -> None:
    letterbox = detector_letterbox(Size(64, 64), INPUT)  # the right third of the input is padding
    inside = (8, 0, 0, Box(-20, -10, 10, 12), 0.5, 0)
    outside = (8, 4, 10, Box(70, 30, 90, 40), 0.5, 1)
    (found,) = detections(output_of(inside, outside), letterbox, Thresholds())
    assert (found.box.x0, found.box.y0) == (0, 0)
    assert (found.box.x1, found.box.y1) == pytest.approx((10, 12), abs=1e-3)


def test_numbers_that_no_box_has_do_not_overflow() -> None:
    output = output_of((8, 0, 0, Box(0, 0, 8, 8), 0.5, 0))
    output[0, 2:4] = 500
    (found,) = detections(output, LETTERBOX, Thresholds())
    assert found.box == Box(0, 0, 192, 128)


def test_overlapping_boxes_are_suppressed_within_their_class_only() -> None:
    best = (8, 1, 1, Box(4, 4, 24, 24), 0.9, 0)
    same = (8, 1, 2, Box(6, 4, 26, 24), 0.8, 0)
    other = (8, 2, 1, Box(4, 4, 24, 24), 0.7, 1)
    far = (8, 5, 9, Box(70, 40, 90, 60), 0.3, 0)
    output = output_of(best, same, other, far)

    def scores(**options: Any) -> list[float]:
        return [round(each.score, 3) for each in detections(output, LETTERBOX, Thresholds(**options))]

    assert scores() == [0.9, 0.7, 0.3]
    assert scores(nms=0.9) == [0.9, 0.8, 0.7, 0.3]
    assert scores(most=2) == [0.9, 0.7]
    assert scores(score=0.5) == [0.9, 0.7]
    assert scores(class_ids=[1]) == [0.7]
    assert scores(class_ids=[2]) == []


@pytest.mark.parametrize("seed", range(5))
def test_suppression_keeps_what_torchvision_keeps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 100, (200, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 60, (200, 2))])
    ids = rng.integers(0, 3, 200)
    scores = np.linspace(1, 0.1, 200)
    expected = batched_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(ids), 0.5)
    assert suppress(boxes, ids, 0.5) == expected.tolist()


def test_an_output_of_another_input_is_an_error() -> None:
    with pytest.raises(ValueError, match="cells"):
        detections(np.zeros((5, 8), np.float32), LETTERBOX, Thresholds())


def test_the_nouns_of_a_text_stand_between_commas_full_stops_and_and() -> None:
    assert nouns_of("The orange. apples,\n  a Hot   dog and all kites; ") == ["orange", "apples", "hot dog", "kites"]
    assert nouns_of(" , . and ; ") == []
    assert nouns_of("sandwich") == ["sandwich"]


@pytest.mark.parametrize(
    ("noun", "name"),
    [
        ("orange", "orange"),
        ("Oranges", "orange"),
        ("sandwiches", "sandwich"),
        ("buses", "bus"),
        ("people", "person"),
        ("mice", "mouse"),
        ("dining tables", "dining table"),
        ("scissors", "scissors"),
        ("cherries", None),
        ("s", None),
        ("", None),
    ],
)
def test_a_class_is_found_by_its_singular_and_its_plural(noun: str, name: str | None) -> None:
    assert find_class(noun, COCO_CLASSES) == (None if name is None else COCO_CLASSES.index(name))


def test_similar_classes_are_those_that_are_spelt_alike() -> None:
    assert similar_classes("ornage", COCO_CLASSES)[0] == "orange"
    assert similar_classes("qqqq", COCO_CLASSES) == []


# A network that can be worked out by hand: every cell of the first grid gets the image's colours as its values.


def tiny_network(path: Path, *, classes: int = 3, size: Size = INPUT, channels: int = 3) -> Path:
    images = ops.parameter([1, channels, size.height, size.width], np.float32, "images")
    cells = []
    for stride in STRIDES:
        pooled = ops.avg_pool(images, [stride, stride], [0, 0], [0, 0], [stride, stride], exclude_pad=True)
        cells.append(ops.reshape(pooled, [1, channels, (size.height // stride) * (size.width // stride)], False))
    means = ops.transpose(ops.concat(cells, 2), [0, 2, 1])
    spread = np.zeros((channels, 5 + classes), np.float32)
    spread[2, 4] = spread[2, 5] = 1 / 255  # red: an object of the first class
    spread[1, 6] = 1 / 255
    shift = np.zeros((1, 1, 5 + classes), np.float32)
    shift[..., :2] = 0.5
    output = ops.add(ops.matmul(means, spread, False, False), shift)
    openvino.save_model(openvino.Model([output], [images]), path, compress_to_fp16=False)
    return path


def test_a_network_finds_what_can_be_worked_out(tmp_path: Path) -> None:
    detector = OpenVinoDetector(tiny_network(tmp_path / "tiny.xml"), classes=THREE, threads=1)
    assert (detector.input_size, detector.classes) == (INPUT, THREE)
    letterbox = detector_letterbox(INPUT, INPUT)
    pixels = np.zeros((INPUT.height, INPUT.width, 3), np.uint8)
    pixels[16:24, 32:40] = (255, 0, 0)
    prepared = detector.prepare(pixels, letterbox)
    first, second = detector.infer([prepared, prepared])
    np.testing.assert_array_equal(first, second)
    (found,) = detections(first, letterbox, Thresholds(score=0.9))
    assert found.class_id == 0
    assert found.score == pytest.approx(1, abs=1e-5)
    assert found.box == Box(32, 16, 40, 24)


@pytest.mark.parametrize(
    ("made", "classes", "says"),
    [
        ({"classes": 4}, THREE, "scores of 3 classes"),
        ({}, (), "scores of 80 classes"),
        ({"size": Size(48, 96)}, THREE, "multiples of 32"),
    ],
)
def test_a_network_of_another_layout_is_refused(
    made: dict[str, Any], classes: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    with pytest.raises(BadCheckpoint, match=says):
        OpenVinoDetector(tiny_network(tmp_path / "tiny.xml", **made), classes=classes)


@pytest.mark.parametrize("content", [b"", b"an orange", b"\x08\x07\x12\x04"])
def test_a_file_that_is_no_network_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"broken\.onnx"):
        OpenVinoDetector(tmp_path / "broken.onnx")


def test_a_users_detector_is_described_in_the_models_file(tmp_path: Path) -> None:
    tiny_network(tmp_path / "tiny.xml")
    models_file = tmp_path / "models.yaml"
    models_file.write_text(
        "models:\n  mine:\n    architecture: yolox\n    file: tiny.xml\n    licence: proprietary\n"
        "    classes: [orange, apple, leaf]\n"
    )
    entry = load_catalogue(models_file)["mine"]
    assert (entry.classes, entry.architecture.family) == (THREE, "detector")
    for backend in get_args(BackendName):
        detector = load_detector(entry, backend, ModelStore(tmp_path / "cache"), threads=1)
        assert (detector.name, detector.classes) == ("openvino", THREE)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("architecture: yolox, classes: [a, A]", "must all be different"),
        ("architecture: mobile-sam, classes: [a]", "only detectors have"),
        ("architecture: yolox, classes: []", "'classes'"),
        ("architecture: yolox, classes: ['']", "model 'mine'"),
    ],
)
def test_classes_that_cannot_be_used_are_refused(keys: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"a")
    models_file = tmp_path / "models.yaml"
    models_file.write_text(f"models: {{mine: {{file: a.onnx, licence: none, {keys}}}}}")
    with pytest.raises(CatalogueError, match=says):
        load_catalogue(models_file)


@needs_yolox_nano
def test_yolox_nano_finds_the_oranges_of_an_image() -> None:
    detector = OpenVinoDetector(YOLOX_NANO)
    pixels = np.asarray(PIL.Image.open(Path(__file__).parents[2] / "docs/oranges.jpg").convert("RGB"))
    letterbox = detector_letterbox(Size(*pixels.shape[:2]), detector.input_size)
    (output,) = detector.infer([detector.prepare(resize(pixels, letterbox), letterbox)])
    found = detections(output, letterbox, Thresholds(class_ids=[COCO_CLASSES.index("orange")]))
    assert len(found) == 6
    assert all(0.8 < each.score < 0.95 for each in found)
