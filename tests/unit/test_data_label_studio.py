import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.data.dataset import ClassMap, Dataset
from models.data.samples import Sample
from models.data.sources import open_dataset
from models.errors import DataError
from models.types import PixelClass
from tests.annotated import polygon, result, square, task, write_image, write_json

# A brush mask of 6 x 9 pixels, packed by label-studio-sdk 2.1.2; 20 pixels have an alpha of at least 128 inside the
# square from (2, 1) to (7, 5), less two, and one at (8, 5).
BRUSH = list(bytes.fromhex("000000d8391bfe2b00c27ff7c023ff8d92dffdf009ffe37f8e023ffbe0184fff138047fe"))


def opened(folder: Path, tasks: Sequence[Mapping[str, object]], **classes: str) -> Dataset:
    export = write_json(folder / "export.json", tasks)
    return open_dataset(export, classes=ClassMap.of(classes) if classes else None)


def loaded(folder: Path, *results: Mapping[str, object], **classes: str) -> Sample:
    """The sample of an image of 80 x 40 with these regions."""
    write_image(folder / "a.jpg")
    return opened(folder, [task("/data/upload/1/0a1b2c3d-a.jpg", results)], **classes).load("a")


def refusal(folder: Path, *results: Mapping[str, object]) -> str:
    with pytest.raises(DataError) as caught:
        loaded(folder, *results)
    assert str(folder / "a.jpg") in caught.value.detail  # says which image
    return caught.value.detail


def where(sample: Sample, pixel_class: PixelClass) -> tuple[int, int, int, int, int]:
    """Box and count of the pixels of a class."""
    ys, xs = np.nonzero(sample.semantic == pixel_class)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1, len(xs)


def test_percent_polygons_become_pixels(tmp_path: Path) -> None:
    sample = loaded(tmp_path, square("Healthy", 10, 10, 50, 60), square("Infected", 60, 50, 70, 75))
    assert where(sample, PixelClass.HEALTHY) == (8, 4, 40, 24, 32 * 20)
    assert where(sample, PixelClass.INFECTED) == (48, 20, 56, 30, 80)
    assert [each.pixel_class for each in sample.instances] == [PixelClass.HEALTHY, PixelClass.INFECTED]
    assert sample.name == "a"
    assert sample.pixels.shape == (40, 80, 3)


def test_brush_masks_count_where_at_least_half_covered(tmp_path: Path) -> None:
    write_image(tmp_path / "b.png", 9, 6)
    brush = result("brushlabels", "Healthy", {"format": "rle", "rle": BRUSH}, size=(9, 6))
    sample = opened(tmp_path, [task("b.png", [brush])]).load("b")
    assert where(sample, PixelClass.HEALTHY) == (2, 1, 9, 6, 19)
    assert sample.semantic[3, 5]  # alpha 128
    assert not sample.semantic[3, 4]  # alpha 127


def test_a_brush_mask_follows_a_copy_of_another_size(tmp_path: Path) -> None:
    write_image(tmp_path / "b.png", 90, 60)
    brush = result("brushlabels", "Healthy", {"format": "rle", "rle": BRUSH}, size=(9, 6))
    sample = opened(tmp_path, [task("b.png", [brush])]).load("b")
    assert where(sample, PixelClass.HEALTHY)[:4] == (20, 10, 90, 60)


def test_rectangles_and_turned_ones_are_read(tmp_path: Path) -> None:
    upright = {"x": 25, "y": 25, "width": 25, "height": 25, "rotation": 0}
    sample = loaded(tmp_path, result("rectanglelabels", "Healthy", upright))
    assert where(sample, PixelClass.HEALTHY) == (20, 10, 40, 20, 200)
    # 20 wide, 10 high; turned a quarter clockwise about its upper left corner it hangs to the left of it.
    sample = loaded(tmp_path, result("rectanglelabels", "Healthy", upright | {"rotation": 90}))
    assert where(sample, PixelClass.HEALTHY) == (10, 10, 20, 30, 200)


def test_a_turned_rectangle_has_the_corners_that_label_studio_exports(tmp_path: Path) -> None:
    value = {"x": 30.0, "y": 20.0, "width": 25.0, "height": 15.0, "rotation": 33.0}
    # The corners that label-studio-sdk 2.1.2 gives (its YOLO-OBB export), as shares of 400 x 300.
    corners = [
        (0.3, 0.2),
        (0.5096676419863561, 0.381546345005009),
        (0.44839575054716546, 0.5073469301968226),
        (0.23872810856080945, 0.32580058519181365),
    ]
    write_image(tmp_path / "a.jpg", 400, 300)
    rectangle = result("rectanglelabels", "Healthy", value, size=(400, 300))
    outline = polygon("Healthy", [(100 * x, 100 * y) for x, y in corners], size=(400, 300))
    turned = opened(tmp_path, [task("a.jpg", [rectangle])]).load("a")
    outlined = opened(tmp_path, [task("a.jpg", [outline])]).load("a")
    assert (turned.semantic == outlined.semantic).all()


def test_ellipses_are_read(tmp_path: Path) -> None:
    value = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 20, "rotation": 0}  # 16 by 8 pixels
    sample = loaded(tmp_path, result("ellipselabels", "Healthy", value))
    rows, columns = np.mgrid[:40, :80] + 0.5
    expected = ((columns - 40) / 16) ** 2 + ((rows - 20) / 8) ** 2 < 1
    assert ((sample.semantic == PixelClass.HEALTHY) == expected).all()
    turned = loaded(tmp_path, result("ellipselabels", "Healthy", value | {"rotation": 90}))
    upright = ((columns - 40) / 8) ** 2 + ((rows - 20) / 16) ** 2 < 1
    assert ((turned.semantic == PixelClass.HEALTHY) == upright).all()


def test_class_names_are_mapped_by_the_class_map(tmp_path: Path) -> None:
    regions = [square("Orange", 10, 10, 50, 60), square("Leaf", 60, 50, 70, 75), square("Blur", 80, 0, 90, 10)]
    sample = loaded(tmp_path, *regions, Orange="fruit", Leaf="background", Blur="ignore")
    assert where(sample, PixelClass.FRUIT)[4] == 640
    assert where(sample, PixelClass.IGNORE)[4] == 32
    assert len(sample.instances) == 1


def test_an_unknown_class_is_reported_with_the_known_ones(tmp_path: Path) -> None:
    refused = refusal(tmp_path, square("Rotten", 0, 0, 50, 50))
    assert "'Rotten' is not in the class map (Healthy, Infected, Ignore)" in refused


def test_a_smaller_copy_with_the_same_proportions_is_accepted(tmp_path: Path) -> None:
    large = square("Healthy", 10, 10, 50, 60, size=(4160, 2081))  # a copy's height was rounded
    sample = loaded(tmp_path, large)
    assert where(sample, PixelClass.HEALTHY) == (8, 4, 40, 24, 640)


def test_percent_are_of_the_upright_image(tmp_path: Path) -> None:
    # 80 x 40 in the file, to be turned: the browser shows 40 x 80, which Label Studio then calls the original size.
    write_image(tmp_path / "a.jpg", 80, 40, orientation=6)
    sample = opened(tmp_path, [task("a.jpg", [square("Healthy", 0, 0, 50, 25, size=(40, 80))])]).load("a")
    assert where(sample, PixelClass.HEALTHY) == (0, 0, 20, 20, 400)
    dataset = opened(tmp_path, [task("a.jpg", [square("Healthy", 0, 0, 50, 25, size=(80, 40))])])
    with pytest.raises(DataError, match=r"80 x 40 pixels, but the upright image has 40 x 80; .* EXIF"):
        dataset.load("a")


def test_a_nearly_square_image_that_was_not_turned_is_reported_too(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", 41, 40)
    dataset = opened(tmp_path, [task("a.jpg", [square("Healthy", 0, 0, 50, 25, size=(40, 41))])])
    with pytest.raises(DataError, match="EXIF"):
        dataset.load("a")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (square("Healthy", 10, 10, 10, 60), "covers no pixel"),
        (square("Healthy", 110, 10, 150, 60), "covers no pixel"),
        (polygon("Healthy", [(1, 1), (50, 50)]), "points: List should have at least 3 items"),
        (polygon("Healthy", [(1, 1), (50, 50), (20, float("nan"))]), "finite"),
        (result("polygonlabels", "Healthy", {"points": [[0, 0], [50, 0], [50, 50]], "closed": False}), "closed"),
        (result("keypointlabels", "Healthy", {"x": 1, "y": 2, "width": 0.5}), "or ellipse, got keypointlabels"),
        (result("bitmasklabels", "Healthy", {"imageDataURL": "data:"}), "got bitmasklabels"),
        (result("brushlabels", "Healthy", {"format": "rle", "rle": [0, 1, 300]}), "rle.2"),
        (result("brushlabels", "Healthy", {"format": "rle", "rle": BRUSH}), "must have 4 words of 8 bits"),
        (result("rectanglelabels", "Healthy", {"x": 0, "y": 0, "width": 0, "height": 3}), "width"),
        ({**square("Healthy", 0, 0, 9, 9), "original_width": None}, "original_width"),
        ({**square("Healthy", 0, 0, 9, 9), "value": {"points": [], "polygonlabels": ["Healthy"]}}, "points"),
        (
            {
                **square("Healthy", 0, 0, 9, 9),
                "type": "rectangle",
                "id": "r2",
                "value": {"x": 0, "y": 0, "width": 9, "height": 9},
            },
            "has no class",
        ),
        (
            {**square("Healthy", 0, 0, 9, 9), "value": {"points": [[0, 0], [9, 0], [9, 9]], "polygonlabels": []}},
            "has no class",
        ),
        (
            result("polygonlabels", "Healthy", {"points": [[0, 0], [50, 0], [50, 50]], "labels": ["Infected"]}),
            "must have one class",
        ),
    ],
)  # fmt: skip
def test_an_invalid_region_is_named_and_the_others_count(tmp_path: Path, broken: dict[str, object], says: str) -> None:
    good = square("Healthy", 10, 10, 50, 60, id="good")
    sample = loaded(tmp_path, good, broken)
    (warning,) = sample.warnings
    assert f"region {broken['id']}: " in warning
    assert says in warning
    assert where(sample, PixelClass.HEALTHY) == (8, 4, 40, 24, 640)
    assert len(sample.instances) == 1
    strict = replace(opened(tmp_path, [task("a.jpg", [good, broken])]), strict=True)
    with pytest.raises(DataError) as caught:
        strict.load("a")
    assert f"{tmp_path / 'a.jpg'}: {warning}" in caught.value.detail


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (square("Healthy", 10, 10, 50, 60, size=(80, 60)), "80 x 60 pixels, but the upright image has 80 x 40"),
        (square("Healthy", 10, 10, 50, 60, image_rotation=90), "rotated by 90 degrees"),
        (square("Rotten", 10, 10, 50, 60), "'Rotten' is not in the class map"),
    ],
)
def test_a_fault_that_concerns_more_than_its_region_is_an_error(
    tmp_path: Path, broken: dict[str, object], says: str
) -> None:
    detail = refusal(tmp_path, square("Healthy", 10, 10, 50, 60), broken)
    assert f"region {broken['id']}: " in detail
    assert says in detail


@pytest.mark.parametrize("labels", [{}, {"ellipselabels": []}, {"ellipselabels": ["Healthy", "Infected"]}])
def test_nothing_is_taught_where_an_ellipse_has_no_single_label(tmp_path: Path, labels: dict[str, list[str]]) -> None:
    value = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 20, "rotation": 0, **labels}
    ellipse = {**result("ellipse", "", {}, id="e"), "value": value}
    sample = loaded(tmp_path, square("Healthy", 10, 10, 50, 60), ellipse)
    assert where(sample, PixelClass.HEALTHY) == (8, 4, 40, 24, 640)
    rows, columns = np.mgrid[:40, :80] + 0.5
    inside = ((columns - 40) / 16) ** 2 + ((rows - 20) / 8) ** 2 < 1
    assert ((sample.semantic == PixelClass.IGNORE) == (inside & (sample.semantic != PixelClass.HEALTHY))).all()
    assert len(sample.warnings) == 1


def test_an_image_with_only_an_empty_region_does_not_count_as_one_without_fruit(tmp_path: Path) -> None:
    assert "no region can be used: region r1: covers no pixel" in refusal(tmp_path, square("Healthy", 10, 10, 10, 60))


def test_results_that_are_not_regions_are_skipped(tmp_path: Path) -> None:
    region = square("Healthy", 10, 10, 50, 60)
    more: list[Mapping[str, object]] = [
        {"type": "choices", "id": "c", "value": {"choices": ["ripe"]}},
        # Said about the region, so it repeats the shape.
        {**region, "type": "textarea", "value": {"points": [[0, 0], [9, 0], [9, 9]], "text": ["bruise?"]}},
        {"type": "relation", "from_id": "r1", "to_id": "r2"},
    ]
    assert len(loaded(tmp_path, region, *more).instances) == 1


def test_a_shape_and_its_label_in_two_results_are_one_region(tmp_path: Path) -> None:
    points = {"points": [[10, 10], [50, 10], [50, 60], [10, 60]]}
    shape = {**square("Healthy", 0, 0, 1, 1), "type": "polygon", "value": points}
    label = {**shape, "type": "labels", "value": {**points, "labels": ["Infected"]}}
    sample = loaded(tmp_path, shape, label)
    assert len(sample.instances) == 1
    assert where(sample, PixelClass.INFECTED)[4] == 640


def test_json_min_is_read(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    region = {"points": [[10, 10], [50, 10], [50, 60], [10, 60]], "closed": True, "polygonlabels": ["Healthy"]}
    brush = {"format": "rle", "rle": BRUSH, "brushlabels": ["Infected"], "original_width": 9, "original_height": 6}
    record = {
        "image": "/data/local-files/?d=plant%20one/a.jpg",
        "id": 3,
        "label": [{**region, "original_width": 80, "original_height": 40}],
        "quality": "good",
        "annotator": 1,
        "annotation_id": 7,
    }
    write_image(tmp_path / "b.png", 9, 6)
    painted = {"image": "b.png", "id": 4, "brush": [brush], "annotator": 1, "annotation_id": 8}
    dataset = opened(tmp_path, [record, painted, {"image": "a.jpg", "id": 5, "annotation_id": None}])
    assert dataset.names == ("a", "b")
    assert where(dataset.load("a"), PixelClass.HEALTHY)[4] == 640
    assert where(dataset.load("b"), PixelClass.INFECTED)[4] == 19
    assert [each.message for each in dataset.problems] == ["task 5: is not annotated"]


def test_skipped_unannotated_and_missing_images_are_reported(tmp_path: Path) -> None:
    for name in "abcde":
        write_image(tmp_path / "photos" / f"{name}.jpg")
    region = square("Healthy", 10, 10, 50, 60)
    dataset = opened(
        tmp_path,
        [
            task("/data/upload/1/0a1b2c3d-a.jpg", [region], id=1),
            {"id": 2, "data": {"image": "b.jpg"}, "annotations": [{"was_cancelled": True, "result": []}]},
            {"id": 3, "data": {"image": "c.jpg"}, "annotations": [], "predictions": [{"result": [region]}]},
            task("/data/upload/1/0a1b2c3d-z.jpg", [region], id=4),
            task("d.jpg", [], id=5),
            task("a.jpg", [region], id=6),
            {"id": 7, "data": {"text": "no image"}, "annotations": [{"result": []}]},
            {"id": 8, "data": {"image": "e.jpg"}, "annotations": [{"result": None}]},
        ],
    )
    assert dataset.names == ("a", "d")
    assert not dataset.load("d").semantic.any()  # annotated: there is no fruit
    said = [each.message for each in dataset.problems]
    assert [each.split(":")[0] for each in said] == [
        "task 2", "task 3", "task 4", "is annotated by several tasks; only the first counts", "task 7", "task 8",
    ]  # fmt: skip
    for text, part in zip(
        said, ["skipped", "not annotated", "z.jpg'", "", "must name an image", "result"], strict=True
    ):
        assert part in text


def test_of_several_annotations_ground_truth_or_the_last_counts(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    small, large = square("Healthy", 0, 0, 10, 10), square("Healthy", 0, 0, 50, 50)
    first = {"result": [small], "updated_at": "2026-03-01T10:00:00Z"}
    second = {"result": [large], "updated_at": "2026-03-02T10:00:00Z"}
    cancelled = {"result": [], "updated_at": "2026-03-03T10:00:00Z", "was_cancelled": True}

    def area(*annotations: Mapping[str, object]) -> int:
        dataset = opened(tmp_path, [{"id": 1, "data": {"image": "a.jpg"}, "annotations": list(annotations)}])
        return int(np.count_nonzero(dataset.load("a").semantic))

    assert area(second, first, cancelled) == 40 * 20
    assert area(second, first | {"ground_truth": True}) == 8 * 4
    assert area({"result": [small]}, {"result": [large]}) == 40 * 20


def test_check_reports_every_problem_file_by_file(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(write_image(tmp_path / "c.jpg").read_bytes()[:200])
    write_image(tmp_path / "d.jpg")
    dataset = opened(
        tmp_path,
        [
            task("a.jpg", [square("Healthy", 10, 10, 50, 60)], id=1),
            task("b.jpg", [square("Rotten", 10, 10, 50, 60)], id=2),
            task("c.jpg", [], id=3),
            task("d.jpg", [], id=4),
            task("gone.jpg", [], id=5),
        ],
    )
    (tmp_path / "d.jpg").unlink()
    problems = dataset.check(progress=False)
    assert [each.file.name for each in problems] == ["export.json", "b.jpg", "c.jpg", "d.jpg"]
    assert str(problems[1]).startswith(f"{tmp_path / 'b.jpg'}: region r1: the class 'Rotten'")
    assert "ends early" in problems[2].message
    assert "No such file" in problems[3].message


def test_a_set_can_be_pickled(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    dataset = opened(tmp_path, [task("a.jpg", [square("Healthy", 10, 10, 50, 60)])])
    sent = pickle.loads(pickle.dumps(dataset))  # noqa: S301 our own
    assert (sent.load("a").semantic == dataset.load("a").semantic).all()


def test_unknown_files_are_rejected(tmp_path: Path) -> None:
    for content in ({"a": 1}, 3, "text"):
        with pytest.raises(DataError, match=r"neither Label Studio .* nor COCO"):
            open_dataset(write_json(tmp_path / "x.json", content))
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        open_dataset(tmp_path / "gone")
    write_json(tmp_path / "y.json", [])
    with pytest.raises(DataError, match=r"exactly one JSON file, has x.json, y.json"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="contains no images"):
        open_dataset(tmp_path / "y.json")
    with pytest.raises(DataError, match="not a folder of images"):
        open_dataset(tmp_path / "y.json", images=tmp_path / "gone")


def test_invalid_tasks_are_reported(tmp_path: Path) -> None:
    export = tmp_path / "x.json"
    export.write_text(json.dumps([5, {"id": 9, "data": 3, "annotations": [{"result": []}]}, {"annotations": 7}]))
    assert [each.message.split(":")[0] for each in open_dataset(export).problems] == ["task 1", "task 9", "task 3"]
