from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.backends.load import ModelStore
from models.catalog import Architecture
from models.data.samples import Instance, Sample
from models.data.sources import OpenedSource
from models.errors import UnknownModel
from models.sam.decoder import PromptDecoder
from models.training.errors import CannotTrain
from models.training.options import FitOptions, Machine, Product, SamLossWeights, SamOptions
from models.training.run_files import open_run, write_weights
from models.training.sam_data import Tasks, load_images
from models.training.sam_learner import SamLearner, batch_loss
from models.training.sam_recipe import Origin, export, train_sam
from models.training.sam_validation import MEASURES, SamValidator
from models.training.trainer import FitResult, Trainer
from models.types import PixelClass
from models.weights.checkpoints import load_state_dict
from models.weights.run_folder import RunFolder
from tests.tiny_sam import SIDE, BoxDecoder, ColourEncoder, tiny_decoder, tiny_store, write_image, write_scenes

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are not worth waiting for a second thread, which a busy machine makes long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OpenedSource:
    """One fruit in each image: a decoder of this size did not learn to tell several apart in a test's time."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), 8, fruits=1)


def learner(source: OpenedSource, folder: Path, *, rounds: int = 1) -> SamLearner:
    store = tiny_store(folder / "embeddings", ColourEncoder())
    return SamLearner(
        tiny_decoder(),
        tasks=Tasks.of([(load_images(source.dataset, source.train, store), 1.0)], batch=4, seed=0),
        validator=SamValidator([source], [store], original=tiny_decoder(), device=CPU),
        weights=SamLossWeights(),
        rounds=rounds,
        device=CPU,
    )


def run(source: OpenedSource, path: Path, epochs: int) -> tuple[FitResult, RunFolder, SamLearner]:
    folder = open_run(path, {}, resume=True)
    student = learner(source, path)
    # A constant rate: any other schedule would differ between a run of one epoch that is continued and one of two.
    options = FitOptions(epochs=epochs, learning_rate=1e-2, schedule="constant", clip=10)
    return Trainer(student, options, folder, metadata={}, progress=False).fit(), folder, student


@pytest.fixture(scope="module")
def trained(source: OpenedSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[FitResult, RunFolder, SamLearner]:
    return run(source, tmp_path_factory.mktemp("run"), 12)


def test_a_short_run_lowers_the_loss_and_finds_the_fruit(trained: tuple[FitResult, RunFolder, SamLearner]) -> None:
    fitted, _, _ = trained
    losses = [row["loss"] for row in fitted.rows]
    assert losses[-1] < 0.5 * losses[0]
    assert fitted.best.score > 0.3


def test_a_run_changes_the_mask_decoder_and_nothing_else(trained: tuple[FitResult, RunFolder, SamLearner]) -> None:
    _, folder, student = trained
    before, after = tiny_decoder().state_dict(), student.decoder.state_dict()
    frozen = [name for name in before if name.startswith("prompt_encoder.")]
    assert frozen
    for name in frozen:
        assert torch.equal(before[name], after[name]), name
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("mask_decoder.") for name in moved)
    assert load_state_dict(folder.best).keys() == before.keys() - set(frozen)


def test_the_decoder_of_the_caller_is_not_changed(source: OpenedSource, tmp_path: Path) -> None:
    decoder = tiny_decoder()
    store = tiny_store(tmp_path, ColourEncoder())
    tasks = Tasks.of([(load_images(source.dataset, source.train[:1], store), 1.0)], batch=4, seed=0)
    validator = SamValidator([source], [store], original=tiny_decoder(), device=CPU)
    student = SamLearner(decoder, tasks=tasks, validator=validator, weights=SamLossWeights(), rounds=0, device=CPU)
    with torch.no_grad():
        next(student.network.parameters()).fill_(1)
        for parameter in student.decoder.mask_decoder.parameters():
            parameter.fill_(1)
    for name, tensor in tiny_decoder().state_dict().items():
        assert torch.equal(decoder.state_dict()[name], tensor), name


@pytest.mark.parametrize("rounds", [0, 2])
def test_gradients_reach_all_of_the_mask_decoder_and_nothing_else(
    source: OpenedSource, tmp_path: Path, rounds: int
) -> None:
    student = learner(source, tmp_path, rounds=rounds)
    for batch in student.batches(0):
        student.loss(batch).backward()  # type: ignore[no-untyped-call]
    reached = {name for name, each in student.decoder.named_parameters() if each.grad is not None and each.grad.any()}
    trainable = {name for name, _ in student.decoder.named_parameters() if name.startswith("mask_decoder.")}
    # Of tokens 1 to 3 only the best of each prompt learns. A shift of all keys alike changes no softmax: their biases
    # have no gradient but rounding.
    three = tuple(f"mask_decoder.output_hypernetworks_mlps.{token}." for token in (1, 2, 3))
    assert [name for name in trainable - reached if "k_proj.bias" not in name and not name.startswith(three)] == []
    assert any(name.startswith(three) for name in reached)
    assert reached <= trainable


def test_validating_in_inference_mode_leaves_nothing_that_cannot_be_trained_with(
    source: OpenedSource, tmp_path: Path
) -> None:
    student = learner(source, tmp_path)
    with torch.inference_mode():
        student.validate(student.decoder)
    student.loss(next(iter(student.batches(0)))).backward()  # type: ignore[no-untyped-call]
    assert any(parameter.grad is not None for parameter in student.decoder.parameters())


def test_the_loss_of_a_batch_is_the_mean_of_its_rounds(source: OpenedSource, tmp_path: Path) -> None:
    student = learner(source, tmp_path)

    def loss(decoder: PromptDecoder, rounds: int) -> float:
        batch = next(iter(student.batches(0)))
        with torch.no_grad():
            return float(batch_loss(decoder, batch, weights=SamLossWeights(), rounds=rounds, device=CPU))

    # It answers every round equally.
    answers = BoxDecoder(student.decoder.prompt_encoder, student.decoder.mask_decoder)
    assert loss(answers, 3) == pytest.approx(loss(answers, 0), rel=1e-5)
    # A decoder that sees its own guess does not.
    assert loss(student.decoder, 3) != pytest.approx(loss(student.decoder, 0), rel=1e-5)


def test_a_run_in_two_parts_equals_one_in_one_part(source: OpenedSource, tmp_path: Path) -> None:
    whole, whole_folder, _ = run(source, tmp_path / "whole", 2)
    run(source, tmp_path / "parts", 1)
    parts, parts_folder, _ = run(source, tmp_path / "parts", 2)
    scores = [[row["score"] for row in fitted.rows] for fitted in (whole, parts)]
    assert scores[0] == scores[1]
    one, other = (load_state_dict(folder.last) for folder in (whole_folder, parts_folder))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def rectangle() -> Sample:
    """One fruit of 120 x 60 pixels."""
    semantic = np.zeros((128, 192), np.uint8)
    semantic[30:90, 40:160] = PixelClass.HEALTHY
    return Sample(
        "one",
        np.full((128, 192, 3), 90, np.uint8),
        semantic,
        (Instance(1, (40, 30, 160, 90), PixelClass.HEALTHY),),
        (semantic == PixelClass.HEALTHY).astype(np.uint16),
    )


class WrongSingleBoxDecoder(BoxDecoder):
    """Has the box in one of its three masks, but not in the single one."""

    right = (2,)


def box_decoder(kind: type[BoxDecoder] = BoxDecoder) -> BoxDecoder:
    tiny = tiny_decoder()
    return kind(tiny.prompt_encoder, tiny.mask_decoder)


def validator_of(source: OpenedSource, folder: Path, original: PromptDecoder) -> SamValidator:
    return SamValidator([source], [tiny_store(folder / "e", ColourEncoder())], original=original, device=CPU)


def test_measures_separate_the_best_scored_the_single_and_the_best_mask(tmp_path: Path) -> None:
    validator = validator_of(write_image(tmp_path, rectangle()), tmp_path, tiny_decoder())
    measures = {name.removeprefix("one/"): value for name, value in validator.validate(box_decoder()).measures.items()}
    # The best score of the three is of an empty mask, and points are answered with nothing.
    assert measures["box_iou"] == measures["point_iou"] == measures["point_iou_oracle"] == 0
    # The box itself, but for its jitter of at most 3.75 pixels an edge: at least (113 * 53) / (120 * 60).
    assert measures["box_iou_oracle"] == measures["box_iou_single"] > 0.8
    box = measures["box_iou_single"]
    # By box, scores of 0.9 and 0.6 for the box itself and of 0.8 and 0.5 for nothing; by point, all are for nothing.
    assert measures["score_bias"] == pytest.approx(((0.9 + 0.8 + 0.6 + 0.5) * 2 - 2 * box) / 8)
    off = abs(0.9 - box) + abs(0.6 - box) + 0.8 + 0.5 + 0.9 + 0.8 + 0.6 + 0.5
    assert measures["score_error"] == pytest.approx(off / 8)
    assert measures.keys() == MEASURES.keys()
    plotted = {name for names in validator.panels.values() for name in names}
    assert plotted == {"score", *(f"one/{name}" for name in MEASURES)}


def test_the_score_is_the_smallest_gain_over_the_original_model_of_what_is_used(tmp_path: Path) -> None:
    source = write_image(tmp_path, rectangle())
    better = validator_of(source, tmp_path, box_decoder(WrongSingleBoxDecoder)).validate(box_decoder())
    assert better.measures["one/box_iou_single"] > 0.8
    assert better.score == 0  # by points both answer nothing
    worse = validator_of(source, tmp_path, box_decoder()).validate(box_decoder(WrongSingleBoxDecoder))
    assert worse.score == -better.measures["one/box_iou_single"]


def test_a_model_for_several_input_sizes_is_validated_at_each(tmp_path: Path) -> None:
    source = write_image(tmp_path, rectangle())
    stores = [tiny_store(tmp_path / "e", ColourEncoder(), side=side) for side in (SIDE, 2 * SIDE)]
    validator = SamValidator([source], stores, original=box_decoder(), device=CPU)
    assert validator.before.keys() == {f"one at {side}/{name}" for side in (SIDE, 2 * SIDE) for name in MEASURES}
    assert validator.before[f"one at {SIDE}/box_iou_single"] != validator.before[f"one at {2 * SIDE}/box_iou_single"]


def test_ignored_pixels_do_not_count_in_a_validation(tmp_path: Path) -> None:
    sample = rectangle()
    half = np.where(np.arange(192) < 100, sample.semantic, PixelClass.IGNORE).astype(np.uint8)
    source = write_image(tmp_path, replace(sample, semantic=half), {"255": "ignore"})
    found = validator_of(source, tmp_path, tiny_decoder()).validate(box_decoder())
    # The box reaches over the ignored half, which would leave an IoU of about one half.
    assert found.measures["one/box_iou_single"] > 0.8


def test_the_whole_checkpoint_has_the_trained_tensors_and_all_others_as_they_were(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    tensors: dict[str, Tensor] = {
        "image_encoder.a": torch.randn(3, dtype=torch.float64),
        "prompt_encoder.b": torch.randn(2, 2),
        "mask_decoder.c": torch.zeros(4),
    }
    write_weights(folder.best, {"mask_decoder.c": torch.ones(4)}, half=False, metadata={})
    export(folder, tensors, {})
    whole = load_state_dict(folder.model)
    assert torch.equal(whole.pop("mask_decoder.c"), torch.ones(4))
    assert whole.keys() == {"image_encoder.a", "prompt_encoder.b"}
    for name, tensor in whole.items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])
    with pytest.raises(CannotTrain, match="not a mask decoder of that model"):
        export(folder, {**tensors, "mask_decoder.d": torch.zeros(1)}, {})


def test_an_unknown_model_is_rejected(tmp_path: Path) -> None:
    machine = Machine(device="cpu", workers=0, cache_dir=tmp_path)
    product = Product(tmp_path / "run", "mine", "MIT")
    with pytest.raises(UnknownModel, match=r"must be one of mobile-sam, .* got 'sam-vit-x'"):
        train_sam(SamOptions(model="sam-vit-x"), [], product, machine, Origin(ModelStore(tmp_path)))
    with pytest.raises(CannotTrain, match="with --data"):
        train_sam(SamOptions(), [], product, machine, Origin(ModelStore(tmp_path)))
    assert not product.out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sides": (1024, 500)}, "multiple of 64, got 500"),
        ({"sides": ()}, "at least one"),
        ({"sides": (512, 512)}, "must be different"),
        ({"padding": "some"}, "got 'some'"),
        ({"batch": 0}, "got 0 and 1"),
        ({"rounds": -1}, "got 16 and -1"),
    ],
)
def test_options_out_of_range_are_rejected(change: dict[str, object], words: str) -> None:
    with pytest.raises(CannotTrain, match=words):
        replace(SamOptions(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("architecture", "change", "words"),
    [
        (Architecture.SAM_VIT_B, {"sides": (512,)}, "padded square of 1024"),
        (Architecture.SAM_VIT_H, {"padding": "none"}, "padded square of 1024"),
        (Architecture.UNET_RESNET18, {}, "not a SAM"),
    ],
)
def test_an_architecture_is_trained_only_as_it_can_be_served(
    architecture: Architecture, change: dict[str, object], words: str
) -> None:
    with pytest.raises(CannotTrain, match=words):
        replace(SamOptions(), **change).check_fits(architecture)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", [each for each in Architecture if each.family == "sam"])
def test_every_sam_can_be_trained_on_the_square_of_1024(architecture: Architecture) -> None:
    SamOptions().check_fits(architecture)
