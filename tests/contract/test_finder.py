"""What finds the fruit of an inspection: a U-Net, a detector, or both."""

from __future__ import annotations

from typing import Any

import pytest

from service.api import schema
from tests.contract.door import Door, problem, within
from tests.contract.doors import everywhere, inspect
from tests.contract.grpc_door import Caller
from tests.contract.scenes import CLEAN, NO_FRUIT, SICK, TWO
from tests.fake_detector import LOADED_DETECTOR, OTHER_DETECTOR
from tests.fakes import LOADED_UNET


@pytest.mark.parametrize("mode", ["fast", "accurate"])
@pytest.mark.parametrize("finder", ["unet", "detector", "both", None])
async def test_every_finder_finds_the_fruit_at_every_door(caller: Caller, finder: str | None, mode: str) -> None:
    fields: dict[str, Any] = {"mode": mode} | ({} if finder is None else {"finder": finder})
    body = await everywhere(caller, inspect(TWO, **fields))
    assert len(body["fruits"]) == 2
    for fruit, box in zip(body["fruits"], (CLEAN, SICK), strict=True):
        assert fruit["box"] == pytest.approx(box, abs=2)  # a SAM is prompted with a grown box
    assert body["fruits"][1]["infected_fraction"] == pytest.approx(0.08, abs=0.01)
    found = body["models"]["detector"]
    assert found is None if finder == "unet" else found["name"] == LOADED_DETECTOR.name


async def test_where_nothing_is_there_nothing_is_found(door: Door) -> None:
    for finder in ("detector", "both"):
        assert (await door.inspect(NO_FRUIT, finder=finder)).fruits == []


async def test_a_detector_of_other_things_finds_no_fruit(door: Door) -> None:
    door.detector.classes = ("bolt", "nut")
    assert (await door.inspect()).models.detector is None
    problem(await door.post_inspect(finder="both"), "unknown_class")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"finder": "best"}, "malformed_request"),
        ({"detector": "plum-detector"}, "unknown_model"),
        ({"finder": "both", "detector": OTHER_DETECTOR.name}, "model_not_loaded"),
        ({"detector": LOADED_UNET.name}, "wrong_model_family"),
    ],
)
async def test_a_finder_that_there_is_not_is_refused(door: Door, fields: dict[str, Any], code: str) -> None:
    problem(await door.post_inspect(**fields), code)
    assert door.encodes == []


async def test_a_detector_that_would_be_late_is_left_out_unless_it_is_asked_for(door: Door) -> None:
    door.detector.infer_s_per_image = 1000
    await door.learn()
    answer = await door.inspect(mode="fast", headers=within(60_000))
    assert (answer.degraded, answer.models.detector) == (True, None)
    assert answer.reason is not None
    assert "detector" in answer.reason
    assert [fruit.box for fruit in answer.fruits] == [CLEAN, SICK]
    late = await door.post_inspect(mode="fast", finder="both", headers=within(60_000))
    problem(late, "deadline_unreachable")


async def test_the_detector_runs_once_beside_the_u_net(door: Door) -> None:
    answer = await door.inspect(mode="fast")
    assert answer.batch == schema.Batch(encode=0, prompt=0, infer=1)
    assert door.detector.encodes == [1]
