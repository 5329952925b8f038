import json
from pathlib import Path

import pytest

from models.backends.load import ModelStore
from models.catalog import CATALOGUE, Architecture, CatalogueEntry
from models.errors import CatalogueError, UnknownModel, WeightsError
from models.evaluation.loading import Loader, Selection, find_models, load_candidates, sam_setups
from models.evaluation.samples import CannotEvaluate
from models.training.run_files import write_weights
from models.unet.build import new_unet
from models.weights.checkpoints import sha256_of
from tests.fakes import LOADED_UNET
from tests.untrained import write_untrained_unet

NONE = ("none",)


def run_folder(folder: Path, architecture: Architecture, *, sides: tuple[int, ...] = (), padding: str = "none") -> Path:
    """Write as much of a run folder as an evaluation reads; the checkpoint of a SAM is not valid."""
    folder.mkdir()
    model = folder / "model.safetensors"
    if architecture.family == "unet":
        write_untrained_unet(model, architecture, 0)
    else:
        model.write_bytes(b"weights")
    (folder / "models.yaml").write_text(
        f"models:\n  {folder.name}:\n    architecture: {architecture}\n    file: {model.name}\n    licence: own\n"
    )
    if sides:
        card = {"sha256": sha256_of(model), "options": {"sides": sides, "padding": padding}}
        (folder / "card.json").write_text(json.dumps(card))
    return folder


def loader(tmp_path: Path, *entries: CatalogueEntry) -> Loader:
    return Loader({each.name: each for each in entries}, ModelStore(tmp_path / "cache"), "torch")


def test_models_are_found_by_name_run_folder_and_models_file(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "my-sam", Architecture.MOBILE_SAM)
    assert find_models("mobile-sam", "sam", CATALOGUE) == [CATALOGUE["mobile-sam"]]
    (by_folder,) = find_models(str(folder), "sam", CATALOGUE)
    (by_file,) = find_models(str(folder / "models.yaml"), "sam", CATALOGUE)
    assert by_folder == by_file
    assert by_folder.name == "my-sam"


def test_a_checkpoint_of_a_training_names_its_architecture(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    tensors = new_unet("unet-mobilenetv2", 0).state_dict()
    write_weights(file, tensors, half=True, metadata={"architecture": "unet-mobilenetv2"})
    (found,) = find_models(str(file), "unet", {})
    assert found.architecture is Architecture.UNET_MOBILENETV2
    assert found.name == f"{tmp_path.name}-best"
    write_weights(file, tensors, half=True, metadata={})
    with pytest.raises(CannotEvaluate, match="models file"):
        find_models(str(file), "unet", {})
    file.write_bytes(b"no checkpoint")
    with pytest.raises(CannotEvaluate, match="models file"):
        find_models(str(file), "unet", {})


def test_unknown_names_and_models_of_another_family_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"'missing'.*mobile-sam"):
        find_models("missing", "sam", CATALOGUE)
    with pytest.raises(CannotEvaluate, match="must hold a model of the family 'unet'"):
        find_models("mobile-sam", "unet", CATALOGUE)
    with pytest.raises(CatalogueError, match="cannot be read"):
        find_models(str(tmp_path), "sam", CATALOGUE)  # a folder without a models file


def test_a_fine_tuned_sam_runs_at_the_size_of_its_card(tmp_path: Path) -> None:
    at_512 = run_folder(tmp_path / "at-512", Architecture.MOBILE_SAM, sides=(512,))
    at_1024 = run_folder(tmp_path / "at-1024", Architecture.MOBILE_SAM, sides=(1024,), padding="square")
    both = run_folder(tmp_path / "both", Architecture.MOBILE_SAM, sides=(512, 1024))
    cardless = run_folder(tmp_path / "cardless", Architecture.MOBILE_SAM)
    other = run_folder(tmp_path / "other", Architecture.MOBILE_SAM, sides=(512,))
    (other / "model.safetensors").write_bytes(b"of another model than its card")
    tuned = (str(at_512), str(at_1024), str(cardless), str(other), f"{at_1024}@768", str(both), f"{both}@768")
    setups = sam_setups(Selection(tuned=tuned), CATALOGUE)
    assert [(each.name, each.tuned, each.side, each.padding) for each in setups] == [
        ("mobile-sam", False, 1024, "none"),
        ("at-512-512", True, 512, "none"),
        ("at-1024", True, 1024, "square"),
        ("cardless", True, 1024, "none"),
        ("other", True, 1024, "none"),
        ("at-1024-768", True, 768, "square"),
        ("both-512", True, 512, "none"),
        ("both", True, 1024, "none"),
        ("both-768", True, 768, "none"),
    ]


def test_an_input_size_holds_for_sams_without_their_own(tmp_path: Path) -> None:
    tuned = run_folder(tmp_path / "tuned", Architecture.MOBILE_SAM, sides=(512,))
    selection = Selection(sams=("mobile-sam", "mobile-sam@1024"), tuned=(str(tuned),), input_size=768)
    assert [setup.name for setup in sam_setups(selection, CATALOGUE)] == ["mobile-sam-768", "mobile-sam", "tuned-768"]


@pytest.mark.parametrize(("word", "message"), [("mobile-sam@500", "multiple of 64"), ("sam-vit-b@512", "must be 1024")])
def test_unsupported_input_sizes_are_refused(word: str, message: str) -> None:
    with pytest.raises(CannotEvaluate, match=message):
        sam_setups(Selection(sams=(word,)), CATALOGUE)


def test_a_damaged_card_is_refused(tmp_path: Path) -> None:
    tuned = run_folder(tmp_path / "tuned", Architecture.MOBILE_SAM, sides=(512,))
    (tuned / "card.json").write_text("{}")
    with pytest.raises(CannotEvaluate, match=r"card\.json"):
        sam_setups(Selection(sams=NONE, tuned=(str(tuned),)), CATALOGUE)


def test_a_unet_without_weights_is_left_out_unless_it_was_named(tmp_path: Path) -> None:
    unet = run_folder(tmp_path / "mine", Architecture.UNET_MOBILENETV2)
    (mine,) = find_models(str(unet), "unet", {})
    candidates, notes = load_candidates(Selection(sams=NONE), loader(tmp_path, LOADED_UNET, mine))
    assert [each.candidate.name for each in candidates.unets] == ["mine", "mine@scales"]
    assert notes[0].startswith(f"{LOADED_UNET.name} was left out: ")
    with pytest.raises(WeightsError):
        load_candidates(Selection(unets=(LOADED_UNET.name,), sams=NONE), loader(tmp_path, LOADED_UNET))


def test_no_models_and_repeated_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match="no models to evaluate"):
        load_candidates(Selection(unets=NONE, sams=NONE), loader(tmp_path))
    unet = str(run_folder(tmp_path / "mine", Architecture.UNET_MOBILENETV2))
    with pytest.raises(CannotEvaluate, match="got mine more than once"):
        load_candidates(Selection(unets=(unet, unet), sams=NONE), loader(tmp_path))
    twice = Selection(unets=NONE, sams=("mobile-sam", "mobile-sam@1024"))
    with pytest.raises(CannotEvaluate, match="got mobile-sam more than once"):
        load_candidates(twice, Loader(CATALOGUE, ModelStore(tmp_path), "torch"))
