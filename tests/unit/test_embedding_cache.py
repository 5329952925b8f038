"""The embedding cache: what it keeps and for how long, and each image encoded once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from models.errors import BackendError
from models.letterbox import letterbox_for
from models.types import Size
from service.observability.observer import CacheEvent, Observer
from service.runners.embedding_cache import EmbeddedImage, EmbeddingCache, ImageKey
from tests.fakes import FakeClock

SQUARE = Size(1024, 1024)


@dataclass(frozen=True)
class Blob:
    nbytes: int


def embedded(nbytes: int = 10) -> EmbeddedImage:
    return EmbeddedImage(Blob(nbytes), letterbox_for(Size(4, 4)))


def key(
    image_id: str, model: str = "orange-sam", revision: str = "0a", side: int = 1024, padded: Size = SQUARE
) -> ImageKey:
    return ImageKey(image_id, model, revision, side, padded)


@dataclass
class Recorder(Observer):
    """Records what the cache reports."""

    events: list[CacheEvent] = field(default_factory=list)
    nbytes: int = 0

    def cache_event(self, event: CacheEvent) -> None:
        self.events.append(event)

    def cache_bytes(self, nbytes: int) -> None:
        self.nbytes = nbytes


def immediately(answer: EmbeddedImage) -> Callable[[], Awaitable[EmbeddedImage]]:
    async def encode() -> EmbeddedImage:
        return answer

    return encode


def never() -> Awaitable[EmbeddedImage]:
    raise AssertionError("the image is encoded already")


class Encoding(asyncio.Future[EmbeddedImage]):
    """An encoding that ends when the test says so."""

    async def requested_by(self, cache: EmbeddingCache, image_id: str = "a") -> asyncio.Task[EmbeddedImage]:
        """Start a request for an image that is encoded by this, unless it is cached or expected."""
        request = asyncio.create_task(cache.get_or_encode(key(image_id), lambda: self))
        for _ in range(3):  # until the request has started the encoding, and that waits
            await asyncio.sleep(0)
        return request


async def store(cache: EmbeddingCache, *image_ids: str, nbytes: int = 10) -> None:
    for image_id in image_ids:
        await cache.get_or_encode(key(image_id), immediately(embedded(nbytes)))


def cached(cache: EmbeddingCache, *image_ids: str) -> list[str]:
    return [image_id for image_id in image_ids if cache.get(key(image_id)) is not None]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def cache(clock: FakeClock, recorder: Recorder) -> EmbeddingCache:
    return EmbeddingCache(max_bytes=30, max_age=60, clock=clock, observer=recorder)


async def test_a_cached_embedding_is_found_and_not_encoded_again(cache: EmbeddingCache) -> None:
    assert cache.get(key("a")) is None
    assert (len(cache), cache.nbytes) == (0, 0)
    first = await cache.get_or_encode(key("a"), immediately(embedded()))
    assert first is cache.get(key("a")) is await cache.get_or_encode(key("a"), never)


@pytest.mark.parametrize(
    "other",
    [
        key("b"),
        key("a", model="lemon-sam"),
        key("a", revision="0b"),
        key("a", side=512),
        key("a", padded=Size(768, 1024)),
    ],
)
async def test_another_image_model_revision_size_or_padding_is_another_embedding(
    cache: EmbeddingCache, other: ImageKey
) -> None:
    await store(cache, "a")
    assert cache.get(other) is None
    assert not cache.has_or_expects(other)


async def test_all_embeddings_of_an_image_are_found_whatever_their_size(
    cache: EmbeddingCache, clock: FakeClock
) -> None:
    small, large = embedded(1), embedded(4)
    await cache.get_or_encode(key("a", side=512), immediately(small))
    clock.now += 30
    await cache.get_or_encode(key("a"), immediately(large))
    for other in (key("b"), key("a", model="lemon-sam"), key("a", revision="0b")):
        await cache.get_or_encode(other, immediately(embedded(1)))
    assert cache.find("a", "orange-sam", "0a") == [small, large]
    assert cache.find("c", "orange-sam", "0a") == []
    clock.now += 30
    assert cache.find("a", "orange-sam", "0a") == [large]


async def test_an_embedding_is_expected_while_it_is_encoded_and_until_it_expires(
    cache: EmbeddingCache, clock: FakeClock
) -> None:
    assert not cache.has_or_expects(key("a"))
    encoding = Encoding()
    request = await encoding.requested_by(cache)
    assert cache.has_or_expects(key("a"))
    encoding.set_result(embedded())
    await request
    assert cache.has_or_expects(key("a"))
    clock.now += 60
    assert not cache.has_or_expects(key("a"))


@pytest.mark.parametrize(
    "use",
    [lambda cache: cache.get(key("a")), lambda cache: cache.find("a", "orange-sam", "0a")],
    ids=["get", "find"],
)
async def test_the_least_recently_used_are_evicted_until_the_bytes_fit(
    cache: EmbeddingCache, use: Callable[[EmbeddingCache], object]
) -> None:
    await store(cache, "a", "b", "c")
    assert use(cache)
    await store(cache, "d", nbytes=15)
    assert cached(cache, "a", "b", "c", "d") == ["a", "d"]
    assert cache.nbytes == 25


async def test_an_embedding_larger_than_the_bound_is_answered_but_not_cached(cache: EmbeddingCache) -> None:
    await store(cache, "a", "b", "c")
    large = embedded(31)
    assert await cache.get_or_encode(key("large"), immediately(large)) is large
    assert cached(cache, "a", "b", "c", "large") == ["a", "b", "c"]
    assert cache.nbytes == 30


async def test_an_embedding_as_large_as_the_bound_is_cached_alone(cache: EmbeddingCache) -> None:
    await store(cache, "a")
    await store(cache, "large", nbytes=30)
    assert cached(cache, "a", "large") == ["large"]


async def test_an_embedding_expires_at_its_age_whether_it_is_used_or_not(
    cache: EmbeddingCache, clock: FakeClock
) -> None:
    await store(cache, "a")
    clock.now += 59.9
    await store(cache, "b")
    assert cached(cache, "a", "b") == ["a", "b"]
    clock.now += 0.1
    assert cached(cache, "a", "b") == ["b"]
    assert (len(cache), cache.nbytes) == (1, 10)
    again = embedded()
    assert await cache.get_or_encode(key("a"), immediately(again)) is again
    assert cached(cache, "a") == ["a"]


async def test_the_age_counts_from_the_end_of_the_encoding(cache: EmbeddingCache, clock: FakeClock) -> None:
    encoding = Encoding()
    request = await encoding.requested_by(cache)
    clock.now += 100
    encoding.set_result(embedded())
    await request
    clock.now += 59
    assert cached(cache, "a") == ["a"]


async def test_hits_misses_evictions_and_bytes_are_reported(
    cache: EmbeddingCache, clock: FakeClock, recorder: Recorder
) -> None:
    await store(cache, "a", "a", "b", nbytes=7)
    assert recorder.events == ["miss", "hit", "miss"]
    assert recorder.nbytes == cache.nbytes == 14
    await store(cache, "c", nbytes=17)
    assert recorder.events[3:] == ["miss", "eviction"]
    assert recorder.nbytes == cache.nbytes == 24
    clock.now += 60
    assert cache.get(key("c")) is None
    assert recorder.nbytes == cache.nbytes == 0


async def test_concurrent_requests_for_the_same_new_image_encode_it_once(cache: EmbeddingCache) -> None:
    encoding = Encoding()
    first = await encoding.requested_by(cache)
    second = asyncio.create_task(cache.get_or_encode(key("a"), never))
    answer = embedded()
    encoding.set_result(answer)
    assert await first is await second is answer
    assert cache.nbytes == 10


async def test_different_images_are_encoded_concurrently(cache: EmbeddingCache) -> None:
    one, other = Encoding(), Encoding()
    first, second = await one.requested_by(cache, "a"), await other.requested_by(cache, "b")
    other.set_result(embedded())
    await second
    assert not first.done()
    one.set_result(embedded())
    await first


async def test_a_failed_encoding_reaches_all_requests_and_the_next_one_tries_again(cache: EmbeddingCache) -> None:
    encoding = Encoding()
    requests = [await encoding.requested_by(cache)]
    requests += [asyncio.create_task(cache.get_or_encode(key("a"), never)) for _ in range(2)]
    await asyncio.sleep(0)
    encoding.set_exception(BackendError("the device failed"))
    for request in requests:
        with pytest.raises(BackendError, match="the device failed"):
            await request
    assert (len(cache), cache.nbytes) == (0, 0)
    await store(cache, "a")
    assert cached(cache, "a") == ["a"]


async def test_an_encoding_goes_on_when_its_requests_are_cancelled(cache: EmbeddingCache) -> None:
    encoding = Encoding()
    for request in [await encoding.requested_by(cache) for _ in range(2)]:
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    answer = embedded()
    encoding.set_result(answer)
    assert await cache.get_or_encode(key("a"), never) is answer


async def test_a_failure_that_no_request_waits_for_is_not_logged_as_unretrieved(cache: EmbeddingCache) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    encoding = Encoding()
    request = await encoding.requested_by(cache)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    (abandoned,) = asyncio.all_tasks() - {asyncio.current_task()}
    encoding.set_exception(BackendError("the device failed"))
    await asyncio.wait({abandoned})
    del abandoned, encoding
    await asyncio.sleep(0)
    gc.collect()
    assert complaints == []
    assert not cache.has_or_expects(key("a"))
