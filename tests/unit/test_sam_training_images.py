from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.backends.base import normalise
from models.data.samples import Instance, Sample
from models.letterbox import letterbox_for
from models.training.errors import CannotTrain
from models.training.sam_embeddings import load_embedding
from models.training.sam_images import fruits_of, load_images
from models.types import PixelClass, Size
from tests.tiny_sam import SIDE, ColourEncoder, scene, tiny_store, write_image

SCENE = scene(0)


def test_an_embedding_is_computed_once_for_each_content(tmp_path: Path) -> None:
    encoder = ColourEncoder()
    store = tiny_store(tmp_path, encoder)
    frame, file = store.ensure(SCENE.pixels)
    assert store.ensure(SCENE.pixels.copy()) == (frame, file)
    assert tiny_store(tmp_path, encoder).ensure(SCENE.pixels)[1] == file
    assert encoder.encoded == 1
    changed = SCENE.pixels.copy()
    changed[5, 5] ^= 1
    others = {store.ensure(changed)[1], tiny_store(tmp_path, encoder, side=128).ensure(SCENE.pixels)[1]}
    others |= {
        tiny_store(tmp_path, encoder, padding="square").ensure(SCENE.pixels)[1],
        tiny_store(tmp_path, encoder, revision="ba9876543210").ensure(SCENE.pixels)[1],
    }
    assert len({file, *others}) == encoder.encoded == 5


def test_an_embedding_comes_back_as_the_encoder_gave_it(tmp_path: Path) -> None:
    encoder = ColourEncoder()
    frame, file = tiny_store(tmp_path, encoder).ensure(SCENE.pixels)
    assert frame == letterbox_for(SCENE.size, SIDE, "none")
    (expected,) = encoder.encode([normalise(SCENE.pixels, frame.padded)])
    kept = load_embedding(file)
    assert kept.dtype == torch.float32
    # float16 keeps 11 bits.
    torch.testing.assert_close(kept, torch.as_tensor(expected), rtol=2**-11, atol=1e-6)


def test_a_damaged_embedding_is_told_by_name(tmp_path: Path) -> None:
    _, file = tiny_store(tmp_path, ColourEncoder()).ensure(SCENE.pixels)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CannotTrain, match=rf"{file.name}.*delete it"):
        load_embedding(file)


def drawn(mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]], semantic_class: int = PixelClass.HEALTHY) -> Sample:
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    return Sample(
        "drawn",
        np.zeros((*mask.shape, 3), np.uint8),
        np.where(mask, semantic_class, PixelClass.BACKGROUND).astype(np.uint8),
        (Instance(7, box, PixelClass.HEALTHY),),
        np.where(mask, 7, 0).astype(np.uint16),
    )


def test_a_fruit_keeps_its_place_and_share_at_the_models_resolution() -> None:
    mask = np.zeros((512, 1024), np.bool_)
    mask[100:300, 400:700] = True
    (fruit,) = fruits_of(drawn(mask), letterbox_for(Size(512, 1024), 256))
    assert fruit.box == (100, 25, 175, 75)
    assert fruit.mask.all()
    ys, xs = np.ogrid[:512, :1024]
    disc = (ys - 200) ** 2 + (xs - 500) ** 2 < 150**2
    (fruit,) = fruits_of(drawn(disc), letterbox_for(Size(512, 1024), 256))
    # A sixteenth of the pixels; the edge's 240 are rounded either way.
    assert np.count_nonzero(fruit.mask) == pytest.approx(np.count_nonzero(disc) / 16, rel=0.01)


def test_what_is_ignored_is_no_part_of_a_fruit() -> None:
    mask = np.zeros((128, 192), np.bool_)
    mask[20:80, 40:100] = True
    sample = drawn(mask)
    half = sample.semantic.copy()
    half[:, 70:] = PixelClass.IGNORE
    sample = replace(sample, semantic=half)
    (fruit,) = fruits_of(sample, letterbox_for(sample.size, SIDE))
    assert fruit.box == (40, 20, 70, 80)


def test_what_is_smaller_than_a_cell_is_left_out() -> None:
    mask = np.zeros((128, 192), np.bool_)
    mask[10:13, 10:15] = True
    frame = letterbox_for(Size(128, 192), SIDE)
    assert fruits_of(drawn(mask), frame) == ()
    mask[13, 10] = True
    assert len(fruits_of(drawn(mask), frame)) == 1


def test_images_whose_fruits_are_not_told_apart_are_refused(tmp_path: Path) -> None:
    source = write_image(tmp_path, replace(SCENE, instances=(), instance_map=None))
    with pytest.raises(CannotTrain, match=r"does not tell fruits apart.*'instances' beside 'masks'"):
        load_images(source.dataset, source.train, tiny_store(tmp_path / "store", ColourEncoder()))


def test_images_without_fruit_teach_nothing(tmp_path: Path) -> None:
    bare = replace(
        SCENE,
        semantic=np.zeros_like(SCENE.semantic),
        instances=(),
        instance_map=np.zeros((SCENE.size.height, SCENE.size.width), np.uint16),
    )
    source = write_image(tmp_path, bare)
    with pytest.raises(CannotTrain, match="no image shows a fruit"):
        load_images(source.dataset, source.train, tiny_store(tmp_path / "store", ColourEncoder()))
