"""Embeddings of recent images: bounded in bytes and age, each image encoded once."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from models.backends.base import Embedding
from models.letterbox import Letterbox
from models.types import Size
from service.observability.observer import Observer


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image's embedding and how the image lies in the model's square."""

    embedding: Embedding
    letterbox: Letterbox


@dataclass(frozen=True, slots=True)
class ImageKey:
    """An image by the hash of its encoded bytes, for one revision of one model, as its encoder saw it."""

    image_id: str
    model: str
    revision: str
    side: int
    padded: Size


class EmbeddingCache:
    """Least recently used goes first; ages count from the encoding. For one event loop.

    Args:
        max_bytes: bound of the sum of the embeddings' bytes; a larger one is answered but not kept.
        max_age: seconds after which an embedding is forgotten.
        clock: seconds, monotonic.
        observer: hears of hits, misses, evictions and bytes.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_age: float,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer or Observer()
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._clock = clock
        self._kept: OrderedDict[ImageKey, tuple[EmbeddedImage, float]] = OrderedDict()
        self._bytes = 0
        self._coming: dict[ImageKey, asyncio.Task[EmbeddedImage]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all kept embeddings."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: ImageKey) -> EmbeddedImage | None:
        """The embedding, now the most recently used, or None where it is unknown or expired."""
        self._expire()
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        self._observer.cache_event("hit")
        return self._kept[key][0]

    def find(self, image_id: str, model: str, revision: str) -> list[EmbeddedImage]:
        """All embeddings of one image for one revision of one model, now the most recently used."""
        wanted = (image_id, model, revision)
        keys = [key for key in self._kept if (key.image_id, key.model, key.revision) == wanted]
        return [found for key in keys if (found := self.get(key)) is not None]

    def has_or_expects(self, key: ImageKey) -> bool:
        """Whether a call now would start no encoding."""
        self._expire()
        return key in self._kept or key in self._coming

    async def get_or_encode(self, key: ImageKey, encode: Callable[[], Awaitable[EmbeddedImage]]) -> EmbeddedImage:
        """The kept embedding, the one that is on its way, or a new one.

        The encoding goes on when the caller who started it is cancelled, as others may wait for it, and what ran is
        worth keeping; what has not run yet ends by itself when its place in the queue is given up. Its failure reaches
        everybody who waits, and the next caller tries anew.
        """
        if (kept := self.get(key)) is not None:
            return kept
        self._observer.cache_event("miss")
        if (coming := self._coming.get(key)) is None:
            coming = asyncio.ensure_future(self._encode_and_keep(key, encode))
            self._coming[key] = coming
            coming.add_done_callback(lambda task: self._arrived(key, task))
        return await asyncio.shield(coming)

    async def _encode_and_keep(self, key: ImageKey, encode: Callable[[], Awaitable[EmbeddedImage]]) -> EmbeddedImage:
        embedded = await encode()
        self._keep(key, embedded)
        return embedded

    def _arrived(self, key: ImageKey, task: asyncio.Task[EmbeddedImage]) -> None:
        del self._coming[key]
        if not task.cancelled():
            task.exception()  # seen: nobody may be left to await it

    def _keep(self, key: ImageKey, embedded: EmbeddedImage) -> None:
        self._forget(key)
        if embedded.embedding.nbytes > self._max_bytes:
            return
        self._kept[key] = (embedded, self._clock())
        self._bytes += embedded.embedding.nbytes
        while self._bytes > self._max_bytes:
            self._observer.cache_event("eviction")
            self._forget(next(iter(self._kept)))
        self._observer.cache_bytes(self._bytes)

    def _expire(self) -> None:
        oldest_allowed = self._clock() - self._max_age
        for key in [key for key, (_, born) in self._kept.items() if born <= oldest_allowed]:
            self._forget(key)

    def _forget(self, key: ImageKey) -> None:
        if (found := self._kept.pop(key, None)) is not None:
            self._bytes -= found[0].embedding.nbytes
