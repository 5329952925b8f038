from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from models.sam.clicks import centre_of, click_on_error, jittered_box, point_within, training_jitter
from models.training.sam_batches import PromptBatch, Tasks, next_prompts
from models.training.sam_images import Image, load_images
from models.types import Size
from tests.tiny_sam import ColourEncoder, tiny_store, write_scenes

BOX = (300, 200, 360, 320)
SIZE = Size(768, 1024)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def jittered(
    box: tuple[int, int, int, int], size: Size, side: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    moved = jittered_box(box, size, rng, training_jitter(side))
    return moved.x0, moved.y0, moved.x1, moved.y1


def test_the_edges_of_a_box_move_by_a_tenth_of_its_sides() -> None:
    rng = generator()
    moved = np.array([jittered(BOX, SIZE, 1024, rng) for _ in range(4000)]) - BOX
    # 60 x 120 pixels; the limit of 20 pixels cuts the tails of the 12 off, to 10.9 (a normal clipped at 1.67 sigma).
    np.testing.assert_allclose(moved.std(axis=0), (6, 10.9, 6, 10.9), rtol=0.05)
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=0.6)


@pytest.mark.parametrize("side", [1024, 512])
def test_no_edge_of_a_box_moves_further_than_twenty_pixels_of_1024(side: int) -> None:
    rng = generator()
    moved = np.array([jittered((50, 50, 450, 350), Size(400, 500), side, rng) for _ in range(500)])
    furthest = np.abs(moved - (50, 50, 450, 350)).max()
    assert furthest == pytest.approx(20 * side / 1024)


def test_a_box_stays_in_the_image_and_is_never_empty() -> None:
    rng = generator()
    for box in ((0, 0, 1, 1), (1022, 766, 1024, 768), (0, 0, 1024, 768), (500, 0, 502, 768)):
        for _ in range(300):
            x0, y0, x1, y1 = jittered(box, SIZE, 1024, rng)
            assert 0 <= x0 < x1 <= SIZE.width
            assert 0 <= y0 < y1 <= SIZE.height
            assert min(x1 - x0, y1 - y0) == pytest.approx(1) or min(x1 - x0, y1 - y0) > 1


def test_points_fall_on_every_pixel_of_the_mask_alike_and_on_no_other() -> None:
    mask = np.array([[0, 1, 0], [0, 1, 1]], np.bool_)
    rng = generator()
    counts = Counter(point_within(mask, rng) for _ in range(3000))
    assert counts.keys() == {(1, 0), (1, 1), (2, 1)}
    # Standard deviation of each count: 26.
    assert all(abs(count - 1000) < 110 for count in counts.values())


def test_the_centre_is_in_the_mask_where_the_centroid_is_not() -> None:
    ring = np.zeros((9, 20), np.bool_)
    ring[:, :5] = ring[:, -3:] = True
    assert centre_of(ring) == (2, 2)
    assert centre_of(np.ones((5, 5), np.bool_)) == (2, 2)


def test_a_click_lands_where_prediction_and_truth_differ_and_says_how() -> None:
    truth = np.array([[1, 1, 0, 0, 1]], np.bool_)
    predicted = np.array([[1, 0, 0, 1, 0]], np.bool_)
    counted = np.array([[1, 1, 1, 1, 0]], np.bool_)
    rng = generator()
    clicks = {click_on_error(predicted, truth, counted, rng) for _ in range(50)}
    assert clicks == {(1, 0, True), (3, 0, False)}
    assert click_on_error(truth, truth, counted, rng) is None


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, ...]:
    """Lying and standing ones: their frames cannot share a batch."""
    found: list[Image] = []
    for name, size in (("lying", Size(128, 192)), ("standing", Size(256, 120))):
        folder: Path = tmp_path_factory.mktemp(name)
        source = write_scenes(folder, 4, size)
        found += load_images(source.dataset, source.train, tiny_store(folder, ColourEncoder()))
    return tuple(found)


def test_every_prompt_asks_for_its_own_fruit(images: tuple[Image, ...]) -> None:
    kinds = Counter[str]()
    for epoch in range(6):
        for batch in Tasks.of([(images, 1.0)], batch=5, seed=0).batches(epoch):
            assert len({(frame.side, frame.padded) for frame in batch.frames}) == 1
            for row, (prompt, frame) in enumerate(zip(batch.prompts, batch.frames, strict=True)):
                truth = batch.truth[row].numpy()
                if prompt.box is None:
                    ((x, y),) = frame.to_model([(point.x, point.y) for point in prompt.points]).round().astype(int)
                    assert truth[y, x]
                    kinds["point"] += 1
                else:
                    corners = frame.to_model([(prompt.box.x0, prompt.box.y0), (prompt.box.x1, prompt.box.y1)])
                    ys, xs = np.nonzero(truth)
                    tight = np.array([(xs.min(), ys.min()), (xs.max() + 1, ys.max() + 1)])
                    assert np.abs(corners - tight).max() <= 20 * frame.side / 1024 + 1e-6
                    kinds["box"] += 1
    # Half of about 100 each; six standard deviations.
    assert abs(kinds["box"] / kinds.total() - 0.5) < 0.3


def content(batch: PromptBatch) -> tuple[object, ...]:
    return batch.prompts, batch.image_index.tolist(), batch.embeddings.sum().item()


def test_an_epoch_is_the_same_whenever_it_is_asked_for_and_no_two_are_alike(images: tuple[Image, ...]) -> None:
    tasks = Tasks.of([(images, 1.0)], batch=4, seed=7)
    first, again, later = (list(map(content, tasks.batches(epoch))) for epoch in (0, 0, 1))
    other = list(map(content, Tasks.of([(images, 1.0)], batch=4, seed=8).batches(0)))
    assert first == again
    assert first != later
    assert first != other
    assert len(first) == len(later) == tasks.steps


def test_an_epoch_has_every_fruit_as_often_as_its_weight_says(images: tuple[Image, ...]) -> None:
    once, thrice, never = images[:1], images[1:2], images[2:3]
    tasks = Tasks.of([(once, 1.0), (thrice, 3.0), (never, 0.0)], batch=4, seed=0)
    seen = Counter[float]()
    for batch in tasks.batches(0):
        for index in batch.image_index.tolist():
            seen[batch.embeddings[index].sum().item()] += 1
    assert sorted(seen.values()) == [len(once[0].fruits), 3 * len(thrice[0].fruits)]


def test_the_next_round_brings_the_guess_and_a_click_where_it_was_wrong(images: tuple[Image, ...]) -> None:
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
