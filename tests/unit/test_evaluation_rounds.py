"""Simulated clicks on masks drawn by hand: where each click falls, what is sent with it, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models.backends.load import ModelStore
from models.data.samples import Instance, Sample
from models.errors import DataError
from models.evaluation.candidates import SamCandidate, SamSetup
from models.evaluation.everything import measure_everything
from models.evaluation.loading import Loader, Selection, load_sams
from models.evaluation.rounds import (
    BEST_OF_THREE,
    PlayedImage,
    clicks_until,
    measure_rounds,
    play,
    reached,
    rounds_measures,
)
from models.evaluation.samples import ImageSet
from models.masks import bounding_box
from models.types import BinaryMask, Mask, PixelClass, Point, Prompt
from tests.fakes import LOADED, SIZE, DecodeCall, FakeSam
from tests.knowing_unet import encoded
from tests.tiny_sam2 import SIDE, write_checkpoint, write_models_file

COUNTED = np.ones((40, 70), np.bool_)


def area(*boxes: tuple[int, int, int, int]) -> BinaryMask:
    mask = np.zeros_like(COUNTED)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def mask_of(pixels: BinaryMask, number: int = 0) -> Mask:
    """Return a mask whose logits name the answer that it came with."""
    logits = np.full((2, 2), number, np.float32)
    return Mask(pixels, logits, 0.9, 1.0, bounding_box(pixels), int(pixels.sum()))


class Scripted:
    """A model that answers the first, second, … click on an object with the masks of its script.

    An object is known by its first click. A first click gets two more masks, given apart.
    """

    def __init__(self, *others: BinaryMask, **scripts: Sequence[BinaryMask]) -> None:
        self.others = others
        self.scripts = {tuple(map(int, key.strip("_").split("_"))): masks for key, masks in scripts.items()}
        self.rounds: list[list[Prompt]] = []

    def __call__(self, prompts: Sequence[Prompt]) -> list[list[Mask]]:
        self.rounds.append(list(prompts))
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> list[Mask]:
        first = prompt.points[0]
        script = self.scripts[int(first.x), int(first.y)]
        turn = len(prompt.points)
        answer = mask_of(script[min(turn, len(script)) - 1], turn)
        return [answer, *(mask_of(each) for each in self.others)] if prompt.multimask else [answer]


WHOLE = area((10, 10, 30, 30), (50, 12, 56, 18))  # 436 pixels, first clicked at 19, 19
BODY = area((10, 10, 30, 30))
HARD = area((60, 30, 64, 34))  # first clicked at 61, 31
SCRIPTS = {
    # Too large at 40, 30 by 8 x 8 pixels, then without the piece, then perfect.
    "_19_19": [BODY | area((40, 30, 48, 38)), BODY, WHOLE],
    "_61_31": [area()],
}


def test_each_click_is_at_the_centre_of_the_largest_error_and_carries_the_logits_before() -> None:
    model = Scripted(WHOLE, area(), **SCRIPTS)
    played = play(model, [WHOLE], COUNTED, 5)
    first, second, third = (prompts[0] for prompts in model.rounds)
    assert first.points == (Point(19, 19, 1),)
    assert second.points == (Point(19, 19, 1), Point(43, 33, 0))
    assert third.points == (Point(19, 19, 1), Point(43, 33, 0), Point(52, 14, 1))
    assert [prompt.multimask for prompt in (first, second, third)] == [True, False, False]
    assert first.mask is None
    for prompt, answer in ((second, 1), (third, 2)):
        assert isinstance(prompt.mask, np.ndarray)
        assert (prompt.mask == answer).all()
    # The third answer is perfect: there is no further click.
    np.testing.assert_allclose(played.ious, [[400 / 500, 400 / 436, 1, 1, 1]])
    assert played.best_of_three.tolist() == [1]


def test_objects_of_an_image_are_asked_for_together_until_each_is_perfect() -> None:
    model = Scripted(**SCRIPTS)
    played = play(model, [WHOLE, HARD], COUNTED, 5)
    assert [len(prompts) for prompts in model.rounds] == [2, 2, 2, 1, 1]
    # What is never found is clicked again and again, each time at another pixel.
    last = model.rounds[-1][0].points
    assert len({(point.x, point.y) for point in last}) == 5
    assert played.ious[1].tolist() == [0] * 5


def test_pixels_that_do_not_count_are_neither_clicked_nor_compared() -> None:
    counted = ~area((40, 30, 48, 38))
    played = play(Scripted(**SCRIPTS), [WHOLE], counted, 2)
    np.testing.assert_allclose(played.ious, [[400 / 436, 400 / 436]])


def test_at_least_one_click_is_needed() -> None:
    with pytest.raises(DataError, match="at least 1"):
        play(Scripted(), [WHOLE], COUNTED, 0)


IOUS = np.array([[0.5, 0.86, 0.84, 0.9], [0.85, 0.85, 0.85, 0.85], [0.1, 0.2, 0.3, 0.4]])


def test_the_number_of_clicks_is_that_until_the_level_is_first_reached() -> None:
    assert clicks_until(IOUS, 0.85).tolist() == [2, 1, 0]
    assert clicks_until(IOUS, 0.90).tolist() == [4, 0, 0]


def test_measures_are_means_over_all_objects_and_what_is_not_reached_counts_as_the_most_clicks() -> None:
    images = [PlayedImage(IOUS[:1], np.array([0.6])), PlayedImage(IOUS[1:], np.array([0.85, 0.4]))]
    found = {name: each.value for name, each in rounds_measures(images, seed=0).items()}
    assert found == pytest.approx({
        "IoU@1": (0.5 + 0.85 + 0.1) / 3,
        "IoU@2": (0.86 + 0.85 + 0.2) / 3,
        "IoU@3": (0.84 + 0.85 + 0.3) / 3,
        "IoU@4": (0.9 + 0.85 + 0.4) / 3,
        BEST_OF_THREE: (0.6 + 0.85 + 0.4) / 3,
        "NoC@85": (2 + 1 + 4) / 3,
        "unreached@85": 1 / 3,
        "NoC@90": (4 + 4 + 4) / 3,
        "unreached@90": 2 / 3,
    })  # fmt: skip
    for each in rounds_measures(images, seed=0).values():
        assert each.low <= each.value <= each.high


# A whole SAM: FakeSam answers a click with a square, and a click with logits with the mask of these logits.


def squares(name: str, *boxes: tuple[int, int, int, int]) -> Sample:
    """Return an image of 128 x 96 with square fruits."""
    instances = np.zeros((SIZE.height, SIZE.width), np.uint16)
    for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        instances[y0:y1, x0:x1] = number
    semantic = np.where(instances > 0, np.uint8(PixelClass.HEALTHY), np.uint8(PixelClass.BACKGROUND))
    listed = tuple(Instance(number, box, PixelClass.HEALTHY) for number, box in enumerate(boxes, start=1))
    pixels = np.full((*instances.shape, 3), sum(name.encode()) % 200, np.uint8)
    return Sample(name, pixels, semantic, listed, instances)


def set_of(*samples: Sample, kinds: dict[str, str] | None = None) -> ImageSet:
    known = {each.name: encoded(each) for each in samples}
    return ImageSet("set", "Set", "", tuple(known), known.__getitem__, has_instances=True, kinds=kinds or {})


def test_a_sam_is_measured_by_clicks_in_image_coordinates() -> None:
    # The mask of 14 x 14 pixels around the click at 26, 36 lies at 19, 29: 13 x 13 of 196 are right.
    sam = FakeSam()
    candidate = SamCandidate(SamSetup(LOADED), sam)
    images = set_of(squares("a", (20, 30, 34, 44)), squares("nothing"))
    (row,) = measure_rounds([candidate], [images], clicks=3, seed=0, progress=False)
    assert (row.protocol, row.images, row.count, row.objects, row.method) == ("rounds", "Set", 1, 1, "orange-sam")
    expected = 169 / (2 * 196 - 169)
    assert [clicks for clicks, _ in reached(row.measures)] == [1, 2, 3]
    assert [each.value for _, each in reached(row.measures)] == pytest.approx([expected] * 3)
    assert row.measures["unreached@85"].value == 1
    assert sam.decodes == [
        DecodeCall(1, with_masks=False),
        DecodeCall(1, with_masks=True),
        DecodeCall(1, with_masks=True),
    ]
    # The image without an object is not even encoded.
    assert sam.encodes == [1]


def test_the_best_of_three_masks_by_the_annotation_is_measured_beside_the_best_scored() -> None:
    # Around the click at 26, 36 the best scored mask is 14 x 14 pixels, the others are 12 x 12 and 10 x 10.
    images = set_of(squares("a", (22, 32, 32, 42)))
    (row,) = measure_rounds([SamCandidate(SamSetup(LOADED), FakeSam())], [images], clicks=1, seed=0, progress=False)
    assert row.measures["IoU@1"].value == pytest.approx(100 / 196)
    assert row.measures[BEST_OF_THREE].value == pytest.approx(100 / 144)


def test_kinds_of_images_are_also_measured_apart_and_sets_without_separate_objects_are_left_out() -> None:
    images = set_of(squares("a", (20, 30, 34, 44)), squares("b", (60, 30, 74, 44)), kinds={"a": "tree", "b": "belt"})
    unknown = ImageSet("u", "U", "", images.names, images.load, has_instances=False)
    rows = list(
        measure_rounds([SamCandidate(SamSetup(LOADED), FakeSam())], [images, unknown], clicks=1, seed=0, progress=False)
    )
    assert [(row.images, row.count) for row in rows] == [("Set", 2), ("Set: belt", 1), ("Set: tree", 1)]


def test_a_sam_2_is_clicked_at_in_its_own_square(tmp_path: Path) -> None:
    models = write_models_file(tmp_path, write_checkpoint(tmp_path / "tiny"))
    loader = Loader({}, ModelStore(tmp_path / "cache", None, "auto"), "torch")
    (sam,) = load_sams(Selection(sams=(str(models),)), loader)
    assert (sam.setup.side, sam.setup.padding) == (SIDE, "stretch")
    (row,) = measure_rounds([sam], [set_of(squares("a", (20, 30, 34, 44)))], clicks=3, seed=0, progress=False)
    assert [clicks for clicks, _ in reached(row.measures)] == [1, 2, 3]
    (row,) = measure_everything(
        [sam], [set_of(squares("a", (20, 30, 34, 44)))], proposals=True, edges=False, per_side=2, progress=False
    )
    assert 0 <= row.measures["AR@1000"].value <= 1
