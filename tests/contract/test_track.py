"""`/v1/track` over HTTP and gRPC, and the clients' sessions, before a SAM 2 of random weights."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from models.letterbox import letterbox_for, resize
from models.masks import Rle, decode_rle, encode_rle
from models.sam2.frames import FrameInputs
from models.sam2.memory import TrackState
from models.types import Box, Point, Prompt, Size
from pomona import AsyncClient, AsyncHttpTransport, Client, TrackFrame, errors
from pomona import Box as Rectangle
from pomona import Point as Click
from pomona.cli.main import pomona as command_line
from service.access import SCOPES, Access, new_key
from service.api import schema, video
from service.keys import add
from service.observability.observer import Observer, SessionEvent
from service.pipelines import Pipelines
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.runners.sam2 import Sam2Runner
from tests.contract.door import Door, checked, fields, image, problem, serving, within
from tests.contract.grpc_door import Caller, frames_of, open_grpc, refused
from tests.contract.live import LiveDoor, live_door
from tests.contract.messages import to_message
from tests.fakes import PATIENCE_S, FakeClock, encode_image, make_settings
from tests.tiny_sam2 import SIDE, one_thread, sample_image, tiny_pipelines

SIZE: Final = Size(60, 100)
FRAMES: Final = [encode_image(sample_image(seed, SIZE)) for seed in range(4)]
ONE: Final = {"object_id": 1, "points": [[50, 30]]}
TWO: Final[dict[str, Any]] = {"object_id": 2, "box": [10, 10, 60, 50]}
LIMITS: Final[dict[str, Any]] = {"track_sessions": 2, "track_objects": 3, "track_idle_s": 60}


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with one_thread():
        yield


@dataclass
class Watcher(Observer):
    """What became of sessions."""

    events: list[SessionEvent] = field(default_factory=list)
    held: tuple[int, int] = (0, 0)
    expired: asyncio.Event = field(default_factory=asyncio.Event)

    def track_session(self, event: SessionEvent) -> None:
        self.events.append(event)
        if event == "expired":
            self.expired.set()

    def track_held(self, sessions: int, nbytes: int) -> None:
        self.held = sessions, nbytes


@dataclass
class Tracking:
    """A service that tracks: callers of both transports, the clock of its sessions, and what it reported."""

    caller: Caller
    pipelines: Pipelines
    clock: FakeClock
    watcher: Watcher

    @property
    def door(self) -> Door:
        return self.caller.door

    @property
    def runner(self) -> Sam2Runner:
        runner = self.pipelines.engine.runners["tiny-sam2"]
        assert isinstance(runner, Sam2Runner)
        return runner

    async def post(self, data: bytes = FRAMES[0], headers: Any = None, **values: Any) -> httpx.Response:
        return await self.door.post(image(data), fields(**values), path="/v1/track", headers=headers)

    async def track(self, data: bytes = FRAMES[0], **values: Any) -> video.TrackResponse:
        return checked(await self.post(data, **values), video.TrackResponse)

    async def end(self, session: str) -> httpx.Response:
        return await self.door.client.post("/v1/track/end", json={"session": session})


@pytest.fixture
async def tracking(tmp_path: Path) -> AsyncIterator[Tracking]:
    clock, watcher, settings = FakeClock(), Watcher(), make_settings(**LIMITS)
    pipelines = tiny_pipelines(tmp_path, settings, clock)
    async with open_grpc(observer=watcher, **LIMITS) as caller, serving(caller.door, pipelines):
        caller.server.open(pipelines)
        yield Tracking(caller, pipelines, clock, watcher)


def found(answer: video.TrackResponse) -> list[int]:
    return [each.object_id for each in answer.objects]


# What is answered.


async def test_objects_are_followed_from_frame_to_frame_as_the_tracker_finds_them(tracking: Tracking) -> None:
    answers = [await tracking.track(prompts=[ONE, TWO], frame_id="cam-1", captured_at_ns=7)]
    session = answers[0].session
    answers += [await tracking.track(data, session=session) for data in FRAMES[1:]]
    assert [answer.frame_index for answer in answers] == [0, 1, 2, 3]
    assert all(answer.session == session and found(answer) == [1, 2] for answer in answers)
    assert (answers[0].frame.frame_id, answers[0].frame.captured_at_ns) == ("cam-1", 7)
    assert (answers[0].model.input_size, answers[0].model.padding) == (SIDE, "stretch")
    assert (answers[0].batch.encode, answers[0].batch.prompt) == (1, 2)

    runner, state, letterbox = tracking.runner, TrackState(), letterbox_for(SIZE, SIDE, "stretch")
    for number, answer in enumerate(answers):
        prepared = runner.prepare(resize(sample_image(number, SIZE), letterbox), letterbox)
        (embedding,) = runner.backend.encode([prepared])
        prompts = {1: Prompt((Point(50, 30),)), 2: Prompt(box=Box(*TWO["box"]))} if number == 0 else {}
        for wanted, got in zip(
            runner.tracker.track(state, embedding, FrameInputs(letterbox, prompts)), answer.objects, strict=True
        ):
            assert got.visible == (wanted.presence > 0)
            assert got.presence == pytest.approx(1 / (1 + np.exp(-wanted.presence)), abs=1e-4)
            assert got.score == pytest.approx(wanted.score, abs=1e-4)
            assert (got.area > 0) == got.visible


async def test_objects_are_added_corrected_and_removed_on_the_way(tracking: Tracking) -> None:
    first = await tracking.track(prompts=[ONE])
    second = await tracking.track(FRAMES[1], session=first.session, prompts=[TWO, ONE])
    assert found(second) == [1, 2]
    third = await tracking.track(FRAMES[2], session=first.session, remove=[1], prompts=[{**TWO, "object_id": 9}])
    assert found(third) == [2, 9]
    assert found(await tracking.track(FRAMES[3], session=first.session, remove=[2, 9])) == []
    assert tracking.watcher.held == (1, 0)


async def test_a_mask_is_taken_as_it_is(tracking: Tracking) -> None:
    pixels = np.zeros((SIZE.height, SIZE.width), np.bool_)
    pixels[15:45, 25:75] = True
    rle = encode_rle(pixels)
    mask = {"size": rle.size, "counts": rle.counts}
    answer = await tracking.track(prompts=[{"object_id": 5, "mask": mask}])
    (one,), session = answer.objects, answer.session
    assert one.visible
    assert isinstance(one.mask, schema.RleMask)
    got = decode_rle(Rle(one.mask.size, one.mask.counts), max_pixels=SIZE.pixels)
    assert np.sum(got & pixels) / np.sum(got | pixels) > 0.9
    prompts = [{"object_id": 5, "mask": mask}]
    (soft,) = (await tracking.track(FRAMES[1], session=session, prompts=prompts, format="logits")).objects
    prompts = [{"object_id": 6, "mask": soft.mask.model_dump(mode="json")}]
    again = await tracking.track(FRAMES[2], session=session, prompts=prompts, remove=[5])
    assert again.objects[0].area == pytest.approx(one.area, rel=0.1)


async def test_sessions_do_not_disturb_each_other_and_images_go_between_their_frames(tracking: Tracking) -> None:
    one, two = await asyncio.gather(tracking.track(prompts=[ONE]), tracking.track(FRAMES[1], prompts=[TWO]))
    assert one.session != two.session
    alone = [await tracking.track(data, session=one.session) for data in FRAMES[1:]]
    await tracking.end(one.session)
    again = await tracking.track(prompts=[ONE])
    prompted = fields(prompts=[{"points": [[50, 30]]}])
    mixed = await asyncio.gather(
        *(tracking.track(data, session=again.session) for data in FRAMES[1:]),
        *(tracking.track(data, session=two.session) for data in FRAMES[2:]),
        tracking.door.segment(image(FRAMES[0]), prompted),
    )
    for before, after in zip(alone, mixed[:3], strict=True):
        assert isinstance(after, video.TrackResponse)
        assert (before.objects[0].area, before.frame_index) == (after.objects[0].area, after.frame_index)
        assert before.objects[0].presence == pytest.approx(after.objects[0].presence, abs=1e-5)


async def test_frames_of_a_grpc_stream_share_a_session_that_ends_with_it(tracking: Tracking) -> None:
    requests: list[dict[str, Any]] = [
        {"prompts": [ONE, TWO]},
        {},
        {"remove": [1]},
        {"prompts": [{"object_id": 3, "points": [[1, 1]]}]},
    ]
    messages = [
        pb.TrackStreamRequest(request=to_message("TrackRequest", {**each, "frame_id": str(n)}, image=FRAMES[n]))
        for n, each in enumerate(requests)
    ]
    until = asyncio.Event()
    replies = tracking.caller.stub.TrackStream(frames_of(messages, until))
    answers = [await replies.read() for _ in messages]
    assert [answer.outcome for answer in answers] == [pb.FRAME_OUTCOME_ANSWERED] * 4
    assert [[each.object_id for each in answer.response.objects] for answer in answers] == [[1, 2], [1, 2], [2], [2, 3]]
    assert [answer.response.frame_index for answer in answers] == [0, 1, 2, 3]
    assert [answer.frame.frame_id for answer in answers] == ["0", "1", "2", "3"]
    assert len({answer.response.session for answer in answers}) == 1
    assert tracking.watcher.held[0] == 1
    until.set()
    assert await replies.read() is grpc.aio.EOF
    assert (tracking.watcher.events, tracking.watcher.held) == (["opened", "closed"], (0, 0))


async def test_over_grpc_a_session_is_named_and_ended(tracking: Tracking) -> None:
    stub = tracking.caller.stub
    first = await stub.Track(to_message("TrackRequest", {"prompts": [ONE]}, image=FRAMES[0]))
    second = await stub.Track(to_message("TrackRequest", {"session": first.session}, image=FRAMES[1]))
    assert (second.session, second.frame_index) == (first.session, 1)
    assert (await stub.EndTrack(pb.EndTrackRequest(session=first.session))).frames == 2
    await refused(stub.EndTrack(pb.EndTrackRequest(session=first.session)), "unknown_session")


# What is refused.


async def test_a_session_expires_when_it_is_idle_and_says_so(tracking: Tracking) -> None:
    first = await tracking.track(prompts=[ONE])
    tracking.clock.leap(59)
    await tracking.track(FRAMES[1], session=first.session)
    tracking.clock.leap(59)
    await tracking.track(FRAMES[1], session=first.session)
    tracking.clock.leap(60)
    answer = problem(await tracking.post(FRAMES[2], session=first.session), "session_expired")
    assert "60 s (POMONA_TRACK_IDLE_S)" in answer.detail
    problem(await tracking.end(first.session), "session_expired")
    call = tracking.caller.stub.Track(to_message("TrackRequest", {"session": first.session}, image=FRAMES[2]))
    await refused(call, "session_expired")
    assert (tracking.watcher.events, tracking.watcher.held) == (["opened", "expired"], (0, 0))


async def test_a_session_expires_although_nobody_comes(tmp_path: Path) -> None:
    watcher, limits = Watcher(), {**LIMITS, "track_idle_s": 0.05}
    pipelines = tiny_pipelines(tmp_path, make_settings(**limits))
    async with open_grpc(observer=watcher, **limits) as caller, serving(caller.door, pipelines):
        await caller.door.post(image(FRAMES[0]), fields(prompts=[ONE]), path="/v1/track")
        async with asyncio.timeout(PATIENCE_S):
            await watcher.expired.wait()
    assert (watcher.events, watcher.held) == (["opened", "expired"], (0, 0))


async def test_only_so_many_sessions_are_open(tracking: Tracking) -> None:
    first = await tracking.track(prompts=[ONE])
    await tracking.track(prompts=[ONE])
    answer = await tracking.post(prompts=[ONE])
    assert "2 sessions are open" in problem(answer, "too_many_sessions").detail
    assert answer.headers["retry-after"] == "5"
    await tracking.end(first.session)
    await tracking.track(prompts=[ONE])
    assert tracking.watcher.events == ["opened", "opened", "refused", "closed", "opened"]


async def test_only_so_many_objects_are_followed(tracking: Tracking) -> None:
    prompts = [{"object_id": number, "points": [[50, 30]]} for number in (1, 2, 3, 4)]
    assert "at most 3 objects" in problem(await tracking.post(prompts=prompts), "too_many_objects").detail
    assert tracking.watcher.held == (0, 0)  # a session that was opened for it is gone
    first = await tracking.track(prompts=prompts[:3])
    problem(await tracking.post(session=first.session, prompts=prompts[3:]), "too_many_objects")
    assert found(await tracking.track(session=first.session, prompts=prompts[3:], remove=[1])) == [2, 3, 4]


async def test_all_sessions_together_remember_only_so_much(tmp_path: Path) -> None:
    watcher = Watcher()
    each = 252928 / 2 / 2**20  # of an object, in MiB
    limits = {**LIMITS, "track_memory_mib": 3.5 * each}
    pipelines = tiny_pipelines(tmp_path, make_settings(**limits))
    (runner,) = pipelines.engine.runners.values()
    assert isinstance(runner, Sam2Runner)
    assert runner.tracker.object_bytes == each * 2**20
    async with open_grpc(observer=watcher, **limits) as caller, serving(caller.door, pipelines):
        door = caller.door
        first = checked(
            await door.post(image(FRAMES[0]), fields(prompts=[ONE, TWO]), path="/v1/track"), video.TrackResponse
        )
        checked(await door.post(image(FRAMES[0]), fields(prompts=[ONE]), path="/v1/track"), video.TrackResponse)
        more = fields(session=first.session, prompts=[{**ONE, "object_id": 3}])
        answer = problem(await door.post(image(FRAMES[1]), more, path="/v1/track"), "too_many_sessions")
        assert "POMONA_TRACK_MEMORY_MIB" in answer.detail
        assert watcher.held == (2, 3 * 126464)


async def test_frames_of_a_session_have_one_size(tracking: Tracking) -> None:
    first = await tracking.track(prompts=[ONE])
    other = encode_image(sample_image(1, Size(60, 101)))
    answer = problem(await tracking.post(other, session=first.session), "frame_size_changed")
    assert "100 x 60 pixels in this one, got 101 x 60" in answer.detail
    assert (await tracking.track(FRAMES[1], session=first.session)).frame_index == 1


@pytest.mark.parametrize(
    ("values", "code", "says"),
    [
        ({}, "no_prompt", "must have prompts"),
        ({"prompts": [{"object_id": 1}]}, "no_prompt", "prompts[0]"),
        ({"prompts": [ONE, ONE]}, "malformed_prompt", "prompts[1].object_id must occur once"),
        ({"prompts": [{"object_id": 0, "points": [[1, 1]]}]}, "malformed_prompt", "prompts[0].object_id"),
        ({"prompts": [{"object_id": 1, "points": [[500, 1]]}]}, "prompt_outside_image", "prompts[0]"),
        ({"prompts": [ONE], "remove": [1]}, "malformed_request", "must not be in remove"),
        (
            {"prompts": [ONE], "remove": [8]},
            "malformed_request",
            "remove[0] must be the id of a followed object (none)",
        ),
        ({"prompts": [ONE], "session": "none"}, "unknown_session", "never opened here"),
        ({"prompts": [ONE], "model": "mobile-sam"}, "wrong_model_family", "needs a SAM 2"),
        ({"prompts": [ONE], "model": "sam2.1-tiny"}, "model_not_loaded", "sam2.1-tiny"),
        ({"prompts": [ONE], "format": "svg"}, "unsupported_format", "format"),
    ],
)
async def test_what_is_wrong_is_said_and_opens_no_session(
    tracking: Tracking, values: dict[str, Any], code: str, says: str
) -> None:
    assert says in problem(await tracking.post(**values), code).detail
    assert tracking.watcher.held == (0, 0)


async def test_a_mask_comes_alone(tracking: Tracking) -> None:
    rle = encode_rle(np.zeros((SIZE.height, SIZE.width), np.bool_))
    both = {**ONE, "mask": {"size": rle.size, "counts": rle.counts}}
    assert "a mask alone" in problem(await tracking.post(prompts=[both]), "malformed_prompt").detail


async def test_the_body_of_an_end_is_json(tracking: Tracking) -> None:
    client = tracking.door.client
    problem(
        await client.post("/v1/track/end", content=b"{", headers={"content-type": "application/json"}), "malformed_json"
    )
    problem(
        await client.post("/v1/track/end", content=b"{}", headers={"content-type": "text/plain"}), "malformed_request"
    )
    problem(await client.get("/v1/track/end"), "method_not_allowed")


async def test_a_late_frame_leaves_no_trace(tracking: Tracking) -> None:
    first = await tracking.track(prompts=[ONE])
    blocked, leave = threading.Event(), threading.Event()
    runner = tracking.runner
    device = asyncio.create_task(runner._queue.alone(lambda: _block(blocked, leave)))
    assert await asyncio.to_thread(blocked.wait, PATIENCE_S)
    late = asyncio.create_task(tracking.post(FRAMES[1], session=first.session, headers=within(50)))
    tracking.clock.leap(1)
    problem(await late, "deadline_exceeded")
    leave.set()
    await device
    assert (await tracking.track(FRAMES[1], session=first.session)).frame_index == 1


def _block(blocked: threading.Event, leave: threading.Event) -> None:
    blocked.set()
    assert leave.wait(PATIENCE_S)


async def test_a_session_belongs_to_the_api_key_that_opened_it(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    secrets = [_added(keys, name) for name in ("one", "two")]
    pipelines = tiny_pipelines(tmp_path, make_settings(**LIMITS))
    async with open_grpc(access=Access.of(keys), **LIMITS) as caller, serving(caller.door, pipelines):
        mine, others = ({"x-api-key": secret} for secret in secrets)
        first = await caller.door.post(image(FRAMES[0]), fields(prompts=[ONE]), path="/v1/track", headers=mine)
        session = checked(first, video.TrackResponse).session
        theirs = await caller.door.post(image(FRAMES[1]), fields(session=session), path="/v1/track", headers=others)
        problem(theirs, "unknown_session")
        again = await caller.door.post(image(FRAMES[1]), fields(session=session), path="/v1/track", headers=mine)
        assert checked(again, video.TrackResponse).frame_index == 1


def _added(keys: Path, name: str) -> str:
    key, secret = new_key(name, SCOPES[:1])
    add(keys, key)
    return secret


# The clients.


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDoor]:
    folder = tmp_path_factory.mktemp("live")
    with live_door(grpc=True) as opened:

        async def track(door: Door) -> None:
            door.app.pipelines = tiny_pipelines(folder, make_settings(**LIMITS))
            if opened.server is not None:
                opened.server.open(door.app.pipelines)

        opened.do(track)
        yield opened


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_the_client_follows_objects(live: LiveDoor, way: str) -> None:
    with Client(live.address if way == "http" else live.grpc_address) as pomona:
        first = pomona.track(FRAMES[0], {1: Click(50, 30), 2: [Click(20, 20), Click(90, 50, 0)]}, frame_id="a")
        assert (first.frame_index, first.frame.frame_id, first.model.padding) == (0, "a", "stretch")
        second = pomona.track(FRAMES[1], session=first.session, remove=[2])
        assert [each.object_id for each in second.objects] == [1]
        assert second.objects[0].array.shape == (SIZE.height, SIZE.width)
        assert np.count_nonzero(second.objects[0].array) == second.objects[0].area
        soft = pomona.track(FRAMES[2], {1: Click(50, 30)}, session=first.session, logits=True)
        hard = soft.objects[0]
        assert np.count_nonzero(hard.array) == pytest.approx(hard.area, rel=0.02)
        assert pomona.end_tracking(first.session) == 3
        with pytest.raises(errors.UnknownSession):
            pomona.track(FRAMES[3], session=first.session)


def test_the_command_follows_objects_and_leaves_out_what_is_no_image(live: LiveDoor, tmp_path: Path) -> None:
    names = [str(tmp_path / f"{number}.png") for number in range(4)]
    for name, data in zip(names, [FRAMES[0], b"no image", *FRAMES[1:3]], strict=True):
        Path(name).write_bytes(data)
    boxes = ["--box", "10,10,60,50", "--box", "30,5,90,55"]
    arguments = ["track", "--url", live.address, *names, *boxes, "-o", str(tmp_path / "masks")]
    done = CliRunner().invoke(command_line, arguments)
    assert done.exit_code == 1
    assert [line.split(": 1 ")[0] for line in done.stdout.splitlines()] == [names[0], *names[2:]]
    assert "; 2 " in done.stdout
    assert "1 of 4 failed: 1 not_an_image" in done.stderr
    for number in (0, 2, 3):
        with PIL.Image.open(tmp_path / "masks" / f"{number}.png") as written:
            assert (written.size, set(np.unique(np.asarray(written))) <= {0, 1, 2}) == ((100, 60), True)
    nothing = CliRunner().invoke(command_line, ["track", "--url", live.address, names[1], *names, *boxes])
    assert nothing.exit_code == 1
    assert "1 of 1 failed" in nothing.stderr  # the others have nothing to follow


def test_a_frames_map_has_the_ids_of_its_objects(live: LiveDoor) -> None:
    with Client(live.address) as pomona:
        found = pomona.track(FRAMES[0], {7: Rectangle(10, 10, 60, 50)})
        assert np.count_nonzero(found.index_map() == 7) == found.objects[0].area > 0
        pomona.end_tracking(found.session)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "A prompt is needed"),
        (["--box", "1,1,9,9", "--box", "2,2,8,8", "--point", "3,3"], "an object each"),
        (["--box", "1,1,9"], "a box must be"),
        (["--box", "1,1,9,9", "--overlay"], "--overlay needs -o"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_options(options: list[str], says: str) -> None:
    done = CliRunner().invoke(command_line, ["track", "0.png", *options])
    assert (done.exit_code, says in done.stderr) == (2, True)


async def test_the_async_client_follows_objects(tracking: Tracking) -> None:
    transport = AsyncHttpTransport("http://pomona", through=httpx.ASGITransport(tracking.door.app))
    async with AsyncClient(transport=transport) as pomona:
        first = await pomona.track(FRAMES[0], {1: Click(50, 30)})
        second = await pomona.track(FRAMES[1], session=first.session)
        assert (second.session, second.frame_index) == (first.session, 1)
        assert await pomona.end_tracking(first.session) == 2


def test_the_client_refuses_what_cannot_be_meant() -> None:
    with pytest.raises(errors.InvalidArgument, match="an object's id"):
        TrackFrame(prompts={0: Click(1, 1)})
    with pytest.raises(errors.MalformedPrompt, match="Object 1 must have one prompt on a frame, got 2"):
        TrackFrame(prompts={1: [[Click(1, 1)], [Click(2, 2)]]})
    with pytest.raises(errors.InvalidArgument, match="prompts by object id"):
        TrackFrame(prompts=[Click(1, 1)])  # type: ignore[arg-type]
