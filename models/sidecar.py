"""JSON files beside a checkpoint that describe its weights, and those alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from models.catalog import CatalogueEntry, LocalFile
from models.errors import WeightsError

_LOG = logging.getLogger("pomona.weights")


class OfWeights(Protocol):
    """What a sidecar holds: a dataclass with the hash of the weights that it describes, in hexadecimal digits."""

    @property
    def sha256(self) -> str: ...  # noqa: D102


Content = TypeVar("Content", bound=OfWeights)


class Sidecar(Generic[Content]):
    """Files of one kind, each beside the checkpoint that it belongs to.

    Args:
        kind: the dataclass that they hold; its `__post_init__` may raise `ValueError`.
        suffix: in place of the checkpoint's.
    """

    def __init__(self, kind: type[Content], suffix: str) -> None:
        self._suffix: Final = suffix
        self._json: Final[TypeAdapter[Content]] = TypeAdapter(kind)

    def path(self, weights: Path) -> Path:
        """Return the path of the file of a checkpoint."""
        return weights.with_suffix(self._suffix)

    def write(self, content: Content, weights: Path) -> None:
        """Write the file of a checkpoint.

        Raises:
            OSError: it cannot be written.
        """
        self.path(weights).write_bytes(self._json.dump_json(content, indent=1) + b"\n")

    def read(self, entry: CatalogueEntry) -> Content | None:
        """Read the file of a model.

        Returns:
            Its content; None if there is none beside the checkpoint, or if it belongs to other weights.

        Raises:
            WeightsError: the file cannot be read.
        """
        for source in entry.sources:
            if not (isinstance(source, LocalFile) and self.path(source.path).is_file()):
                continue
            file = self.path(source.path)
            try:
                content = self._json.validate_json(file.read_bytes())
            except (OSError, ValidationError) as error:
                raise WeightsError(f"{file} cannot be read; make it again or remove it: {error}") from error
            if content.sha256 == entry.sha256:
                return content
            _LOG.warning("%s belongs to other weights and is not used", file)
        return None
