from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.backends.load import ModelStore, load_unet
from models.catalog import read_models_file
from models.data.sources import DataSource, open_sources
from models.errors import DataError
from models.synthetic import Layout, RenderOptions, render
from models.synthetic.folder import write_sample
from models.training.checkpoint_files import write_weights
from models.training.errors import CannotTrain
from models.training.fitting import FitOptions, Validation, fit
from models.training.machine import Machine
from models.training.model_card import Product
from models.training.run_folder import RunFolder, open_run
from models.training.unet_images import (
    FIRST_TRAINING_SEED,
    FIRST_VALIDATION_SEED,
    count_steps,
    example,
    plan_epoch,
    rendered_validation,
)
from models.training.unet_options import CLOSE, LOOKS, PRESETS, UNetOptions
from models.training.unet_training import UNetLearner, export, train_unet
from models.training.unet_validation import UNetValidation
from models.training.unet_votes import votes_of
from models.types import CLASSES, PixelClass, Size
from models.unet.build import PixelsToLogits, new_unet
from models.unet.constants import OFFSET_UNIT
from models.unet.letterbox import unet_letterbox
from models.weights.checkpoints import load_state_dict
from models.weights.digests import sha256_of

SMALL = Size(64, 96)
TINY = UNetOptions(
    FitOptions(epochs=2, learning_rate=1e-3, averaging=0.5, seed=5),
    batch=2,
    crops=(Size(64, 64), Size(32, 96)),
    rendered=2,
    rendered_validation=2,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are not worth waiting for a second thread, which a busy machine makes long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def machine(cache: Path, workers: int = 0) -> Machine:
    return Machine(device="cpu", workers=workers, cache_dir=cache, progress=False)


@pytest.fixture
def fruit_folder(tmp_path: Path) -> Path:
    """Five rendered images with a split; the one to test on is no image at all."""
    folder = tmp_path / "fruit"
    for seed in range(5):
        write_sample(folder, render(seed, SMALL, options=RenderOptions(fruits=3)))
    (folder / "images" / "rendered-4.jpg").write_bytes(b"nobody may decode this")
    parts = {"train": ["rendered-0", "rendered-1"], "val": ["rendered-2", "rendered-3"], "test": ["rendered-4"]}
    (folder / "split.json").write_text(json.dumps(parts))
    return folder


AS_FRUIT = {"1": "fruit", "2": "fruit"}


def test_a_run_gives_a_model_that_the_models_file_serves(fruit_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    source = DataSource(fruit_folder, AS_FRUIT, weight=2.0, licence="CC0, painted by numbers")
    # A rate that soon tells background apart: a network without an opinion changes it with the last bit of float16.
    options = replace(TINY, architecture="unet-resnet18", fit=replace(TINY.fit, learning_rate=5e-3))
    fitted = train_unet(options, [source], Product(out, "tiny-unet", "Apache-2.0"), machine(tmp_path))

    (entry,) = read_models_file(out / "models.yaml").values()
    assert (entry.name, entry.architecture, entry.licence) == ("tiny-unet", "unet-resnet18", "Apache-2.0")
    backend = load_unet(entry, "torch", ModelStore(tmp_path / "cache"))
    image = render(9, SMALL)
    frame = unet_letterbox(image.size, area=SMALL.pixels)
    (logits,) = backend.infer([backend.prepare(image.pixels, frame)])
    assert logits.shape == (5, 64, 96)
    assert np.isfinite(logits).all()
    best, served = (load_state_dict(out / name) for name in ("best.safetensors", "model.safetensors"))
    assert best.keys() == served.keys()
    assert all(torch.equal(best[name].to(each.dtype), each) for name, each in served.items())
    assert (out / "model.safetensors").stat().st_mode & 0o077 == (out / "card.md").stat().st_mode & 0o077
    assert entry.size < 30e6

    card = json.loads((out / "card.json").read_text())
    assert card["sha256"] == entry.sha256
    assert card["size"] == entry.size
    assert card["data"]["fruit"]["train"] == 2
    assert card["data"]["fruit"]["licence"] == "CC0, painted by numbers"
    assert card["data"]["fruit"]["divided_by"] == "split.json"
    assert len(card["data"]["fruit"]["sha256"]) == 64
    assert card["data"]["rendered"]["scenes in an epoch"] == 2
    assert card["options"]["fit"]["seed"] == 5
    assert card["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert card["score"] == pytest.approx(fitted.best.score, abs=0.001)  # what float16 may change
    assert card["validation"]["fruit/healthy_iou"] is None  # nobody said
    assert card["validation"]["rendered/healthy_iou"] is not None
    assert card["initial_weights"] == "chance"
    text = (out / "card.md").read_text()
    for words in (
        entry.sha256,
        "CC0, painted by numbers",
        "the mean over the sources of their mean IoU",
        "not touched",
    ):
        assert words in text


def test_the_score_is_the_mean_of_the_sources_and_a_source_without_health_is_judged_by_fruit_alone(
    fruit_folder: Path, tmp_path: Path
) -> None:
    (opened,) = open_sources([DataSource(fruit_folder, AS_FRUIT)])
    validation = UNetValidation([opened], rendered_validation(TINY), machine(tmp_path))
    judged = validation.of(new_unet("unet-mobilenetv2", 0).eval())
    fruit, rendered = (judged.measures[f"{name}/mean_iou"] for name in ("fruit", "rendered"))
    assert judged.score == pytest.approx((fruit + rendered) / 2)
    assert fruit == pytest.approx((judged.measures["fruit/background_iou"] + judged.measures["fruit/fruit_iou"]) / 2)
    assert np.isnan(judged.measures["fruit/infected_iou"])
    assert len(list(validation.judgements(new_unet("unet-mobilenetv2", 0).eval()))) == 4


class Interrupted(UNetLearner):
    """Is stopped by the user while it validates for the second time."""

    judged = 0

    def validate(self, network: nn.Module) -> Validation:
        self.judged += 1
        if self.judged == 2:
            raise KeyboardInterrupt
        return super().validate(network)


def test_a_run_that_is_resumed_is_bit_for_bit_the_uninterrupted_one(fruit_folder: Path, tmp_path: Path) -> None:
    sources = open_sources([DataSource(fruit_folder)])
    options = replace(TINY, fit=replace(TINY.fit, epochs=3))

    def run(kind: type[UNetLearner], name: str, workers: int = 0) -> RunFolder:
        folder = open_run(tmp_path / name, {}, resume=True)
        network = new_unet(options.architecture, options.fit.seed)
        learner = kind(network, sources, options, machine(tmp_path, workers))
        fit(learner, options.fit, folder, metadata={}, progress=False)
        return folder

    whole = run(UNetLearner, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted, "broken")
    resumed = run(UNetLearner, "broken", workers=1)  # processes that prepare images change nothing
    assert resumed.last.read_bytes() == whole.last.read_bytes()
    assert resumed.best.read_bytes() == whole.best.read_bytes()


def test_a_network_learns_a_handful_of_scenes_by_heart(tmp_path: Path) -> None:
    scenes = RenderOptions(fruits=2, layout=Layout.APART, infected_share=0.5)
    samples = [render(seed, Size(64, 64), options=scenes) for seed in range(4)]
    pixels = torch.from_numpy(np.stack([each.pixels for each in samples]))
    truth = torch.from_numpy(np.stack([each.semantic for each in samples]))
    votes = torch.from_numpy(np.stack([votes_of(each.instance_map, 64, 64) for each in samples]))
    learner = UNetLearner(new_unet("unet-resnet18", 1), [], replace(TINY, rendered_validation=0), machine(tmp_path))
    optimiser = torch.optim.Adam(learner.network.parameters(), 3e-3)
    for _ in range(100):
        optimiser.zero_grad()
        learner.loss((pixels, truth, votes)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.inference_mode():
        output = PixelsToLogits(learner.network.eval())(pixels)
    predicted = output[:, : len(CLASSES)].argmax(dim=1)
    for each in CLASSES:
        hits, either = ((predicted == each) & (truth == each)).sum(), ((predicted == each) | (truth == each)).sum()
        assert int(either) > 50, each
        assert float(hits / either) > 0.8, each
    # A vote for the fruit's own pixel would miss by 0.67 radii on average.
    missed = (output[:, len(CLASSES) :] * OFFSET_UNIT - votes[:, :2]).norm(dim=1) / votes[:, 2]
    assert float(missed[votes[:, 2] > 0].mean()) < 0.3


def test_an_epoch_shows_each_image_as_often_as_its_weight_says_and_new_scenes(fruit_folder: Path) -> None:
    (opened,) = open_sources([DataSource(fruit_folder, weight=2.5)])
    options = replace(TINY, rendered=7, batch=4)
    first, again, other = (plan_epoch([opened], options, epoch) for epoch in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(first) == count_steps([opened], options) == 3  # 5 and 7 images
    picks = [pick for batch in first for pick in batch]
    shown = [pick.name for pick in picks if pick.source == 0 and not pick.look]  # the first look at each
    assert sorted(shown.count(name) for name in opened.train) == [2, 3]
    seeds = {int(pick.name) for pick in picks if pick.source is None}
    later = {int(pick.name) for batch in other for pick in batch if pick.source is None}
    assert len(seeds) == 7
    assert not seeds & later
    assert min(seeds | later) >= FIRST_TRAINING_SEED > FIRST_VALIDATION_SEED + options.rendered_validation
    assert all(len({pick.crop for pick in batch}) == 1 for batch in first)
    pixels, classes, votes = example(picks[0], [opened], options)
    assert pixels.shape == (*classes.shape, 3)
    assert votes.shape == (3, *classes.shape)
    assert classes.shape == (picks[0].crop.height, picks[0].crop.width)


def test_close_looks_are_at_fruit_and_lesions_and_end_before_the_last_epochs(fruit_folder: Path) -> None:
    opened = open_sources([DataSource(fruit_folder, weight=2.5)])
    options = replace(TINY, rendered=7, batch=4, close=1.0, fit=replace(TINY.fit, epochs=4))
    *closely, last = (plan_epoch(opened, options, epoch) for epoch in range(4))
    assert all(pick.look is None for batch in last for pick in batch)
    for batch in (batch for epoch in closely for batch in epoch):
        assert len(batch) == LOOKS * options.batch
        assert sorted(pick.look for pick in batch if pick.look is not None) == sorted([*range(LOOKS)] * options.batch)
        assert {pick.crop for pick in batch} == {CLOSE}
    for pick in closely[0][0]:
        pixels, classes, _ = example(pick, opened, options)
        assert pixels.shape == (CLOSE.height, CLOSE.width, 3)
        half = classes[CLOSE.height // 8 : -CLOSE.height // 8, CLOSE.width // 8 : -CLOSE.width // 8]
        assert bool(((half == PixelClass.HEALTHY) | (half == PixelClass.INFECTED)).any())


def test_weights_that_float16_would_spoil_are_not_exported(fruit_folder: Path, tmp_path: Path) -> None:
    folder = open_run(tmp_path / "run", {}, resume=False)
    tensors = dict(new_unet("unet-mobilenetv2", 0).state_dict())
    tensors["segmentation_head.0.weight"] = tensors["segmentation_head.0.weight"] * 1e9
    write_weights(folder.best, tensors, half=False, metadata={})
    validation = UNetValidation(open_sources([DataSource(fruit_folder)]), [], machine(tmp_path))
    with pytest.raises(CannotTrain, match=r"segmentation_head\.0\.weight.*float16"):
        export(folder, "unet-mobilenetv2", validation, {}, machine(tmp_path))
    # Features so small that float16 has no numbers for them, and a head that makes up for it.
    tensors = dict(new_unet("unet-mobilenetv2", 0).state_dict())
    tensors["decoder.blocks.4.conv2.1.weight"] = tensors["decoder.blocks.4.conv2.1.weight"] * 1e-9
    tensors["segmentation_head.0.weight"] = tensors["segmentation_head.0.weight"] * 6e4
    tensors["segmentation_head.0.bias"] = torch.tensor([1e-9, 0.0, 0.0, 0.0, 0.0])
    write_weights(folder.best, tensors, half=False, metadata={})
    with pytest.raises(CannotTrain, match="not as good"):
        export(folder, "unet-mobilenetv2", validation, {}, machine(tmp_path))
    assert not folder.model.exists()


def test_the_studys_recipe_is_there_by_name() -> None:
    study = PRESETS["study"]
    assert (study.architecture, study.loss, study.batch, study.crops) == (
        "unet-resnet18",
        "dice",
        256,
        (Size(448, 224),),
    )
    assert (study.fit.optimiser, study.fit.epochs, study.fit.schedule) == ("adam", 150, "constant")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "unet-vgg"}, "no U-Net 'unet-vgg'"),
        ({"architecture": "unet-resnet18", "encoder_weights": "imagenet"}, "unet-mobilenetv2 alone"),
        ({"batch": 1}, "at least 2"),
        ({"close": 1.5}, "close looks"),
        ({"rendered": -1}, "at least 0"),
        ({"crops": (Size(64, 100),)}, "multiples of 32"),
        ({"loss": "l1"}, "The loss 'l1'"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(CannotTrain, match=words):
        replace(TINY, **changes)  # type: ignore[arg-type]


def test_what_cannot_be_trained_is_refused_before_anything_is_written(fruit_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(CannotTrain, match="not enough images"):
        train_unet(replace(TINY, rendered=0), [], Product(out, "tiny", "MIT"), machine(tmp_path))
    with pytest.raises(CannotTrain, match="nothing to validate on"):
        train_unet(replace(TINY, rendered_validation=0), [], Product(out, "tiny", "MIT"), machine(tmp_path))
    for name in ("Tiny Net", "mobile-sam", ""):
        with pytest.raises(CannotTrain, match="no name for a model"):
            train_unet(TINY, [], Product(out, name, "MIT"), machine(tmp_path))
    with pytest.raises(DataError, match="mapped to 'apple'"):
        train_unet(TINY, [DataSource(fruit_folder, {"1": "apple"})], Product(out, "tiny", "MIT"), machine(tmp_path))
    assert not out.exists()


def test_a_run_begins_from_another_runs_weights_and_says_so(fruit_folder: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.safetensors"
    tensors = new_unet("unet-mobilenetv2", 3).state_dict()
    write_weights(earlier, tensors, half=False, metadata={})
    # A rate too low to move anything: what comes out is what went in.
    still = replace(TINY.fit, epochs=1, learning_rate=1e-12, averaging=0.0)
    out = tmp_path / "run"
    train_unet(replace(TINY, fit=still, begin_from=earlier), [], Product(out, "tiny", "MIT"), machine(tmp_path))
    weights = load_state_dict(out / "last.safetensors")
    name = "segmentation_head.0.weight"
    torch.testing.assert_close(weights[name], tensors[name], atol=1e-6, rtol=0)
    card = json.loads((out / "card.json").read_text())
    assert card["initial_weights"] == f"earlier.safetensors of sha256 {sha256_of(earlier)}"
    assert str(tmp_path) not in (out / "card.json").read_text()


def test_a_checkpoint_that_cannot_be_begun_from_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    product = Product(out, "tiny", "MIT")
    with pytest.raises(CannotTrain, match="no checkpoint to begin from"):
        train_unet(replace(TINY, begin_from=tmp_path / "none"), [], product, machine(tmp_path))
    with pytest.raises(CannotTrain, match="an encoder of its own"):
        replace(TINY, begin_from=tmp_path / "none", encoder_weights="imagenet")
    assert not out.exists()


def test_all_broken_images_are_named_before_the_first_epoch(fruit_folder: Path, tmp_path: Path) -> None:
    for name in ("rendered-0", "rendered-3"):
        (fruit_folder / "images" / f"{name}.jpg").write_bytes(f"no image, {name}".encode())
    with pytest.raises(DataError, match=r"2 images of .*(\n.*rendered-[03]\.jpg: .*){2}"):
        train_unet(TINY, [DataSource(fruit_folder)], Product(tmp_path / "run", "tiny", "MIT"), machine(tmp_path))
    assert not (tmp_path / "run").exists()
