import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from models.data.samples import Instance, Sample
from models.errors import DataError
from models.evaluation.candidates import Answer, Candidates, PromptResult, SamCandidate, SamSetup, UNetCandidate
from models.evaluation.gallery import GalleryImage
from models.evaluation.health import FruitHealth, health_statistics
from models.evaluation.results import Candidate, CandidateResult
from models.evaluation.samples import ImageSet
from models.evaluation.segmentation import Aggregate, measure_set
from models.masks import bounding_box
from models.types import PixelClass, SemanticMap
from tests.fakes import LOADED, LOADED_UNET, SCORES, FakeSam
from tests.knowing_unet import KnowingUNet, discs, encoded

PLAIN = Candidate("s", "S", "sam", "", "", {})
TWO = discs((80, 110, 40), (300, 110, 60), infected=[1], name="two")
TOUCHING = discs((100, 110, 50), (200, 110, 50), name="touching")
APART = discs((60, 100, 40), (180, 100, 40), (300, 100, 40), name="apart")
NAME = LOADED_UNET.name


def scene(width: int, healthy: int, infected: int, *, fill: int = 0) -> SemanticMap:
    """Return an image 20 high: `healthy` columns, then `infected`, then `fill`."""
    semantic = np.full((20, width), fill, np.uint8)
    semantic[:, :healthy] = PixelClass.HEALTHY
    semantic[:, healthy : healthy + infected] = PixelClass.INFECTED
    return semantic


def sample(semantic: SemanticMap, name: str = "a") -> Sample:
    """Return an image with this annotation, its fruit one instance."""
    fruit = np.isin(semantic, (PixelClass.HEALTHY, PixelClass.INFECTED, PixelClass.FRUIT))
    pixels = np.zeros((*semantic.shape, 3), np.uint8)
    return Sample(name, pixels, semantic, (Instance(1, (0, 0, 1, 1), PixelClass.FRUIT),), fruit.astype(np.uint16))


def result(*pairs: tuple[SemanticMap | Answer, Sample], candidate: Candidate = PLAIN, seed: int = 0) -> CandidateResult:
    aggregate = Aggregate(candidate)
    for predicted, image in pairs:
        aggregate.add(image, predicted if isinstance(predicted, Answer) else Answer(predicted, (), {}))
    return aggregate.result(seed)


def values(measured: CandidateResult) -> dict[str, float]:
    return {name: each.value for name, each in measured.measures.items()}


def answer(
    image: Sample,
    fruits: Sequence[int],
    *,
    prompted: Sequence[tuple[float, float]] | None = None,
    timing_ms: Mapping[str, float] | None = None,
) -> Answer:
    """Return the true masks of some fruits, with scores and IoUs of prompts."""
    assert image.instance_map is not None
    found = np.isin(image.instance_map, list(fruits))
    return Answer(
        classes=np.where(found, np.uint8(PixelClass.FRUIT), np.uint8(PixelClass.BACKGROUND)),
        fruits=tuple(image.instance_map == number for number in fruits),
        timing_ms=timing_ms or {},
        prompted=None if prompted is None else tuple(PromptResult(*each) for each in prompted),
    )


def test_measures_per_image_and_over_pixels_differ() -> None:
    # A small image that is half right, and a large one that is all right.
    found = values(
        result((scene(40, 5, 0), sample(scene(40, 10, 0))), (scene(400, 100, 0), sample(scene(400, 100, 0))))
    )
    assert found["healthy_iou_per_image"] == pytest.approx((0.5 + 1) / 2)
    assert found["healthy_iou_over_pixels"] == pytest.approx(105 / 110)
    assert found["fruit_iou_per_image"] == pytest.approx((0.5 + 1) / 2)
    assert found["background_iou_per_image"] == pytest.approx((30 / 35 + 1) / 2)
    assert found["mean_iou_per_image"] == pytest.approx(((0.5 + 30 / 35) / 2 + 1) / 2)
    assert found["mean_iou_over_pixels"] == pytest.approx((105 / 110 + 330 / 335) / 2)
    assert found["healthy_dice_per_image"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["mean_dice_over_pixels"] == pytest.approx((210 / 215 + 660 / 665) / 2)
    # No image has infected pixels, in annotation or prediction.
    assert not [name for name in found if name.startswith(("infected_iou", "infected_dice", "infected_boundary"))]
    assert found["infected_fraction_error_per_image"] == 0


def test_without_annotated_classes_only_fruit_is_measured() -> None:
    truth = np.where(scene(40, 10, 0) == PixelClass.HEALTHY, PixelClass.FRUIT, PixelClass.BACKGROUND).astype(np.uint8)
    for predicted in (scene(40, 4, 4), np.where(scene(40, 8, 0) > 0, PixelClass.FRUIT, 0).astype(np.uint8)):
        found = values(result((predicted, replace(sample(truth), instance_map=None))))
        assert set(found) == {
            "fruit_iou_per_image",
            "fruit_iou_over_pixels",
            "fruit_dice_per_image",
            "fruit_dice_over_pixels",
            "fruit_boundary_f_per_image",
        }
        assert found["fruit_iou_over_pixels"] == pytest.approx(0.8)


def test_infected_fraction_error_is_absolute_and_bias_is_not() -> None:
    truth = sample(scene(40, 10, 10))
    found = values(result(*((each, truth) for each in (scene(40, 8, 12), scene(40, 14, 6), scene(40, 20, 0)))))
    assert found["infected_fraction_error_per_image"] == pytest.approx((0.1 + 0.2 + 0.5) / 3)
    assert found["infected_fraction_bias_per_image"] == pytest.approx((0.1 - 0.2 - 0.5) / 3)


def test_objects_are_counted_over_all_fruits() -> None:
    truth = sample(scene(40, 10, 0))
    fruit, stray = scene(40, 10, 0) > 0, scene(40, 0, 0, fill=1) > 0
    answers = [(fruit, stray), (), (scene(40, 8, 0) > 0,)]
    found = values(
        result(
            *((Answer(scene(40, 10, 0), each, {}), truth) for each in answers),
            (Answer(scene(40, 10, 0), (fruit,), {}), replace(truth, instance_map=None)),  # does not count
        )
    )
    assert found["object_precision"] == pytest.approx(2 / 3)
    assert found["object_recall"] == pytest.approx(2 / 3)
    assert found["object_iou"] == pytest.approx((1 + 0.8) / 2)


def test_ignored_pixels_do_not_count() -> None:
    truth = scene(40, 10, 10)
    truth[:, 15:] = PixelClass.IGNORE
    good, bad = (result((each, sample(truth))) for each in (scene(40, 10, 5), scene(40, 10, 30)))
    assert good == bad
    assert values(good)["infected_iou_over_pixels"] == 1
    assert values(good)["infected_boundary_f_per_image"] == 1


def test_invalid_answers_are_refused() -> None:
    truth = sample(scene(40, 10, 0))
    with pytest.raises(DataError, match="healthy, infected or fruit"):
        result((np.full((20, 40), PixelClass.IGNORE, np.uint8), truth))
    with pytest.raises(DataError, match="same shape"):
        result((scene(30, 1, 1), truth))
    with pytest.raises(DataError, match="no images"):
        result()


def test_every_value_lies_in_its_interval_and_repeats_with_its_seed() -> None:
    rng = np.random.default_rng(4)
    pairs = []
    for number in range(30):
        healthy, infected = (int(each) for each in rng.integers(4, 15, 2))
        guess = scene(60, healthy + int(rng.integers(-3, 4)), infected + int(rng.integers(-3, 4)))
        pairs.append((Answer(guess, (guess > 0,), {}), sample(scene(60, healthy, infected), str(number))))
    found = result(*pairs)
    assert found == result(*pairs)
    assert found != result(*pairs, seed=1)
    for name, each in found.measures.items():
        assert each.low <= each.value <= each.high, name


def test_fruit_counts_are_right_where_the_numbers_are_equal() -> None:
    found = values(
        result((answer(APART, (1, 2, 3)), APART), (answer(APART, (1,)), APART), (answer(TOUCHING, (1,)), TOUCHING))
    )
    assert found["fruit_count_accuracy_per_image"] == pytest.approx(1 / 3)
    assert found["touching_fruit_count_accuracy_per_image"] == 0
    assert found["fruit_count_error_per_image"] == 1
    assert "touching_fruit_count_accuracy_per_image" not in values(result((answer(APART, (1,)), APART)))


def test_prompted_fruits_weigh_the_same_in_every_image() -> None:
    one = answer(APART, (1, 2, 3), prompted=[(0.9, 0.9), (0.9, 0.9), (0.9, 0.6)])
    other = answer(TOUCHING, (1,), prompted=[(0.5, 0.2)])
    found = result((one, APART), (other, TOUCHING))
    assert values(found)["prompted_iou_per_fruit"] == pytest.approx((0.9 + 0.9 + 0.6 + 0.2) / 4)
    assert [each.measures["prompted_iou"] for each in found.per_image] == pytest.approx([0.8, 0.2])
    assert "fruit_count_accuracy_per_image" not in found.measures


def test_scores_of_prompts_are_calibrated_except_for_an_oracle() -> None:
    prompted = answer(APART, (1,), prompted=[(0.95, 0.9), (1.02, 1.0), (0.3, 0.1), (-0.01, 0.0)])
    calibration = result((prompted, APART)).score_calibration
    assert calibration is not None
    assert [each.count for each in calibration.bins] == [1, 1, 2]
    assert calibration.mean_absolute_error == pytest.approx((0.05 + 0.02 + 0.2 + 0.01) / 4)
    assert result((prompted, APART), candidate=replace(PLAIN, oracle=True)).score_calibration is None


def test_times_are_medians_and_the_total_is_the_median_of_totals() -> None:
    timings = ({"encode": 10.0, "prompt": 1.0}, {"encode": 30.0, "prompt": 2.0}, {"encode": 20.0})
    found = result(*((answer(APART, (1,), timing_ms=each), APART) for each in timings))
    # An image without prompts took no time for them.
    assert found.timing_ms == {"encode": 20.0, "prompt": 1.0, "total": 20.0}


def test_each_image_has_the_measures_that_are_defined_for_it() -> None:
    (score,) = result((answer(APART, (1, 2)), APART)).per_image
    assert score.fruit_iou == pytest.approx(2 / 3, abs=1e-3)
    assert score.measures["object_recall"] == pytest.approx(2 / 3)
    assert (score.measures["fruits"], score.measures["fruits_found"]) == (3, 2)
    undefined = {"healthy_iou", "infected_iou", "mean_iou", "infected_fraction_error", "prompted_iou"}
    assert not undefined & set(score.measures)


def images(*samples: Sample) -> ImageSet:
    by_name = {each.name: each for each in samples}
    separated = all(each.instance_map is not None for each in samples)
    return ImageSet("real", "real", "", tuple(by_name), lambda name: encoded(by_name[name]), separated)


def run(
    candidates: Candidates, *samples: Sample, seed: int = 0
) -> tuple[dict[str, CandidateResult], list[GalleryImage]]:
    (group,), gallery = measure_set(candidates, images(*samples), seed=seed, progress=False)
    return {each.candidate.name: each for each in group.results}, gallery


def unet(*known: Sample) -> UNetCandidate:
    return UNetCandidate(LOADED_UNET, KnowingUNet(*known))


def sam(backend: FakeSam | None = None, *, finder: str | None = None) -> SamCandidate:
    return SamCandidate(SamSetup(LOADED), backend or FakeSam(), finder)


def square(x: int, y: int, half: int, shape: tuple[int, int] = (256, 512)) -> Sample:
    """Return an image of one square fruit; at a width of 512, a pixel is two of the model's square."""
    instances = np.zeros(shape, np.uint16)
    instances[y - half : y + half, x - half : x + half] = 1
    semantic = (instances * PixelClass.HEALTHY).astype(np.uint8)
    box = (x - half, y - half, x + half, y + half)
    pixels = np.zeros((*shape, 3), np.uint8)
    return Sample(f"square-{half}", pixels, semantic, (Instance(1, box, PixelClass.HEALTHY),), instances)


def test_at_three_scales_fruit_that_a_unet_sees_at_one_alone_is_none() -> None:
    backend = KnowingUNet(TWO)  # at its own scale
    measured, _ = run(
        Candidates([UNetCandidate(LOADED_UNET, backend), UNetCandidate(LOADED_UNET, backend, "scales")], []), TWO
    )
    assert values(measured[NAME])["object_recall"] == 1
    assert values(measured[f"{NAME}@scales"])["object_recall"] == 0


def test_a_perfect_unet_scores_1() -> None:
    measured, _ = run(Candidates([unet(TWO, TOUCHING)], []), TWO, TOUCHING)
    found = values(measured[NAME])
    for name in ("fruit_iou_per_image", "mean_iou_over_pixels", "infected_iou_per_image", "object_precision",
                 "object_recall", "fruit_boundary_f_per_image", "fruit_count_accuracy_per_image",
                 "touching_fruit_count_accuracy_per_image"):  # fmt: skip
        assert found[name] == 1, name
    assert found["infected_fraction_error_per_image"] == found["fruit_count_error_per_image"] == 0
    assert "prompted_iou_per_fruit" not in found
    calibration = measured[NAME].score_calibration
    assert calibration is not None
    assert (calibration.count, calibration.bins[-1].mean_iou) == (4, 1)
    assert calibration.mean_absolute_error < 1e-3


def test_a_unet_that_finds_nothing_scores_0() -> None:
    measured, _ = run(Candidates([unet()], []), TWO, TOUCHING)
    found = values(measured[NAME])
    assert found["fruit_iou_per_image"] == found["object_recall"] == found["fruit_count_accuracy_per_image"] == 0
    assert "object_precision" not in found  # nothing was predicted
    assert found["fruit_count_error_per_image"] == 2


def test_kinds_are_measured_apart_and_healthy_fruit_against_infected_over_all() -> None:
    healthy = discs((100, 110, 50), name="healthy")
    leaves = replace(discs(name="leaves"), instance_map=np.zeros((224, 448), np.uint16))
    kinds = {"two": "lesion", "healthy": "closeup", "leaves": "negative"}
    wrong = replace(discs((300, 110, 60), infected=[1]), pixels=leaves.pixels)
    candidates = Candidates([unet(TWO, healthy, wrong)], [])
    groups, gallery = measure_set(
        candidates, replace(images(TWO, healthy, leaves), kinds=kinds), seed=0, progress=False
    )
    by_name = {group.name: group for group in groups}
    assert list(by_name) == ["real", "real-closeup", "real-lesion", "real-negative"]
    assert [group.images for group in groups] == [3, 1, 1, 1]
    found = {name: values(group.results[0]) for name, group in by_name.items()}
    assert found["real"]["infected_auroc_per_fruit"] == found["real-lesion"]["infected_auroc_per_fruit"] == 1
    assert "infected_auroc_per_fruit" not in found["real-closeup"]  # nothing to tell healthy fruit from
    assert found["real-closeup"]["false_infected_pixels"] == 0
    assert found["real-negative"]["false_fruit_images"] == found["real"]["false_fruit_images"] == 1
    share = np.count_nonzero(wrong.semantic) / wrong.semantic.size
    assert found["real-negative"]["false_fruit_pixels"] == pytest.approx(share, abs=0.002)  # the rim, as JPEG
    assert {image.group for image in gallery} == {"real-closeup", "real-lesion", "real-negative"}


def test_fruit_of_partly_unknown_health_is_measured_by_what_is_known() -> None:
    truth = scene(40, 10, 10)
    truth[:10, 5:15] = PixelClass.FRUIT
    for predicted in (scene(40, 10, 10), scene(40, 10, 10)):
        predicted[:10, 5:15] = PixelClass.INFECTED  # unknown
        found = values(result((predicted, sample(truth))))
        assert found["infected_iou_per_image"] == found["fruit_iou_per_image"] == 1
        assert found["infected_fraction_error_per_image"] == 0


def test_an_auroc_is_the_share_of_pairs_in_order() -> None:
    images = [[FruitHealth(0.2, 0.3), FruitHealth(0.0, 0.0)], [FruitHealth(0.5, 0.1), FruitHealth(0.0, 0.1)]]
    auroc = health_statistics(images)["infected_auroc_per_fruit"]
    # Pairs: (0.3, 0), (0.3, 0.1) and (0.1, 0) in order, (0.1, 0.1) equal.
    assert auroc(np.array([[1.0, 1.0]])) == pytest.approx([3.5 / 4])
    assert auroc(np.array([[2.0, 0.0], [0.0, 2.0]])) == pytest.approx([1, 0.5])


def test_the_mask_of_a_box_is_compared_with_its_fruit() -> None:
    measured, _ = run(Candidates([], [sam()]), square(200, 128, 50))
    box = measured["orange-sam-box"]
    (score,) = box.per_image
    # Each side is off by at most 10 % of the side: at best nothing, at worst 1 of 1.44 or 0.64 of 1.
    assert 0.64 <= score.measures["prompted_iou"] < 1
    assert score.fruit_iou == values(box)["prompted_iou_per_fruit"] == score.measures["prompted_iou"]  # one fruit
    assert box.score_calibration is not None
    (only,) = box.score_calibration.bins
    assert (only.low, only.high, only.count) == (0.5, 0.6, 1)
    assert only.mean_score == pytest.approx(SCORES[0])
    assert only.mean_iou == score.measures["prompted_iou"]


def test_a_click_takes_the_best_scored_mask_and_the_oracle_the_best_one() -> None:
    # Around a click, token 2 has a square of half side 64 - 8 in the model's square, here 28 pixels of the image;
    # token 1, with the lowest score, of half side 64 - 24: 20 pixels.
    measured, _ = run(Candidates([], [sam()]), *(square(200, 128, half) for half in (20, 10, 28, 60)))
    point, oracle = (measured[f"orange-sam-{name}"] for name in ("point", "point-oracle"))
    # The innermost pixel is half a pixel off the middle: up to a pixel more or less on each side.
    assert point.per_image[0].fruit_iou == pytest.approx(20**2 / 28**2, abs=0.05)
    assert oracle.per_image[0].fruit_iou > 0.9
    assert (point.candidate.oracle, oracle.candidate.oracle) == (False, True)
    for chosen, best in zip(point.per_image, oracle.per_image, strict=True):
        assert best.measures["prompted_iou"] >= chosen.measures["prompted_iou"]


def test_a_fine_tuned_sam_has_no_oracle() -> None:
    tuned = SamCandidate(SamSetup(LOADED, tuned=True, side=512), FakeSam())
    candidates = [candidate for candidate, _ in tuned.answers(encoded(TWO), 0, None)]
    assert [each.name for each in candidates] == ["orange-sam-512-box", "orange-sam-512-point"]
    assert all("fine-tuned" in each.title for each in candidates)


def test_boxes_of_the_unet_use_nothing_of_the_annotation() -> None:
    image = square(120, 110, 40, (224, 448))
    candidates = Candidates([unet(image)], [sam(finder=NAME)])
    answers = {each.name: answer for each, answer in candidates.answers(encoded(image).without_instances(), seed=0)}
    assert set(answers) == {NAME, "orange-sam-box-unet"}
    refined = answers["orange-sam-box-unet"]
    assert refined.prompted is None
    # The box that the U-Net found, grown by 2 % of its side, to the half pixel that a mask's rim is off.
    (fruit,) = refined.fruits
    assert bounding_box(fruit) == pytest.approx((78.4, 68.4, 161.6, 151.6), abs=1)
    # Pixels of the mask beyond the U-Net's fruit are healthy.
    assert (refined.classes[fruit] == PixelClass.HEALTHY).all()
    assert not refined.classes[~fruit].any()


def test_a_mask_of_something_else_leaves_the_unets_fruit_unchanged() -> None:
    # The U-Net sees a ring; a SAM's rectangle around it is mostly its hole.
    ring = discs((200, 110, 90), (200, 110, 80), name="ring")
    assert ring.instance_map is not None
    thin = np.where(ring.instance_map == 1, ring.instance_map, 0).astype(np.uint16)
    semantic = np.where(thin > 0, np.uint8(PixelClass.HEALTHY), np.uint8(0))
    known = replace(ring, semantic=semantic, instance_map=thin, instances=ring.instances[:1])
    candidates = Candidates([unet(known)], [sam(finder=NAME)])
    answers = {each.name: answer for each, answer in candidates.answers(encoded(known), 0)}
    assert (answers["orange-sam-box-unet"].classes == answers[NAME].classes).all()
    assert answers[NAME].classes.any()


def test_all_prompts_of_an_image_share_one_embedding_and_run_in_batches() -> None:
    five = discs(*[(45 + 85 * column, 110, 30) for column in range(5)], name="five")
    backend = FakeSam()
    list(sam(backend).answers(encoded(five), 0, None))
    assert backend.encodes == [1]
    # Five boxes, then five clicks, at most four at a time.
    assert [call.prompts for call in backend.decodes] == [4, 1, 4, 1]


def test_every_stage_is_timed() -> None:
    candidates = Candidates([unet(TWO)], [sam(finder=NAME)])
    answers = {each.name: answer for each, answer in candidates.answers(encoded(TWO), 0)}
    assert list(answers[NAME].timing_ms) == ["decode", "infer", "postprocess"]
    assert set(answers["orange-sam-box"].timing_ms) == {"decode", "encode", "prompt", "postprocess"}
    assert set(answers["orange-sam-box-unet"].timing_ms) == {"decode", "encode", "infer", "prompt", "postprocess"}
    measured, _ = run(candidates, TWO)
    timing = dict(measured["orange-sam-box"].timing_ms)
    assert list(timing)[-1] == "total"
    assert timing.pop("total") == pytest.approx(sum(timing.values()))


def test_without_separated_fruits_no_prompts_are_made_from_the_annotation() -> None:
    merged = replace(TWO, instances=(), instance_map=None, name="merged")
    # One such image is enough, so that all candidates are measured on the same images.
    measured, _ = run(Candidates([unet(TWO, TOUCHING)], [sam(finder=NAME)]), merged, TOUCHING)
    assert set(measured) == {NAME, "orange-sam-box-unet"}
    assert values(measured[NAME])["fruit_iou_per_image"] == 1
    assert "object_recall" not in measured[NAME].measures


def test_an_image_without_fruit_has_no_iou_and_is_not_in_the_gallery() -> None:
    bare = discs(name="bare")
    measured, gallery = run(Candidates([unet(bare)], [sam(finder=NAME)]), bare, TWO)
    bare_score, two_score = measured["orange-sam-box"].per_image
    assert math.isnan(bare_score.fruit_iou)
    assert two_score.fruit_iou > 0
    assert {each.name for each in gallery} == {"two"}


def test_equal_seeds_give_equal_results() -> None:
    def outcome(seed: int) -> list[object]:
        measured, gallery = run(Candidates([unet(TWO)], [sam(finder=NAME)]), TWO, TOUCHING, seed=seed)
        return [*((each.measures, each.per_image) for each in measured.values()), [image.jpeg for image in gallery]]

    assert outcome(1) == outcome(1)
    assert outcome(1) != outcome(2)
