"""The renderer: equal arguments give equal images, and the masks match what is visible."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from models.data.samples import Sample
from models.synthetic import Background, CannotRender, Layout, RenderOptions, encode_jpeg, render
from models.synthetic.__main__ import main
from models.synthetic.output import contact_sheet
from models.synthetic.painting import paint
from models.synthetic.sampling import sample_scene
from models.synthetic.scene import Species
from models.types import BinaryMask, PixelClass, Size

SMALL = Size(112, 224)


def mask_of(sample: Sample, number: int) -> BinaryMask:
    mask: BinaryMask = np.asarray(sample.instance_map) == number
    return mask


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [render(seed, SMALL) for seed in range(30)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("background", Background)
def test_equal_seeds_give_equal_bytes_with_any_number_of_threads(background: Background) -> None:
    images = []
    for count in (1, 4):
        cv2.setNumThreads(count)
        sample = render(7, options=RenderOptions(background=background, fruits=3))
        images.append((sample.pixels.tobytes(), sample.semantic.tobytes(), np.asarray(sample.instance_map).tobytes()))
    assert images[0] == images[1]


def test_different_seeds_give_different_images_of_small_and_large_fruit(samples: list[Sample]) -> None:
    assert len({sample.pixels.tobytes() for sample in samples}) == len(samples)
    assert [sample.name for sample in samples[:2]] == ["rendered-0", "rendered-1"]
    widths = [(fruit.box[2] - fruit.box[0]) / SMALL.width for sample in samples for fruit in sample.instances]
    assert min(widths) < 0.08
    assert max(widths) > 0.4


def test_maps_and_instances_of_a_sample_agree(samples: list[Sample]) -> None:
    classes = set()
    for sample in samples:
        assert sample.pixels.shape == (112, 224, 3)
        assert sample.pixels.dtype == np.uint8
        assert sample.semantic.shape == (112, 224)
        assert sample.semantic.dtype == np.uint8
        assert sample.instance_map is not None
        assert sample.instance_map.shape == (112, 224)
        assert sample.instance_map.dtype == np.uint16
        assert set(np.unique(sample.semantic)) <= {PixelClass.BACKGROUND, PixelClass.HEALTHY, PixelClass.INFECTED}
        assert np.array_equal(sample.instance_map > 0, sample.semantic != PixelClass.BACKGROUND)
        assert [instance.id for instance in sample.instances] == list(range(1, len(sample.instances) + 1))
        assert int(sample.instance_map.max()) == len(sample.instances)
        for instance in sample.instances:
            mask = mask_of(sample, instance.id)
            x0, y0, x1, y1 = instance.box
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            assert all(edge.any() for edge in (mask[y0, :], mask[y1 - 1, :], mask[:, x0], mask[:, x1 - 1]))
            infected = bool((sample.semantic[mask] == PixelClass.INFECTED).any())
            assert instance.pixel_class is (PixelClass.INFECTED if infected else PixelClass.HEALTHY)
            classes.add(instance.pixel_class)
    assert classes == {PixelClass.HEALTHY, PixelClass.INFECTED}


def test_fruit_is_visible_where_the_masks_are() -> None:
    options = RenderOptions(background=Background.BLACK, layout=Layout.APART, fruits=4, infected_share=0, camera=False)
    for seed in range(3):
        sample = render(seed, options=options)
        bright = sample.pixels.max(axis=2) > 70
        fruit = sample.semantic != PixelClass.BACKGROUND
        # Green fruit is dark, and its unlit side as dark as the background.
        assert (bright & fruit).sum() > 0.1 * fruit.sum()
        near = cv2.dilate(fruit.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert not (bright & ~near).any()


def test_a_fruit_in_front_of_another_takes_its_pixels() -> None:
    fullness = []
    for seed in range(3):
        sample = render(seed, options=RenderOptions(layout=Layout.PILED, fruits=6, background=Background.TABLE))
        for instance in sample.instances:
            mask = mask_of(sample, instance.id)
            contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            hull = cv2.convexHull(np.concatenate(contours))
            fullness.append(mask.sum() / max(cv2.contourArea(hull), 1))
    assert min(fullness) < 0.9  # some are crescents
    assert max(fullness) > 0.98  # and some are whole


@pytest.mark.parametrize("background", Background)
def test_distractors_are_never_labelled_infected(background: Background) -> None:
    for seed in range(2):
        sample = render(seed, SMALL, options=RenderOptions(background=background, infected_share=0, fruits=5))
        assert not (sample.semantic == PixelClass.INFECTED).any()
        assert all(instance.pixel_class is PixelClass.HEALTHY for instance in sample.instances)


def test_distractors_change_the_image_but_no_outline() -> None:
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
    # Lesions that lie mostly on the far side, or under a sticker, may show no pixel at this size.
    assert low <= np.mean([fruit.pixel_class is PixelClass.INFECTED for fruit in fruits]) <= high


@pytest.mark.parametrize("cover", [0.1, 0.5, 0.8, 1.0])
def test_large_rot_covers_and_labels_the_share_asked_for(cover: float) -> None:
    options = RenderOptions(Background.TABLE, 1, Layout.APART, infected_share=1, rot_cover=cover, distractors=False)
    for seed in range(6):
        sample = render(seed, options=options)
        infected = (sample.semantic == PixelClass.INFECTED).sum() / (sample.semantic > 0).sum()
        # The smallest of these fruits has 500 pixels; half of those on the border of the rot may fall on either side.
        assert infected == pytest.approx(cover, abs=0.03)


def test_russet_and_wind_scars_show_and_are_healthy() -> None:
    without, scarred = (
        [
            render(seed, SMALL, options=RenderOptions(Background.BELT, 3, infected_share=0, russet_share=share))
            for seed in range(4)
        ]
        for share in (0, 1)
    )
    for plain, marked in zip(without, scarred, strict=True):
        assert not np.array_equal(plain.pixels, marked.pixels)
        assert np.array_equal(plain.semantic, marked.semantic)
        assert set(np.unique(marked.semantic)) == {PixelClass.BACKGROUND, PixelClass.HEALTHY}


@pytest.mark.parametrize("background", Background)
def test_a_scene_without_fruit_has_no_fruit_in_its_masks(background: Background) -> None:
    for seed in range(3):
        sample = render(seed, SMALL, options=RenderOptions(background, fruits=0))
        assert not sample.semantic.any()
        assert sample.instances == ()


def test_scenes_have_no_to_many_fruits_from_12_pixels_to_the_whole_image() -> None:
    scenes = [sample_scene(seed, (1.0, 1.0), RenderOptions()) for seed in range(400)]
    radii = [fruit.radius for scene in scenes for fruit in scene.fruits]
    # At 448 x 224 pixels the mean side is 317 pixels.
    assert 12 <= 2 * 317 * min(radii) < 14
    assert max(radii) > 0.71  # as large as half the diagonal of a square image
    counts = [len(scene.fruits) for scene in scenes]
    assert {0, 1, 24} <= set(counts)
    assert 0.05 < counts.count(0) / len(counts) < 0.15
    assert {fruit.species for scene in scenes for fruit in scene.fruits} == set(Species) - {Species.PLUM}
    assert {scene.background for scene in scenes} == set(Background)


def test_fruit_of_a_species_that_is_asked_for_lies_where_other_fruit_would() -> None:
    extent, cups = (1.5**0.5, 1.5**-0.5), RenderOptions(Background.CUPS, 5)
    for seed in range(20):
        usual = sample_scene(seed, extent, cups).fruits
        plums = sample_scene(seed, extent, replace(cups, species=Species.PLUM)).fruits
        assert {fruit.species for fruit in plums} == {Species.PLUM}
        assert [fruit.centre.tolist() for fruit in plums] == [fruit.centre.tolist() for fruit in usual]


def test_a_hand_hides_a_part_of_the_fruit_that_it_holds() -> None:
    scene = sample_scene(0, (1.0, 1.0), RenderOptions(Background.WHITE, 1, Layout.APART))
    bare, held = (paint(replace(scene, hand=hand), Size(224, 224), "scene", 0) for hand in (False, True))
    assert not (held.semantic[bare.semantic == PixelClass.BACKGROUND]).any()
    assert 0.5 < (held.semantic > 0).sum() / (bare.semantic > 0).sum() < 0.97


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("count", [0, 1, 12, 24])
def test_the_requested_number_of_fruits_is_visible(layout: Layout, count: int) -> None:
    sample = render(3, options=RenderOptions(background=Background.TABLE, fruits=count, layout=layout))
    assert len(sample.instances) == count


@pytest.mark.parametrize("background", [Background.BELT, Background.CUPS, Background.WHITE])
def test_fruits_apart_have_gaps_and_lie_inside_the_image(background: Background) -> None:
    for seed in range(3):
        sample = render(seed, SMALL, options=RenderOptions(background, fruits=6, layout=Layout.APART))
        count, _ = cv2.connectedComponents((sample.semantic > 0).astype(np.uint8))
        assert count == 1 + 6
        assert not np.concatenate([sample.semantic[[0, -1]].ravel(), sample.semantic[:, [0, -1]].ravel()]).any()


def test_touching_fruits_each_have_a_neighbour() -> None:
    for seed in range(4):
        sample = render(seed, options=RenderOptions(Background.WHITE, fruits=4, layout=Layout.TOUCHING))
        masks = [mask_of(sample, instance.id) for instance in sample.instances]
        for number, mask in enumerate(masks):
            # Fewer than three pixels between them: fruit is not as round as the balls that touch.
            grown = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
            assert any((grown & other).any() for index, other in enumerate(masks) if index != number)


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
    def smooth(*, camera: bool) -> float:
        pixels = render(1, SMALL, options=RenderOptions(Background.WHITE, fruits=0, camera=camera)).pixels.astype(int)
        return float((np.abs(np.diff(pixels, axis=1)).max(axis=2) <= 1).mean())

    assert smooth(camera=False) > 0.99
    assert smooth(camera=True) < 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fruits": -1}, "fruits must be 0 to 24, got -1"),
        ({"fruits": 25}, "fruits must be 0 to 24, got 25"),
        ({"infected_share": 1.1}, "infected_share must be 0 to 1, got 1.1"),
        ({"rot_cover": 0.01}, "rot_cover must be 0.05 to 1, got 0.01"),
        ({"russet_share": -0.1}, "russet_share must be 0 to 1, got -0.1"),
        ({"background": Background.CUPS, "layout": Layout.PILED}, "must be apart with cups, got piled"),
    ],
)
def test_options_out_of_range_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(CannotRender, match=message):
        RenderOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("seed", "size"), [(-1, SMALL), (0, Size(15, 100)), (0, Size(100, 8193))])
def test_seeds_and_sizes_out_of_range_are_rejected(seed: int, size: Size) -> None:
    with pytest.raises(CannotRender, match="must be"):
        render(seed, size)


def test_a_folder_holds_each_image_with_its_masks(tmp_path: Path) -> None:
    main(["--count", "2", "--size", "224x112", "--seed", "5", "--out", str(tmp_path)])
    for seed in (5, 6):
        sample = render(seed, SMALL)
        with PIL.Image.open(tmp_path / "masks" / f"rendered-{seed}.png") as mask:
            assert (mask.mode, np.asarray(mask).tobytes()) == ("L", sample.semantic.tobytes())
        with PIL.Image.open(tmp_path / "instances" / f"rendered-{seed}.png") as instances:
            assert instances.mode.startswith("I;16")
            assert np.array_equal(np.asarray(instances), np.asarray(sample.instance_map))
        data = (tmp_path / "images" / f"rendered-{seed}.jpg").read_bytes()
        assert data == encode_jpeg(sample, 92)
        with PIL.Image.open(io.BytesIO(data)) as image:
            assert image.format == "JPEG"
            assert np.abs(np.asarray(image).astype(int) - sample.pixels).mean() < 5  # channels are not swapped


def test_a_contact_sheet_shows_every_image_and_the_outlines_of_its_masks(tmp_path: Path) -> None:
    samples = [render(seed, SMALL, options=RenderOptions(Background.BLACK, fruits=2)) for seed in range(6)]
    sheet = contact_sheet(samples)
    assert sheet.shape == (4 * 140, 1400, 3)
    plain, outlined = sheet[:140, :280], sheet[140:280, :280]
    different = (plain != outlined).any(axis=2)
    assert different.any()
    assert {tuple(colour) for colour in outlined[different].tolist()} <= {(0, 235, 255), (255, 0, 220)}
    main(["--count", "6", "--size", "224x112", "--contact-sheet", str(tmp_path / "sheet.png")])
    with PIL.Image.open(tmp_path / "sheet.png") as written:
        assert written.size == (1400, 560)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to write"),
        (["--count", "0", "--out", "x"], "--count must be at least 1, got 0"),
        (["--size", "448", "--out", "x"], "WIDTHxHEIGHT"),
        (["--seed", "-1", "--count", "1", "--out", "x"], "seed must be at least 0"),
        (["--count", "1", "--contact-sheet", "sheet.docx"], "docx"),
    ],
)
def test_invalid_arguments_end_with_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]
