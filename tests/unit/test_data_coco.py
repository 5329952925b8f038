from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from models.data.coco import Objects
from models.data.dataset import ClassMap, Dataset
from models.data.sources import open_dataset
from models.errors import DataError
from models.types import PixelClass, Size
from tests.annotated import write_image, write_json

# pycocotools decodes through an interface that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CATEGORIES = [{"id": 3, "name": "Healthy"}, {"id": 7, "name": "Infected"}]
BOX = [8, 4, 40, 4, 40, 24, 8, 24]


def opened(folder: Path, annotations: Sequence[Mapping[str, object]], **more: object) -> Dataset:
    """A set of one image of 80 x 40, `a.jpg`."""
    write_image(folder / "images" / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 80, "height": 40}],
        "annotations": [{"id": 10 + number, "image_id": 1, **each} for number, each in enumerate(annotations)],
        "categories": CATEGORIES,
        **more,
    }
    return open_dataset(write_json(folder / "instances.json", content).parent)


def test_polygons_and_both_kinds_of_rle_are_read(tmp_path: Path) -> None:
    mask = np.zeros((40, 80), np.uint8)
    mask[4:24, 8:40] = 1
    packed = coco.encode(np.asfortranarray(mask))
    packed = {"size": packed["size"], "counts": packed["counts"].decode()}
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=0))
    runs = np.diff(np.concatenate(([0], changes, [mask.size]))).tolist()
    for segmentation in ([BOX], packed, {"size": [40, 80], "counts": runs}):
        sample = opened(tmp_path, [{"category_id": 3, "segmentation": segmentation}]).load("a")
        assert ((sample.semantic == PixelClass.HEALTHY) == mask).all()
        assert [each.box for each in sample.instances] == [(8, 4, 40, 24)]


def test_parts_of_an_object_are_one_fruit_and_lesions_join_theirs(tmp_path: Path) -> None:
    sample = opened(
        tmp_path,
        [
            {"category_id": 3, "segmentation": [BOX, [60, 4, 70, 4, 70, 20, 60, 20]], "iscrowd": 0},
            {"category_id": 7, "segmentation": [[10, 6, 20, 6, 20, 10, 10, 10]]},
        ],
    ).load("a")
    (fruit,) = sample.instances
    assert fruit.box == (8, 4, 70, 24)
    assert fruit.pixel_class is PixelClass.INFECTED
    assert np.count_nonzero(sample.semantic == PixelClass.INFECTED) == 40


def test_groups_are_ignored(tmp_path: Path) -> None:
    runs = {"size": [40, 80], "counts": [40 * 50, 40 * 30]}
    sample = opened(tmp_path, [{"category_id": 3, "segmentation": runs, "iscrowd": 1}]).load("a")
    assert (sample.semantic[:, 50:] == PixelClass.IGNORE).all()
    assert not sample.semantic[:, :50].any()
    assert sample.instances == ()


@settings(deadline=None)
@given(
    st.tuples(st.floats(5, 75), st.floats(5, 35)),
    st.lists(st.floats(2, 30), min_size=5, max_size=30),
)
def test_outlines_are_filled_as_pycocotools_does_but_for_the_edge(
    centre: tuple[float, float], radii: list[float]
) -> None:
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array(radii)[:, None] + centre
    ring = ring.clip(0, (80, 40))
    (packed,) = coco.frPyObjects([ring.ravel().tolist()], 40, 80)
    theirs = coco.decode(packed).astype(bool)
    objects = Objects(
        Size(40, 80), [{"category_id": 3, "segmentation": [ring.ravel().tolist()]}], {3: "Healthy"}, ClassMap()
    )
    ours = objects.rasterise(Size(40, 80)).semantic == PixelClass.HEALTHY
    # Pixels that differ have the outline within a pixel of their centre: it is sampled ten times a pixel.
    steps = np.linspace(0, 1, 800)[:, None, None]
    outline = (ring + steps * (np.roll(ring, -1, axis=0) - ring)).reshape(-1, 2)
    for row, column in np.argwhere(ours != theirs):
        assert np.abs(outline - (column + 0.5, row + 0.5)).max(axis=1).min() <= 1.05


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"category_id": 3, "segmentation": []}, "only a box"),
        ({"category_id": 3}, "segmentation: Field required"),
        ({"category_id": 9, "segmentation": [BOX]}, "category 9"),
        ({"category_id": 3, "segmentation": [BOX[:-1]]}, "odd number"),
        ({"category_id": 3, "segmentation": [BOX[:4]]}, "at least 3 vertices"),
        ({"category_id": 3, "segmentation": [["a"] * 6]}, "segmentation"),
        ({"category_id": 3, "segmentation": [[200, 200, 300, 200, 300, 300]]}, "covers no pixel"),
        ({"category_id": 3, "segmentation": {"size": [80, 40], "counts": [3200]}}, "[40, 80], has [80, 40]"),
        ({"category_id": 3, "segmentation": {"size": [40, 80], "counts": [3000, 10**30]}}, "do not add up"),
        ({"category_id": 3, "segmentation": {"size": [40, 80], "counts": [-1, 3201]}}, "counts"),
        ({"category_id": 3, "segmentation": {"size": [40, 80], "counts": "zz"}}, "RLE"),
        ({"category_id": 3, "segmentation": {"size": [40, 80], "counts": [3200]}}, "covers no pixel"),
    ],
)
def test_a_broken_annotation_is_named_and_the_others_count(
    tmp_path: Path, broken: dict[str, object], says: str
) -> None:
    dataset = opened(tmp_path, [{"category_id": 3, "segmentation": [BOX]}, broken])
    sample = dataset.load("a")
    (warning,) = sample.warnings
    assert warning.startswith("annotation 11: ")
    assert says in warning
    assert [each.box for each in sample.instances] == [(8, 4, 40, 24)]
    assert (sample.semantic == PixelClass.HEALTHY).sum() == 32 * 20
    with pytest.raises(DataError) as caught:
        replace(dataset, strict=True).load("a")
    assert "a.jpg: annotation 11: " in caught.value.detail
    assert says in caught.value.detail


def test_where_an_object_has_only_a_box_nothing_is_taught(tmp_path: Path) -> None:
    boxed = {"category_id": 3, "segmentation": [], "bbox": [30, 10, 30, 10]}
    sample = opened(tmp_path, [{"category_id": 3, "segmentation": [BOX]}, boxed]).load("a")
    assert (sample.semantic == PixelClass.HEALTHY).sum() == 32 * 20  # what is labelled stays so
    assert (sample.semantic[10:20, 40:60] == PixelClass.IGNORE).all()
    assert (sample.semantic == PixelClass.IGNORE).sum() == 20 * 10


def test_an_object_of_an_unlisted_category_is_ignored_where_it_lies(tmp_path: Path) -> None:
    unlisted = {"category_id": 9, "segmentation": [[50, 10, 60, 10, 60, 20, 50, 20]]}
    sample = opened(tmp_path, [{"category_id": 3, "segmentation": [BOX]}, unlisted]).load("a")
    assert (sample.semantic[10:20, 50:60] == PixelClass.IGNORE).all()
    assert len(sample.instances) == 1


def test_one_broken_outline_of_an_object_leaves_its_other_parts(tmp_path: Path) -> None:
    sample = opened(tmp_path, [{"category_id": 3, "segmentation": [BOX, [60, 4, 70, 4], []]}]).load("a")
    assert sample.warnings == ("annotation 10: has an outline without at least 3 vertices",)
    assert [each.box for each in sample.instances] == [(8, 4, 40, 24)]


def test_an_image_without_any_usable_annotation_does_not_count_as_one_without_fruit(tmp_path: Path) -> None:
    empty = {"category_id": 3, "segmentation": []}
    (problem,) = opened(tmp_path, [empty, empty]).check(progress=False)
    assert "no region can be used: annotation 10: has only a box" in problem.message


def test_warnings_are_logged_by_image_and_annotation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = opened(
        tmp_path, [{"category_id": 3, "segmentation": [BOX]}, {"category_id": 3, "segmentation": []}, {"id": "x"}]
    )
    assert dataset.check(progress=False) == ()
    (logged,) = caplog.messages
    assert "1 images of" in logged
    assert f"{tmp_path / 'images' / 'a.jpg'}: annotation 11: has only a box" in logged
    assert "; annotation x: category_id: Field required" in logged
    (problem,) = replace(dataset, strict=True).check(progress=False)
    assert "annotation 11: has only a box" in problem.message
    assert len(caplog.messages) == 1


def test_class_names_are_the_same_in_upper_and_lower_case(tmp_path: Path) -> None:
    named = [{"id": 3, "name": "healthy"}, {"id": 7, "name": "INFECTED"}, {"id": 1, "name": "object"}]
    annotated = [
        {"category_id": 3, "segmentation": [BOX]},
        {"category_id": 7, "segmentation": [[50, 4, 60, 4, 60, 9, 50, 9]]},
    ]
    sample = opened(tmp_path, annotated, categories=named).load("a")
    assert [each.pixel_class for each in sample.instances] == [PixelClass.HEALTHY, PixelClass.INFECTED]


def test_a_class_name_of_the_user_replaces_the_default_one_in_another_case() -> None:
    classes = ClassMap.of({"healthy": "fruit"})
    assert {classes.of_name(each) for each in ("Healthy", "healthy", "HEALTHY")} == {PixelClass.FRUIT}


def test_names_that_differ_in_case_only_are_ambiguous_if_they_mean_different_things() -> None:
    classes = ClassMap.of({"rot": "infected", "Rot": "ignore", "Bruise": "healthy", "bruise": "healthy"})
    assert classes.of_name("rot") is PixelClass.INFECTED
    assert classes.of_name("Rot") is PixelClass.IGNORE
    assert classes.of_name("BRUISE") is PixelClass.HEALTHY
    with pytest.raises(DataError, match="'ROT' is ambiguous: the class map has rot=infected, Rot=ignore"):
        classes.of_name("ROT")


def test_an_image_of_another_size_is_reported(tmp_path: Path) -> None:
    listed = [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 80}]
    (problem,) = opened(tmp_path, [], images=listed).check(progress=False)
    assert problem.message == "was annotated at 40 x 80 pixels, but the upright image has 80 x 40"


def test_missing_and_invalid_entries_of_the_lists_is_reported(tmp_path: Path) -> None:
    listed = [
        {"id": 1, "file_name": "images/a.jpg", "width": 80, "height": 40},
        {"id": 2, "file_name": "gone.jpg", "width": 80, "height": 40},
        {"id": 3, "file_name": "b.jpg", "width": 0, "height": 40},
        {"id": 4, "file_name": "a.jpg", "width": 80, "height": 40},
        "image",
    ]
    annotations: list[Mapping[str, object]] = [
        {"image_id": 99, "category_id": 3, "segmentation": [BOX]},
        {"image_id": None},
    ]
    dataset = opened(tmp_path, annotations, images=listed)
    assert dataset.names == ("a",)
    said = "\n".join(each.message for each in dataset.problems)
    for part in (
        "annotation number 2 has no 'image_id'",
        "image number 2: no image 'gone.jpg'",
        "image number 3: width",
        "is listed several times",
        "image number 5",
        "image 99 is annotated, but not listed",
    ):
        assert part in said
    assert len(dataset.problems) == 6


def test_broken_lists_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lists 'images', 'annotations' and 'categories'"):
        opened(tmp_path, [], categories=None)
    with pytest.raises(DataError, match="categories: name"):
        opened(tmp_path, [], categories=[{"id": 1}])
