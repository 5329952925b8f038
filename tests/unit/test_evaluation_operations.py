"""What is measured of the service's operations, on answers that can be worked out, and how it is reported."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.catalog import Architecture
from models.errors import DataError
from models.evaluation.__main__ import main
from models.evaluation.belts import Belts, measure_belts, of_truth
from models.evaluation.detection import (
    BOTH,
    Found,
    Truth,
    box_measures,
    counted,
    detector_finder,
    measure_detection,
    together,
    truth_of,
)
from models.evaluation.operations import (
    OperationsResults,
    Row,
    read_operations,
    without_intervals,
    write_operations,
)
from models.evaluation.operations_report import operations_markdown, render_page
from models.evaluation.report import share
from models.evaluation.results import Interval
from models.evaluation.samples import CannotEvaluate, ImageSet
from models.synthetic.output import write_sample
from models.types import Box, PixelClass, Pixels, Size
from tests.fake_detector import FakeDetector
from tests.knowing_unet import discs, encoded
from tests.parsed_page import Page
from tests.untrained import write_untrained_unet

REPORTS = Path(__file__).parents[2] / "models" / "evaluation" / "reports"

LEFT, RIGHT = Box(0, 0, 100, 100), Box(200, 0, 300, 100)
TRUTH = Truth(Size(200, 400), (LEFT, RIGHT), (10_000, 10_000))


# Boxes.


def test_boxes_that_are_the_annotated_ones_are_perfect() -> None:
    found = box_measures([TRUTH], [[Found(LEFT, 0.9), Found(RIGHT, 0.8)]], 0.3)
    assert (found["AP"], found["AP75"], found["AP large"]) == pytest.approx((1, 1, 1), abs=1e-9)
    assert math.isnan(found["AP small"])
    assert (found["precision"], found["recall"], found["false per image"]) == (1, 1, 0)


def test_one_of_two_fruits_and_a_false_box_are_half_of_precision_and_recall() -> None:
    false = Found(Box(0, 150, 50, 200), 0.4)
    found = box_measures([TRUTH], [[Found(LEFT, 0.9), false, Found(RIGHT, 0.2)]], 0.3)
    assert (found["precision"], found["recall"], found["false per image"]) == (0.5, 0.5, 1)
    # Of the three, in the order of their scores, the first and the third are right: precision 1 to a recall of 0.5.
    assert found["AP50"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_where_there_is_no_fruit_only_false_boxes_are_counted() -> None:
    found = box_measures([Truth(Size(10, 10), (), ())], [[Found(Box(0, 0, 5, 5), 0.9)]], 0.3)
    assert found["false per image"] == 1
    assert math.isnan(found["AP"])
    assert math.isnan(found["recall"])


def test_boxes_where_nobody_knows_whether_there_is_fruit_do_not_count() -> None:
    ignored = np.zeros((200, 400), np.bool_)
    ignored[:, 200:] = True
    truth = replace(TRUTH, ignored=ignored)
    half, inside = Found(Box(150, 0, 250, 100), 0.9), Found(RIGHT, 0.9)
    assert counted([half, inside], truth) == [half]


def test_a_detector_joins_pieces_of_a_fruit_and_adds_what_the_unet_missed() -> None:
    pieces = [Found(Box(0, 0, 100, 45), 0.5), Found(Box(0, 55, 100, 100), 0.5)]
    assert together(pieces, [Found(LEFT, 0.9), Found(RIGHT, 0.9)]) == [Found(LEFT, 0.9), Found(RIGHT, 0.9)]
    part = Found(Box(10, 10, 40, 40), 0.9)
    assert together([Found(LEFT, 0.5)], [part]) == [Found(LEFT, 0.5)]


def coloured(name: str, *boxes: tuple[int, int, int, int]) -> ImageSet:
    """Return an image in which the detector sees what is green, and every box is annotated."""
    sample = discs(*(((x0 + x1) // 2, (y0 + y1) // 2, (x1 - x0) // 2) for x0, y0, x1, y1 in boxes), name=name)
    pixels = np.zeros_like(sample.pixels)
    pixels[sample.semantic == PixelClass.HEALTHY] = (0, 255, 0)
    known = {name: encoded(replace(sample, pixels=pixels))}
    return ImageSet("set", "Set", "", (name,), known.__getitem__, has_instances=True, kinds={name: "tree"})


def test_a_detector_is_measured_on_images_beside_a_unet_and_both_together() -> None:
    images = coloured("a", (40, 40, 120, 120), (240, 60, 320, 140))
    truth = truth_of(images.load("a").sample)

    def half(pixels: Pixels) -> list[Found]:
        return [Found(truth.boxes[0], 0.8)]

    rows = list(
        measure_detection(
            {"detector": detector_finder(FakeDetector(), ["orange"])}, {"unet": half}, [images], progress=False
        )
    )
    assert [(row.images, row.method) for row in rows[:3]] == [("Set", "unet"), ("Set", "detector"), ("Set", BOTH)]
    assert [row.images for row in rows[3:]] == ["Set: tree"] * 3
    assert [row.measures["recall"].value for row in rows[:3]] == [0.5, 1, 1]
    assert {(row.count, row.objects) for row in rows} == {(1, 2)}


def test_a_detector_without_a_class_of_fruit_is_refused() -> None:
    with pytest.raises(CannotEvaluate, match="its classes are orange, apple"):
        detector_finder(FakeDetector(), ["lemon"])


# Belts.


def test_belts_are_measured_at_each_frame_rate() -> None:
    belts = Belts(count=1, seconds=0.6, fps=(10.0, 15.0))
    rows = list(measure_belts({"the annotation": of_truth}, belts, progress=False))
    assert [row.images for row in rows] == ["Rendered belts of 0.6 s, 10 fps", "Rendered belts of 0.6 s, 15 fps"]
    for row in rows:
        assert row.objects > 0
        assert row.measures["IDF1"].value == 1
        assert row.measures["count error"].value == 0


@pytest.mark.parametrize("wrong", [{"count": 0}, {"seconds": 0}, {"fps": (0.0,)}, {"drop": 1.0}])
def test_belts_of_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(CannotEvaluate, match="--belts must be at least 1"):
        Belts(**wrong)  # type: ignore[arg-type]


# Reports.


def clicked(images: str, method: str, *ious: float) -> Row:
    measures = {f"IoU@{number}": Interval(iou, iou - 0.1, iou + 0.1) for number, iou in enumerate(ious, start=1)}
    return Row("rounds", images, 2, 7, method, measures | without_intervals({"best of three": 0.95}))


RESULTS = OperationsResults(
    rows=(
        clicked("Trees", "sam", 0.5, 0.75),
        clicked("Trees", "other-sam", 0.25, 0.625),
        clicked("Belts <b>", "sam", 0.875, 0.9375),
        Row("edges", "Trees", 2, 7, "Canny", without_intervals({"ODS": 0.25, "R50": math.nan})),
    ),
    machine={"processor": "A processor"},
    commit="0123456",
    created_at="2026-11-27T00:00:00Z",
    options={"clicks": "2"},
    notes=("No U-Net was selected.",),
)


def test_results_survive_a_file_and_nan_is_null(tmp_path: Path) -> None:
    file = tmp_path / "operations.json"
    write_operations(RESULTS, file)
    assert json.loads(file.read_text())["rows"][3]["measures"]["R50"]["value"] is None
    back = read_operations(file)
    assert back.rows[:3] == RESULTS.rows[:3]
    assert math.isnan(back.rows[3].measures["R50"].value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema": 1, "rows": 3}'])
def test_files_that_hold_no_results_are_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "operations.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_operations(file)
    file.write_text(content)
    with pytest.raises(DataError):
        read_operations(file)


def test_the_page_has_a_table_for_each_protocol_and_plots_the_clicks() -> None:
    page = Page(render_page(RESULTS))
    text = page.text()
    assert "Clicks (segment)" in text
    assert "Edges" in text
    assert "Boxes of fruit" not in text
    assert "0.938 0.838 to 1.038" in text
    assert "Belts <b>" in text  # as text, not as an element
    clicks, single = page.figures()
    for words in ("Trees", "Belts <b>", "other-sam"):
        assert words in clicks
        assert words in single


def test_tables_of_markdown_have_the_same_numbers() -> None:
    text = operations_markdown(RESULTS)
    assert "| Trees | 2 | 7 | sam | 0.500 | 0.750 | 0.950 |" in text
    assert "| Trees | 2 | 7 | Canny | 0.250 | – |" in text  # noqa: RUF001
    assert text.count("## ") == 2


@pytest.mark.parametrize(
    "folder", sorted(file.parent for file in REPORTS.glob("*/operations.json")), ids=lambda folder: folder.name
)
def test_the_committed_reports_show_the_committed_results(folder: Path) -> None:
    results = read_operations(folder / "operations.json")
    assert operations_markdown(results) == (folder / "operations.md").read_text("utf-8")
    page = (folder / "operations.html").read_text("utf-8")
    assert results.created_at in page
    for row in results.rows:
        shown = [each for name, each in row.measures.items() if not re.fullmatch(r"IoU@[689]", name)]
        assert all(f"<td>{share(each.value)}<small>" in page for each in shown)


# The command.


def test_images_are_chosen_evenly_where_there_are_more() -> None:
    images = ImageSet("s", "Set", "Oranges.", tuple("abcdef"), coloured("a").load, has_instances=True)
    chosen = images.at_most(3)
    assert chosen.names == ("a", "c", "e")
    assert chosen.title == "Set (3 of 6)"
    assert images.at_most(6) is images


@pytest.mark.slow
def test_measure_operations_of_a_folder_and_render_the_report_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "orchard", tmp_path / "report"
    for name in "ab":
        write_sample(data, discs((100, 100, 40), (220, 100, 50), name=name))
    (data / "split.json").write_text(json.dumps({"train": [], "val": [], "test": ["a", "b"]}))
    write_untrained_unet(tmp_path / "model.safetensors", Architecture.UNET_MOBILENETV2, 0)
    (tmp_path / "models.yaml").write_text(
        "models: {mine: {architecture: unet-mobilenetv2, file: model.safetensors, licence: own}}"
    )
    words = ["--detection", "--tracking", "--data", str(data), "--unet", str(tmp_path / "models.yaml")]
    words += ["--detector", "none", "--rendered", "0", "--backend", "torch", "--belts", "1", "--seconds", "0.5"]
    assert main([*words, "--most-images", "1", "--out", str(out), "--quiet"]) == 0
    results = read_operations(out / "operations.json")
    assert [(row.protocol, row.method, row.count) for row in results.rows] == [
        ("detection", "mine", 1),
        ("tracking", "the annotation", 1),
        ("tracking", "mine", 1),
    ]
    assert results.options["data"] == "orchard"
    # Reports are shared: they hold no paths of this machine.
    assert str(tmp_path) not in (out / "operations.json").read_text()
    printed, page = capsys.readouterr().out, (out / "operations.html").read_text()
    assert printed == (out / "operations.md").read_text()
    assert main(["--render", str(out)]) == 0
    assert (out / "operations.html").read_text() == page
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "--clicks", "0"], "--clicks must be 1 to 20, got 0"),
        (["--rounds", "--clicks", "21"], "--clicks must be 1 to 20, got 21"),
        (["--rounds", "--sam", "none", "--rendered", "1"], "there is no SAM to measure"),
        (["--rounds", "--rendered", "0"], "no images whose annotations separate objects"),
        (["--proposals", "--points-per-side", "129"], "--points-per-side must be 1 to 128, got 129"),
        (["--detection", "--unet", "none", "--detector", "none", "--rendered", "1"], "nothing that finds fruit"),
        (["--detection", "--detector", "mobile-sam", "--unet", "none", "--rendered", "1"], "family 'detector'"),
        (["--detection", "--least-score", "1.5"], "--least-score must be 0 to 1, got 1.5"),
        (["--tracking", "--belts", "0"], "--belts must be at least 1"),
        (["--tracking", "--most-images", "0"], "--most-images must be at least 1, got 0"),
    ],
)
def test_unusable_options_end_with_status_1_and_a_reason(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--out", str(tmp_path / "report"), "--cache", str(tmp_path), "--quiet"]) == 1
    assert message in capsys.readouterr().err
