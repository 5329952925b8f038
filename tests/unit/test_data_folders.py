from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from models.data.dataset import ClassMap, Dataset
from models.data.sources import open_dataset
from models.data.splits import read_split
from models.errors import DataError
from models.types import PixelClass
from tests.annotated import FRUIT, needs_real_fruit, write_image, write_index, write_json

MASK = np.zeros((40, 80), np.uint8)
MASK[4:24, 8:40] = 1
MASK[10:14, 10:20] = 2

AS_FRUIT = ClassMap.of({"1": "fruit", "2": "fruit"})


def opened(root: Path, classes: ClassMap | None = None) -> Dataset:
    return open_dataset(root, classes=classes)


def test_index_masks_are_read_and_without_separate_fruits(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_index(tmp_path / "masks" / "a.png", MASK)
    sample = opened(tmp_path).load("a")
    assert (sample.semantic == MASK).all()  # 0, 1, 2 are the pixel classes' own numbers
    assert sample.semantic.dtype == np.uint8
    assert sample.instances == ()
    assert sample.instance_map is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_instances_of_8_or_16_bits_are_read(tmp_path: Path, dtype: type[np.uint8 | np.uint16]) -> None:
    numbers: NDArray[np.uint8 | np.uint16] = np.zeros((40, 80), dtype)
    numbers[4:24, 8:25] = 3
    numbers[4:24, 25:40] = 200 if dtype is np.uint8 else 40_000
    write_image(tmp_path / "images" / "a.jpg")
    write_index(tmp_path / "masks" / "a.png", MASK)
    write_index(tmp_path / "instances" / "a.png", numbers)
    sample = opened(tmp_path).load("a")
    assert [(each.id, each.box, each.pixel_class) for each in sample.instances] == [
        (3, (8, 4, 25, 24), PixelClass.INFECTED),
        (int(numbers.max()), (25, 4, 40, 24), PixelClass.HEALTHY),
    ]
    assert sample.instance_map is not None
    assert sample.instance_map.dtype == np.uint16
    assert (sample.instance_map == numbers).all()


def test_values_are_mapped_by_the_class_map(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    mask = MASK.astype(np.uint16)
    mask[0, 0] = 1000
    write_index(tmp_path / "masks" / "a.png", mask)
    sample = opened(tmp_path, ClassMap.of({"1": "fruit", "2": "Infected", "1000": "ignore"})).load("a")
    assert (sample.semantic[MASK == 1] == PixelClass.FRUIT).all()
    assert (sample.semantic[MASK == 2] == PixelClass.INFECTED).all()
    assert sample.semantic[0, 0] == PixelClass.IGNORE


def test_a_value_that_is_not_listed_is_reported(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_index(tmp_path / "masks" / "a.png", np.where(MASK == 2, 3, MASK).astype(np.uint8))
    known = r"0 background, 1 healthy, 2 infected, 255 ignore"
    with pytest.raises(DataError, match=rf"outside the class map: 3 \(it has {known}\)"):
        opened(tmp_path).load("a")


def test_255_is_unknown_and_inside_a_fruit_only_its_health_is(tmp_path: Path) -> None:
    mask = MASK.copy()
    mask[20:24, 30:60] = 255  # over the fruit's lower right corner, and beyond it
    for name, folder in (("a", tmp_path / "with"), ("a", tmp_path / "without")):
        write_image(folder / "images" / f"{name}.jpg")
        write_index(folder / "masks" / f"{name}.png", mask)
    write_index(tmp_path / "with" / "instances" / "a.png", (MASK > 0).astype(np.uint8))
    separated, plain = (opened(tmp_path / folder).load("a").semantic for folder in ("with", "without"))
    assert set(plain[20:24, 30:60].ravel()) == {PixelClass.IGNORE}
    assert set(separated[20:24, 30:40].ravel()) == {PixelClass.FRUIT}
    assert set(separated[20:24, 40:60].ravel()) == {PixelClass.IGNORE}
    assert (separated[mask != 255] == mask[mask != 255]).all()


def test_kinds_of_images_are_read_from_meta_json(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_image(tmp_path / "images" / f"{name}.jpg")
        write_index(tmp_path / "masks" / f"{name}.png", MASK)
    meta = tmp_path / "meta.json"
    meta.write_text('{"a": {"kind": "tree", "size": [40, 80]}, "c": {"size": [40, 80]}, "gone": {"kind": "tree"}}')
    dataset = opened(tmp_path)
    assert dataset.groups == {"a": "tree"}
    assert dataset.grouped(dataset.names) == {"": ("b", "c"), "tree": ("a",)}
    for content, message in (("[1]", "must be a JSON object"), ("{", "JSON"), ('{"a": {"kind": "a/b"}}', "got 'a/b'")):
        meta.write_text(content)
        with pytest.raises(DataError, match=message):
            opened(tmp_path)


def test_palette_and_one_bit_masks_are_index_masks(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    (tmp_path / "masks").mkdir()
    image = PIL.Image.fromarray(MASK).convert("P")
    image.putpalette([0, 0, 0, 0, 255, 0, 255, 0, 0])
    image.save(tmp_path / "masks" / "a.png")
    assert (opened(tmp_path).load("a").semantic == MASK).all()
    PIL.Image.fromarray(MASK > 0).save(tmp_path / "masks" / "a.png")
    assert (opened(tmp_path).load("a").semantic == (MASK > 0)).all()


def test_masks_that_do_not_fit_are_reported_file_by_file(tmp_path: Path) -> None:
    for name in "abcdefg":
        write_image(tmp_path / "images" / f"{name}.jpg", orientation=6 if name == "e" else 1)
        write_index(tmp_path / "masks" / f"{name}.png", MASK)
        write_index(tmp_path / "instances" / f"{name}.png", (MASK > 0).astype(np.uint8))
    write_index(tmp_path / "masks" / "b.png", MASK[:-1])
    write_index(tmp_path / "masks" / "c.png", np.repeat(MASK[..., None], 3, 2))
    (tmp_path / "masks" / "d.png").write_bytes(b"mask")
    write_index(tmp_path / "instances" / "f.png", np.ones_like(MASK))
    (tmp_path / "instances" / "g.png").unlink()
    (tmp_path / "images" / "h.jpg").write_bytes((tmp_path / "images" / "a.jpg").read_bytes())
    write_index(tmp_path / "masks" / "i.png", MASK)
    write_image(tmp_path / "images" / "a.png")
    dataset = opened(tmp_path)
    problems = {each.file.name: each.message for each in dataset.check(progress=False)}
    for file, part in {
        "b.jpg": "masks/b.png has 80 x 39 pixels, but the upright image has 80 x 40",
        "c.jpg": "must be an index PNG, has mode RGB",
        "d.jpg": "masks/d.png cannot be read: The 4 bytes",
        "e.jpg": "has 80 x 40 pixels, but the upright image has 40 x 80",
        "f.jpg": "are background in the mask",
        "g.jpg": "has no instances",
        "h.jpg": "has no mask",
        "i.png": "without an image",
        "a.png": "shares its mask with a.jpg",
    }.items():
        assert part in problems.pop(file)
    assert not problems
    assert dataset.names == ("a", "b", "c", "d", "e", "f")


def test_folders_within_are_searched_and_name_what_is_not_unique(tmp_path: Path) -> None:
    for name in ("mon/a", "tue/a", "tue/b"):
        write_image(tmp_path / "images" / f"{name}.jpg")
        write_index(tmp_path / "masks" / f"{name}.png", MASK)
    assert opened(tmp_path).names == ("b", "mon/a", "tue/a")


@pytest.mark.parametrize(("image", "mask"), [("p\u00eache", "pe\u0302che"), ("pe\u0302che", "p\u00eache")])
def test_masks_kinds_and_parts_are_found_in_any_unicode_form(tmp_path: Path, image: str, mask: str) -> None:
    write_image(tmp_path / "images" / image / f"{image}.jpg")
    write_index(tmp_path / "masks" / mask / f"{mask}.png", MASK)
    write_index(tmp_path / "instances" / mask / f"{mask}.png", (MASK > 0).astype(np.uint8))
    write_json(tmp_path / "meta.json", {mask: {"kind": "tree"}})
    dataset = opened(tmp_path)
    assert dataset.check(progress=False) == ()
    assert dataset.names == ("p\u00eache",)
    assert dataset.groups == {"p\u00eache": "tree"}
    split = read_split(write_json(tmp_path / "split.json", {"train": [mask]}), dataset)
    assert split.of("train") == dataset.names


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write_image(tmp_path / "disk" / "mon" / "a.jpg")
    write_index(tmp_path / "labels" / "mon" / "a.png", MASK)
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "images" / "mon").symlink_to(tmp_path / "disk" / "mon")
    (root / "masks" / "mon").symlink_to(tmp_path / "labels" / "mon")
    dataset = opened(root)
    assert dataset.check(progress=False) == ()
    assert dataset.names == ("a",)


def test_a_folder_without_images_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="not a folder"):
        opened(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no images"):
        opened(tmp_path)


def test_words_that_are_not_a_class_are_rejected() -> None:
    with pytest.raises(DataError, match=r"class '1' must be mapped to one of background, healthy, .* got 'rotten'"):
        ClassMap.of({"1": "rotten"})


@needs_real_fruit
def test_real_photographs_are_all_read() -> None:
    dataset = opened(FRUIT, AS_FRUIT)
    assert dataset.check(progress=False) == ()
    assert len(dataset) == 165
    sample = dataset.load("mandarin_032")
    assert {each.pixel_class for each in sample.instances} == {PixelClass.FRUIT}
    assert (44, 529, 197, 690) in [each.box for each in sample.instances]  # as its boxes.json says
    parts = read_split(FRUIT / "split.json", dataset)
    assert {part: len(names) for part, names in parts.parts.items()} == {
        "train": 84,
        "val": 19,
        "test": 24,
        "extra_test": 38,
    }
    assert parts.unused == ()
