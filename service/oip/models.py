"""Which models there are for callers of the protocol, and which tensors they take and give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from models.catalog import CatalogueEntry, Family
from models.errors import UnknownModel
from service.pipeline import Pipeline

SERVER_NAME: Final = "pomona"
SERVER_VERSION: Final = "0.1.0"
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
        """Whether a tensor is of this form."""
        return (
            datatype == self.datatype
            and len(shape) == len(self.shape)
            and all(wanted in (-1, length) for wanted, length in zip(self.shape, shape, strict=True))
        )


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is like.

    Attributes:
        name: of the tensor.
        forms: that it may have, of which metadata tell the first: the protocol has no place for others.
    """

    name: str
    forms: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Tensors:
    """What the models of a family take and give."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


_IMAGE: Final = TensorSpec("image", (Form("BYTES", (1,)), Form("UINT8", (-1, -1, 3))))

TENSORS: Final[Mapping[Family, Tensors]] = {
    "sam": Tensors(
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
    ),
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
}
"""By family; one request is one image, so that no dimension is a batch's."""


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What is told of a model.

    Attributes:
        name: in the catalogue.
        versions: the revision that is loaded.
        platform: what runs it.
        tensors: what it takes and gives.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    tensors: Tensors


def metadata(pipeline: Pipeline, name: str, version: str) -> ModelMetadata:
    """What is told of a model.

    Raises:
        UnknownModel, ModelNotLoaded: see `find`.
    """
    entry = find(pipeline, name, version)
    runner = pipeline.runners[name]
    return ModelMetadata(name, (entry.revision,), runner.backend_name, TENSORS[runner.family])


def find(pipeline: Pipeline, name: str, version: str) -> CatalogueEntry:
    """A model that is loaded.

    Args:
        pipeline: that has it.
        name: in the catalogue.
        version: its revision, or nothing for whichever is loaded.

    Raises:
        UnknownModel: the catalogue has no such model, or another revision of it.
        ModelNotLoaded: it is in the catalogue but not loaded.
    """
    entry = _entry(pipeline, name, version)
    if name not in pipeline.runners:
        raise pipeline.reception.not_loaded(name)
    return entry


def is_live(pipeline: Pipeline | None) -> bool:
    """Whether the server can be relied on: also while it loads its models, but not once a device failed for good."""
    return pipeline is None or not pipeline.broken


def all_ready(pipeline: Pipeline | None) -> bool:
    """Whether all models are loaded."""
    return pipeline is not None and not pipeline.broken


def is_ready(pipeline: Pipeline | None, name: str, version: str) -> bool:
    """Whether a model is loaded; none is before all are.

    Raises:
        UnknownModel: the catalogue has no such model, or another revision of it.
    """
    if pipeline is None:
        return False
    _entry(pipeline, name, version)
    return name in pipeline.runners and not pipeline.runners[name].broken


def _entry(pipeline: Pipeline, name: str, version: str) -> CatalogueEntry:
    if name not in pipeline.catalogue:
        raise UnknownModel(f"There is no model {name!r}; loaded: {', '.join(pipeline.runners)}.")
    entry = pipeline.catalogue[name]
    if version not in ("", entry.revision):
        raise UnknownModel(f"There is no version {version!r} of {name}; {entry.revision!r} would be right.")
    return entry
