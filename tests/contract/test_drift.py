"""Drift as a service measures it: frames of a line are watched, others are not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from models.drift import LEAST, Distribution, Reference, Statistic
from models.inspection import Fruit
from models.types import Size
from service.api.context import RequestContext
from service.api.schema import InspectRequest
from service.observability.observer import Observer
from service.pipelines.drifting import DriftWatches
from service.pipelines.source import encoded
from service.pipelines.warmup import warm_up
from service.runners.unet import UNetRunner
from tests.contract.door import LIMITS, Door, open_door
from tests.contract.scenes import FRUIT_SIZE, TWO
from tests.fakes import LOADED_UNET

EVERYTHING = Reference(
    "0d" * 32,
    100,
    {
        "brightness": Distribution((0.5, 0.6), (0, 100, 0)),
        "fruit_count": Distribution((0.0, 2.0), (0, 100, 0)),
        "fruit_size": Distribution((0.3, 0.4), (0, 100, 0)),
        "infected_fraction": Distribution((0.0, 0.05), (50, 0, 50)),
    },
)
"""The scene of two fruits is exactly like it, but for its brightness."""


@dataclass
class Found(Observer):
    indices: dict[tuple[str, str], float] = field(default_factory=dict)

    def drift_measured(self, model: str, statistic: str, index: float) -> None:
        self.indices[model, statistic] = index


@pytest.fixture
async def watched() -> AsyncIterator[tuple[Door, Found]]:
    found = Found()
    async with open_door(**LIMITS) as door:
        engine = door.pipelines.engine
        engine.runner(UNetRunner, None).reference = EVERYTHING
        watches = DriftWatches(engine, found)
        door.app.pipelines = replace(door.pipelines, inspect=replace(door.pipelines.inspect, drift=watches))
        yield door, found


async def test_recent_frames_and_answers_are_compared_with_the_reference(watched: tuple[Door, Found]) -> None:
    door, found = watched
    for _ in range(LEAST // 2):
        await door.inspect(TWO, mode="fast", finder="unet")
    by_then = {statistic for _, statistic in found.indices}
    assert by_then == {"fruit_size", "infected_fraction"}, "of two fruits a frame there are enough, of frames not yet"
    for _ in range(LEAST // 2):
        await door.inspect(TWO, mode="fast", finder="unet")
    assert {model for model, _ in found.indices} == {LOADED_UNET.name}
    indices = {statistic: index for (_, statistic), index in found.indices.items()}
    assert indices["brightness"] > 0.25
    assert max(indices[name] for name in ("fruit_count", "fruit_size", "infected_fraction")) < 0.1


@dataclass(frozen=True)
class Counting(DriftWatches):
    seen: list[Size] = field(default_factory=list)

    def saw(self, runner: UNetRunner, image: Mapping[Statistic, float], fruits: Sequence[Fruit], size: Size) -> None:
        assert set(image) == {"brightness", "saturation", "sharpness"}
        self.seen.append(size)
        DriftWatches.saw(self, runner, image, fruits, size)


async def test_a_revision_beside_the_active_one_is_not_watched_and_a_promoted_one_begins_anew() -> None:
    found = Found()
    async with open_door(**LIMITS) as door:
        engine = door.pipelines.engine
        active = engine.runner(UNetRunner, None)
        active.reference = EVERYTHING
        watches = DriftWatches(engine, found)
        beside = UNetRunner(replace(LOADED_UNET, sha256="5c" * 32), active.backend, active._queue, None, EVERYTHING)
        assert (watches.watches(active), watches.watches(beside)) == (True, False)
        for _ in range(LEAST):
            watches.saw(beside, {"brightness": 0.55}, [], FRUIT_SIZE)
        assert found.indices == {}
        for _ in range(LEAST - 1):
            watches.saw(active, {"brightness": 0.55}, [], FRUIT_SIZE)
        engine.runners[LOADED_UNET.name] = beside
        watches.saw(beside, {"brightness": 0.55}, [], FRUIT_SIZE)
        assert found.indices == {}
        for _ in range(LEAST - 1):
            watches.saw(beside, {"brightness": 0.55}, [], FRUIT_SIZE)
        assert {model for model, _ in found.indices} == {LOADED_UNET.name}
        engine.runners[LOADED_UNET.name] = active


async def test_images_of_the_warm_up_and_of_annotators_are_not_watched() -> None:
    async with open_door(**LIMITS) as door:
        engine = door.pipelines.engine
        engine.runner(UNetRunner, None).reference = EVERYTHING
        watches = Counting(engine, Observer())
        watched = replace(door.pipelines, inspect=replace(door.pipelines.inspect, drift=watches))
        door.app.pipelines = watched
        await warm_up(watched, [FRUIT_SIZE])
        await watched.inspect.unwatched().run(InspectRequest(mode="fast"), encoded(TWO), RequestContext())
        assert watches.seen == []
        await door.inspect(TWO, mode="fast")
        assert watches.seen == [FRUIT_SIZE]
