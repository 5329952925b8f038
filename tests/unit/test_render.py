"""The renderer: its images are the same again, and its masks say what was drawn."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from models.data.samples import Sample
from models.synthetic import Background, CannotRender, Layout, RenderOptions, encode_jpeg, render
from models.synthetic.__main__ import main
from models.synthetic.contact_sheet import contact_sheet
from models.synthetic.lesions import paint_lesion
from models.synthetic.peel import healthy_peel
from models.synthetic.scene import Fruit, Lesion, LesionKind, Species, Vector
from models.synthetic.surface import patch_of
from models.types import BinaryMask, PixelClass, Size

SMALL = Size(112, 224)


def fruit_of(sample: Sample, number: int) -> BinaryMask:
    mask: BinaryMask = np.asarray(sample.instance_map) == number
    return mask


def fruit_with(*, species: Species, axes: Vector, rotation: NDArray[np.float64], key: int) -> Fruit:
    """A bare fruit in the middle of the image."""
    return Fruit(species, np.zeros(3), 0.4, axes, rotation, 0.8, 0.5, 0.0, (), (), key)


def parts_touch(one: BinaryMask, other: BinaryMask) -> bool:
    """Whether less than three pixels lie between them: fruit is not as round as the balls that touch."""
    grown = cv2.dilate(one.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    return bool((grown & other).any())


@pytest.fixture(scope="module")
def some() -> list[Sample]:
    return [render(seed, SMALL) for seed in range(30)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("background", Background)
def test_the_same_seed_gives_the_same_bytes_with_any_number_of_threads(background: Background) -> None:
    options = RenderOptions(background=background, fruits=3)
    images = []
    for count in (1, 4):
        cv2.setNumThreads(count)
        sample = render(7, options=options)
        images.append((sample.pixels.tobytes(), sample.semantic.tobytes(), np.asarray(sample.instance_map).tobytes()))
    assert images[0] == images[1]


def test_other_seeds_give_other_images(some: list[Sample]) -> None:
    assert len({sample.pixels.tobytes() for sample in some}) == len(some)
    assert [sample.name for sample in some[:2]] == ["rendered-0", "rendered-1"]


def test_a_sample_has_the_arrays_that_it_promises(some: list[Sample]) -> None:
    for sample in some:
        assert sample.pixels.shape == (112, 224, 3)
        assert sample.pixels.dtype == np.uint8
        assert sample.semantic.shape == (112, 224)
        assert sample.semantic.dtype == np.uint8
        assert sample.instance_map is not None
        assert sample.instance_map.shape == (112, 224)
        assert sample.instance_map.dtype == np.uint16
        assert set(np.unique(sample.semantic)) <= {PixelClass.BACKGROUND, PixelClass.HEALTHY, PixelClass.INFECTED}


def test_instances_are_numbered_from_one_and_are_where_the_semantic_map_has_fruit(some: list[Sample]) -> None:
    for sample in some:
        numbers = np.unique(np.asarray(sample.instance_map))
        assert [instance.id for instance in sample.instances] == list(range(1, len(sample.instances) + 1))
        assert set(numbers.tolist()) - {0} == {instance.id for instance in sample.instances}
        assert np.array_equal(np.asarray(sample.instance_map) > 0, sample.semantic != PixelClass.BACKGROUND)


def test_an_instance_has_a_tight_box_and_is_infected_where_any_of_its_pixels_is(some: list[Sample]) -> None:
    classes = set()
    for sample in some:
        for instance in sample.instances:
            mask = fruit_of(sample, instance.id)
            x0, y0, x1, y1 = instance.box
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            assert all(edge.any() for edge in (mask[y0, :], mask[y1 - 1, :], mask[:, x0], mask[:, x1 - 1]))
            infected = bool((sample.semantic[mask] == PixelClass.INFECTED).any())
            assert instance.pixel_class is (PixelClass.INFECTED if infected else PixelClass.HEALTHY)
            classes.add(instance.pixel_class)
    assert classes == {PixelClass.HEALTHY, PixelClass.INFECTED}


@pytest.mark.parametrize("species", Species)
def test_a_fruits_patch_holds_all_of_it(species: Species) -> None:
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # the stem points sideways
    axes = np.array([0.7, 0.9, 0.7]) if species is Species.LEMON else np.ones(3)
    for key in range(20):
        patch = patch_of(fruit_with(species=species, axes=axes, rotation=turn, key=key), Size(200, 200))
        assert patch is not None
        edges = patch.coverage[[0, -1]], patch.coverage[:, [0, -1]]
        assert not any(edge.any() for edge in edges)


def test_fruit_stands_out_where_the_masks_say_it_is() -> None:
    options = RenderOptions(background=Background.BLACK, layout=Layout.APART, fruits=4, infected_share=0, camera=False)
    for seed in range(6):
        sample = render(seed, options=options)
        bright = sample.pixels.max(axis=2) > 70
        fruit = sample.semantic != PixelClass.BACKGROUND
        # Green fruit is dark, and its unlit side as dark as the background.
        assert (bright & fruit).sum() > 0.1 * fruit.sum()
        near = cv2.dilate(fruit.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert not (bright & ~near).any()


def test_a_fruit_that_lies_before_another_takes_its_pixels_away() -> None:
    options = RenderOptions(layout=Layout.PILED, fruits=6, background=Background.TABLE)
    fullness = []
    for seed in range(4):
        sample = render(seed, options=options)
        assert len(sample.instances) == 6
        for instance in sample.instances:
            mask = fruit_of(sample, instance.id)
            contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            hull = cv2.convexHull(np.concatenate(contours))
            fullness.append(mask.sum() / max(cv2.contourArea(hull), 1))
    assert min(fullness) < 0.9  # some are crescents
    assert max(fullness) > 0.98  # and some are whole


@pytest.mark.parametrize("kind", [LesionKind.MOULD, LesionKind.ROT])
def test_a_lesion_near_the_rim_looks_narrower_as_on_a_sphere(kind: LesionKind) -> None:
    areas = []
    for angle in (0.0, math.pi / 3):
        middle = np.array([math.sin(angle), 0.0, math.cos(angle)])
        lesion = Lesion(kind, middle, radius=0.3, key=4)
        ball = fruit_with(species=Species.ORANGE, axes=np.ones(3), rotation=np.eye(3), key=4)
        patch = patch_of(ball, Size(400, 400))
        assert patch is not None
        peel = healthy_peel(ball, patch)
        paint_lesion(ball, patch, peel, lesion)
        sick = peel.infected >= 0.5
        rows, columns = np.nonzero(sick)
        assert patch.x[rows, columns].mean() == pytest.approx(math.sin(angle), abs=0.05)
        areas.append(int(sick.sum()))
    # Its ragged edge differs from place to place by some per cent.
    assert areas[1] / areas[0] == pytest.approx(math.cos(math.pi / 3), abs=0.1)


@pytest.mark.parametrize("background", Background)
def test_without_infected_fruit_no_distractor_is_labelled_infected(background: Background) -> None:
    options = RenderOptions(background=background, infected_share=0, fruits=5)
    for seed in range(3):
        sample = render(seed, SMALL, options=options)
        assert not (sample.semantic == PixelClass.INFECTED).any()
        assert all(instance.pixel_class is PixelClass.HEALTHY for instance in sample.instances)


def test_distractors_change_the_image_but_no_fruits_outline() -> None:
    changed = 0
    for seed in range(6):
        bare, marked = (
            render(seed, SMALL, options=RenderOptions(Background.BELT, 4, infected_share=0, distractors=shown))
            for shown in (False, True)
        )
        assert np.array_equal(bare.semantic, marked.semantic)
        changed += not np.array_equal(bare.pixels, marked.pixels)
    assert changed >= 4


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 0.35, 0.6), (1.0, 0.9, 1.0)])
def test_the_infected_share_is_kept(share: float, low: float, high: float) -> None:
    options = RenderOptions(fruits=8, layout=Layout.APART, infected_share=share, background=Background.BELT)
    fruits = [fruit for seed in range(6) for fruit in render(seed, SMALL, options=options).instances]
    # Lesions that lie mostly behind, or under a sticker, may show no pixel at this size.
    assert low <= np.mean([fruit.pixel_class is PixelClass.INFECTED for fruit in fruits]) <= high


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("count", [0, 1, 12, 24])
def test_as_many_fruits_are_seen_as_were_asked_for(layout: Layout, count: int) -> None:
    sample = render(3, options=RenderOptions(background=Background.TABLE, fruits=count, layout=layout))
    assert len(sample.instances) == count


@pytest.mark.parametrize("background", [Background.BELT, Background.CUPS, Background.WHITE])
def test_fruits_apart_have_gaps_between_them_and_lie_wholly_inside(background: Background) -> None:
    for seed in range(3):
        sample = render(seed, SMALL, options=RenderOptions(background, fruits=6, layout=Layout.APART))
        count, _ = cv2.connectedComponents((sample.semantic > 0).astype(np.uint8))
        assert count == 1 + 6
        border = np.concatenate([sample.semantic[[0, -1]].ravel(), sample.semantic[:, [0, -1]].ravel()])
        assert not border.any()


def test_touching_fruits_each_have_a_neighbour() -> None:
    for seed in range(6):
        sample = render(seed, options=RenderOptions(Background.WHITE, fruits=4, layout=Layout.TOUCHING))
        masks = [fruit_of(sample, instance.id) for instance in sample.instances]
        for one in masks:
            assert any(parts_touch(one, other) for other in masks if other is not one)


def test_fruit_sizes_range_from_small_to_filling_the_image(some: list[Sample]) -> None:
    widths = [(fruit.box[2] - fruit.box[0]) / SMALL.width for sample in some for fruit in sample.instances]
    assert min(widths) < 0.08
    assert max(widths) > 0.4


@pytest.mark.parametrize("background", Background)
def test_another_size_of_the_same_proportions_shows_the_same_fruit(background: Background) -> None:
    options = RenderOptions(background=background, fruits=4)
    small, large = (render(5, size, options=options) for size in (SMALL, Size(336, 672)))
    shrunk = cv2.resize((large.semantic > 0).astype(np.uint8), (224, 112), interpolation=cv2.INTER_AREA) > 0
    fruit = small.semantic > 0
    assert (fruit & shrunk).sum() / (fruit | shrunk).sum() > 0.93


@pytest.mark.parametrize("size", [Size(16, 16), Size(17, 301), Size(300, 40)])
def test_odd_sizes_are_rendered(size: Size) -> None:
    for seed in range(4):
        assert render(seed, size).size == size


def test_without_camera_effects_there_is_no_noise() -> None:
    def even(*, camera: bool) -> float:
        pixels = render(1, SMALL, options=RenderOptions(Background.WHITE, fruits=0, camera=camera)).pixels.astype(int)
        return float((np.abs(np.diff(pixels, axis=1)).max(axis=2) <= 1).mean())

    assert even(camera=False) > 0.99
    assert even(camera=True) < 0.8


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"fruits": -1}, "-1 fruits"),
        ({"fruits": 25}, "0 to 24"),
        ({"infected_share": 1.1}, "share of 1.1"),
        ({"background": Background.CUPS, "layout": Layout.PILED}, "cups keep fruit apart"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], what: str) -> None:
    with pytest.raises(CannotRender, match=what):
        RenderOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("seed", "size"), [(-1, SMALL), (0, Size(15, 100)), (0, Size(100, 8193))])
def test_seeds_and_sizes_out_of_range_are_refused(seed: int, size: Size) -> None:
    with pytest.raises(CannotRender, match="must be"):
        render(seed, size)


def test_images_are_rendered_fast_enough_to_train_with() -> None:
    render(0)  # fills the caches
    started = time.process_time()
    for seed in range(12):
        render(seed)
    # 20 a second and more on a quiet core; a busy machine must not fail the test.
    assert 12 / (time.process_time() - started) >= 5


def test_the_jpeg_is_the_image() -> None:
    sample = render(2, SMALL)
    with PIL.Image.open(io.BytesIO(encode_jpeg(sample, 95))) as image:
        assert image.format == "JPEG"
        assert np.abs(np.asarray(image).astype(int) - sample.pixels).mean() < 3  # channels are not swapped


def test_a_folder_holds_each_image_with_its_masks(tmp_path: Path) -> None:
    main(["--count", "2", "--size", "224x112", "--seed", "5", "--out", str(tmp_path)])
    for seed in (5, 6):
        sample = render(seed, SMALL)
        with PIL.Image.open(tmp_path / "masks" / f"rendered-{seed}.png") as mask:
            assert (mask.mode, np.asarray(mask).tobytes()) == ("L", sample.semantic.tobytes())
        with PIL.Image.open(tmp_path / "instances" / f"rendered-{seed}.png") as instances:
            assert instances.mode.startswith("I;16")
            assert np.array_equal(np.asarray(instances), np.asarray(sample.instance_map))
        assert (tmp_path / "images" / f"rendered-{seed}.jpg").read_bytes() == encode_jpeg(sample, 92)


def test_a_contact_sheet_shows_every_image_and_the_outlines_of_its_masks(tmp_path: Path) -> None:
    samples = [render(seed, SMALL, options=RenderOptions(Background.BLACK, fruits=2)) for seed in range(6)]
    sheet = contact_sheet(samples)
    assert sheet.shape == (4 * 140, 1400, 3)
    plain, outlined = sheet[:140, :280], sheet[140:280, :280]
    differing = (plain != outlined).any(axis=2)
    assert {tuple(colour) for colour in outlined[differing].tolist()} <= {(0, 235, 255), (255, 0, 220)}
    assert differing.any()
    main(["--count", "6", "--size", "224x112", "--contact-sheet", str(tmp_path / "sheet.png")])
    with PIL.Image.open(tmp_path / "sheet.png") as written:
        assert written.size == (1400, 560)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "nothing to write"),
        (["--count", "0", "--out", "x"], "at least one"),
        (["--size", "448", "--out", "x"], "WIDTHxHEIGHT"),
        (["--seed", "-1", "--count", "1", "--out", "x"], "must be at least 0"),
        (["--count", "1", "--contact-sheet", "sheet.docx"], "docx"),
    ],
)
def test_arguments_that_make_no_sense_end_with_one_line(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert what in capsys.readouterr().err.splitlines()[-1]
