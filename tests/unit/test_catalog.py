from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from models.catalog import CATALOGUE, Architecture, FineTuned, LocalFile, load_catalogue
from models.errors import CatalogueError, NoSource
from models.weights.fetch import fetch

CHECKPOINT = b"weights of oranges"


@pytest.fixture
def models_file(tmp_path: Path) -> Path:
    (tmp_path / "my_oranges.safetensors").write_bytes(CHECKPOINT)
    return tmp_path / "models.yaml"


SAMS = ("mobile-sam", "mobile-sam-citrus", "sam-vit-b", "sam-vit-l", "sam-vit-h")
OWN = ("unet-mobilenetv2-citrus",)
SAM2 = ("sam2.1-tiny", "sam2.1-small", "sam2.1-base-plus", "sam2.1-large", "edgetam")
DETECTORS = ("yolox-nano", "yolox-tiny", "yolox-s")
ENTRY = {"architecture": "mobile-sam", "file": "my_oranges.safetensors", "licence": "proprietary"}


def as_yaml(name: str = "my-oranges", **changes: str | None) -> str:
    keys = {key: value for key, value in {**ENTRY, **changes}.items() if value is not None}
    return f"models:\n  {name}:\n" + "".join(f"    {key}: {keys[key]}\n" for key in keys)


def test_the_built_in_models_are_there_without_a_models_file() -> None:
    assert set(load_catalogue(None)) == {*SAMS, *SAM2, *OWN, *DETECTORS}


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_a_built_in_entry_is_complete_and_cannot_be_changed(name: str) -> None:
    entry = CATALOGUE[name]
    assert entry.name == name
    assert entry.architecture == ("yolox" if name in DETECTORS else name.removesuffix("-citrus"))
    assert entry.licence == "Apache-2.0"
    assert len(bytes.fromhex(entry.sha256)) == 32
    assert entry.revision == entry.sha256[:12]
    first = entry.sources[0]
    assert isinstance(first, FineTuned) or str(first).endswith(f"/{entry.filename}")
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.size = 0  # type: ignore[misc]


def test_a_users_model_joins_the_catalogue_with_the_size_and_hash_of_its_file(
    models_file: Path,
) -> None:
    models_file.write_text(as_yaml())
    catalogue = load_catalogue(models_file)
    entry = catalogue["my-oranges"]
    assert set(catalogue) == {*CATALOGUE, "my-oranges"}
    assert entry.architecture is Architecture.MOBILE_SAM
    assert entry.licence == "proprietary"
    assert entry.size == len(CHECKPOINT)
    assert entry.sha256 == hashlib.sha256(CHECKPOINT).hexdigest()
    assert entry.sources == (LocalFile(models_file.parent / "my_oranges.safetensors"),)


@pytest.mark.parametrize("name", OWN)
def test_a_network_trained_here_lies_beside_the_card_that_describes_it(name: str, tmp_path: Path) -> None:
    entry = CATALOGUE[name]
    path = fetch(entry, cache_dir=tmp_path, weights_dir=None)
    assert entry.size < 30e6
    assert (entry.architecture.family, path.suffix) == ("unet", ".safetensors")
    card = json.loads(path.with_suffix(".json").read_text())
    assert (card["architecture"], card["file"], card["size"], card["sha256"], card["licence"]) == (
        entry.architecture,
        entry.filename,
        entry.size,
        entry.sha256,
        entry.licence,
    )
    assert entry.sha256 in path.with_suffix(".md").read_text()


def test_an_absolute_path_and_a_given_hash_are_taken_as_they_are(models_file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.pt").write_bytes(b"a")
    models_file.write_text(as_yaml(file=str(elsewhere / "a.pt"), sha256="AB" * 32))
    entry = load_catalogue(models_file)["my-oranges"]
    assert entry.sources == (LocalFile(elsewhere / "a.pt"),)
    assert entry.sha256 == "ab" * 32


def test_a_checkpoint_that_is_elsewhere_is_known_by_its_hash(models_file: Path, tmp_path: Path) -> None:
    models_file.write_text(as_yaml(file="elsewhere.safetensors", sha256="ab" * 32))
    entry = load_catalogue(models_file)["my-oranges"]
    assert (entry.revision, entry.size) == ("ab" * 6, 0)
    with pytest.raises(NoSource, match=r"elsewhere\.safetensors does not exist"):
        fetch(entry, cache_dir=tmp_path, weights_dir=None)


def test_a_checkpoint_that_is_elsewhere_may_be_in_the_weights_folder(models_file: Path, tmp_path: Path) -> None:
    digits = hashlib.sha256(CHECKPOINT).hexdigest()
    models_file.write_text(as_yaml(file="mounted/my_oranges.safetensors", sha256=digits))
    entry = load_catalogue(models_file)["my-oranges"]
    found = fetch(entry, cache_dir=tmp_path / "cache", weights_dir=tmp_path)
    assert found == tmp_path / "my_oranges.safetensors"


def test_a_relative_models_file_still_names_its_checkpoint_after_a_change_of_folder(
    models_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models_file.write_text(as_yaml())
    monkeypatch.chdir(models_file.parent)
    (source,) = load_catalogue(Path("models.yaml"))["my-oranges"].sources
    assert isinstance(source, LocalFile)
    assert source.path.is_absolute()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(as_yaml("mobile-sam"), ["'mobile-sam'", "built-in"], id="a built-in name"),
        pytest.param(
            as_yaml(architecture="yolo"),
            ["'my-oranges'", "'architecture'", "'sam-vit-b'", "'yolo'"],
            id="no such architecture",
        ),
        pytest.param(
            as_yaml(weights="a.pt"),
            ["'my-oranges'", "unknown key 'weights'", "architecture, file, licence, sha256"],
            id="an unknown key",
        ),
        pytest.param(
            as_yaml(input_area="200704"), ["'my-oranges'", "only U-Nets have 'input_area'"], id="a SAM's area"
        ),
        pytest.param(
            as_yaml(input_size="640"), ["'my-oranges'", "'input_size'", "1024, 768 or 512"], id="no such size"
        ),
        pytest.param(
            as_yaml(input_size="512", architecture="sam-vit-b"),
            ["'my-oranges'", "only a mobile-sam has 'input_size'"],
            id="a size of a SAM that has but one",
        ),
        pytest.param(as_yaml(input_area="900"), ["'my-oranges'", "'input_area'", "1024"], id="too small an area"),
        pytest.param(as_yaml(input_area="401409"), ["'my-oranges'", "'input_area'", "401408"], id="too large an area"),
        pytest.param(as_yaml(licence=None), ["'my-oranges'", "'licence' is missing"], id="a missing key"),
        pytest.param(as_yaml(file="lost.pt"), ["'my-oranges'", "does not exist", "lost.pt"], id="no file"),
        pytest.param(as_yaml(file="."), ["'my-oranges'", "does not exist"], id="a folder"),
        pytest.param(as_yaml(sha256="abc"), ["'my-oranges'", "'sha256'"], id="no SHA-256"),
        pytest.param(as_yaml("My Oranges"), ["lower-case letters"], id="a name with a space"),
        pytest.param(as_yaml("12"), ["lower-case letters"], id="a name that YAML reads as a number"),
        pytest.param("models:\n  a: b\n", ["'a'", "must be a mapping"], id="an entry that is text"),
        pytest.param("models:\n", ["'models'", "dictionary"], id="no entries"),
        pytest.param("modles: {}\n", ["unknown key 'modles'"], id="a misspelt top key"),
        pytest.param("- mobile-sam\n", ["must be a mapping", "got a list"], id="a list"),
        pytest.param("", ["must be a mapping", "got an empty file"], id="an empty file"),
        pytest.param("models: [\n", ["must be valid YAML"], id="broken YAML"),
        pytest.param("models: !!python/name:os.system\n", ["must be valid YAML"], id="a Python object"),
        pytest.param("a: 1\na: 2\n", ["duplicate key 'a'", "line 2"], id="a key given twice"),
        pytest.param("a: 2026-13-01\n", ["must be valid YAML", "month"], id="no such date"),
        pytest.param("? [a]\n: b\n", ["must be valid YAML"], id="a list as a key"),
    ],
)
def test_an_invalid_models_file_is_rejected_with_the_entry_and_the_rule(
    models_file: Path, content: str, words: list[str]
) -> None:
    models_file.write_text(content)
    with pytest.raises(CatalogueError) as caught:
        load_catalogue(models_file)
    for word in [str(models_file), *words]:
        assert word in caught.value.detail


def test_a_models_file_that_does_not_exist_or_is_not_text_is_rejected(models_file: Path) -> None:
    with pytest.raises(CatalogueError, match="POMONA_MODELS_FILE"):
        load_catalogue(models_file)
    models_file.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(CatalogueError, match="must be valid YAML"):
        load_catalogue(models_file)
