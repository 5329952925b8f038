from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.backends.base import normalise
from models.data.samples import Instance, Sample
from models.letterbox import letterbox_for
from models.training.errors import CannotTrain
from models.training.sam_data import (
    PromptBatch,
    Tasks,
    TrainingImage,
    fruits_of,
    load_embedding,
    load_images,
    next_prompts,
)
from models.types import PixelClass, Size
from tests.tiny_sam import SIDE, ColourEncoder, scene, tiny_store, write_image, write_scenes

SCENE = scene(0)


def test_an_embedding_is_computed_once_for_each_content(tmp_path: Path) -> None:
    encoder = ColourEncoder()
    store = tiny_store(tmp_path, encoder)
    letterbox, file = store.ensure(SCENE.pixels)
    assert store.ensure(SCENE.pixels.copy()) == (letterbox, file)
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


def test_an_embedding_is_read_as_the_encoder_computed_it(tmp_path: Path) -> None:
    encoder = ColourEncoder()
    letterbox, file = tiny_store(tmp_path, encoder).ensure(SCENE.pixels)
    assert letterbox == letterbox_for(SCENE.size, SIDE, "none")
    (expected,) = encoder.encode([normalise(SCENE.pixels, letterbox.padded)])
    kept = load_embedding(file)
    assert kept.dtype == torch.float32
    # float16 keeps 11 bits.
    torch.testing.assert_close(kept, torch.as_tensor(expected), rtol=2**-11, atol=1e-6)


def test_a_damaged_embedding_is_reported_by_name(tmp_path: Path) -> None:
    _, file = tiny_store(tmp_path, ColourEncoder()).ensure(SCENE.pixels)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CannotTrain, match=rf"{file.name}.*delete it"):
        load_embedding(file)


def one_fruit(
    mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]], semantic_class: int = PixelClass.HEALTHY
) -> Sample:
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    return Sample(
        "one",
        np.zeros((*mask.shape, 3), np.uint8),
        np.where(mask, semantic_class, PixelClass.BACKGROUND).astype(np.uint8),
        (Instance(7, box, PixelClass.HEALTHY),),
        np.where(mask, 7, 0).astype(np.uint16),
    )


def test_a_fruit_keeps_its_place_and_share_at_the_models_resolution() -> None:
    mask = np.zeros((512, 1024), np.bool_)
    mask[100:300, 400:700] = True
    (fruit,) = fruits_of(one_fruit(mask), letterbox_for(Size(512, 1024), 256))
    assert fruit.box == (100, 25, 175, 75)
    assert fruit.mask.all()
    ys, xs = np.ogrid[:512, :1024]
    disc = (ys - 200) ** 2 + (xs - 500) ** 2 < 150**2
    (fruit,) = fruits_of(one_fruit(disc), letterbox_for(Size(512, 1024), 256))
    # A sixteenth of the pixels; the edge's 240 are rounded either way.
    assert np.count_nonzero(fruit.mask) == pytest.approx(np.count_nonzero(disc) / 16, rel=0.01)


def test_ignored_pixels_are_not_part_of_a_fruit() -> None:
    mask = np.zeros((128, 192), np.bool_)
    mask[20:80, 40:100] = True
    sample = one_fruit(mask)
    half = sample.semantic.copy()
    half[:, 70:] = PixelClass.IGNORE
    sample = replace(sample, semantic=half)
    (fruit,) = fruits_of(sample, letterbox_for(sample.size, SIDE))
    assert fruit.box == (40, 20, 70, 80)


def test_fruits_smaller_than_a_logit_are_left_out() -> None:
    mask = np.zeros((128, 192), np.bool_)
    mask[10:13, 10:15] = True
    letterbox = letterbox_for(Size(128, 192), SIDE)
    assert fruits_of(one_fruit(mask), letterbox) == ()
    mask[13, 10] = True
    assert len(fruits_of(one_fruit(mask), letterbox)) == 1


def test_images_without_separate_fruits_are_rejected(tmp_path: Path) -> None:
    source = write_image(tmp_path, replace(SCENE, instances=(), instance_map=None))
    with pytest.raises(CannotTrain, match=r"must separate fruits.*'instances' beside 'masks'"):
        load_images(source.dataset, source.train, tiny_store(tmp_path / "store", ColourEncoder()))


def test_images_without_fruit_teach_nothing_and_alone_are_rejected(tmp_path: Path) -> None:
    bare = replace(
        SCENE,
        semantic=np.zeros_like(SCENE.semantic),
        instances=(),
        instance_map=np.zeros((SCENE.size.height, SCENE.size.width), np.uint16),
    )
    store = tiny_store(tmp_path / "store", ColourEncoder())
    without, some = (write_image(tmp_path / name, each) for name, each in (("bare", bare), ("some", SCENE)))
    nothing, fruits = (load_images(each.dataset, each.train, store) for each in (without, some))
    assert Tasks.of([(nothing, 1.0), (fruits, 1.0)], batch=16, seed=0).steps == 1
    with pytest.raises(CannotTrain, match="must show a fruit"):
        Tasks.of([(nothing, 1.0)], batch=16, seed=0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingImage, ...]:
    """Landscape and portrait images, whose letterboxes cannot share a batch."""
    found: list[TrainingImage] = []
    for name, size in (("landscape", Size(128, 192)), ("portrait", Size(256, 120))):
        folder: Path = tmp_path_factory.mktemp(name)
        source = write_scenes(folder, 4, size)
        found += load_images(source.dataset, source.train, tiny_store(folder, ColourEncoder()))
    return tuple(found)


def test_every_prompt_is_on_its_own_fruit(images: tuple[TrainingImage, ...]) -> None:
    kinds = Counter[str]()
    for epoch in range(4):
        for batch in Tasks.of([(images, 1.0)], batch=5, seed=0).batches(epoch):
            assert len({(letterbox.side, letterbox.padded) for letterbox in batch.letterboxes}) == 1
            for row, (prompt, letterbox) in enumerate(zip(batch.prompts, batch.letterboxes, strict=True)):
                truth = batch.truth[row].numpy()
                if prompt.box is None:
                    ((x, y),) = letterbox.to_model([(point.x, point.y) for point in prompt.points]).round().astype(int)
                    assert truth[y, x]
                    kinds["point"] += 1
                else:
                    corners = letterbox.to_model([(prompt.box.x0, prompt.box.y0), (prompt.box.x1, prompt.box.y1)])
                    ys, xs = np.nonzero(truth)
                    tight = np.array([(xs.min(), ys.min()), (xs.max() + 1, ys.max() + 1)])
                    assert np.abs(corners - tight).max() <= 20 * letterbox.side / 1024 + 1e-6
                    kinds["box"] += 1
    # Half of about 70 each; five standard deviations.
    assert abs(kinds["box"] / kinds.total() - 0.5) < 0.3


def content(batch: PromptBatch) -> tuple[object, ...]:
    return batch.prompts, batch.image_index.tolist(), batch.embeddings.sum().item()


def test_equal_epochs_are_equal_and_others_differ(images: tuple[TrainingImage, ...]) -> None:
    tasks = Tasks.of([(images, 1.0)], batch=4, seed=7)
    first, again, later = (list(map(content, tasks.batches(epoch))) for epoch in (0, 0, 1))
    other = list(map(content, Tasks.of([(images, 1.0)], batch=4, seed=8).batches(0)))
    assert first == again
    assert first != later
    assert first != other
    assert len(first) == len(later) == tasks.steps


def test_an_epoch_has_every_fruit_as_often_as_its_weight_says(images: tuple[TrainingImage, ...]) -> None:
    once, thrice, never = images[:1], images[1:2], images[2:3]
    tasks = Tasks.of([(once, 1.0), (thrice, 3.0), (never, 0.0)], batch=4, seed=0)
    seen = Counter[float]()
    for batch in tasks.batches(0):
        for index in batch.image_index.tolist():
            seen[batch.embeddings[index].sum().item()] += 1
    assert sorted(seen.values()) == [len(once[0].fruits), 3 * len(thrice[0].fruits)]


def test_the_next_round_adds_the_answer_and_a_click_on_an_error(images: tuple[TrainingImage, ...]) -> None:
    batch = next(iter(Tasks.of([(images[:3], 1.0)], batch=8, seed=0).batches(0)))
    guesses = torch.randn(len(batch.prompts), *(length // 4 for length in batch.truth.shape[1:]))
    nothing = torch.zeros_like(batch.truth)
    for before, after, logits in zip(
        batch.prompts, next_prompts(batch, batch.prompts, guesses, nothing), guesses, strict=True
    ):
        assert after.box == before.box
        assert after.points[:-1] == before.points
        assert after.points[-1].label == 1
        assert after.mask is not None
        np.testing.assert_array_equal(after.mask, logits.numpy())
    perfect = next_prompts(batch, batch.prompts, guesses, batch.truth)
    assert [each.points for each in perfect] == [each.points for each in batch.prompts]
    everything = next_prompts(batch, batch.prompts, guesses, torch.ones_like(batch.truth))
    assert {each.points[-1].label for each in everything} == {0}
