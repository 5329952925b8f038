"""Converted models and the processor features that decide about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.backends import converted_models, load
from models.backends.converted_models import HASHES, converted_folder
from models.backends.converted_models import UNET as UNET_FILE
from models.backends.cpu import cpu_quota, has_bf16_instructions, has_int8_instructions
from models.catalog import CATALOGUE, Architecture, CatalogueEntry, load_catalogue
from models.errors import BackendError
from models.weights.checkpoints import sha256_of

CACHE = Path("cache")
UNET = CatalogueEntry("peel", Architecture.UNET_MOBILENETV2, "CC0-1.0", "peel.safetensors", 1, "ab" * 32, ())


@pytest.mark.parametrize(
    ("cpuinfo", "int8_and_bf16"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", (True, False)),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\nbogomips\t: 1\n", (True, False)),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", (False, True)),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", (False, False)),
        ("processor\t: 0\nmodel name\t: avx512_vnni\nflags\t\t: fpu\n", (False, False)),
        ("processor\t: 0\nFeatures\t: fp asimd\n", (False, False)),
        ("", (False, False)),
    ],
)
def test_instructions_are_read_from_the_processors_flags(
    tmp_path: Path, cpuinfo: str, int8_and_bf16: tuple[bool, bool]
) -> None:
    path = tmp_path / "cpuinfo"
    assert not has_int8_instructions(path), "a missing description means no instructions"
    path.write_text(cpuinfo)
    assert (has_int8_instructions(path), has_bf16_instructions(path)) == int8_and_bf16


def test_a_model_for_which_int8_was_tried_has_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted_models, "has_int8_instructions", lambda: True)
    tried, plain = (converted_folder(UNET, CACHE, precision) for precision in ("int8", "fp32"))
    assert tried != plain
    assert tried.parent == plain.parent == CACHE / UNET.revision
    # A machine without the instructions, which may share the folder, neither tries int8 nor takes what was tried.
    monkeypatch.setattr(converted_models, "has_int8_instructions", lambda: False)
    assert converted_folder(UNET, CACHE, "int8") == converted_folder(UNET, CACHE, "fp32") == plain


@pytest.mark.parametrize("entry", [UNET, CATALOGUE["mobile-sam"]], ids=["U-Net", "SAM"])
def test_bfloat16_needs_no_conversion_of_its_own(entry: CatalogueEntry) -> None:
    assert converted_folder(entry, CACHE, "auto") == converted_folder(entry, CACHE, "fp32")


def test_converted_models_on_a_volume_are_served_without_their_checkpoint_or_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "find_spec", lambda _name: None)
    cache, models_file = tmp_path / "volume", tmp_path / "models.yaml"
    models_file.write_text(
        "models: {peel: {architecture: unet-mobilenetv2, file: elsewhere.pt, licence: CC0-1.0, "
        f"sha256: {UNET.sha256}}}}}"
    )
    entry = load_catalogue(models_file)["peel"]
    folder = converted_folder(entry, cache, "fp32")
    with pytest.raises(BackendError, match="has no converted models in"):
        load.ensure_files(entry, "openvino", load.ModelStore(cache))
    folder.mkdir(parents=True)
    (folder / UNET_FILE).write_bytes(b"a network")
    (folder / HASHES).write_text(json.dumps({UNET_FILE: sha256_of(folder / UNET_FILE)}))
    assert load.ensure_files(entry, "openvino", load.ModelStore(cache)) == folder


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("20000 100000\n", 1),
        ("max 100000\n", 0),
        ("", 0),
        ("nonsense", 0),
        ("100000 0\n", 0),
        ("a b\n", 0),
    ],
)
def test_the_cpu_limit_is_rounded_up_to_whole_cores(tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path / "cpu.max", tmp_path / "none") == cores


@pytest.mark.parametrize(("limit", "cores"), [("400000", 4), ("-1", 0)])
def test_the_cpu_limit_of_control_groups_version_1_is_read(tmp_path: Path, limit: str, cores: int) -> None:
    (tmp_path / "cpu.cfs_quota_us").write_text(f"{limit}\n")
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path / "none", tmp_path) == cores
