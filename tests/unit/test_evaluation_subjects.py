from dataclasses import replace

import numpy as np
import pytest

from models.data.samples import Instance, Sample
from models.evaluation.measuring import Panel, measure_set
from models.evaluation.results import Group, ImageFile, Measured
from models.evaluation.sam_subject import SamCandidate, SamSetup
from models.evaluation.shots import ImageSet
from models.evaluation.unet_subject import UNetCandidate
from models.masks import bounding_box
from models.types import PixelClass
from tests.fakes import LOADED, LOADED_UNET, SCORES, FakeSam
from tests.knowing_unet import KnowingUNet, discs, shot_of

TWO = discs((80, 110, 40), (300, 110, 60), infected=[1], name="two")
TOUCHING = discs((100, 110, 50), (200, 110, 50), name="touching")
NAME = LOADED_UNET.name


def images(*samples: Sample, name: str = "real") -> ImageSet:
    by_name = {sample.name: sample for sample in samples}
    told_apart = all(sample.instance_map is not None for sample in samples)
    return ImageSet(name, name, "", tuple(by_name), lambda each: shot_of(by_name[each]), told_apart)


def run(panel: Panel, *samples: Sample, seed: int = 0) -> tuple[dict[str, Measured], list[ImageFile]]:
    group, files = measure_set(panel, images(*samples), seed=seed, progress=False)
    return {each.subject.name: each for each in group.measured}, files


def unet(*known: Sample) -> UNetCandidate:
    return UNetCandidate(LOADED_UNET, KnowingUNet(*known))


def sam(backend: FakeSam | None = None, *, finder: str | None = None) -> SamCandidate:
    return SamCandidate(SamSetup(LOADED), backend or FakeSam(), finder)


def square(x: int, y: int, half: int, shape: tuple[int, int] = (256, 512)) -> Sample:
    """An image of one square fruit; where it is 512 wide, two pixels of the model's square are one of the image."""
    instances = np.zeros(shape, np.uint16)
    instances[y - half : y + half, x - half : x + half] = 1
    semantic = (instances * PixelClass.HEALTHY).astype(np.uint8)
    pixels = np.zeros((*shape, 3), np.uint8)
    box = (x - half, y - half, x + half, y + half)
    return Sample("square", pixels, semantic, (Instance(1, box, PixelClass.HEALTHY),), instances)


def test_a_unet_that_answers_the_truth_scores_one() -> None:
    measured, _ = run(Panel([unet(TWO, TOUCHING)], []), TWO, TOUCHING)
    values = {name: each.value for name, each in measured[NAME].measures.items()}
    for measure in ("fruit_iou_per_image", "mean_iou_over_pixels", "infected_iou_per_image", "object_precision",
                    "object_recall", "fruit_boundary_f_per_image", "fruit_count_right_per_image",
                    "touching_fruit_count_right_per_image"):  # fmt: skip
        assert values[measure] == 1, measure
    assert values["infected_fraction_error_per_image"] == 0
    assert values["fruit_count_error_per_image"] == 0
    assert "prompted_iou_per_fruit" not in values
    assert measured[NAME].score_calibration is None


def test_a_unet_that_answers_nothing_scores_nothing() -> None:
    measured, _ = run(Panel([unet()], []), TWO, TOUCHING)
    values = {name: each.value for name, each in measured[NAME].measures.items()}
    assert values["fruit_iou_per_image"] == values["object_recall"] == values["fruit_count_right_per_image"] == 0
    assert "object_precision" not in values  # nothing was predicted
    assert values["fruit_count_error_per_image"] == 2
    infected = (TWO.semantic == PixelClass.INFECTED).sum() / (TWO.semantic > 0).sum()
    assert values["infected_fraction_error_per_image"] == pytest.approx(infected / 2)


def test_counts_are_right_only_where_the_numbers_are_equal() -> None:
    # It takes the image of two for the image of one: as if it had missed the other fruit.
    one = discs((80, 110, 40), name="two")
    seen = replace(one, pixels=TWO.pixels)
    measured, _ = run(Panel([unet(seen, TOUCHING)], []), TWO, TOUCHING)
    values = {name: each.value for name, each in measured[NAME].measures.items()}
    assert values["fruit_count_right_per_image"] == 0.5
    assert values["touching_fruit_count_right_per_image"] == 1
    assert values["fruit_count_error_per_image"] == 0.5
    assert values["object_recall"] == 0.75


def test_a_box_is_answered_by_the_box_so_its_measure_can_be_worked_out() -> None:
    sample = square(200, 128, 50)
    backend = FakeSam()
    measured, _ = run(Panel([], [sam(backend)]), sample)
    box = measured["orange-sam-box"]
    (score,) = box.per_image
    # Each side is off by at most 10 % of the side: at best nothing, at worst 1 of 1.44 or 0.64 of 1.
    assert 0.64 <= score.measures["prompted_iou"] < 1
    assert box.measures["prompted_iou_per_fruit"].value == score.measures["prompted_iou"]
    assert score.fruit_iou == score.measures["prompted_iou"]  # one fruit
    assert "fruit_count_right_per_image" not in box.measures  # it was told
    assert box.score_calibration is not None
    (only,) = box.score_calibration.bins
    assert (only.score_low, only.score_high, only.count) == (0.5, 0.6, 1)
    assert only.mean_score == pytest.approx(SCORES[0])
    assert only.mean_iou == score.measures["prompted_iou"]


def test_the_click_takes_the_best_scored_mask_and_the_oracle_the_truly_best() -> None:
    # Around a click, token 2 has a square of half side 64 - 8 in the model's square, here 28 pixels of the image;
    # token 1, which scores least, of half side 64 - 24: 20 pixels.
    measured, _ = run(Panel([], [sam()]), square(200, 128, 20))
    ious = {name: each.per_image[0].fruit_iou for name, each in measured.items()}
    # The innermost pixel is half a pixel off the middle: up to a pixel more or less on each side.
    assert ious["orange-sam-point"] == pytest.approx(20**2 / 28**2, abs=0.05)
    assert ious["orange-sam-point-oracle"] > 0.9
    assert measured["orange-sam-point-oracle"].subject.oracle
    assert not measured["orange-sam-point"].subject.oracle


def test_a_fine_tuned_sam_is_asked_like_the_other_but_for_the_oracle() -> None:
    contender = SamCandidate(SamSetup(LOADED, tuned=True, side=512), FakeSam())
    subjects = [subject for subject, _ in contender.answers(shot_of(TWO), 0, None)]
    assert [each.name for each in subjects] == ["orange-sam-512-box", "orange-sam-512-point"]
    assert all("fine-tuned" in each.title for each in subjects)


def test_the_oracle_is_never_below_the_mask_that_the_model_chose() -> None:
    samples = [replace(square(200, 128, half), name=f"square-{half}") for half in (10, 20, 25, 28, 40, 60)]
    measured, _ = run(Panel([], [sam()]), *samples)
    chosen, oracle = (measured[f"orange-sam-{name}"].per_image for name in ("point", "point-oracle"))
    for one, other in zip(chosen, oracle, strict=True):
        assert other.measures["prompted_iou"] >= one.measures["prompted_iou"]
    assert any(other.fruit_iou > one.fruit_iou for one, other in zip(chosen, oracle, strict=True))


def test_boxes_from_the_unet_use_nothing_of_the_annotation() -> None:
    sample = square(120, 110, 40, (224, 448))
    contender = sam(finder=NAME)
    answers = {
        subject.name: answer
        for subject, answer in Panel([unet(sample)], [contender]).answers(shot_of(sample).untold(), seed=0)
    }
    assert set(answers) == {NAME, "orange-sam-box-unet"}
    refined = answers["orange-sam-box-unet"]
    assert refined.prompted is None
    # The box that the U-Net found, grown by 2 % of its side, to the half pixel that a mask's rim is off.
    (fruit,) = refined.fruits
    assert bounding_box(fruit) == pytest.approx((78.4, 68.4, 161.6, 151.6), abs=1)
    assert bounding_box(fruit) != sample.instances[0].box
    # What the box has beyond the fruit, the U-Net takes for background: it is healthy.
    assert (refined.classes[fruit] == PixelClass.HEALTHY).all()
    assert not refined.classes[~fruit].any()


def test_all_prompts_of_a_image_share_one_embedding_and_come_in_batches() -> None:
    five = discs(*[(45 + 85 * column, 110, 30) for column in range(5)], name="five")
    backend = FakeSam()
    list(sam(backend).answers(shot_of(five), 0, None))
    assert backend.encodes == [1]
    # Five boxes, then five clicks, at most four at a time.
    assert [call.prompts for call in backend.decodes] == [4, 1, 4, 1]


def test_every_stage_is_timed_and_the_total_is_theirs() -> None:
    panel = Panel([unet(TWO)], [sam(finder=NAME)])
    answers = {subject.name: answer for subject, answer in panel.answers(shot_of(TWO), 0)}
    assert list(answers[NAME].milliseconds) == ["decode", "infer", "postprocess"]
    assert set(answers["orange-sam-box"].milliseconds) == {"decode", "encode", "prompt", "postprocess"}
    assert set(answers["orange-sam-box-unet"].milliseconds) == {"decode", "encode", "infer", "prompt", "postprocess"}
    measured, _ = run(panel, TWO)
    told = dict(measured["orange-sam-box"].milliseconds)
    assert list(told)[-1] == "total"
    total = told.pop("total")
    assert total == pytest.approx(sum(told.values()))


def test_images_whose_fruits_are_not_told_apart_are_measured_as_far_as_they_can_be() -> None:
    untold = replace(TWO, instances=(), instance_map=None, name="untold")
    # One such image, and no subject is prompted from the annotation of any: all are measured on the same images.
    measured, _ = run(Panel([unet(TWO, TOUCHING)], [sam(finder=NAME)]), untold, TOUCHING)
    assert set(measured) == {NAME, "orange-sam-box-unet"}
    assert measured[NAME].measures["fruit_iou_per_image"].value == 1
    assert "object_recall" not in measured[NAME].measures


def test_a_image_without_fruit_is_no_trouble() -> None:
    bare = discs(name="bare")
    measured, files = run(Panel([unet(bare)], [sam(finder=NAME)]), bare, TWO)
    assert np.isnan(measured["orange-sam-box"].per_image[0].fruit_iou)
    assert measured["orange-sam-box"].per_image[1].fruit_iou > 0
    assert {each.name for each in files} == {"two"}


def test_fruit_alone_is_measured_where_the_annotation_knows_no_classes() -> None:
    fruit = replace(TWO, semantic=np.where(TWO.semantic > 0, np.uint8(PixelClass.FRUIT), np.uint8(0)))
    measured, _ = run(Panel([unet(TWO)], []), fruit)
    assert measured[NAME].measures["fruit_iou_per_image"].value == 1
    assert not [name for name in measured[NAME].measures if "infected" in name or "healthy" in name]


def test_the_same_seed_gives_the_same_results_and_another_another() -> None:
    def values(seed: int) -> list[object]:
        measured, files = run(Panel([unet(TWO)], [sam(finder=NAME)]), TWO, TOUCHING, seed=seed)
        return [*((each.measures, each.per_image) for each in measured.values()), [file.jpeg for file in files]]

    assert values(1) == values(1)
    assert values(1) != values(2)


def test_groups_are_measured_apart() -> None:
    panel = Panel([unet(TWO)], [])  # it knows the first image only
    groups: list[Group] = [
        measure_set(panel, images(sample, name=name), seed=0, progress=False)[0]
        for name, sample in (("real", TWO), ("rendered", TOUCHING))
    ]
    assert [group.measured[0].measures["fruit_iou_per_image"].value for group in groups] == [1, 0]
    assert [(group.name, group.images, group.fruits) for group in groups] == [("real", 1, 2), ("rendered", 1, 2)]


def test_a_mask_that_shows_something_else_leaves_the_unets_fruit_as_it_is() -> None:
    # The U-Net sees a ring, of whose box a SAM's rectangle is mostly its hole.
    ring = discs((200, 110, 90), (200, 110, 80), name="ring")
    assert ring.instance_map is not None
    thin = np.where(ring.instance_map == 1, ring.instance_map, 0).astype(np.uint16)
    semantic = np.where(thin > 0, np.uint8(PixelClass.HEALTHY), np.uint8(0))
    known = replace(ring, semantic=semantic, instance_map=thin, instances=ring.instances[:1])
    answers = {
        subject.name: answer for subject, answer in Panel([unet(known)], [sam(finder=NAME)]).answers(shot_of(known), 0)
    }
    assert (answers["orange-sam-box-unet"].classes == answers[NAME].classes).all()
    assert answers[NAME].classes.any()
