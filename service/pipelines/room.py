"""Memory for models that are loaded while the service runs: it is taken from what requests may hold, and given back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service.errors import NoRoomForModel
from service.memory import PATIENCE_S, Kind, MemoryBudget

_MIB: Final = 1 << 20
_LOOK_EVERY_S: Final = 0.02


@dataclass(slots=True)
class ModelRoom:
    """The budget of requests, and what lies beside it.

    Attributes:
        budget: of the requests.
        total: bytes that requests may hold now.
        largest: the largest request's part of it, see `MemoryBudget.resize`.
        least: bytes that requests must keep, for the largest that is allowed.
        spare: bytes that neither requests nor models nor caches use; taken first.
    """

    budget: MemoryBudget
    total: int
    largest: Mapping[Kind, int]
    least: int
    spare: float = 0.0

    async def take(self, nbytes: int, name: str) -> RoomForModel:
        """Reserve memory for a model: requests have less from now on.

        Args:
            nbytes: that it will take.
            name: of the model, for the error.

        Raises:
            NoRoomForModel: it would leave too little for the largest request, or requests hold too much of it now.
        """
        spare = min(self.spare, nbytes)
        taken = nbytes - spare
        if self.total - taken < self.least:
            most = self.spare + self.total - self.least
            raise NoRoomForModel(
                f"{name} takes about {_mib(nbytes)} MiB, of which there are {_mib(max(0, most))} MiB: requests must "
                f"keep {_mib(self.least)} MiB. Give the container more memory, unload another revision, or lower "
                "POMONA_MAX_MEGAPIXELS, POMONA_MAX_UPLOAD_MIB or POMONA_EMBEDDING_CACHE_MIB."
            )
        room = RoomForModel(self, spare, int(taken))
        self._resize(-room.taken, -room.spare)
        try:
            await self._wait()
        except TimeoutError as error:
            room.release()
            raise NoRoomForModel(
                f"{name} takes about {_mib(nbytes)} MiB, which requests have held for {PATIENCE_S:g} s: load it when "
                "there are fewer."
            ) from error
        except BaseException:
            room.release()
            raise
        return room

    def add(self, nbytes: int) -> None:
        """Give requests memory that something else has freed."""
        self._resize(nbytes, 0.0)

    async def _wait(self) -> None:
        """Wait until requests hold no more than they may have now."""
        async with asyncio.timeout(PATIENCE_S):
            while sum(self.budget.ledger.used.values()) > self.total:  # noqa: ASYNC110 (nothing tells of what is given back)
                await asyncio.sleep(_LOOK_EVERY_S)

    def _resize(self, more: int, more_spare: float) -> None:
        self.total += more
        self.spare += more_spare
        self.budget.resize(self.total, self.largest)


@dataclass(slots=True)
class RoomForModel:
    """Memory that is reserved for one model."""

    _room: ModelRoom
    spare: float
    taken: int

    @property
    def nbytes(self) -> int:
        """Bytes that are reserved."""
        return int(self.spare) + self.taken

    def shrink(self, nbytes: int) -> None:
        """Keep at most `nbytes`; requests get theirs back first."""
        back = max(0, self.nbytes - nbytes)
        taken = min(self.taken, back)
        spare = min(self.spare, float(back - taken))
        self.taken -= taken
        self.spare -= spare
        self._room._resize(taken, spare)

    def release(self) -> None:
        """Give all back; harmless when repeated."""
        self.shrink(0)


def _mib(nbytes: float) -> int:
    return math.ceil(nbytes / _MIB)
