from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from service.embedding_cache import EmbeddedImage, EmbeddingCache, ImageKey

from models.errors import BackendError
from models.letterbox import letterbox_for
from models.types import Size
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
class Encoder:
    """Counts its runs; waits for `go`, then answers or fails."""

    answer: EmbeddedImage = field(default_factory=embedded)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    fails: Exception | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)
    runs: int = 0

    async def __call__(self) -> EmbeddedImage:
        self.runs += 1
        self.started.set()
        await self.go.wait()
        if self.fails is not None:
            raise self.fails
        return self.answer


def at_once(answer: EmbeddedImage) -> Callable[[], Awaitable[EmbeddedImage]]:
    async def encode() -> EmbeddedImage:
        return answer

    return encode


async def keep(cache: EmbeddingCache, *image_ids: str, nbytes: int = 10) -> None:
    for image_id in image_ids:
        await cache.get_or_encode(key(image_id), at_once(embedded(nbytes)))


def kept(cache: EmbeddingCache, *image_ids: str) -> list[str]:
    return [image_id for image_id in image_ids if cache.get(key(image_id)) is not None]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> EmbeddingCache:
    return EmbeddingCache(max_bytes=30, max_age=60, clock=clock)


async def test_what_was_encoded_is_found_again_and_not_encoded_twice(cache: EmbeddingCache) -> None:
    encoder = Encoder()
    encoder.go.set()
    first = await cache.get_or_encode(key("a"), encoder)
    second = await cache.get_or_encode(key("a"), encoder)
    assert first is second is cache.get(key("a")) is encoder.answer
    assert encoder.runs == 1


async def test_an_unknown_image_is_not_found(cache: EmbeddingCache) -> None:
    assert cache.get(key("a")) is None
    assert (len(cache), cache.nbytes) == (0, 0)


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
    await keep(cache, "a")
    assert cache.get(other) is None
    assert not cache.has_or_expects(other)


async def test_all_embeddings_of_a_image_are_found_whatever_their_size(cache: EmbeddingCache, clock: FakeClock) -> None:
    small, large = embedded(1), embedded(4)
    await cache.get_or_encode(key("a", side=512), at_once(small))
    clock.now += 30
    await cache.get_or_encode(key("a"), at_once(large))
    for other in (key("b"), key("a", model="lemon-sam"), key("a", revision="0b")):
        await cache.get_or_encode(other, at_once(embedded(1)))
    assert cache.find("a", "orange-sam", "0a") == [small, large]
    assert cache.find("c", "orange-sam", "0a") == []
    clock.now += 30
    assert cache.find("a", "orange-sam", "0a") == [large]


async def test_what_was_found_by_its_image_is_the_most_recently_used(cache: EmbeddingCache) -> None:
    await keep(cache, "a", "b", "c")
    assert len(cache.find("a", "orange-sam", "0a")) == 1
    await keep(cache, "d", "e")
    assert kept(cache, "a", "b", "c", "d", "e") == ["a", "d", "e"]


async def test_an_embedding_is_expected_from_its_beginning_until_it_is_forgotten(
    cache: EmbeddingCache, clock: FakeClock
) -> None:
    encoder = Encoder()
    assert not cache.has_or_expects(key("a"))
    call = asyncio.create_task(cache.get_or_encode(key("a"), encoder))
    await encoder.started.wait()
    assert cache.has_or_expects(key("a"))
    encoder.go.set()
    await call
    assert cache.has_or_expects(key("a"))
    clock.now += 60
    assert not cache.has_or_expects(key("a"))


async def test_the_bytes_are_the_sum_of_what_is_kept(cache: EmbeddingCache, clock: FakeClock) -> None:
    await keep(cache, "a", nbytes=7)
    assert cache.nbytes == 7
    clock.now += 30
    await keep(cache, "b", nbytes=23)
    assert (len(cache), cache.nbytes) == (2, 30)
    await keep(cache, "c", nbytes=1)
    assert (len(cache), cache.nbytes) == (2, 24)
    clock.now += 30
    await keep(cache, "d", nbytes=2)
    assert (len(cache), cache.nbytes) == (3, 26)


async def test_the_least_recently_used_go_first_until_the_bytes_fit(cache: EmbeddingCache) -> None:
    await keep(cache, "a", "b", "c")
    assert cache.get(key("a")) is not None
    await keep(cache, "d", nbytes=15)
    assert kept(cache, "a", "b", "c", "d") == ["a", "d"]
    assert cache.nbytes == 25


async def test_one_larger_than_the_bound_is_answered_but_not_kept_and_drives_nothing_out(cache: EmbeddingCache) -> None:
    await keep(cache, "a", "b", "c")
    large = embedded(31)
    assert await cache.get_or_encode(key("large"), at_once(large)) is large
    assert kept(cache, "a", "b", "c", "large") == ["a", "b", "c"]
    assert cache.nbytes == 30


async def test_one_as_large_as_the_bound_is_kept_alone(cache: EmbeddingCache) -> None:
    await keep(cache, "a")
    await keep(cache, "large", nbytes=30)
    assert kept(cache, "a", "large") == ["large"]


async def test_a_bound_of_nothing_keeps_nothing() -> None:
    cache = EmbeddingCache(max_bytes=0, max_age=60)
    await keep(cache, "a")
    assert (len(cache), cache.nbytes) == (0, 0)


async def test_an_embedding_is_forgotten_at_its_age_and_then_encoded_anew(
    cache: EmbeddingCache, clock: FakeClock
) -> None:
    await keep(cache, "a")
    clock.now += 59.9
    assert kept(cache, "a") == ["a"]
    clock.now += 0.1
    assert kept(cache, "a") == []
    assert (len(cache), cache.nbytes) == (0, 0)
    again = embedded()
    assert await cache.get_or_encode(key("a"), at_once(again)) is again
    assert kept(cache, "a") == ["a"]


async def test_ages_count_from_the_encoding_and_not_from_the_last_use(cache: EmbeddingCache, clock: FakeClock) -> None:
    await keep(cache, "a")
    clock.now += 40
    await keep(cache, "b")
    assert kept(cache, "a") == ["a"]
    clock.now += 20
    assert kept(cache, "a", "b") == ["b"]


async def test_the_age_counts_from_the_end_of_the_encoding(cache: EmbeddingCache, clock: FakeClock) -> None:
    encoder = Encoder()
    slow = asyncio.create_task(cache.get_or_encode(key("a"), encoder))
    await encoder.started.wait()
    clock.now += 100
    encoder.go.set()
    await slow
    clock.now += 59
    assert kept(cache, "a") == ["a"]


async def test_two_callers_for_the_same_new_image_encode_once(cache: EmbeddingCache) -> None:
    first, second = Encoder(), Encoder()
    one = asyncio.create_task(cache.get_or_encode(key("a"), first))
    two = asyncio.create_task(cache.get_or_encode(key("a"), second))
    await first.started.wait()
    first.go.set()
    assert await one is await two is first.answer
    assert (first.runs, second.runs) == (1, 0)
    assert cache.nbytes == 10


async def test_callers_for_different_images_encode_side_by_side(cache: EmbeddingCache) -> None:
    first, second = Encoder(), Encoder()
    one = asyncio.create_task(cache.get_or_encode(key("a"), first))
    two = asyncio.create_task(cache.get_or_encode(key("b"), second))
    await first.started.wait()
    await second.started.wait()
    second.go.set()
    assert await two is second.answer
    assert not one.done()
    first.go.set()
    assert await one is first.answer


async def test_a_failing_encoding_reaches_all_who_wait_and_the_next_caller_tries_anew(cache: EmbeddingCache) -> None:
    failing = Encoder(fails=BackendError("the device failed"))
    waiting = [asyncio.create_task(cache.get_or_encode(key("a"), failing)) for _ in range(3)]
    await failing.started.wait()
    failing.go.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert outcomes == [failing.fails] * 3
    assert failing.runs == 1
    assert (len(cache), cache.nbytes) == (0, 0)
    sound = embedded()
    assert await cache.get_or_encode(key("a"), at_once(sound)) is sound


async def test_cancelling_the_first_caller_leaves_the_second_its_answer(cache: EmbeddingCache) -> None:
    encoder = Encoder()
    first = asyncio.create_task(cache.get_or_encode(key("a"), encoder))
    second = asyncio.create_task(cache.get_or_encode(key("a"), Encoder()))
    await encoder.started.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    encoder.go.set()
    assert await second is encoder.answer
    assert encoder.runs == 1


async def test_an_encoding_that_everybody_left_is_kept_all_the_same(cache: EmbeddingCache) -> None:
    encoder = Encoder()
    only = asyncio.create_task(cache.get_or_encode(key("a"), encoder))
    await encoder.started.wait()
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    encoder.go.set()
    assert await cache.get_or_encode(key("a"), Encoder()) is encoder.answer
    assert kept(cache, "a") == ["a"]


async def test_a_failure_that_everybody_left_is_not_reported_as_forgotten(cache: EmbeddingCache) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    failing = Encoder(fails=BackendError("the device failed"))
    only = asyncio.create_task(cache.get_or_encode(key("a"), failing))
    await failing.started.wait()
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    left_alone = asyncio.all_tasks() - {asyncio.current_task()}
    assert len(left_alone) == 1
    failing.go.set()
    await asyncio.wait(left_alone)
    del left_alone
    await asyncio.sleep(0)
    gc.collect()
    sound = embedded()
    assert await cache.get_or_encode(key("a"), at_once(sound)) is sound
    assert complaints == []
