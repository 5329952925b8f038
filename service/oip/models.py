"""Which models callers of the protocol see, and which tensors they take and return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from models.catalog import CatalogueEntry, Family
from models.errors import UnknownModel
from service.errors import WrongFamily
from service.pipelines import Pipelines

SERVER_NAME: Final = "pomona"
EXTENSIONS: Final = ("binary_tensor_data", "schedule_policy")


@dataclass(frozen=True, slots=True)
class Form:
    """A type and a shape that a tensor may have.

    Attributes:
        datatype: of its elements.
        shape: its dimensions, -1 for one of any length.
    """

    datatype: str
    shape: tuple[int, ...]

    def fits(self, datatype: str, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor has this form."""
        return (
            datatype == self.datatype
            and len(shape) == len(self.shape)
            and all(wanted in (-1, length) for wanted, length in zip(self.shape, shape, strict=True))
        )


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name and forms of a tensor; metadata contain the first form, as the protocol has no place for others."""

    name: str
    forms: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Tensors:
    """Tensors that the models of a family take and return."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


_IMAGE: Final = TensorSpec("image", (Form("BYTES", (1,)), Form("UINT8", (-1, -1, 3))))

_PROMPTED: Final = Tensors(
    inputs=(
        _IMAGE,
        TensorSpec("points", (Form("FP32", (-1, -1, 2)), Form("FP64", (-1, -1, 2)))),
        TensorSpec("labels", (Form("INT32", (-1, -1)), Form("INT64", (-1, -1)))),
        TensorSpec("boxes", (Form("FP32", (-1, 4)), Form("FP64", (-1, 4)))),
        TensorSpec("mask_input", (Form("FP32", (-1, -1, -1)), Form("BOOL", (-1, -1, -1)))),
        TensorSpec("multimask", (Form("BOOL", (1,)),)),
    ),
    outputs=(
        TensorSpec("masks", (Form("BOOL", (-1, -1, -1, -1)), Form("BYTES", (-1, -1)))),
        TensorSpec("scores", (Form("FP32", (-1, -1)),)),
        TensorSpec("stability_scores", (Form("FP32", (-1, -1)),)),
        TensorSpec("boxes", (Form("INT64", (-1, -1, 4)),)),
        TensorSpec("areas", (Form("INT64", (-1, -1)),)),
        TensorSpec("logits", (Form("FP32", (-1, -1, -1, -1)),)),
    ),
)

TENSORS: Final[Mapping[Family, Tensors]] = {
    "sam": _PROMPTED,
    "sam2": _PROMPTED,
    "unet": Tensors(
        inputs=(_IMAGE,),
        outputs=(
            TensorSpec("class_map", (Form("UINT8", (-1, -1)),)),
            TensorSpec("object_boxes", (Form("INT64", (-1, 4)),)),
            TensorSpec("object_classes", (Form("UINT8", (-1,)),)),
            TensorSpec("object_scores", (Form("FP32", (-1,)),)),
            TensorSpec("object_areas", (Form("INT64", (-1,)),)),
        ),
    ),
    "detector": Tensors(
        inputs=(_IMAGE,),
        outputs=(
            TensorSpec("boxes", (Form("FP32", (-1, 4)),)),
            TensorSpec("scores", (Form("FP32", (-1,)),)),
            TensorSpec("class_ids", (Form("INT64", (-1,)),)),
            TensorSpec("classes", (Form("BYTES", (-1,)),)),
        ),
    ),
}
"""By family; a request is one image, so that no dimension is a batch's."""


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Metadata of a model.

    Attributes:
        name: in the catalogue.
        versions: the loaded revision.
        platform: the backend that executes it.
        tensors: what it takes and returns.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    tensors: Tensors


def metadata(pipelines: Pipelines, name: str, version: str) -> ModelMetadata:
    """Return the metadata of a model.

    Raises:
        UnknownModel, ModelNotLoaded: see `find`.
    """
    entry = find(pipelines, name, version)
    runner = pipelines.engine.runners[name]
    return ModelMetadata(name, (entry.revision,), runner.backend_name, TENSORS[runner.family])


def find(pipelines: Pipelines, name: str, version: str) -> CatalogueEntry:
    """Return the catalogue entry of a loaded model.

    Args:
        pipelines: of the loaded models.
        name: in the catalogue.
        version: its revision, or empty for whichever is loaded.

    Raises:
        UnknownModel: the catalogue has no such model, or another revision of it.
        ModelNotLoaded: it is in the catalogue but not loaded.
        WrongFamily: its family is not served over this protocol.
    """
    entry = _entry(pipelines, name, version)
    if name not in pipelines.engine.runners:
        raise pipelines.engine.not_loaded(name)
    if entry.architecture.family not in TENSORS:
        raise WrongFamily(f"{name} finds what a text names, which this protocol has no tensors for; use /v1/text.")
    return entry


def is_live(pipelines: Pipelines | None) -> bool:
    """Return whether the server is live: also while it loads its models, but not once a device failed for good."""
    return pipelines is None or not pipelines.engine.broken


def all_ready(pipelines: Pipelines | None) -> bool:
    """Return whether all models are loaded."""
    return pipelines is not None and not pipelines.engine.broken


def is_ready(pipelines: Pipelines | None, name: str, version: str) -> bool:
    """Return whether a model is loaded; none is before all are.

    Raises:
        UnknownModel: the catalogue has no such model, or another revision of it.
    """
    if pipelines is None:
        return False
    _entry(pipelines, name, version)
    return name in pipelines.engine.runners and not pipelines.engine.runners[name].broken


def _entry(pipelines: Pipelines, name: str, version: str) -> CatalogueEntry:
    if name not in pipelines.engine.catalogue:
        raise UnknownModel(f"There is no model {name!r}; loaded: {', '.join(pipelines.engine.runners)}.")
    loaded = pipelines.engine.runners.get(name)
    entry = pipelines.engine.catalogue[name] if loaded is None else loaded.entry
    if version not in ("", entry.revision):
        raise UnknownModel(f"The version of {name} must be {entry.revision!r} or empty, got {version!r}.")
    return entry
