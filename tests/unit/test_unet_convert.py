"""Where converted U-Nets lie, and which processors int8 is tried on."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.backends import openvino_files
from models.backends.cpu_features import multiplies_bf16, multiplies_int8
from models.backends.openvino_files import converted_folder
from models.catalog import CATALOGUE, Architecture, CatalogueEntry

CACHE = Path("cache")
UNET = CatalogueEntry("peel", Architecture.UNET_MOBILENETV2, "CC0-1.0", "peel.safetensors", 1, "ab" * 32, ())


@pytest.mark.parametrize(
    ("cpuinfo", "does"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\nbogomips\t: 1\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\nmodel name\t: avx512_vnni\nflags\t\t: fpu\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_instructions_for_int8_are_told_from_the_flags(tmp_path: Path, cpuinfo: str, *, does: bool) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert multiplies_int8(tmp_path / "cpuinfo") is does


def test_a_machine_that_does_not_describe_its_processor_has_none(tmp_path: Path) -> None:
    assert not multiplies_int8(tmp_path / "none")


def test_a_model_for_which_int8_was_tried_lies_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_files, "multiplies_int8", lambda: True)
    tried, plain = (converted_folder(UNET, CACHE, precision) for precision in ("int8", "fp32"))
    assert tried != plain
    assert tried.parent == plain.parent == CACHE / UNET.revision
    # A machine without the instructions, which may share the folder, neither tries int8 nor takes what was tried.
    monkeypatch.setattr(openvino_files, "multiplies_int8", lambda: False)
    assert converted_folder(UNET, CACHE, "int8") == converted_folder(UNET, CACHE, "fp32") == plain


def test_bfloat16_needs_no_conversion_of_its_own() -> None:
    assert converted_folder(UNET, CACHE, "auto") == converted_folder(UNET, CACHE, "fp32")


def test_instructions_for_bfloat16_are_told_from_the_flags(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n")
    assert multiplies_bf16(tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512f avx512_vnni\n")
    assert not multiplies_bf16(tmp_path / "cpuinfo")


def test_the_precision_of_unets_moves_no_sam() -> None:
    sam = CATALOGUE["mobile-sam"]
    assert converted_folder(sam, CACHE, "auto") == converted_folder(sam, CACHE, "fp32")
