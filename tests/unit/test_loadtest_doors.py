"""The comparison of the doors: what is asked, and the figures."""

from __future__ import annotations

import json

import pytest

from loadtest import client_cost, doors
from loadtest.door_callers import DOORS, Target, Unanswered
from loadtest.figures import Spread
from models.types import Point
from service.http.schema import SegmentIn

TOLD = {"cpu": "abacus", "cores": 1, "python": "3.11", "versions": {"beads": "1"}, "commit": "0a"}
TARGET = Target(3000, 3001, "orange-sam", b"an image", Point(3.5, 4), multimask=False)


def test_the_same_is_asked_in_json_and_as_a_message() -> None:
    for masks in ("RLE", "PNG"):
        request = SegmentIn.model_validate_json(TARGET.request(masks))
        message = TARGET.message(masks)
        (prompt,), (asked,) = request.prompts, message.prompts
        assert prompt.points == [(3.5, 4)]
        assert [(point.x, point.y) for point in asked.points] == prompt.points
        assert (prompt.multimask, request.model) == (asked.multimask, message.model) == (False, "orange-sam")
        assert (json.loads(TARGET.request(masks))["format"], message.image) == (masks.lower(), TARGET.photo)


def test_an_answer_with_other_masks_than_asked_for_is_none() -> None:
    TARGET.check(1)
    with pytest.raises(Unanswered, match="3 masks instead of 1"):
        TARGET.check(3)


def test_a_cost_has_the_spread_of_every_figure_over_the_rounds() -> None:
    windows = [doors.Window(100, 1, 4, 0.5, 0.2), doors.Window(80, 3, 5, 0.7, 0.4), doors.Window(90, 2, 9, 0.6, 0.3)]
    assert doors.Cost.of("gRPC", "RLE", 8, windows) == doors.Cost(
        *("gRPC", "RLE", 8),
        per_s=Spread(90, 80, 100),
        p50_ms=Spread(2, 1, 3),
        p99_ms=Spread(5, 4, 9),
        server_cpu_ms=Spread(0.6, 0.5, 0.7),
        caller_cpu_ms=Spread(0.3, 0.2, 0.4),
    )


def test_the_report_has_every_door_with_all_its_masks_and_the_machine() -> None:
    windows = [doors.Window(100, 1, 4, 0.5, 0.2), doors.Window(80, 3, 5, 0.7, 0.4)]
    costs = [doors.Cost.of(door, kind, 8, windows) for door, (_, kinds) in DOORS.items() for kind in kinds]
    text = doors.table(costs, costs[:2], doors.Plan(rounds=2, window_s=0.5), TOLD)
    assert "| gRPC | PNG | 8 | 90 | 2 | 4.5 | 0.6 (0.5 to 0.7) | 0.3 |" in text
    assert "| OIP over HTTP, tritonclient | pixels | 8 |" in text
    assert text.count("| HTTP, multipart | RLE | 8 |") == 2
    assert "2 rounds of 0.5 s" in text
    assert "abacus" in text


def test_what_the_client_adds_is_the_difference_within_each_round() -> None:
    names = [name for pair in client_cost.PAIRS.values() for name in pair]
    rounds = [dict(zip(names, times, strict=True)) for times in ([4, 4.25, 3, 3.5], [6, 6.75, 2, 2], [5, 5.5, 1, 1.25])]
    *_, over_http, over_grpc = client_cost.table(rounds)
    assert over_http == "| HTTP | 5 (4 to 6) | 5.5 (4.25 to 6.75) | 0.5 (0.25 to 0.75) |"
    assert over_grpc == "| gRPC | 2 (1 to 3) | 2 (1.25 to 3.5) | 0.25 (0 to 0.5) |"


def test_the_pairs_are_doors_that_are_measured() -> None:
    assert {name for pair in client_cost.PAIRS.values() for name in pair} <= DOORS.keys()
