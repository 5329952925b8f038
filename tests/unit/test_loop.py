"""The pure parts of `make loop`: the frames, the labels put on captures, the figures and the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from deploy.loop.frames import frame_ids, rendered, use_of
from deploy.loop.labels import CannotLabel, label
from deploy.loop.report import Figures, Report, as_markdown, before_and_after, failures, figures_of
from models.data.samples import Sample
from models.data.sources import open_dataset
from models.synthetic import RenderOptions, encode_jpeg, render
from models.types import PixelClass, SemanticMap, Size

SMALL: Final = Size(32, 48)
TRUTH: Final = {
    "train-0": render(1, SMALL, options=RenderOptions(fruits=3)),
    "val-0": render(2, SMALL, options=RenderOptions(fruits=2)),
}
GOOD, BAD = Figures(4, 0.9, 0.8, 0.02), Figures(4, 0.5, 0.1, 0.3)
REPORT: Final = Report(
    before={"new fruit": BAD, "ordinary": GOOD},
    after={"new fruit": GOOD, "ordinary": GOOD},
    revisions=("41af46aa4bb9", "63faa6075a0d"),
    captured={"train": 6, "val": 3},
    sent=90,
    lost=0,
    shadow={"compared": 20, "mean_iou": 0.51234, "least_iou": None},
    seconds={"train": 61.3},
)


def exported(folder: Path, *tasks: dict[str, str]) -> Path:
    """Write what the export of captures writes, with an image of the training frame for each task."""
    (folder / "images").mkdir(parents=True)
    for task in tasks:
        (folder / "images" / task["image"]).write_bytes(encode_jpeg(TRUTH[task.get("frame_id", "train-0")]))
    (folder / "annotations.json").write_text(json.dumps([{"data": task} for task in tasks]))
    return folder


def test_captures_get_the_truth_of_their_frame_and_its_part_of_the_split(tmp_path: Path) -> None:
    tasks = exported(
        tmp_path / "tasks", {"image": "a.jpg", "frame_id": "val-0"}, {"image": "b.jpg", "frame_id": "train-0"}
    )
    assert label(tasks, tmp_path / "data", TRUTH.__getitem__, use_of) == {"val": 1, "train": 1}
    dataset = open_dataset(tmp_path / "data")
    assert not dataset.problems
    for name, frame_id in (("a", "val-0"), ("b", "train-0")):
        read, truth = dataset.load(name), TRUTH[frame_id]
        assert np.array_equal(read.semantic, truth.semantic)
        assert [each.box for each in read.instances] == [each.box for each in truth.instances]
    assert json.loads((tmp_path / "data" / "split.json").read_text()) == {"val": ["a"], "train": ["b"]}


def test_a_capture_without_a_frame_id_cannot_be_labelled(tmp_path: Path) -> None:
    tasks = exported(tmp_path / "tasks", {"image": "a.jpg"})
    with pytest.raises(CannotLabel, match=r"a\.jpg has no frame_id"):
        label(tasks, tmp_path / "data", TRUTH.__getitem__, use_of)


def test_a_capture_of_another_size_than_its_truth_cannot_be_labelled(tmp_path: Path) -> None:
    tasks = exported(tmp_path / "tasks", {"image": "a.jpg", "frame_id": "train-0"})
    with pytest.raises(CannotLabel, match=r"a\.jpg must have the size of train-0, 24 x 16, has 48 x 32"):
        label(tasks, tmp_path / "data", lambda _: render(1, Size(16, 24)), use_of)


def test_without_captures_there_is_nothing_to_label(tmp_path: Path) -> None:
    with pytest.raises(CannotLabel, match="Nothing was captured"):
        label(exported(tmp_path / "tasks"), tmp_path / "data", TRUTH.__getitem__, use_of)


def test_frames_of_different_uses_show_different_scenes() -> None:
    images = [rendered(frame_id).pixels.tobytes() for use in ("train", "held-out") for frame_id in frame_ids(use, 2)]
    assert len(set(images)) == 4
    assert rendered("train-1").pixels.tobytes() == images[1]


@pytest.mark.parametrize("frame_id", ["", "train", "cam2-1", "train-1x", "train-10000"])
def test_an_id_that_is_not_ours_is_named(frame_id: str) -> None:
    with pytest.raises(ValueError, match="frame_id must be one of train, val"):
        rendered(frame_id)


def of(rows: list[list[int]]) -> Sample:
    """Return a frame with these classes."""
    semantic: SemanticMap = np.array(rows, np.uint8)
    return Sample("frame", np.zeros((*semantic.shape, 3), np.uint8), semantic)


def test_figures_are_means_over_the_frames_with_fruit() -> None:
    healthy, rotten = int(PixelClass.HEALTHY), int(PixelClass.INFECTED)
    truth = [of([[healthy, healthy, 0, 0]]), of([[healthy, rotten, 0, 0]]), of([[0, 0, 0, 0]])]
    said = [of([[healthy, 0, 0, 0]]), of([[healthy, healthy, 0, 0]]), of([[healthy, 0, 0, 0]])]
    figures = figures_of([each.semantic for each in said], truth)
    assert figures == Figures(frames=2, fruit_iou=0.75, least_fruit_iou=0.5, infected_fraction_error=0.25)


def test_a_turn_that_helped_and_lost_nothing_has_no_failures() -> None:
    assert failures(REPORT) == []


def test_a_turn_fails_if_the_new_fruit_is_no_better_the_old_is_forgotten_or_frames_are_lost() -> None:
    worse = replace(REPORT, after={"new fruit": BAD, "ordinary": replace(GOOD, fruit_iou=0.86)}, lost=2)
    assert failures(worse) == [
        "The IoU of the new fruit must rise, went from 0.500 to 0.500.",
        "The IoU of ordinary fruit must not fall by more than 0.03, went from 0.900 to 0.860.",
        "Every frame must be answered, 2 of 90 were not.",
    ]


def test_the_report_shows_both_revisions_side_by_side() -> None:
    text = as_markdown(REPORT)
    assert "before (41af46aa4bb9) | after (63faa6075a0d)" in text
    assert "| 4 of new fruit | IoU of fruit, mean | 0.500 | 0.900 |" in text
    assert "- shadow: compared 20, mean iou 0.512\n" in text
    assert "- frames sent meanwhile: 90, without an answer: 0" in text


def test_the_picture_outlines_the_answers_before_on_the_left_and_after_on_the_right() -> None:
    truth = [TRUTH["train-0"]]
    empty = np.zeros_like(truth[0].semantic)
    drawn = np.asarray(before_and_after(truth, [empty], [truth[0].semantic]))
    orange = (drawn == (255, 140, 0)).all(axis=-1)
    middle = drawn.shape[1] // 2
    assert not orange[:, :middle].any()
    assert orange[:, middle:].any()
