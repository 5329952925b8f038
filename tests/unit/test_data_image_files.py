from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import pytest

from models.data.dataset import Dataset
from models.data.sources import open_dataset
from tests.annotated import task, write_image, write_json

NFC, NFD = "p\u00eache", "pe\u0302che"


def opened(folder: Path, tasks: Sequence[Mapping[str, object]]) -> Dataset:
    return open_dataset(write_json(folder / "export.json", tasks))


@pytest.mark.parametrize(("written", "stored"), [(NFC, NFD), (NFD, NFC)])
def test_a_name_with_accents_is_found_in_any_unicode_form(tmp_path: Path, written: str, stored: str) -> None:
    write_image(tmp_path / f"{stored}.jpg")
    for reference in (
        f"{written}.jpg",
        f"/data/upload/1/0a1b2c3d-{written}.jpg",
        f"/data/upload/1/0a1b2c3d-{quote(written)}.jpg",
        "/data/upload/1/0a1b2c3d-peche.jpg",  # a decomposed name as Label Studio stores it: without its accents
    ):
        dataset = opened(tmp_path, [task(reference, [])])
        assert dataset.problems == ()
        assert dataset.names == (NFC,)


def test_folders_with_accents_decide_between_images_of_the_same_name(tmp_path: Path) -> None:
    for seed, folder in enumerate((NFD, "orange")):
        write_image(tmp_path / folder / "a.jpg", seed=seed)
    dataset = opened(tmp_path, [task(f"http://host/{NFC}/a.jpg", [])])
    assert [item.image.parent.name for item in dataset.items.values()] == [NFD]


def test_two_files_whose_names_differ_in_their_unicode_form_only_stay_two(tmp_path: Path) -> None:
    for seed, name in enumerate((NFC, NFD)):
        write_image(tmp_path / f"{name}.jpg", seed=seed)
    dataset = opened(tmp_path, [task(f"{NFC}.jpg", [], id=1), task(f"{NFD}.jpg", [], id=2)])
    assert dataset.problems == ()
    assert {item.image.stem for item in dataset.items.values()} == {NFC, NFD}
    assert len(dataset) == 2


def test_an_exact_name_comes_before_one_that_label_studio_would_store_so(tmp_path: Path) -> None:
    for seed, name in enumerate(("a_b.jpg", "a b.jpg")):
        write_image(tmp_path / name, seed=seed)
    dataset = opened(tmp_path, [task("a_b.jpg", [], id=1), task("a b.jpg", [], id=2)])
    assert dataset.names == ("a b", "a_b")
    (problem,) = opened(tmp_path, [task("/data/upload/1/0a1b2c3d-a_b.jpg", [])]).problems
    assert "several images are called 'a_b.jpg'" in problem.message


def test_linked_folders_and_images_are_followed(tmp_path: Path) -> None:
    write_image(tmp_path / "disk" / "mon" / "a.jpg", seed=1)
    write_image(tmp_path / "other" / "b.jpg", seed=2)
    project = tmp_path / "project"
    project.mkdir()
    (project / "images").symlink_to(tmp_path / "disk")
    (project / "b.jpg").symlink_to(tmp_path / "other" / "b.jpg")
    assert opened(project, [task("a.jpg", [], id=1), task("b.jpg", [], id=2)]).names == ("a", "b")


def test_links_in_a_circle_or_to_the_same_folder_list_an_image_once_where_it_lies(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.jpg")
    (tmp_path / "photos" / "round").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "photos")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    dataset = opened(tmp_path, [task("a.jpg", [])])
    assert [item.image for item in dataset.items.values()] == [tmp_path / "photos" / "a.jpg"]


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("https://bucket.example/fruit/a%20b.jpg?sig=1", "a b.jpg"),
        ("/data/upload/3/0a1b2c3d-a_b.jpg", "a b.jpg"),  # stored without the blank
        ("s3://bucket/x/a.jpg", "a.jpg"),
        ("/data/local-files/?d=one%2Fc%23.jpg", "c#.jpg"),
        ("http://localhost:8080/data/local-files/?d=one/a.jpg", "a.jpg"),
        ("C:\\photos\\a.jpg", "a.jpg"),
        ("c#.jpg", "c#.jpg"),
        ("sub/deadbeef-a.jpg", "deadbeef-a.jpg"),
    ],
)
def test_images_are_found_by_their_names(tmp_path: Path, reference: str, file: str) -> None:
    for seed, name in enumerate(("a b.jpg", "a.jpg", "c#.jpg", "deadbeef-a.jpg")):
        write_image(tmp_path / "photos" / name, seed=seed)
    dataset = opened(tmp_path, [task(reference, [])])
    assert [item.image.name for item in dataset.items.values()] == [file]


def test_folders_decide_between_images_of_the_same_name(tmp_path: Path) -> None:
    for folder in ("mon", "tue"):
        write_image(tmp_path / folder / "a.jpg")
    dataset = opened(
        tmp_path,
        [task("http://host/day/mon/a.jpg", [], id=1), task("tue/a.jpg", [], id=2), task("a.jpg", [], id=3)],
    )
    assert dataset.names == ("mon/a", "tue/a")
    assert "several images are called 'a.jpg'" in dataset.problems[0].message
    write_image(tmp_path / "a.jpg")  # the path from the folder is exact
    dataset = opened(tmp_path, [task("a.jpg", [])])
    assert [item.image for item in dataset.items.values()] == [tmp_path / "a.jpg"]
