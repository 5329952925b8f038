"""The one way in for every door: what can be asked, and which path answers it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from models.catalog import CatalogueEntry, Family
from service.embedding_cache import EmbeddingCache
from service.inspection import InspectionPath
from service.messages import (
    Classified,
    Embedded,
    InputChoice,
    Inspected,
    InspectRequest,
    Segmented,
    SegmentRequest,
    SemanticRequest,
    When,
)
from service.prompted import PromptedPath
from service.reception import Reception
from service.redrawing import Redrawer
from service.runners.base import Runner
from service.semantic import SemanticPath


@dataclass(frozen=True, slots=True)
class Pipeline:
    """See the module.

    Attributes:
        reception: where requests begin.
        prompted: answers with SAMs.
        classes: answers with U-Nets.
        fruits: answers with both.
    """

    reception: Reception
    prompted: PromptedPath
    classes: SemanticPath
    fruits: InspectionPath

    @classmethod
    def of(cls, reception: Reception, cache: EmbeddingCache) -> Pipeline:
        """All paths from one reception; `cache` holds the SAMs' embeddings."""
        fruits = InspectionPath(reception, Redrawer(reception))
        return cls(reception, PromptedPath(reception, cache), SemanticPath(reception), fruits)

    @property
    def runners(self) -> Mapping[str, Runner]:
        """Loaded models by name; the first of a family is its default."""
        return self.reception.runners

    @property
    def catalogue(self) -> Mapping[str, CatalogueEntry]:
        """All models by name."""
        return self.reception.catalogue

    @property
    def broken(self) -> bool:
        """A device failed for good."""
        return any(runner.broken for runner in self.runners.values())

    def default(self, family: Family) -> str | None:
        """The model that answers requests that name none, where one is loaded."""
        return self.reception.default(family)

    async def embed(
        self,
        data: bytes,
        model: str | None = None,
        choice: InputChoice | None = None,
        when: When | None = None,
    ) -> Embedded:
        """Encode an image and keep its embedding.

        Raises:
            ImageError: the image cannot be used.
            UnknownModel, WrongFamily: no such SAM is loaded.
            Overloaded, DeadlineUnreachable, DeadlineExceeded: it cannot be in time.
            BackendError: the device failed.
        """
        return await self.prompted.embed(data, model, choice or InputChoice(), when or When())

    async def segment(self, request: SegmentRequest) -> Segmented:
        """Answer every prompt on one image.

        Raises:
            PomonaError: of `models.errors` and `service.errors`, whatever is wrong with the request or the device.
        """
        return await self.prompted.segment(request)

    async def semantic(self, request: SemanticRequest) -> Classified:
        """Tell of every pixel whether it is background, healthy or infected fruit.

        Raises:
            ImageError: the image cannot be used.
            UnknownModel, WrongFamily: no such U-Net is loaded.
            Overloaded, DeadlineUnreachable, DeadlineExceeded: it cannot be in time.
            BackendError: the device failed.
        """
        return await self.classes.classify(request)

    async def inspect(self, request: InspectRequest) -> Inspected:
        """Validator every fruit of an image: where it is, how much of it is infected, which grade that makes.

        Raises:
            ImageError: the image cannot be used.
            UnknownModel, WrongFamily: no such U-Net is loaded, or no such SAM where one is named or needed.
            Overloaded, DeadlineUnreachable, DeadlineExceeded: it cannot be in time.
            BackendError: the device failed.
        """
        return await self.fruits.inspect(request)

    async def close(self, within: float) -> None:
        """Finish what was admitted, for at most `within` seconds, and stop all threads."""
        for runner in self.runners.values():
            await runner.close(within)
        await asyncio.to_thread(self.reception.workers.shutdown, wait=True)
