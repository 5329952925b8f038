"""A second revision answers live frames too, in idle time, and the report says how its answers differ."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from models.errors import BackendError
from service.capture.records import Capture
from service.pipelines.shadow import Disagreed
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import problem
from tests.contract.messages import to_json
from tests.contract.reload_door import FILE, NAME, NEW, OLD, SAM_NAME, Reloading, open_reloading, until
from tests.contract.scenes import BLACK
from tests.fakes import PATIENCE_S, FakeUNet, peel_image

PEEL: Final = peel_image()
"""A healthy and an infected fruit, which the second revision takes for one another."""


@pytest.fixture
async def reloading(tmp_path: Path) -> AsyncIterator[Reloading]:
    async with open_reloading(tmp_path) as made:
        yield made


async def compared(reloading: Reloading, count: int) -> None:
    """Wait until so many frames have been dealt with."""
    await until(lambda: len(reloading.observer.shadows) >= count)


def shadow_unet(reloading: Reloading) -> FakeUNet:
    return reloading.loader.unets[-1]


async def test_a_frame_is_answered_by_both_revisions_and_compared(reloading: Reloading) -> None:
    assert (await reloading.load(shadow=1)).shadow == 1
    answer = await reloading.inspect(PEEL, frame_id="cam2-1")
    assert answer.models.unet.revision == OLD
    await compared(reloading, 1)
    (report,) = await reloading.shadow()
    assert (report.model, report.revision, report.active_revision, report.share) == (NAME, NEW, OLD, 1)
    assert (report.compared, report.skipped, report.failed) == (1, 0, 0)
    assert (report.fruits, report.grade_changes) == (2, 2)
    assert (report.mean_iou, report.least_iou) == (1, 1)
    assert report.mean_infected_fraction_difference == report.largest_infected_fraction_difference == 1
    (worst,) = report.worst
    assert (worst.request_id, worst.frame_id, worst.grade_changes) == (answer.request_id, "cam2-1", 2)


async def test_the_report_is_the_same_at_both_doors(reloading: Reloading) -> None:
    await reloading.load(shadow=1)
    await reloading.inspect(PEEL)
    await compared(reloading, 1)
    over_http = await reloading.door.client.get("/v1/shadow", headers=reloading.admin)
    call = reloading.caller.stub.ReportShadows(pb.ShadowRequest(), metadata=tuple(reloading.admin.items()))
    assert to_json(await call) == over_http.json()


async def test_frames_without_fruit_agree(reloading: Reloading) -> None:
    await reloading.load(shadow=1)
    await reloading.inspect(BLACK)
    await compared(reloading, 1)
    (report,) = await reloading.shadow()
    assert (report.compared, report.fruits, report.mean_iou, report.worst) == (1, 0, None, [])


async def test_frames_of_semantic_are_compared_too(reloading: Reloading) -> None:
    await reloading.load(shadow=1)
    reloading.door.client.headers.update(reloading.line)
    await reloading.door.semantic()
    await compared(reloading, 1)
    assert (await reloading.shadow())[0].grade_changes == 2


async def test_a_share_of_the_frames_is_compared_and_the_share_can_be_changed(reloading: Reloading) -> None:
    await reloading.load(shadow=0.5)
    unet = shadow_unet(reloading)
    before = len(unet.encodes)
    for number in range(4):
        await reloading.inspect(PEEL)
        await compared(reloading, (number + 1) // 2)
    assert len(unet.encodes) == before + 2
    await reloading.load(shadow=1)
    await reloading.inspect(PEEL)
    await compared(reloading, 3)
    assert [(each.share, each.compared) for each in await reloading.shadow()] == [(1, 3)]
    await reloading.load(shadow=0)
    await reloading.inspect(PEEL)
    assert await reloading.shadow() == []
    assert len(unet.encodes) == before + 3


async def test_a_shadow_never_runs_while_a_request_is_answered_and_the_newest_frame_waits(reloading: Reloading) -> None:
    await reloading.load(shadow=1)
    door, shadow = reloading.door, shadow_unet(reloading)
    before = len(shadow.encodes)
    runner = door.unet_runner
    door.unet.blocks = gate = threading.Event()
    tasks = [asyncio.create_task(reloading.inspect(PEEL, frame_id=str(number))) for number in range(3)]
    await runner.images.reach(3)
    assert len(shadow.encodes) == before
    gate.set()
    last = [await task for task in tasks]
    await compared(reloading, 3)
    assert reloading.observer.shadows == ["skipped", "skipped", "compared"]
    assert len(shadow.encodes) == before + 1
    (report,) = await reloading.shadow()
    assert (report.compared, report.skipped) == (1, 2)
    assert report.worst[0].frame_id in {answer.frame.frame_id for answer in last}
    assert not shadow.overlapped


async def test_a_shadow_that_fails_harms_no_request(reloading: Reloading) -> None:
    await reloading.load(shadow=1)
    shadow_unet(reloading).fails = BackendError("no")
    assert len((await reloading.inspect(PEEL)).fruits) == 2
    await compared(reloading, 1)
    assert reloading.observer.shadows == ["failed"]
    assert (await reloading.shadow())[0].failed == 1
    assert sum(reloading.room.budget.ledger.used.values()) == 0


async def test_what_waits_for_idle_time_holds_memory_until_it_is_compared(reloading: Reloading) -> None:
    await reloading.load(shadow=1)
    ledger = reloading.room.budget.ledger
    await reloading.inspect(PEEL)
    assert sum(ledger.used.values()) > 0
    await compared(reloading, 1)
    await until(lambda: sum(ledger.used.values()) == 0)
    await reloading.inspect(PEEL)
    reloading.control.shadows.end(NAME)
    await until(lambda: sum(ledger.used.values()) == 0)


async def test_promoting_or_unloading_ends_the_comparison(reloading: Reloading) -> None:
    await reloading.load(shadow=1)
    await reloading.promote()
    assert await reloading.shadow() == []
    await reloading.inspect(PEEL)
    assert (await reloading.load("run-7")).shadow == 0
    await reloading.promote(OLD)
    await reloading.load(shadow=0.25)
    assert [each.share for each in await reloading.shadow()] == [0.25]
    await reloading.unload(NEW)
    assert await reloading.shadow() == []


async def test_only_another_revision_of_a_unet_can_be_a_shadow(reloading: Reloading) -> None:
    detail = problem(await reloading.post("load", model=SAM_NAME, file=FILE, shadow=1), "model_conflict").detail
    assert "only the revisions of U-Nets" in detail
    assert reloading.loader.loads == 0
    await reloading.load(promote=True)
    detail = problem(await reloading.post("load", model=NAME, file=FILE, shadow=1), "model_conflict").detail
    assert "active revision" in detail
    reloading.write("other.safetensors", b"other")
    await reloading.unload(OLD)
    answer = await reloading.post("load", model=NAME, file="other.safetensors", shadow=0.5, promote=True)
    assert "shadow must be 0" in problem(answer, "model_conflict").detail


async def test_a_hook_gets_the_worst_frames_with_their_images(reloading: Reloading) -> None:
    got: list[Disagreed] = []
    reloading.control.shadows.hook = got.append
    await reloading.load(shadow=1)
    await reloading.inspect(BLACK)
    await compared(reloading, 1)
    assert got == []
    answer = await reloading.inspect(PEEL)
    await compared(reloading, 2)
    (disagreed,) = got
    assert (disagreed.model, disagreed.active, disagreed.shadow, disagreed.image) == (NAME, OLD, NEW, PEEL)
    assert disagreed.frame.request_id == answer.request_id


async def test_the_worst_frames_are_captured(tmp_path: Path) -> None:
    folder = tmp_path / "captures"
    async with open_reloading(tmp_path, capture_dir=folder, capture_sample=0, capture_confidence=0) as reloading:
        await reloading.load(shadow=1)
        await reloading.inspect(PEEL, frame_id="7")
        await compared(reloading, 1)
        captures = reloading.door.pipelines.captures
        assert captures is not None
        captures.close(PATIENCE_S)
    records = [Capture.model_validate_json(file.read_bytes()) for file in folder.rglob("capture.json")]
    (record,) = [one for one in records if "shadow" in one.reasons]
    assert (record.frame.frame_id, record.answer) == ("7", None)
    assert record.remark is not None
    assert f"the revisions {OLD} (active) and {NEW}" in record.remark


async def test_the_report_names_no_more_than_the_eight_worst_frames_worst_first(reloading: Reloading) -> None:
    await reloading.load(shadow=1)
    for number in range(10):
        await reloading.inspect(PEEL, frame_id=str(number))
        await compared(reloading, number + 1)
    (report,) = await reloading.shadow()
    # All differ as much: the first ones stay.
    assert [frame.frame_id for frame in report.worst] == [str(number) for number in range(8)]
