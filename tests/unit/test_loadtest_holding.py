"""The fuzzing and the soak themselves: inputs that come again, answers that are judged, growth that is noticed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import httpx
import pytest

from loadtest import fuzz_inputs
from loadtest.answers import PASSED, Violation, code_of, judged
from loadtest.fuzz_requests import CALLS
from loadtest.fuzz_served import GrpcInput, HttpInput
from loadtest.fuzz_targets import READERS
from loadtest.images import RenderedImage
from loadtest.soak import MOST_FILES, MOST_GROWTH, MOST_THREADS, Actor, Done, Sample, data_of, judge, lines_of, plot
from loadtest.soak_mix import KINDS, LEFT, Kind, Scene, Service
from models.types import Point, Prompt

STEADY = [Sample(at, 1000.0, 50, 30) for at in range(0, 1800, 10)]
REST = Sample(0.0, 990.0, 20, 30)
IMAGE = RenderedImage("64 x 48", b"a JPEG", Prompt((Point(5, 6),)))


def answer(status: int, body: object = None, path: str = "/v1/segment", **headers: str) -> httpx.Response:
    kind = {"content-type": "application/problem+json"} if isinstance(body, dict) else {}
    request = httpx.Request("POST", f"http://pomona{path}")
    return httpx.Response(status, content=json.dumps(body).encode(), headers=kind | headers, request=request)


@pytest.mark.parametrize("name", [*READERS, *CALLS])
def test_an_input_is_made_again_from_its_number_and_inputs_differ(name: str) -> None:
    target = {**READERS, **CALLS}[name]
    made = [target.make(number) for number in range(60)]
    assert made == [target.make(number) for number in range(60)]
    assert len(set(made)) > 40


@pytest.mark.parametrize("name", READERS)
def test_valid_inputs_pass_and_changed_ones_raise_nothing_else(name: str) -> None:
    outcomes = [READERS[name].use(READERS[name].make(number)) for number in range(100)]
    assert outcomes[0] == PASSED
    assert len(set(outcomes)) > 1


def test_runs_of_any_lengths_are_masks() -> None:
    use = READERS["RLE"].use
    for runs in ([12], [0, 12], [3, 0, 0, 9], [1] * 12, [0, 5, 2, 5]):
        assert use(b"3 4 " + fuzz_inputs.run_text(runs)) == PASSED


def test_requests_are_kept_and_read_again() -> None:
    request = HttpInput("POST", "/v1/segment?request={}", [("Priority", "u=1")], b"\n\x00body")
    assert HttpInput.from_bytes(request.to_bytes()) == request
    call = GrpcInput("/a.B/C", [("x", "y")], [b"one\n", b"", b"three"])
    assert GrpcInput.from_bytes(call.to_bytes()) == call


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (answer(200), PASSED),
        (answer(503, path="/v2/models/x/ready"), PASSED),
        (answer(422, {"code": "no_prompt"}), "no_prompt"),
        (answer(504, {"code": "deadline_exceeded"}), "deadline_exceeded"),
        (answer(404, "error", **{"x-pomona-code": "unknown_model"}), "unknown_model"),
    ],
)
def test_successes_and_problems_are_answers(given: httpx.Response, outcome: str) -> None:
    assert judged(given) == outcome


@pytest.mark.parametrize(
    "given",
    [
        answer(500, {"code": "internal_error"}),
        answer(503, {"code": "not_ready"}),
        answer(502),
        answer(404, "nothing"),
        answer(422, {"code": "unknown_model"}),
        answer(400, {"code": "no_such_code"}),
    ],
)
def test_anything_else_is_a_violation(given: httpx.Response) -> None:
    with pytest.raises(Violation):
        judged(given)


class Failed(grpc.RpcError):
    """A call that ended with a status of gRPC's own."""

    def __init__(self, status: grpc.StatusCode) -> None:
        self.code: Callable[[], grpc.StatusCode] = lambda: status

    def details(self) -> str:
        return "of its own"

    def trailing_metadata(self) -> tuple[Any, ...]:
        return ()


def test_a_call_without_a_code_is_a_violation_but_for_its_size() -> None:
    assert code_of(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED)) == "upload_too_large"
    for status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED):
        with pytest.raises(Violation, match=status.name):
            code_of(Failed(status))


# The soak.


def test_a_steady_server_passes() -> None:
    assert judge([Done("a", 1.0, 0.1, PASSED)], STEADY, REST, REST) == []


def test_growth_of_the_warm_up_is_no_growth() -> None:
    warming = [replace(one, resident_mib=500.0, files=9, threads=3) if one.at < 290 else one for one in STEADY]
    assert judge([], warming, REST, REST) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resident_mib": 1000 * (1.02 + MOST_GROWTH)}, "Memory must grow"),
        ({"files": 51 + MOST_FILES}, "more open files"),
        ({"threads": 31 + MOST_THREADS}, "more threads"),
    ],
)
def test_what_grows_after_the_warm_up_is_noticed(change: dict[str, float], said: str) -> None:
    grown = [replace(one, **change) if one.at > 1400 else one for one in STEADY]  # type: ignore[arg-type]
    (failure,) = judge([], grown, REST, REST)
    assert said in failure


def test_files_that_stay_open_at_rest_are_noticed() -> None:
    (failure,) = judge([], STEADY, REST, replace(REST, files=21 + MOST_FILES))
    assert "more open files" in failure


def test_actions_are_the_same_in_each_run_and_are_judged_by_their_kind() -> None:
    seen: list[tuple[Scene, float]] = []

    def passes(_: Service, scene: Scene, dice: random.Random) -> str:
        seen.append((scene, dice.random()))
        return PASSED

    def fails(_: Service, scene: Scene, dice: random.Random) -> str:
        raise Violation("answered with 500")

    def refuses(code: str, *_: object) -> str:
        return code

    kinds = {
        "good": Kind(passes, 5),
        "busy": Kind(partial(refuses, "overloaded"), 1),
        "refused": Kind(partial(refuses, "no_prompt"), 1),
        "failing": Kind(fails, 1),
    }
    actor = Actor(None, [IMAGE], kinds)  # type: ignore[arg-type]
    done = [actor.act(number) for number in range(60)]
    first = list(seen)
    assert done == [actor.act(number) for number in range(60)]
    assert first == seen[len(first) :]
    assert len({scene.data for scene, _ in first}) == len(first)  # each image is new to the cache
    assert {(name, bool(failure)) for name, _, failure in done} == {
        ("good", False),
        ("busy", False),
        ("refused", True),
        ("failing", True),
    }


def test_the_actions_cover_every_operation_and_transport() -> None:
    text = " ".join(KINDS)
    for word in ("segment", "embed", "semantic", "inspect", "image_id", "gRPC", "Stream", "OIP over HTTP", "logits"):
        assert word in text
    assert LEFT in KINDS["caller leaves"].expected


def test_the_report_of_a_soak_is_made_of_what_was_done() -> None:
    done = [Done("segment: point, RLE", float(at), 0.1 + at / 18_000, PASSED) for at in range(1800)]
    data = data_of(done, STEADY, REST, REST) | {
        "minutes": 30.0,
        "capacity_per_s": 1.25,
        "offered_per_s": 1.0,
        "failures": [],
    }
    assert data["kinds"]["segment: point, RLE"]["ms"] == [150, 195, 199]
    assert data["slope_mib_per_hour"] == pytest.approx(0, abs=1e-6)
    lines = "\n".join(lines_of(data))
    assert "30 minutes, 1,800 actions at 1 per second" in lines
    assert "| first fifth after the warm-up | 1000 MiB | 50 | 30 |" in lines
    assert len(plot(done, STEADY).axes) == 3
