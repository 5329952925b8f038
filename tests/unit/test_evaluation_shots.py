import json
from pathlib import Path

import numpy as np
import pytest

from models.data.sources import DataSource
from models.errors import DataError
from models.evaluation.data_sets import data_sets
from models.evaluation.errors import CannotEvaluate
from models.evaluation.shots import END_OF_SEEDS, rendered_set
from models.synthetic.output import write_sample
from models.training.unet_data import FIRST_TRAINING_SEED, FIRST_VALIDATION_SEED
from tests.knowing_unet import discs

PARTS = {"train": ["a"], "val": ["b"], "test": ["c", "d"], "extra_test": ["e"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of five images with a split file."""
    path = tmp_path / "orchard"
    for name in "abcde":
        write_sample(path, discs((100, 100, 40), (220, 100, 50), name=name))
    (path / "split.json").write_text(json.dumps(PARTS))
    return path


def test_the_test_part_and_the_extra_one_are_sets_of_their_own(folder: Path) -> None:
    test, extra = data_sets([DataSource(folder)], (), progress=False)
    assert (test.name, test.names) == ("orchard-test", ("c", "d"))
    assert (extra.name, extra.names) == ("orchard-extra_test", ("e",))
    assert test.told_apart
    assert [shot.sample.name for shot in test] == ["c", "d"]
    assert "healthy and infected" in test.description


def test_a_set_without_an_extra_part_has_one_group(folder: Path) -> None:
    (folder / "split.json").write_text(json.dumps({"train": ["a"], "val": ["b"], "test": ["c"]}))
    assert [each.name for each in data_sets([DataSource(folder)], (), progress=False)] == ["orchard-test"]


def test_parts_can_be_named_and_all_is_every_image(folder: Path) -> None:
    val, everything = data_sets([DataSource(folder)], ("val", "all"), progress=False)
    assert val.names == ("b",)
    assert everything.names == tuple("abcde")
    with pytest.raises(DataError, match="'exam'"):
        data_sets([DataSource(folder)], ("exam",), progress=False)


def test_all_broken_images_of_a_part_are_named_before_anything_is_measured(folder: Path) -> None:
    for name in "ce":
        (folder / "images" / f"{name}.jpg").write_bytes(b"\xff\xd8\xff no image " + name.encode())
    with pytest.raises(DataError, match=r"1 images of .*\n.*c\.jpg"):
        data_sets([DataSource(folder)], ("test",), progress=False)
    with pytest.raises(DataError, match=r"2 images of .*\n.*c\.jpg.*\n.*e\.jpg"):
        data_sets([DataSource(folder)], ("all",), progress=False)


def test_classes_that_are_grades_can_be_read_as_fruit(folder: Path) -> None:
    (graded,) = data_sets([DataSource(folder, {"1": "fruit", "2": "fruit"})], ("test",), progress=False)
    assert "fruit from background" in graded.description


def test_without_instances_fruits_are_not_told_apart(folder: Path) -> None:
    for file in (folder / "instances").iterdir():
        file.unlink()
    (folder / "instances").rmdir()
    (test,) = data_sets([DataSource(folder)], ("test",), progress=False)
    assert not test.told_apart


def test_two_sets_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(CannotEvaluate, match="orchard"):
        data_sets([DataSource(folder), DataSource(folder)], (), progress=False)


def test_rendered_scenes_are_of_several_sizes_and_what_their_files_hold() -> None:
    shots = list(rendered_set(5))
    sizes = [shot.sample.size for shot in shots]
    assert len(set(sizes)) == 4
    assert sizes[0] == sizes[4]
    assert len({shot.data for shot in shots}) == 5
    for shot, again in zip(shots, rendered_set(5), strict=True):
        assert shot.data == again.data
        assert np.array_equal(shot.sample.pixels, again.sample.pixels)
        assert shot.sample.instance_map is not None
        assert shot.sample.instance_map.shape == shot.sample.semantic.shape == shot.sample.pixels.shape[:2]


def test_scenes_to_measure_on_are_none_of_those_to_train_or_validate_on() -> None:
    assert min(FIRST_TRAINING_SEED, FIRST_VALIDATION_SEED) >= END_OF_SEEDS
    assert max(map(int, rendered_set(1000).names)) < END_OF_SEEDS
    for count in (0, END_OF_SEEDS + 1):
        with pytest.raises(CannotEvaluate):
            rendered_set(count)
