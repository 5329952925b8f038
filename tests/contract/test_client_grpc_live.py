"""The sync Python client against the gRPC server: streams of cameras."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pomona import Automatic, Box, Client, Frame, Inspect, Progress, Prompt, Proposals, Retry, Segment, errors
from tests.contract.door import BOX_MASK, Door
from tests.contract.live import LiveDoor, live_door
from tests.contract.scenes import TWO
from tests.fakes import PATIENCE_S, image_bytes, peel_image

ONE = Prompt(box=Box(32, 16, 64, 48), multimask=False)


@pytest.fixture(scope="module")
def live() -> Iterator[LiveDoor]:
    with live_door(grpc=True) as opened:
        yield opened


@pytest.fixture
def pomona(live: LiveDoor) -> Iterator[Client]:
    with Client(live.grpc_address) as client:
        yield client


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stream_answers_its_frames(pomona: Client, ordered: bool) -> None:
    frames = [Frame(image=image_bytes(red), frame_id=str(red)) for red in range(12)]
    answers = list(pomona.stream(frames, Segment(ONE), in_flight=3, ordered=ordered))
    assert sorted(int(answer.frame_id) for answer in answers) == list(range(12))
    for answer in answers:
        np.testing.assert_array_equal(answer.unwrap().masks[0].array, BOX_MASK)


def test_a_stream_goes_on_after_a_bad_frame(pomona: Client) -> None:
    good, bad, last = pomona.stream([TWO, b"no image", TWO], Inspect(mode="fast"), in_flight=2)
    assert isinstance(bad.error, errors.NotAnImage)
    assert [len(answer.unwrap().fruits) for answer in (good, last)] == [2, 2]


def test_a_late_frame_is_late_and_those_behind_it_are_not(live: LiveDoor, pomona: Client) -> None:
    live.do(Door.hold)
    frames = [Frame(image=image_bytes(91), frame_id="late")]
    (late,) = pomona.stream(frames, Segment(ONE), deadline=0.5)
    assert late.late
    # The caller may give up before the service does.
    live.do(lambda door: door.runner.settled.reach(door.runner.images.count - 1))  # but for that of `hold`
    live.do(_let_go)
    (next_,) = pomona.stream([image_bytes(92)], Segment(ONE), deadline=PATIENCE_S)
    assert not next_.late
    assert 91 not in live.door.sam.encoded


class Cancelled(logging.Handler):
    """Waits for the log line of a stream that was cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "stream" and vars(record)["grpc_status"] == "CANCELLED":
            self.seen.set()


def test_leaving_a_stream_cancels_its_frames_in_the_service(live: LiveDoor, pomona: Client) -> None:
    seen, answered = live.door.unet_runner.images.count, threading.Event()

    def camera() -> Iterator[bytes]:
        yield peel_image(80)
        assert answered.wait(PATIENCE_S)
        live.do(Door.hold_unet)
        yield from (peel_image(mark) for mark in (81, 82))

    log, cancelled = logging.getLogger("pomona.grpc"), Cancelled()
    log.addHandler(cancelled)
    log.setLevel(logging.INFO)
    try:
        answers = pomona.stream(camera(), Inspect(mode="fast"), in_flight=3)
        assert next(answers).frame_id == "0"
        answered.set()
        live.do(lambda door: door.unet_runner.images.reach(seen + 4))  # with the one that holds the device
        answers.close()  # type: ignore[attr-defined] # it is a generator
        assert cancelled.seen.wait(PATIENCE_S)
    finally:
        log.removeHandler(cancelled)
        log.setLevel(logging.NOTSET)
        live.do(_let_go)
    assert not {81, 82} & set(live.door.unet.encoded)


def test_a_service_that_stops_breaks_the_stream_with_what_was_answered() -> None:
    with live_door(grpc=True) as leaving, Client(leaving.grpc_address, retry=Retry(attempts=1)) as pomona:
        answers = pomona.stream((image_bytes(red) for red in range(9)), Segment(ONE), in_flight=1)
        assert next(answers).frame_id == "0"
        leaving.stop()
        with pytest.raises(errors.StreamBroken) as broken:
            [answer.unwrap() for answer in answers if not isinstance(answer.error, errors.NotReady)]
    assert broken.value.answered >= 1
    assert len(broken.value.unanswered) == 1


async def _let_go(door: Door) -> None:
    door.let_go()


def test_everything_is_followed_as_it_is_found(live: LiveDoor, pomona: Client) -> None:
    live.door.sam.decode_s_per_batch = 10.0  # by the clock; the service reports at most every half second
    try:
        *progress, last = pomona.follow(Automatic(points_per_side=4), image_bytes(21))
    finally:
        live.door.sam.decode_s_per_batch = 0.0
    assert progress
    assert all(isinstance(one, Progress) for one in progress)
    assert isinstance(last, Proposals)
    found = [mask for one in progress if isinstance(one, Progress) for mask in one.found]
    boxes = {tuple(mask.box) for mask in last.masks}
    assert len(boxes) == 16
    assert {tuple(mask.box) for mask in found} <= boxes
    np.testing.assert_array_equal(found[0].array, found[0].mask.array)
    assert found[0].array.shape == (96, 128)


def test_a_refusal_of_what_is_followed_is_raised(pomona: Client) -> None:
    with pytest.raises(errors.TooManyPrompts):
        list(pomona.follow(Automatic(points_per_side=100), image_bytes(22)))


def test_following_needs_grpc(live: LiveDoor) -> None:
    with Client(live.address) as client, pytest.raises(errors.InvalidArgument, match="grpc://"):
        list(client.follow(Automatic(), image_bytes(23)))


def test_everything_and_its_edges_over_both_transports(live: LiveDoor, pomona: Client) -> None:
    with Client(live.address) as other:
        one, two = (client.automatic(image_bytes(24), points_per_side=4) for client in (pomona, other))
        assert [mask.box for mask in one.masks] == [mask.box for mask in two.masks]
        assert len(one.masks) == 16
        again = other.automatic(two.image, points_per_side=4)
        assert [mask.point for mask in again.masks] == [mask.point for mask in one.masks]
        first, second = (client.edges(image_bytes(24), points_per_side=4, depth="16") for client in (pomona, other))
    np.testing.assert_array_equal(first.array, second.array)
    assert (first.array.shape, first.array.max()) == ((96, 128), 1)
