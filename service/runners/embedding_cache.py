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
    """An image's embedding and its letterbox."""

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
    """Embeddings, the least recently used evicted first; ages count from the encoding. For one event loop.

    Args:
        max_bytes: bound of the sum of the embeddings' bytes; a larger one is answered but not kept.
        max_age: seconds after which an embedding is forgotten.
        clock: seconds, monotonic.
        observer: receives hits, misses, evictions and bytes.
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
        self._cached: OrderedDict[ImageKey, tuple[EmbeddedImage, float]] = OrderedDict()
        self._bytes = 0
        self._pending: dict[ImageKey, asyncio.Task[EmbeddedImage]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all cached embeddings."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._cached)

    def get(self, key: ImageKey) -> EmbeddedImage | None:
        """Return the embedding, now the most recently used, or None if it is unknown or expired."""
        self._expire()
        if key not in self._cached:
            return None
        self._cached.move_to_end(key)
        self._observer.cache_event("hit")
        return self._cached[key][0]

    def find(self, image_id: str, model: str, revision: str) -> list[EmbeddedImage]:
        """Return all embeddings of an image for one revision of a model, now the most recently used."""
        wanted = (image_id, model, revision)
        keys = [key for key in self._cached if (key.image_id, key.model, key.revision) == wanted]
        return [found for key in keys if (found := self.get(key)) is not None]

    def forget_revision(self, model: str, revision: str) -> None:
        """Forget all embeddings of a revision that is not loaded any more."""
        for key in [key for key in self._cached if (key.model, key.revision) == (model, revision)]:
            self._forget(key)

    def has_or_expects(self, key: ImageKey) -> bool:
        """Return whether the embedding is cached or being made."""
        self._expire()
        return key in self._cached or key in self._pending

    async def get_or_encode(self, key: ImageKey, encode: Callable[[], Awaitable[EmbeddedImage]]) -> EmbeddedImage:
        """Return the cached embedding, the one that is being made, or a new one.

        The encoding goes on when the caller who started it is cancelled, as others may wait for it, and what ran is
        worth keeping; what has not run yet ends when its ticket is released. Its failure reaches all who wait, and the
        next caller starts again.
        """
        if (cached := self.get(key)) is not None:
            return cached
        self._observer.cache_event("miss")
        if (pending := self._pending.get(key)) is None:
            pending = asyncio.ensure_future(self._encode_and_cache(key, encode))
            self._pending[key] = pending
            pending.add_done_callback(lambda task: self._made(key, task))
        return await asyncio.shield(pending)

    async def _encode_and_cache(self, key: ImageKey, encode: Callable[[], Awaitable[EmbeddedImage]]) -> EmbeddedImage:
        embedded = await encode()
        self._store(key, embedded)
        return embedded

    def _made(self, key: ImageKey, task: asyncio.Task[EmbeddedImage]) -> None:
        del self._pending[key]
        if not task.cancelled():
            task.exception()  # retrieved, as it may not be awaited any more

    def _store(self, key: ImageKey, embedded: EmbeddedImage) -> None:
        self._forget(key)
        if embedded.embedding.nbytes > self._max_bytes:
            return
        self._cached[key] = (embedded, self._clock())
        self._bytes += embedded.embedding.nbytes
        while self._bytes > self._max_bytes:
            self._observer.cache_event("eviction")
            self._forget(next(iter(self._cached)))
        self._observer.cache_bytes(self._bytes)

    def _expire(self) -> None:
        oldest_allowed = self._clock() - self._max_age
        for key in [key for key, (_, born) in self._cached.items() if born <= oldest_allowed]:
            self._forget(key)

    def _forget(self, key: ImageKey) -> None:
        if (found := self._cached.pop(key, None)) is not None:
            self._bytes -= found[0].embedding.nbytes
            self._observer.cache_bytes(self._bytes)
