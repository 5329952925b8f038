"""Fruit that the service follows over the frames of a stream."""

from __future__ import annotations

from typing import Any

import pytest
from grpc_stand_in import Frames, GrpcStandIn
from stand_in import IMAGE, INSPECTED, StandIn, use_stream

from pomona import Client, Inspect, errors

FRAME = {"frame_id": "7", "trigger_id": None, "captured_at_ns": None}
VERDICT = {
    "track_id": 3,
    "views": 5,
    "infected_fraction": 0.25,
    "infected_fraction_max": 0.5,
    "infected_fraction_mean": 0.125,
    "grade": "C",
    "first_frame": FRAME,
    "last_frame": FRAME,
    "best_frame": FRAME,
    "best_box": [2, 1, 6, 6],
    "left": True,
}


def followed(frames: Frames) -> Any:
    for number, _ in enumerate(frames.rest(), start=1):
        tracking = {"track_ids": [3], "verdicts": [VERDICT] if number == 2 else []}
        yield frames.reply(number, outcome="answered", response=INSPECTED, tracking=tracking)


def test_tracks_and_verdicts_are_read_and_the_setting_is_sent(grpc_service: GrpcStandIn, kind: str) -> None:
    grpc_service.stream = followed
    answers = use_stream(kind, grpc_service.address, [IMAGE] * 3, Inspect(track="all"), in_flight=8)
    assert [answer.unwrap().track_ids for answer in answers] == [(3,)] * 3
    first, second, _ = (answer.unwrap().verdicts for answer in answers)
    assert first == ()
    (verdict,) = second
    assert (verdict.track_id, verdict.views, verdict.grade, verdict.left) == (3, 5, "C", True)
    assert (verdict.best_frame.frame_id, verdict.best_box) == ("7", (2, 1, 6, 6))
    (stream,) = grpc_service.streams
    assert (stream.settings.track, stream.settings.max_in_flight) == (2, 1)


def test_without_tracks_there_are_none(grpc_service: GrpcStandIn) -> None:
    (answer,) = use_stream("sync", grpc_service.address, [IMAGE], Inspect())
    assert (answer.unwrap().track_ids, answer.unwrap().verdicts) == ((), ())
    assert grpc_service.streams[0].settings.track == 0


def test_fruit_is_followed_over_one_stream_only(http: StandIn, kind: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="grpc://"):
        use_stream(kind, http.address, [IMAGE], Inspect(track="leaving"))
    with Client(http.address) as pomona, pytest.raises(errors.InvalidArgument, match="one stream"):
        pomona.send(Inspect(track="all"), IMAGE)
    with pytest.raises(errors.InvalidArgument, match="track"):
        Inspect(track="always")  # type: ignore[arg-type]
    assert http.received == []
