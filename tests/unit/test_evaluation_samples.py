import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.data.sources import DataSource
from models.errors import DataError
from models.evaluation.prompts import prompted_fruits
from models.evaluation.samples import END_OF_SEEDS, CannotEvaluate, data_sets, rendered_set
from models.sam.clicks import CAREFUL_USER, jittered_box
from models.synthetic.output import write_sample
from models.training.unet_data import FIRST_TRAINING_SEED, FIRST_VALIDATION_SEED
from models.types import PixelClass, Size
from tests.annotated import square, task, write_image, write_json
from tests.knowing_unet import discs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images with a split file."""
    path = tmp_path / "orchard"
    for name in "abcde":
        write_sample(path, discs((100, 100, 40), (220, 100, 50), name=name))
    parts = {"train": ["a"], "val": ["b"], "test": ["c", "d"], "extra_test": ["e"]}
    (path / "split.json").write_text(json.dumps(parts))
    return path


def test_the_parts_test_and_extra_test_are_sets_of_their_own(folder: Path) -> None:
    test, extra = data_sets([DataSource(folder)], (), progress=False)
    assert (test.name, test.names) == ("orchard-test", ("c", "d"))
    assert (extra.name, extra.names) == ("orchard-extra_test", ("e",))
    assert test.has_instances
    assert [image.sample.name for image in test] == ["c", "d"]
    assert "healthy and infected" in test.description
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


def test_faulty_regions_are_named_and_counted_and_strict_data_refused(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    regions = [square("Healthy", 10, 10, 50, 60), square("Healthy", 10, 10, 10, 60, id="flat")]
    write_image(folder / "photos" / "f.jpg", 80, 40)
    export = write_json(folder / "photos" / "export.json", [task("f.jpg", regions)])
    (everything,) = data_sets([DataSource(export)], ("all",), progress=False)
    assert "Faulty regions of 1 images are left out or ignored." in everything.description
    assert f"{folder / 'photos' / 'f.jpg'}: region flat: covers no pixel of the image" in caplog.text
    with pytest.raises(DataError, match="region flat: covers no pixel"):
        data_sets([DataSource(export, strict=True)], ("all",), progress=False)


def test_descriptions_say_what_the_annotation_distinguishes(folder: Path) -> None:
    (graded,) = data_sets([DataSource(folder, {"1": "fruit", "2": "fruit"})], ("test",), progress=False)
    assert "fruit and background" in graded.description
    for file in (folder / "instances").iterdir():
        file.unlink()
    (folder / "instances").rmdir()
    (test,) = data_sets([DataSource(folder)], ("test",), progress=False)
    assert not test.has_instances
    assert "does not separate fruits" in test.description


def test_two_data_sets_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(CannotEvaluate, match="orchard"):
        data_sets([DataSource(folder), DataSource(folder)], (), progress=False)


def test_rendered_scenes_have_several_sizes_and_are_reproducible() -> None:
    images = list(rendered_set(5))
    sizes = [image.sample.size for image in images]
    assert len(set(sizes)) == 4
    assert sizes[0] == sizes[4]
    assert len({image.data for image in images}) == 5
    for image, again in zip(images, rendered_set(5), strict=True):
        assert image.data == again.data
        assert np.array_equal(image.sample.pixels, again.sample.pixels)
        assert image.sample.instance_map is not None
        assert image.sample.instance_map.shape == image.sample.semantic.shape == image.sample.pixels.shape[:2]


def test_no_model_is_trained_or_validated_on_scenes_of_the_evaluation() -> None:
    assert min(FIRST_TRAINING_SEED, FIRST_VALIDATION_SEED) >= END_OF_SEEDS
    assert max(map(int, rendered_set(1000).names)) < END_OF_SEEDS
    for count in (0, END_OF_SEEDS + 1):
        with pytest.raises(CannotEvaluate):
            rendered_set(count)


def test_boxes_depend_on_the_seed_and_the_image_only() -> None:
    one, two = discs((60, 60, 30), (200, 100, 40), name="one"), discs((100, 100, 30), name="two")
    first = [each.by_box for each in prompted_fruits(one, 3)]
    prompted_fruits(two, 3)
    assert [each.by_box for each in prompted_fruits(one, 3)] == first
    assert [each.by_box for each in prompted_fruits(one, 4)] != first
    assert [each.by_box for each in prompted_fruits(replace(one, name="three"), 3)] != first


def test_each_side_of_a_box_moves_by_five_percent_of_its_length() -> None:
    rng = np.random.default_rng(0)
    boxes = [jittered_box((100, 80, 200, 120), Size(200, 300), rng) for _ in range(4000)]
    moves = np.array([(box.x0 - 100, box.y0 - 80, box.x1 - 200, box.y1 - 120) for box in boxes])
    lengths = np.array([100, 40, 100, 40])
    assert (np.abs(moves) <= CAREFUL_USER.most_deviations * CAREFUL_USER.deviation * lengths + 1e-9).all()
    # The standard deviation of a normal clipped at two of them is 0.96 of its own; 4000 samples show it within 5 %.
    assert moves.std(axis=0) == pytest.approx(0.96 * CAREFUL_USER.deviation * lengths, rel=0.05)
    assert moves.mean(axis=0) == pytest.approx(np.zeros(4), abs=0.3)


def test_boxes_stay_in_the_image_and_are_never_empty() -> None:
    rng = np.random.default_rng(1)
    for corners in ((0, 0, 300, 200), (299, 199, 300, 200), (0, 0, 1, 1), (0, 150, 300, 200)):
        for _ in range(200):
            box = jittered_box(corners, Size(200, 300), rng)
            assert 0 <= box.x0 <= box.x1 - 1 + 1e-9 <= 299 + 1e-9
            assert 0 <= box.y0 <= box.y1 - 1 + 1e-9 <= 199 + 1e-9


def test_a_click_is_at_the_innermost_visible_pixel() -> None:
    # The second disc hides the right half of the first, whose innermost pixel is then left of its centre.
    first, second = prompted_fruits(discs((100, 100, 40), (140, 100, 40)), 0)
    (one,), (other,) = first.by_point.points, second.by_point.points
    assert first.mask[int(one.y), int(one.x)]
    assert one.x < 90
    assert (other.x, other.y) == (140, 100)
    assert first.by_point.box is None


def test_ignored_and_merged_fruits_are_not_prompted() -> None:
    sample = discs((60, 60, 30), (200, 100, 40))
    assert sample.instance_map is not None
    semantic = np.where(sample.instance_map == 1, np.uint8(PixelClass.IGNORE), sample.semantic)
    (left,) = prompted_fruits(replace(sample, semantic=semantic), 0)
    assert left.by_box == prompted_fruits(sample, 0)[1].by_box
    assert prompted_fruits(replace(sample, instance_map=None), 0) == []
