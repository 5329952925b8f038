from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.backends.load import ModelStore, load_unet
from models.catalog import CATALOGUE, LocalFile, read_models_file
from models.confidence import FEWEST, INTERVALS
from models.data.sources import DataSource, OpenedSource, open_sources
from models.errors import BadCheckpoint, DataError
from models.synthetic import Background, Layout, RenderOptions, render
from models.synthetic.output import write_sample
from models.training.errors import CannotTrain
from models.training.image_pool import ImagePool
from models.training.losses import centre_offsets
from models.training.options import LOOKS, PRESETS, FitOptions, Machine, Product, UNetOptions
from models.training.run_files import open_run, write_weights
from models.training.trainer import Trainer, Validation
from models.training.unet_data import (
    FIRST_TRAINING_SEED,
    FIRST_VALIDATION_SEED,
    count_steps,
    load_example,
    plan_epoch,
    rendered_validation,
)
from models.training.unet_recipe import UNetLearner, calibrate, export, load_encoder, train_unet
from models.training.unet_validation import UNetValidator
from models.types import CLASSES, PixelClass, Size
from models.unet.build import PixelsToLogits, new_unet
from models.unet.constants import OFFSET_UNIT
from models.unet.letterbox import unet_letterbox
from models.weights.checkpoints import load_state_dict, sha256_of
from models.weights.run_folder import RunFolder

pytestmark = pytest.mark.slow

SMALL = Size(64, 96)
TINY = UNetOptions(
    FitOptions(epochs=2, learning_rate=1e-3, averaging=0.5, seed=5),
    batch=2,
    crops=(Size(32, 64), Size(64, 32)),
    close=0.0,
    rendered=2,
    rendered_validation=2,
)
CALIBRATION = RenderOptions(background=Background.WHITE, fruits=12, layout=Layout.APART)
AS_FRUIT = {"1": "fruit", "2": "fruit"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are not worth waiting for a second thread, which a busy machine makes long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def machine(cache: Path, workers: int = 0) -> Machine:
    return Machine(device="cpu", workers=workers, cache_dir=cache, progress=False)


@pytest.fixture(scope="module")
def fruit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rendered images with a split; the one of the test part is not an image at all."""
    folder = tmp_path_factory.mktemp("data") / "fruit"
    for seed in range(5):
        write_sample(folder, render(seed, SMALL, options=RenderOptions(fruits=3)))
    (folder / "images" / "rendered-4.jpg").write_bytes(b"the test part must not be decoded")
    parts = {"train": ["rendered-0", "rendered-1"], "val": ["rendered-2", "rendered-3"], "test": ["rendered-4"]}
    (folder / "split.json").write_text(json.dumps(parts))
    return folder


@pytest.fixture(scope="module")
def opened(fruit_folder: Path) -> tuple[OpenedSource, ...]:
    return open_sources([DataSource(fruit_folder, weight=2.5)])


def test_a_run_makes_a_model_that_is_served_from_its_models_file(fruit_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    source = DataSource(fruit_folder, AS_FRUIT, weight=2.0, licence="CC0, painted by numbers")
    # A rate that soon separates background: an undecided network changes its mind with the last bit of float16.
    fit = replace(TINY.fit, learning_rate=5e-3)
    options = replace(TINY, architecture="unet-resnet18", fit=fit, area=SMALL.pixels)
    fitted = train_unet(options, [source], Product(out, "tiny-unet", "Apache-2.0"), machine(tmp_path))

    (entry,) = read_models_file(out / "models.yaml").values()
    assert (entry.name, entry.architecture, entry.licence) == ("tiny-unet", "unet-resnet18", "Apache-2.0")
    assert entry.input_area == SMALL.pixels
    backend = load_unet(entry, "torch", ModelStore(tmp_path / "cache"))
    image = render(9, SMALL)
    (logits,) = backend.infer([backend.prepare(image.pixels, unet_letterbox(image.size, entry.input_area))])
    assert logits.shape == (5, 64, 96)
    assert np.isfinite(logits).all()
    best, served = (load_state_dict(out / name) for name in ("best.safetensors", "model.safetensors"))
    assert best.keys() == served.keys()
    assert all(torch.equal(best[name].to(each.dtype), each) for name, each in served.items())
    assert (out / "model.safetensors").stat().st_mode & 0o077 == (out / "card.md").stat().st_mode & 0o077
    assert entry.size < 30e6

    # Too few fruits of known health are found after so little training to say how far their fractions are off.
    assert INTERVALS.read(entry) is None

    card = json.loads((out / "card.json").read_text())
    assert (card["sha256"], card["size"]) == (entry.sha256, entry.size)
    data = card["data"]["fruit"]
    assert (data["train"], data["licence"], data["divided_by"]) == (2, source.licence, "split.json")
    assert len(data["sha256"]) == 64
    assert card["data"]["rendered"]["scenes in an epoch"] == 2
    assert card["options"]["fit"]["seed"] == 5
    assert card["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert card["score"] == pytest.approx(fitted.best.score, abs=0.001)  # what float16 may change
    assert card["validation"]["fruit/healthy_iou"] is None  # health is unknown
    assert card["validation"]["rendered/healthy_iou"] is not None
    assert card["initial_weights"] == "random"
    text = (out / "card.md").read_text()
    for words in (entry.sha256, source.licence, "the mean over the sources of their mean IoU", "was not used"):
        assert words in text


def test_a_network_is_calibrated_on_the_fruits_that_it_finds(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    shutil.copy(CATALOGUE["unet-mobilenetv2-citrus"].sources[0].path, weights)  # type: ignore[union-attr]
    scenes = [render(seed, Size(112, 224), options=CALIBRATION) for seed in range(3)]
    validator = UNetValidator((), scenes, machine(tmp_path))
    intervals = calibrate(weights, "unet-mobilenetv2", validator, machine(tmp_path))
    assert intervals is not None
    annotated = sum(len(scene.instances) for scene in scenes)
    assert FEWEST <= sum(each.fruits for each in intervals.ranges) <= annotated
    entry = replace(CATALOGUE["unet-mobilenetv2-citrus"], sources=(LocalFile(weights),))
    assert INTERVALS.read(entry) == intervals
    few = UNetValidator((), scenes[:1], machine(tmp_path))
    assert calibrate(weights, "unet-mobilenetv2", few, machine(tmp_path)) is None
    assert INTERVALS.read(entry) is None


def test_the_score_is_the_mean_of_the_sources_and_unknown_health_is_validated_by_fruit(
    fruit_folder: Path, tmp_path: Path
) -> None:
    sources = open_sources([DataSource(fruit_folder, AS_FRUIT)])
    validator = UNetValidator(sources, rendered_validation(TINY), machine(tmp_path))
    found = validator.validate(new_unet("unet-mobilenetv2", 0).eval())
    fruit, rendered = (found.measures[f"{name}/mean_iou"] for name in ("fruit", "rendered"))
    assert found.score == pytest.approx((fruit + rendered) / 2)
    assert fruit == pytest.approx((found.measures["fruit/background_iou"] + found.measures["fruit/fruit_iou"]) / 2)
    assert np.isnan(found.measures["fruit/infected_iou"])


class Interrupted(UNetLearner):
    """Is interrupted during its second validation."""

    validations = 0

    def validate(self, network: nn.Module) -> Validation:
        self.validations += 1
        if self.validations == 2:
            raise KeyboardInterrupt
        return super().validate(network)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    opened: tuple[OpenedSource, ...], tmp_path: Path
) -> None:
    def run(kind: type[UNetLearner], name: str, workers: int = 0) -> RunFolder:
        folder = open_run(tmp_path / name, {}, resume=True)
        learner = kind(new_unet(TINY.architecture, TINY.fit.seed), opened, TINY, machine(tmp_path, workers))
        Trainer(learner, TINY.fit, folder, metadata={}, progress=False).fit()
        return folder

    whole = run(UNetLearner, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted, "broken")
    resumed = run(UNetLearner, "broken", workers=1)  # processes that prepare images change nothing
    assert resumed.last.read_bytes() == whole.last.read_bytes()
    assert resumed.best.read_bytes() == whole.best.read_bytes()


def test_a_network_learns_classes_and_centre_offsets(tmp_path: Path) -> None:
    scenes = RenderOptions(fruits=2, layout=Layout.APART, infected_share=0.5)
    samples = [render(seed, Size(64, 64), options=scenes) for seed in range(2)]
    pixels = torch.from_numpy(np.stack([each.pixels for each in samples]))
    truth = torch.from_numpy(np.stack([each.semantic for each in samples]))
    offsets = torch.from_numpy(np.stack([centre_offsets(each.instance_map, 64, 64) for each in samples]))
    learner = UNetLearner(new_unet("unet-resnet18", 1), [], replace(TINY, rendered_validation=0), machine(tmp_path))
    optimiser = torch.optim.Adam(learner.network.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        learner.loss((pixels, truth, offsets)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.inference_mode():
        output = PixelsToLogits(learner.network.eval())(pixels)
    predicted = output[:, : len(CLASSES)].argmax(dim=1)
    for each in CLASSES:
        hits, either = ((predicted == each) & (truth == each)).sum(), ((predicted == each) | (truth == each)).sum()
        assert int(either) > 25, each
        assert float(hits / either) > 0.7, each
    # An offset of 0 would miss by 0.67 radii on average.
    missed = (output[:, len(CLASSES) :] * OFFSET_UNIT - offsets[:, :2]).norm(dim=1) / offsets[:, 2]
    assert float(missed[offsets[:, 2] > 0].mean()) < 0.35


def test_an_epoch_shows_each_image_as_often_as_its_weight_says_and_new_scenes(
    opened: tuple[OpenedSource, ...],
) -> None:
    options = replace(TINY, rendered=7, batch=4, close=0.5)
    first, again, other = (plan_epoch(opened, options, epoch) for epoch in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(first) == count_steps(opened, options) == 3  # 5 and 7 images
    picks = [pick for batch in first for pick in batch]
    shown = [pick.name for pick in picks if pick.source == 0 and not pick.look]  # the first close-up of each
    assert sorted(shown.count(name) for name in opened[0].train) == [2, 3]
    seeds = {int(pick.name) for pick in picks if pick.source is None}
    later = {int(pick.name) for batch in other for pick in batch if pick.source is None}
    assert len(seeds) == 7
    assert not seeds & later
    assert min(seeds | later) >= FIRST_TRAINING_SEED > FIRST_VALIDATION_SEED + options.rendered_validation
    assert all(len({pick.crop for pick in batch}) == 1 for batch in first)
    pixels, classes, offsets = load_example(picks[0], options, ImagePool(opened))
    assert classes.shape == (picks[0].crop.height, picks[0].crop.width)
    assert pixels.shape == (*classes.shape, 3)
    assert offsets.shape == (3, *classes.shape)


def test_images_of_a_kind_have_a_weight_of_their_own_and_are_validated_apart(
    fruit_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kinds"
    shutil.copytree(fruit_folder, folder)
    kinds = {"rendered-0": "tree", "rendered-1": "belt", "rendered-2": "tree", "rendered-3": "belt"}
    (folder / "meta.json").write_text(json.dumps({name: {"kind": kind} for name, kind in kinds.items()}))
    sources = open_sources([DataSource(folder, weight=1.0, group_weights={"tree": 3.0})])
    picks = [pick.name for batch in plan_epoch(sources, replace(TINY, rendered=0), 0) for pick in batch]
    assert sorted(picks) == ["rendered-0"] * 3 + ["rendered-1"]
    validator = UNetValidator(sources, [], machine(tmp_path))
    assert validator.names == ["kinds/belt", "kinds/tree"]
    found = validator.validate(new_unet("unet-mobilenetv2", 0).eval())
    belt, tree = (found.measures[f"kinds/{kind}/mean_iou"] for kind in ("belt", "tree"))
    assert found.score == pytest.approx((belt + tree) / 2)
    with pytest.raises(DataError, match="no images of the kind 'shop' to weigh; its kinds are belt, tree"):
        open_sources([DataSource(folder, group_weights={"shop": 3.0})])


def test_close_ups_show_fruit_and_lesions_and_end_before_the_last_epochs(opened: tuple[OpenedSource, ...]) -> None:
    options = replace(TINY, rendered=7, batch=4, close=1.0, close_side=96, fit=replace(TINY.fit, epochs=4))
    *close_ups, last = (plan_epoch(opened, options, epoch) for epoch in range(4))
    assert all(pick.look is None for batch in last for pick in batch)
    for batch in (batch for epoch in close_ups for batch in epoch):
        assert len(batch) == LOOKS * options.batch
        assert sorted(pick.look for pick in batch if pick.look is not None) == sorted([*range(LOOKS)] * options.batch)
        assert {pick.crop for pick in batch} == {Size(96, 96)}
    pool = ImagePool(opened)
    for pick in close_ups[0][0][:4]:
        pixels, classes, _ = load_example(pick, options, pool)
        assert pixels.shape == (96, 96, 3)
        inner = classes[12:-12, 12:-12]
        assert bool(((inner == PixelClass.HEALTHY) | (inner == PixelClass.INFECTED)).any())


def test_weights_that_float16_would_spoil_are_not_exported(opened: tuple[OpenedSource, ...], tmp_path: Path) -> None:
    folder = open_run(tmp_path / "run", {}, resume=False)
    initial = new_unet("unet-mobilenetv2", 0).state_dict()
    head = "segmentation_head.0"
    write_weights(folder.best, {**initial, f"{head}.weight": initial[f"{head}.weight"] * 1e9}, half=False, metadata={})
    validator = UNetValidator(opened, [], machine(tmp_path))
    with pytest.raises(CannotTrain, match=r"segmentation_head\.0\.weight.*float16"):
        export(folder, "unet-mobilenetv2", validator, {}, machine(tmp_path))
    # Features so small that float16 cannot hold them, which alone say whether fruit is healthy or infected.
    last = "decoder.blocks.4.conv2.1.weight"
    small = {
        last: initial[last] * 1e-9,
        f"{head}.weight": initial[f"{head}.weight"] * 6e4,
        f"{head}.bias": torch.tensor([0.0, 5.0, 5.0, 0.0, 0.0]),
    }
    write_weights(folder.best, {**initial, **small}, half=False, metadata={})
    with pytest.raises(CannotTrain, match="must change by at most"):
        export(folder, "unet-mobilenetv2", validator, {}, machine(tmp_path))
    assert not folder.model.exists()


def test_the_recipe_of_the_study_is_a_preset() -> None:
    study = PRESETS["study"]
    assert (study.architecture, study.loss, study.batch, study.crops) == (
        "unet-resnet18",
        "dice",
        256,
        (Size(448, 224),),
    )
    assert (study.fit.optimiser, study.fit.epochs, study.fit.schedule) == ("adam", 150, "constant")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "unet-vgg"}, "got 'unet-vgg'"),
        ({"architecture": "unet-resnet18", "encoder_weights": "imagenet"}, "only for unet-mobilenetv2"),
        ({"begin_from": Path("x"), "encoder_weights": "imagenet"}, "its own encoder"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"area": 401_409}, "area must be 1024 to 401408, got 401409"),
        ({"close": 1.5}, "close must be 0 to 1"),
        ({"close_side": 100}, "close_side must be a multiple of 32, got 100"),
        ({"rendered": -1}, "must be at least 0"),
        ({"crops": (Size(64, 100),)}, "multiples of 32"),
        ({"loss": "l1"}, "loss must be a sum of .* got 'l1'"),
    ],
)
def test_options_out_of_range_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CannotTrain, match=message):
        replace(TINY, **changes)  # type: ignore[arg-type]


def test_what_cannot_be_trained_is_rejected_before_anything_is_written(fruit_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for options, name, message in (
        (replace(TINY, rendered=0), "tiny", "enough images"),
        (replace(TINY, rendered_validation=0), "tiny", "nothing to validate on"),
        (replace(TINY, begin_from=tmp_path / "none"), "tiny", "no such checkpoint"),
        (TINY, "Tiny Net", "model name"),
        (TINY, "mobile-sam", "model name"),
        (TINY, "", "model name"),
    ):
        with pytest.raises(CannotTrain, match=message):
            train_unet(options, [], Product(out, name, "MIT"), machine(tmp_path))
    product = Product(out, "tiny", "MIT")
    with pytest.raises(DataError, match="got 'apple'"):
        train_unet(TINY, [DataSource(fruit_folder, {"1": "apple"})], product, machine(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(fruit_folder, broken)
    for name in ("rendered-0", "rendered-3"):
        (broken / "images" / f"{name}.jpg").write_bytes(f"not an image, {name}".encode())
    with pytest.raises(DataError, match=r"2 images of .*(\n.*rendered-[03]\.jpg: .*){2}"):
        train_unet(TINY, [DataSource(broken)], product, machine(tmp_path))
    assert not out.exists()


def test_a_run_starts_from_the_weights_of_another_run_and_records_it(tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.safetensors"
    tensors = new_unet("unet-mobilenetv2", 3).state_dict()
    write_weights(earlier, tensors, half=False, metadata={})
    # A rate too low to move anything: what comes out is what went in.
    still = replace(TINY.fit, epochs=1, learning_rate=1e-12, averaging=0.0)
    out = tmp_path / "run"
    train_unet(replace(TINY, fit=still, begin_from=earlier), [], Product(out, "tiny", "MIT"), machine(tmp_path))
    name = "segmentation_head.0.weight"
    torch.testing.assert_close(load_state_dict(out / "last.safetensors")[name], tensors[name], atol=1e-6, rtol=0)
    card = (out / "card.json").read_text()
    assert json.loads(card)["initial_weights"] == f"earlier.safetensors of sha256 {sha256_of(earlier)}"
    assert str(tmp_path) not in card


# torchvision's first MobileNetV2 had the layers of a block in one list; these are the indices in that list.
_FIRST_BLOCK = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}
_BLOCK = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}


def tensors_of(encoder: nn.Module) -> dict[str, Tensor]:
    return dict(encoder.named_parameters()) | dict(encoder.named_buffers())


def with_names_of_the_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[2] == "conv":
            layers = _FIRST_BLOCK if parts[1] == "1" else _BLOCK
            parts = [*parts[:3], layers[".".join(parts[3:-1])], parts[-1]]
        named[".".join(parts)] = tensor
    return named


def test_imagenet_weights_fill_the_whole_encoder_or_are_rejected() -> None:
    source, target = (new_unet("unet-mobilenetv2", seed).get_submodule("encoder") for seed in (1, 2))
    tensors = {
        name: torch.rand_like(each.detach()) if each.is_floating_point() else each + 7
        for name, each in tensors_of(source).items()
    }
    renamed = with_names_of_the_file(tensors)
    assert len(renamed) == 312
    assert {"features.1.conv.3.weight", "features.17.conv.7.running_var"} <= renamed.keys()
    before = {name: each.clone() for name, each in tensors_of(target).items()}
    missing = {name: each for name, each in renamed.items() if name != "features.2.conv.0.weight"}
    for invalid in (
        missing,
        {**renamed, "classifier.1.weight": torch.zeros(10, 12)},
        {**renamed, "features.2.conv.0.weight": torch.zeros(1)},
    ):
        with pytest.raises(BadCheckpoint, match="do not fit the encoder"):
            load_encoder(target, invalid)
    assert all(torch.equal(each, before[name]) for name, each in tensors_of(target).items())
    load_encoder(target, renamed)
    assert tensors_of(target).keys() == tensors.keys()
    assert all(torch.equal(each, tensors[name]) for name, each in tensors_of(target).items())
