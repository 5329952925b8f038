import json
from pathlib import Path

import pytest

from models.backends.load import ModelStore
from models.catalog import CATALOGUE, Architecture, CatalogueEntry
from models.errors import CatalogueError, UnknownModel, WeightsError
from models.evaluation.candidates import Asked, Place, open_panel, sam_setups
from models.evaluation.errors import CannotEvaluate
from models.evaluation.named_models import find_models
from models.training.run_files import write_weights
from models.unet.build import new_unet
from models.weights.checkpoints import sha256_of
from tests.fakes import LOADED_UNET
from tests.untrained import write_untrained_unet

NOBODY = ("none",)


def run_folder(folder: Path, architecture: Architecture, *, side: int = 0, padding: str = "none") -> Path:
    """A run's folder with as much as an evaluation looks at; the checkpoint of a SAM is none."""
    folder.mkdir()
    model = folder / "model.safetensors"
    if architecture.family == "unet":
        write_untrained_unet(model, architecture, 0)
    else:
        model.write_bytes(b"weights")
    (folder / "models.yaml").write_text(
        f"models:\n  {folder.name}:\n    architecture: {architecture}\n    file: {model.name}\n    licence: own\n"
    )
    if side:
        card = {"sha256": sha256_of(model), "options": {"side": side, "padding": padding}}
        (folder / "card.json").write_text(json.dumps(card))
    return folder


def place(tmp_path: Path, *entries: CatalogueEntry) -> Place:
    return Place({each.name: each for each in entries}, ModelStore(tmp_path / "cache"), "torch")


def test_models_are_found_by_name_by_run_folder_and_by_models_file(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "my-sam", Architecture.MOBILE_SAM)
    assert find_models("mobile-sam", "sam", CATALOGUE) == [CATALOGUE["mobile-sam"]]
    (by_folder,) = find_models(str(folder), "sam", CATALOGUE)
    (by_file,) = find_models(str(folder / "models.yaml"), "sam", CATALOGUE)
    assert by_folder == by_file
    assert by_folder.name == "my-sam"


def test_a_checkpoint_of_a_training_says_what_it_is_of(tmp_path: Path) -> None:
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


def test_what_is_nothing_known_or_of_the_other_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"'nobody'.*mobile-sam"):
        find_models("nobody", "sam", CATALOGUE)
    with pytest.raises(CannotEvaluate, match="not of the family 'unet'"):
        find_models("mobile-sam", "unet", CATALOGUE)
    with pytest.raises(CatalogueError, match="cannot be read"):
        find_models(str(tmp_path), "sam", CATALOGUE)  # a folder without a models file


def test_a_fine_tuned_sam_is_asked_at_the_size_of_its_card(tmp_path: Path) -> None:
    at_512 = run_folder(tmp_path / "at-512", Architecture.MOBILE_SAM, side=512)
    at_1024 = run_folder(tmp_path / "at-1024", Architecture.MOBILE_SAM, side=1024, padding="square")
    cardless = run_folder(tmp_path / "cardless", Architecture.MOBILE_SAM)
    asked = Asked(tuned=(str(at_512), str(at_1024), str(cardless), f"{at_1024}@768"))
    zero_shot, one, two, three, four = sam_setups(asked, CATALOGUE)
    assert (zero_shot.name, zero_shot.tuned, zero_shot.side) == ("mobile-sam", False, 1024)
    assert (one.name, one.tuned, one.side, one.padding) == ("at-512-512", True, 512, "none")
    assert (two.name, two.side, two.padding) == ("at-1024", 1024, "square")
    assert (three.side, three.padding) == (1024, "none")
    assert (four.name, four.side, four.padding) == ("at-1024-768", 768, "square")


def test_a_card_of_another_model_beside_it_does_not_count(tmp_path: Path) -> None:
    tuned = run_folder(tmp_path / "tuned", Architecture.MOBILE_SAM, side=512)
    (tuned / "model.safetensors").write_bytes(b"others")
    (setup,) = sam_setups(Asked(sams=NOBODY, tuned=(str(tuned),)), CATALOGUE)
    assert setup.side == 1024


def test_an_input_size_holds_for_those_that_name_none(tmp_path: Path) -> None:
    tuned = run_folder(tmp_path / "tuned", Architecture.MOBILE_SAM, side=512)
    asked = Asked(sams=("mobile-sam", "mobile-sam@1024"), tuned=(str(tuned),), input_size=768)
    assert [setup.name for setup in sam_setups(asked, CATALOGUE)] == ["mobile-sam-768", "mobile-sam", "tuned-768"]


@pytest.mark.parametrize(("word", "said"), [("mobile-sam@500", "multiples of 64"), ("sam-vit-b@512", "1024 only")])
def test_sizes_that_a_sam_does_not_take_are_refused(word: str, said: str) -> None:
    with pytest.raises(CannotEvaluate, match=said):
        sam_setups(Asked(sams=(word,)), CATALOGUE)


def test_a_damaged_card_is_told(tmp_path: Path) -> None:
    tuned = run_folder(tmp_path / "tuned", Architecture.MOBILE_SAM, side=512)
    (tuned / "card.json").write_text("{}")
    with pytest.raises(CannotEvaluate, match=r"card\.json"):
        sam_setups(Asked(sams=NOBODY, tuned=(str(tuned),)), CATALOGUE)


def test_a_unet_of_the_catalogue_that_cannot_be_had_is_left_out_and_told(tmp_path: Path) -> None:
    unet = run_folder(tmp_path / "mine", Architecture.UNET_MOBILENETV2)
    (mine,) = find_models(str(unet), "unet", {})
    panel, notes = open_panel(Asked(sams=NOBODY), place(tmp_path, LOADED_UNET, mine))
    assert [each.subject.name for each in panel.unets] == ["mine"]
    assert notes[0].startswith(f"{LOADED_UNET.name} is left out: ")
    # One that was named is missed.
    with pytest.raises(WeightsError):
        open_panel(Asked(unets=(LOADED_UNET.name,), sams=NOBODY), place(tmp_path, LOADED_UNET))


def test_nobody_at_all_and_somebody_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match="Nobody"):
        open_panel(Asked(unets=NOBODY, sams=NOBODY), place(tmp_path))
    unet = str(run_folder(tmp_path / "mine", Architecture.UNET_MOBILENETV2))
    with pytest.raises(CannotEvaluate, match="mine: named more than once"):
        open_panel(Asked(unets=(unet, unet), sams=NOBODY), place(tmp_path))
    with pytest.raises(CannotEvaluate, match="mobile-sam: named more than once"):
        open_panel(Asked(sams=("mobile-sam", "mobile-sam@1024")), Place(CATALOGUE, ModelStore(tmp_path), "torch"))
