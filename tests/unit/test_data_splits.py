import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.dataset import ClassMap, Dataset
from models.data.sources import open_dataset
from models.data.splits import Split, data_hash, read_split, split_by_content, write_split
from models.errors import DataError
from tests.annotated import square, task, write_image, write_index, write_json


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty small images; `copy_7` is the same image as `p07` under another name."""
    root = tmp_path_factory.mktemp("set")
    for number in range(60):
        write_image(root / "images" / f"p{number:02}.png", 4, 4, seed=number)
        write_index(root / "masks" / f"p{number:02}.png", np.zeros((4, 4), np.uint8))
    for folder in ("images", "masks"):
        (root / folder / "copy_7.png").write_bytes((root / folder / "p07.png").read_bytes())
    return open_dataset(root)


def part_of(split: Split, name: str) -> str:
    (part,) = [part for part, names in split.parts.items() if name in names]
    return part


@settings(deadline=None)
@given(validation=st.floats(0, 0.49), test=st.floats(0, 0.49))
def test_parts_share_nothing_and_copies_stay_together(dataset: Dataset, validation: float, test: float) -> None:
    split = split_by_content(dataset, validation=validation, test=test)
    assert sorted(name for names in split.parts.values() for name in names) == list(dataset.names)
    assert part_of(split, "copy_7") == part_of(split, "p07")


def test_an_image_falls_where_its_bytes_say(dataset: Dataset) -> None:
    split = split_by_content(dataset, validation=0.25, test=0.25)
    for name in dataset.names:
        share = int.from_bytes(hashlib.sha256(dataset.items[name].image.read_bytes()).digest()[:8], "big") / 2**64
        assert part_of(split, name) == ("test" if share < 0.25 else "val" if share < 0.5 else "train")
    assert all(split.of(part) for part in ("train", "val", "test"))


def test_images_stay_in_their_part_when_others_are_added(dataset: Dataset) -> None:
    fewer = Dataset(dataset.kind, dataset.root, {name: dataset.items[name] for name in dataset.names[::2]}, ())
    whole = split_by_content(dataset)
    for name in fewer.names:
        assert part_of(split_by_content(fewer), name) == part_of(whole, name)


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.2, -0.1), (float("nan"), 0.1)])
def test_shares_that_leave_nothing_to_train_on_are_rejected(dataset: Dataset, validation: float, test: float) -> None:
    with pytest.raises(DataError, match="leave something to train on"):
        split_by_content(dataset, validation=validation, test=test)


def test_a_split_is_read_as_it_was_written(dataset: Dataset, tmp_path: Path) -> None:
    split = split_by_content(dataset)
    write_split(tmp_path / "split.json", split)
    assert read_split(tmp_path / "split.json", dataset) == split


def test_a_file_may_have_other_parts_and_leave_images_out(dataset: Dataset, tmp_path: Path) -> None:
    file = write_json(tmp_path / "split.json", {"train": ["p02", "p01"], "extra": ["p03"], "val": []})
    split = read_split(file, dataset)
    assert split.of("train") == ("p01", "p02")
    assert split.of("extra") == ("p03",)
    assert len(split.unused) == 61 - 3
    for part in ("val", "test"):
        with pytest.raises(DataError, match=f"no images for '{part}'"):
            split.of(part)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"train": ["p01"], "test": ["p01"]}, "'p01' is in 'train' and in 'test'"),
        ({"train": ["p07"], "val": ["copy_7"]}, "'copy_7', the same image as 'p07', is in 'train' and in 'val'"),
        ({"train": ["p01", "gone"]}, "1 names are not in the set: gone"),
        ({"train": "p01"}, "object of lists of names"),
        ([1], "object of lists of names"),
    ],
)
def test_a_split_with_shared_or_unknown_images_is_rejected(
    dataset: Dataset, tmp_path: Path, content: object, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        read_split(write_json(tmp_path / "split.json", content), dataset)


def test_a_missing_split_file_is_reported(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_split(tmp_path / "split.json", dataset)


def test_the_data_hash_is_of_the_contents_in_any_order(dataset: Dataset, tmp_path: Path) -> None:
    names = dataset.names[:5]
    whole = data_hash(dataset, names)
    assert data_hash(dataset, names[::-1]) == whole
    assert data_hash(dataset, names[:4]) != whole
    renamed = tmp_path / "renamed"
    for number, name in enumerate(reversed(names)):
        for folder in ("images", "masks"):
            (renamed / folder).mkdir(parents=True, exist_ok=True)
            (renamed / folder / f"{number}.png").write_bytes((dataset.root / folder / f"{name}.png").read_bytes())
    copied = open_dataset(renamed)
    assert data_hash(copied, copied.names) == whole
    write_index(renamed / "masks" / "0.png", np.ones((4, 4), np.uint8))
    assert data_hash(copied, copied.names) != whole
    write_image(renamed / "images" / "1.png", 4, 4, seed=99)
    changed = data_hash(copied, copied.names)
    assert changed != whole
    # A copy under another name counts twice, as it does in training.
    assert data_hash(dataset, ("p07", "copy_7")) != data_hash(dataset, ("p07",))
    with pytest.raises(DataError, match="no image 'gone'"):
        data_hash(dataset, ["gone"])


def test_the_data_hash_depends_on_annotations_but_not_on_class_maps(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")

    def hashed(label: str, classes: Mapping[str, str]) -> str:
        export = write_json(tmp_path / "x.json", [task("a.jpg", [square(label, 0, 0, 50, 50)])])
        dataset = open_dataset(export, classes=ClassMap.of(classes))
        return data_hash(dataset, dataset.names)

    assert hashed("Healthy", {}) == hashed("Healthy", {"Healthy": "fruit"})
    assert hashed("Healthy", {}) != hashed("Infected", {})
