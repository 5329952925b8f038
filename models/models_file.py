"""The user's models file: YAML that adds models of their own to the catalogue.

models:
  my-oranges:
    architecture: mobile-sam
    file: my_oranges.safetensors   # relative to this file, or absolute
    licence: proprietary
    sha256: ...                    # optional; computed from the file when absent
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from models.digests import sha256_of
from models.entries import Architecture, CatalogueEntry, LocalFile
from models.errors import CatalogueError

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
_Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture
    file: _Text
    licence: _Text
    sha256: _Sha256 | None = None


class _ModelsFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[_Name, _Model]


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:  # noqa: FBT001, FBT002
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused below
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_models_file(models_file: Path) -> dict[str, CatalogueEntry]:
    """Read and check the user's models file.

    Args:
        models_file: the YAML file.

    Returns:
        The entries by name, in the file's order.

    Raises:
        CatalogueError: the file cannot be read, is not of the shape above, or names a checkpoint
            that is not there; the message says which entry, and what would be right.
    """
    models = _parsed(models_file).models
    return {name: _entry(name, model, models_file) for name, model in models.items()}


def _parsed(models_file: Path) -> _ModelsFile:
    try:
        content = yaml.load(models_file.read_text("utf-8"), Loader=_Loader)  # noqa: S506 a SafeLoader
    except OSError as error:
        raise CatalogueError(
            f"{models_file}: the models file cannot be read ({error.strerror}); set "
            "POMONA_MODELS_FILE to a readable file, or leave it unset"
        ) from error
    except (ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or no such date
        raise CatalogueError(f"{models_file}: the models file is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise CatalogueError(
            f"{models_file}: the models file must be a mapping with the one key 'models', not {_kind(content)}"
        )
    try:
        return _ModelsFile.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(_fault(details) for details in error.errors())
        raise CatalogueError(f"{models_file}: {faults}") from error


def _kind(content: object) -> str:
    if content is None:
        return "an empty file"
    return "a list" if isinstance(content, list) else "a lone value"


def _fault(details: ErrorDetails) -> str:
    """One sentence for one fault: which entry, which key, what would be right."""
    # ("models", entry name, key), or less where the fault lies higher up.
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
            f"{entry}a model's name is a string of at most 64 lower-case letters, digits, dots, "
            "dashes and underscores, and begins with a letter or a digit"
        )
    return f"{entry}{where[-1]!r}: {details['msg']}, not {reprlib.repr(details['input'])}"


def _entry(name: str, model: _Model, models_file: Path) -> CatalogueEntry:
    path = models_file.absolute().parent / model.file
    try:
        if not path.is_file():
            raise CatalogueError(
                f"{models_file}: model {name!r}: there is no file {path}; 'file' is a path "
                "relative to the models file, or an absolute one"
            )
        size = path.stat().st_size
        sha256 = model.sha256 or sha256_of(path)
    except OSError as error:
        raise CatalogueError(
            f"{models_file}: model {name!r}: {path} cannot be read ({error.strerror}); "
            "make it readable for the user that runs Pomona"
        ) from error
    return CatalogueEntry(
        name=name,
        architecture=model.architecture,
        licence=model.licence,
        filename=path.name,
        size=size,
        sha256=sha256,
        sources=(LocalFile(path),),
    )
