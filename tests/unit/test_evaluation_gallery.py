import io
import math

import numpy as np
import PIL.Image

from models.data.samples import Sample
from models.evaluation.answers import Answer
from models.evaluation.gallery import HEIGHT, WIDTH, Gallery, side_by_side
from models.types import Pixels, Size
from tests.knowing_unet import discs

NOTHING = Answer(np.zeros((224, 448), np.uint8), (), {})


def gallery(*ious: float) -> list[tuple[str, str, float]]:
    shown = Gallery()
    for number, iou in enumerate(ious):
        shown.offer(discs((100, 100, 40), name=str(number)), NOTHING, iou)
    return [(each.kind, each.name, each.fruit_iou) for each in shown.files("g", "s")]


def truth(sample: Sample) -> Answer:
    assert sample.instance_map is not None
    return Answer(sample.semantic, tuple(sample.instance_map == each.id for each in sample.instances), {})


def drawn(sample: Sample, answer: Answer) -> tuple[Pixels, Pixels]:
    """Both sides."""
    whole = np.asarray(PIL.Image.open(io.BytesIO(side_by_side(sample, answer))))
    half = (whole.shape[1] - 4) // 2
    return whole[:, :half], whole[:, -half:]


def test_the_three_best_and_the_three_worst_are_kept() -> None:
    assert gallery(0.5, 0.9, 0.1, 0.7, 0.3, 0.8, 0.2, 0.6) == [
        ("best", "1", 0.9), ("best", "5", 0.8), ("best", "3", 0.7),
        ("worst", "2", 0.1), ("worst", "6", 0.2), ("worst", "4", 0.3),
    ]  # fmt: skip


def test_no_image_is_shown_twice() -> None:
    assert gallery(0.5) == [("best", "0", 0.5)]
    assert gallery(0.5, 0.7, 0.6) == [("best", "1", 0.7), ("best", "2", 0.6), ("worst", "0", 0.5)]
    assert [name for _, name, _ in gallery(0.1, 0.2, 0.3, 0.4)] == ["3", "2", "0", "1"]


def test_of_equal_images_the_first_stay_and_none_is_kept_without_a_measure() -> None:
    assert [name for kind, name, _ in gallery(0.5, 0.5, 0.5, 0.5, 0.1, 0.2, 0.3) if kind == "best"] == ["0", "1", "2"]
    assert gallery(math.nan) == []


def test_images_are_made_small_but_never_large() -> None:
    for size, expected in (
        (Size(100, 200), (100, 200)),
        (Size(1000, 1000), (HEIGHT, HEIGHT)),
        (Size(200, 1920), (50, WIDTH)),
    ):
        sample = discs((50, 50, 30), size=size)
        left, right = drawn(sample, Answer(sample.semantic, (), {}))
        assert left.shape[:2] == right.shape[:2] == expected


def test_the_annotation_is_outlined_on_the_left_and_the_prediction_on_the_right() -> None:
    sample = discs((100, 100, 60), (300, 100, 60), infected=[1])
    bare, _ = drawn(discs(name="discs"), NOTHING)
    left, right = drawn(sample, truth(discs((300, 100, 60))))
    assert right.shape == left.shape == bare.shape
    # The rim of the first disc, at the left: drawn in the annotation alone. JPEG blurs what is one pixel wide.
    rim = (slice(95, 105), slice(36, 44))
    plain = sample.pixels[rim]
    assert np.abs(left[rim].astype(int) - plain).max() > 80
    assert np.abs(right[rim].astype(int) - plain).max() < 80
    # Infected: a purple line in the annotation alone, where blue and red both exceed green.
    sides = [side[30:170, 230:370].astype(int) for side in (left, right)]
    annotated, predicted = ((np.minimum(side[..., 0], side[..., 2]) > side[..., 1] + 30).sum() for side in sides)
    assert annotated > 100
    assert predicted < 10


def test_fruits_that_touch_are_parted_by_a_line() -> None:
    sample = discs((100, 100, 50), (170, 100, 50))
    assert sample.instance_map is not None
    left, right = drawn(sample, Answer(sample.semantic, (sample.instance_map > 0,), {}))
    seam = (slice(95, 105), slice(115, 125))  # the left rim of the second disc, which lies on top
    assert np.abs(left[seam].astype(int) - right[seam]).max() > 60
