from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from models.data.dataset import Dataset
from models.data.sources import open_dataset
from models.types import PixelClass
from tests.annotated import square, write_image, write_json

LEFT, RIGHT = square("Healthy", 0, 0, 50, 50, id="l"), square("Infected", 0, 0, 100, 50, id="r")


def opened(folder: Path, tasks: Sequence[Mapping[str, object]]) -> Dataset:
    return open_dataset(write_json(folder / "export.json", tasks))


def two_images(folder: Path, data: Mapping[str, object], *results: Mapping[str, object]) -> Dataset:
    write_image(folder / "a.jpg", seed=1)
    write_image(folder / "b.jpg", seed=2)
    return opened(folder, [{"id": 1, "data": data, "annotations": [{"result": list(results)}]}])


def areas(dataset: Dataset) -> dict[str, tuple[int, int]]:
    """Healthy and infected pixels by image."""
    samples = {name: dataset.load(name).semantic for name in dataset.names}
    return {
        name: (int((each == PixelClass.HEALTHY).sum()), int((each == PixelClass.INFECTED).sum()))
        for name, each in samples.items()
    }


@pytest.mark.parametrize("tags", [("left", "right"), ("img1", "img-2")])
def test_each_image_of_a_task_has_the_regions_that_were_drawn_on_it(tmp_path: Path, tags: tuple[str, str]) -> None:
    keys = tags if tags[0] == "left" else ("image1", "image2")
    data = {keys[1]: "b.jpg", keys[0]: "a.jpg", "note": "two sides"}
    dataset = two_images(tmp_path, data, LEFT | {"to_name": tags[0]}, RIGHT | {"to_name": tags[1]})
    assert dataset.problems == ()
    assert areas(dataset) == {"a": (40 * 20, 0), "b": (0, 80 * 20)}


def test_each_page_of_a_task_has_the_regions_that_were_drawn_on_it(tmp_path: Path) -> None:
    pages = {"pages": ["/data/upload/1/0a1b2c3d-a.jpg", "/data/upload/1/0a1b2c3d-b.jpg"]}
    on_both = [LEFT | {"to_name": "image", "item_index": 0}, RIGHT | {"to_name": "image", "item_index": 1}]
    assert areas(two_images(tmp_path, pages, *on_both)) == {"a": (40 * 20, 0), "b": (0, 80 * 20)}
    # A page without regions was seen by the annotator: there is no fruit.
    assert areas(two_images(tmp_path, pages, on_both[1])) == {"a": (0, 0), "b": (0, 80 * 20)}


@pytest.mark.parametrize("place", [None, 2, -1, "1", [0]])
def test_a_region_that_is_on_no_page_is_reported(tmp_path: Path, place: object) -> None:
    pages = {"pages": ["a.jpg", "b.jpg"]}
    (problem,) = two_images(tmp_path, pages, LEFT | {"to_name": "image", "item_index": place}).problems
    assert "task 1: region l must have an 'item_index' of 0 to 1, has" in problem.message


def test_an_image_that_no_region_of_the_export_is_on_is_not_annotated(tmp_path: Path) -> None:
    data = {"image": "a.jpg", "thumbnail": "b.jpg"}
    assert areas(two_images(tmp_path, data, LEFT | {"to_name": "image"})) == {"a": (40 * 20, 0)}


def test_an_annotated_image_without_regions_has_no_fruit_even_beside_another_image(tmp_path: Path) -> None:
    for seed, name in enumerate("abcd"):
        write_image(tmp_path / f"{name}.jpg", seed=seed)
    sides = [LEFT | {"to_name": "left"}, RIGHT | {"to_name": "right"}]
    dataset = opened(
        tmp_path,
        [
            {"id": 1, "data": {"left": "a.jpg", "right": "b.jpg"}, "annotations": [{"result": sides}]},
            {"id": 2, "data": {"left": "c.jpg", "right": "d.jpg"}, "annotations": [{"result": sides[:1]}]},
        ],
    )
    assert areas(dataset)["c"] == (40 * 20, 0)
    assert areas(dataset)["d"] == (0, 0)


def test_regions_that_do_not_say_which_of_several_images_they_are_on_are_reported(tmp_path: Path) -> None:
    data = {"front": "a.jpg", "back": "b.jpg"}
    (problem,) = two_images(tmp_path, data, LEFT | {"to_name": "x"}, RIGHT | {"to_name": "y"}).problems
    assert "task 1: names several images (front, back)" in problem.message
    (problem,) = two_images(tmp_path, data, LEFT | {"to_name": "front"}, RIGHT | {"to_name": "y"}).problems
    assert "task 1: region r does not say which of several images it is on" in problem.message
    minimal = {
        **data,
        "annotation_id": 5,
        "label": [{**LEFT, "points": [[0, 0], [9, 0], [9, 9]], "labels": ["Healthy"]}],
    }
    (problem,) = opened(tmp_path, [minimal]).problems
    assert "names several images (front, back)" in problem.message
    # Where only one of them is at hand, there is nothing to mix up.
    (tmp_path / "b.jpg").unlink()
    assert areas(opened(tmp_path, [{"data": data, "annotations": [{"result": [LEFT]}]}])) == {"a": (40 * 20, 0)}


def test_one_missing_image_of_a_task_does_not_lose_the_other(tmp_path: Path) -> None:
    data = {"left": "a.jpg", "right": "gone.jpg"}
    dataset = two_images(tmp_path, data, LEFT | {"to_name": "left"}, RIGHT | {"to_name": "right"})
    assert areas(dataset) == {"a": (40 * 20, 0)}
    assert [each.message for each in dataset.problems] == [f"task 1: no image 'gone.jpg' in {tmp_path}"]
