"""Capture of what `/v1/inspect` answers: which frames are kept, over which transport, and what exports of them hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from models.data.sources import open_dataset
from models.types import PixelClass
from service.api import schema
from service.capture.__main__ import main
from service.capture.folder import CaptureFolder, Kept
from tests.contract.door import Door, checked, image, open_door, problem, serving, within
from tests.contract.door import fields as request_fields
from tests.contract.grpc_door import Caller, open_grpc
from tests.contract.messages import to_message
from tests.contract.scenes import CLEAN, SICK, SPOT, TWO
from tests.contract.test_inspect import LostSam
from tests.fakes import PATIENCE_S, FakeSam, FakeUNet, make_pipelines, make_settings

SURE: dict[str, Any] = {"capture_confidence": 0.5, "capture_sample": 0.0, "capture_grade_margin": 0.0}
"""Of limits that no answer to the scenes here reaches."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "captures"


@pytest.fixture
async def keeping(folder: Path) -> AsyncIterator[Door]:
    """A door that keeps frames near a grade's limit."""
    async with open_door(capture_dir=folder, **SURE | {"capture_grade_margin": 0.1}) as opened:
        yield opened


async def kept(door: Door, folder: Path) -> list[Kept]:
    captures = door.pipelines.captures
    assert captures is not None
    assert await asyncio.to_thread(captures.idle, PATIENCE_S)
    return CaptureFolder(folder, 0).captures()


NEAR: list[dict[str, Any]] = [
    {"grade": "A", "max_infected_fraction": 0.01},
    {"grade": "B", "max_infected_fraction": 0.085},
]
"""The sick fruit has an infected fraction of 0.08."""


async def test_without_a_folder_nothing_is_captured(door: Door) -> None:
    await door.inspect(mode="fast")
    assert door.pipelines.captures is None


async def test_a_fruit_near_a_grades_limit_is_kept_with_the_whole_answer(keeping: Door, folder: Path) -> None:
    answer = await keeping.inspect(mode="fast", grades=NEAR, frame_id="cam2-1", trigger_id="t-7", captured_at_ns=5)
    (one,) = await kept(keeping, folder)
    capture = one.read()
    assert capture.reasons == ("near_grade",)
    assert capture.answer == answer
    assert capture.frame == schema.Frame(frame_id="cam2-1", trigger_id="t-7", captured_at_ns=5)
    assert capture.request_id == answer.request_id
    assert capture.image == answer.image
    assert (one.path / "image.png").read_bytes() == TWO


async def test_an_easy_frame_is_not_kept(keeping: Door, folder: Path) -> None:
    await keeping.inspect(mode="fast")
    assert await kept(keeping, folder) == []


@pytest.mark.parametrize(
    ("limit", "reason"), [({"capture_confidence": 1.0}, "low_confidence"), ({"capture_sample": 1.0}, "sample")]
)
async def test_low_confidence_and_the_random_sample_are_reasons(
    folder: Path, limit: dict[str, float], reason: str
) -> None:
    async with open_door(capture_dir=folder, **SURE | limit) as door:
        await door.inspect(mode="fast")
        (one,) = await kept(door, folder)
        assert one.read().reasons == (reason,)


async def test_a_fruit_that_the_sam_sees_otherwise_is_a_reason(door: Door, folder: Path) -> None:
    for sam, reasons in ((LostSam(), [("disagreement",)]), (FakeSam(), [])):
        own = folder / type(sam).__name__
        unet = FakeUNet(device="fake:2", clock=sam.clock)
        settings = make_settings(capture_dir=own, **SURE)
        async with serving(door, make_pipelines(sam, unet=unet, settings=settings)):
            door.pipelines = door.app.ready()
            await door.inspect(mode="accurate")
            assert [one.read().reasons for one in await kept(door, own)] == reasons


async def test_an_answer_that_gave_less_for_want_of_time_is_a_reason(folder: Path) -> None:
    async with open_door(capture_dir=folder, **SURE) as door:
        door.sam.encode_s_per_megapixel = 1000
        await door.learn()
        answer = await door.inspect(headers=within(60_000))
        assert answer.degraded
        (one,) = await kept(door, folder)
        capture = one.read()
        assert capture.reasons == ("degraded",)
        assert capture.answer == answer


async def test_a_frame_that_was_too_late_is_kept_without_an_answer(keeping: Door, folder: Path) -> None:
    await keeping.learn()
    busy = await keeping.hold_unet()
    try:
        late = await keeping.post_inspect(TWO, within(30), mode="fast", frame_id="cam2-9")
    finally:
        keeping.let_go()
        await busy
    code = late.json()["code"]
    assert code in {"deadline_exceeded", "deadline_unreachable"}
    problem(late, code)
    (one,) = await kept(keeping, folder)
    capture = one.read()
    assert (capture.reasons, capture.problem, capture.answer) == (("late",), code, None)
    assert (capture.frame.frame_id, capture.image.width, capture.image.height) == ("cam2-9", 448, 224)


async def test_frames_of_a_stream_are_kept_like_others(folder: Path) -> None:
    async with open_grpc(capture_dir=folder, **SURE | {"capture_sample": 1.0}) as caller:
        await one_frame(caller)
        (one,) = await kept(caller.door, folder)
        assert one.read().frame.frame_id == "streamed"


async def one_frame(caller: Caller) -> None:
    request = to_message("InspectRequest", {"mode": "fast", "frame_id": "streamed"}, image=TWO)

    async def frames() -> AsyncIterator[Any]:
        yield to_message("InspectStreamRequest", {}, request=request)

    replies = [reply async for reply in caller.stub.InspectStream(frames())]
    assert len(replies) == 1


@pytest.mark.parametrize("mask_format", ["rle", "png", "polygons"])
@pytest.mark.parametrize("to", ["label-studio", "coco", "folders"])
async def test_exports_read_back_with_the_areas_that_the_service_said(
    keeping: Door, folder: Path, tmp_path: Path, to: str, mask_format: str
) -> None:
    answer = await keeping.inspect(mode="fast", grades=NEAR, format=mask_format, overlay=True, finder="unet")
    await kept(keeping, folder)
    out = tmp_path / "out"
    assert main(["--captures", str(folder), "export", "--to", to, str(out)]) == 0
    if to == "label-studio":
        tasks = json.loads((out / "annotations.json").read_text())
        assert tasks[0]["predictions"][0]["model_version"] == "peel-unet@0d0d0d0d0d0d"
        accepted = [{"data": task["data"], "annotations": task["predictions"]} for task in tasks]
        (out / "annotations.json").write_text(json.dumps(accepted))  # as accepted by an annotator
    dataset = open_dataset(out)
    assert dataset.problems == ()
    (name,) = dataset.items
    sample = dataset.load(name)
    assert sample.warnings == ()
    assert sample.instance_map is not None
    rotten = sample.semantic == PixelClass.INFECTED
    fruits = [sample.instance_map == each.id for each in sample.instances]
    assert sorted((int(fruit.sum()), int((fruit & rotten).sum())) for fruit in fruits) == sorted(
        (fruit.area, round(fruit.infected_fraction * fruit.area)) for fruit in answer.fruits
    )
    assert {each.box for each in sample.instances} == {CLEAN, SICK}
    assert rotten[SPOT[1] : SPOT[3], SPOT[0] : SPOT[2]].all()


async def test_frames_without_an_answer_are_tasks_but_not_training_data(
    keeping: Door, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await keeping.learn()
    busy = await keeping.hold_unet()
    await keeping.post_inspect(TWO, within(30), mode="fast")
    keeping.let_go()
    await busy
    await kept(keeping, folder)
    assert main(["--captures", str(folder), "export", "--to", "coco", str(tmp_path / "coco")]) == 0
    assert "0 images; 1 without an answer were left out" in capsys.readouterr().out
    assert main(["--captures", str(folder), "export", "--to", "label-studio", str(tmp_path / "tasks")]) == 0
    (task,) = json.loads((tmp_path / "tasks" / "annotations.json").read_text())
    assert "predictions" not in task
    assert task["data"]["reasons"] == "late"
    assert main(["--captures", str(folder), "list"]) == 0
    assert "late" in capsys.readouterr().out


async def test_reasons_choose_what_is_exported_and_mistakes_are_one_sentence(
    keeping: Door, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await keeping.inspect(mode="fast", grades=NEAR)
    await kept(keeping, folder)
    out = tmp_path / "out"
    export = ["--captures", str(folder), "export", "--to", "folders"]
    assert main([*export, "--reason", "shadow", str(out)]) == 0
    assert "0 images" in capsys.readouterr().out
    assert main([*export, str(out)]) == 1
    assert "must be empty" in capsys.readouterr().err
    assert main(["--captures", str(tmp_path / "nowhere"), "list"]) == 1
    assert "cannot be read" in capsys.readouterr().err
    monkeypatch.delenv("POMONA_CAPTURE_DIR", raising=False)
    assert main(["list"]) == 2


async def test_what_callers_get_is_the_same_while_the_disk_is_full(
    keeping: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    captures = keeping.pipelines.captures
    assert captures is not None
    monkeypatch.setattr("os.fsync", full)
    answer = checked(
        await keeping.post(image(TWO), request_fields(mode="fast", grades=NEAR), path="/v1/inspect"),
        schema.InspectResponse,
    )
    assert len(answer.fruits) == 2
    assert await asyncio.to_thread(captures.idle, PATIENCE_S)
