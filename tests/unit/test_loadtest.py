"""Tests of `make loadtest`: the schedule of frames, the summary of requests, the images, the options."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from loadtest import images, locust_report, wire
from loadtest.__main__ import COMMANDS, main
from loadtest.plan import Camera, Plan, add_options, read_options, schedule
from loadtest.server import free_port
from loadtest.summary import Kind, Outcome, Percentiles, Record, judge, summarise
from models.images import content_id, decode
from models.types import Size

PLAN = Plan(rates=(0.5, 1.0), step_s=4.0, pause_s=1.0)
ONE_STEP = Plan(rates=(1.0,), step_s=6.0, pause_s=0.0)
MAX_PIXELS = 10_000_000


def film(camera: Camera, answer_takes_s: float) -> list[tuple[float, bool]]:
    """Run a camera on a fake clock that ticks every 1/8 s: when each frame was taken, and whether it was sent."""
    taken: list[tuple[float, bool]] = []
    landings: list[float] = []
    for tick in range(200):
        now = tick / 8
        while landings and landings[0] <= now:
            landings.pop(0)
            camera.land()
        while (frame := camera.take(now)) is not None:
            taken.append((now, frame[1]))
            if frame[1]:
                landings.append(now + answer_takes_s)
    return taken


def frame(outcome: Outcome, seconds: float = 0.0, code: str = "", lag_s: float = 0.0) -> Record:
    return Record(Kind.FRAME, 0, outcome, seconds, lag_s, code)


def jpeg_of(size: Size) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (size.height, size.width, 3), np.uint8)
    encoded = io.BytesIO()
    PIL.Image.fromarray(pixels).save(encoded, "JPEG")
    return encoded.getvalue()


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(list(arguments))


def test_steps_lie_between_pauses() -> None:
    assert [(step.rate, step.start, step.end) for step in PLAN.steps] == [(0.5, 1.0, 5.0), (1.0, 6.0, 10.0)]
    assert PLAN.duration_s == 11.0
    at = {now: step.number if (step := PLAN.step_at(now)) else None for now in (0.0, 1.0, 4.9, 5.0, 6.0, 10.5)}
    assert at == {0.0: None, 1.0: 0, 4.9: 0, 5.0: None, 6.0: 1, 10.5: None}
    assert [PLAN.wait_at(now) for now in (0.25, 2.0, 5.5, 10.25, 12.0)] == [0.75, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("phase", "due"), [(0.0, [1.0, 3.0, 6.0, 7.0, 8.0, 9.0]), (0.5, [2.0, 4.0, 6.5, 7.5, 8.5, 9.5])]
)
def test_frames_fall_due_at_the_rate_of_the_step_and_the_phase_of_the_camera(phase: float, due: list[float]) -> None:
    assert [frame.due for frame in schedule(PLAN, fps=1.0, phase=phase)] == due


@pytest.mark.parametrize(
    ("limit", "answer_takes_s", "sent"),
    [(10, 100.0, [True] * 6), (2, 2.5, [True, True, False, True, True, False]), (1, 1.0, [True] * 6)],
)
def test_frames_are_taken_on_time_and_sent_up_to_the_limit_in_flight(
    limit: int, answer_takes_s: float, sent: list[bool]
) -> None:
    camera = Camera(schedule(ONE_STEP, fps=1.0, phase=0.0), limit)
    assert film(camera, answer_takes_s) == [(float(now), one) for now, one in enumerate(sent)]
    assert camera.due is None
    assert camera.take(1e9) is None


@pytest.mark.parametrize(
    ("status", "code", "seconds", "outcome"),
    [
        (200, "", 0.5, Outcome.IN_TIME),
        (200, "", 0.501, Outcome.LATE),
        (429, "overloaded", 0.01, Outcome.REFUSED),
        (504, "deadline_exceeded", 0.6, Outcome.REFUSED),
        (503, "not_ready", 0.01, Outcome.REFUSED),
        (504, "", 0.01, Outcome.FAILED),
        (422, "no_prompt", 0.01, Outcome.FAILED),
        (0, "", 0.9, Outcome.FAILED),
    ],
)
def test_outcome_follows_from_status_code_and_deadline(
    status: int, code: str, seconds: float, outcome: Outcome
) -> None:
    assert judge(status, code, seconds, deadline_s=0.5) is outcome


def test_summary_equals_figures_computed_by_hand() -> None:
    records = [
        frame(Outcome.IN_TIME, 0.1, lag_s=0.001),
        frame(Outcome.IN_TIME, 0.2, lag_s=0.003),
        frame(Outcome.LATE, 0.9, lag_s=0.002),
        frame(Outcome.REFUSED, 0.010, "overloaded", lag_s=0.002),
        frame(Outcome.REFUSED, 0.030, "overloaded", lag_s=0.002),
        frame(Outcome.REFUSED, 0.500, "deadline_exceeded", lag_s=0.002),
        frame(Outcome.FAILED, 0.004, "ConnectionRefusedError", lag_s=0.002),
        frame(Outcome.SKIPPED),
    ]
    summary = summarise(records, step_s=4.0)
    counts = (summary.offered, summary.in_time, summary.late, summary.refused, summary.failed, summary.skipped)
    assert counts == (8, 2, 1, 3, 1, 1)
    assert (summary.offered_per_s, summary.answered_per_s, summary.goodput_per_s) == (2.0, 0.75, 0.5)
    assert summary.refused_share == 0.375
    assert summary.latency_ms == Percentiles(p50=200.0, p95=830.0, p99=886.0)
    assert summary.refused_after_ms == Percentiles(p50=30.0, p95=453.0, p99=490.6)
    assert summary.refusals == {"deadline_exceeded": 1, "overloaded": 2}
    assert summary.failures == {"ConnectionRefusedError": 1}
    assert summary.lag_ms is not None
    assert summary.lag_ms.p50 == 2.0


def test_the_report_covers_steps_without_answers() -> None:
    steps = [
        summarise([frame(Outcome.IN_TIME, 0.1), frame(Outcome.SKIPPED)], 1.0),
        summarise([frame(Outcome.REFUSED, 0.01, "overloaded")], 1.0),
        summarise([], 1.0),
    ]
    assert locust_report.plot([0.5, 1.0, 2.0], steps, 500.0, "a title").axes
    *_, answered, _, nothing = locust_report.lines_of([0.5, 1.0, 2.0], steps)
    assert answered == "| 0.5x | 2.00 | 1.00 | 1.00 | 100 | 100 | 100 | 1 | 0 | 0 | 0 | 1 |"
    assert nothing == "| 2x | 0.00 | 0.00 | 0.00 | - | - | - | 0 | 0 | 0 | 0 | 0 |"


def test_a_unique_image_has_another_id_and_the_same_pixels() -> None:
    jpeg = jpeg_of(Size(40, 60))
    copies = [jpeg, images.unique(jpeg), images.unique(jpeg)]
    assert len({content_id(data) for data in copies}) == 3
    first, *others = (decode(data, max_pixels=MAX_PIXELS).pixels for data in copies)
    assert all(np.array_equal(other, first) for other in others)


def test_a_folder_gives_its_jpeg_files_and_refuses_damaged_ones(tmp_path: Path) -> None:
    wide, tall = jpeg_of(Size(40, 60)), jpeg_of(Size(80, 20))
    (tmp_path / "b.JPG").write_bytes(tall)
    (tmp_path / "a.jpeg").write_bytes(wide)
    first, second = images.images_of_folder(tmp_path)
    assert (first.jpeg, second.jpeg) == (wide, tall)
    assert first.prompts == ({"points": [[30.0, 20.0]]}, {"box": [15.0, 10.0, 45.0, 30.0], "multimask": False})
    (tmp_path / "odd.jpg").write_bytes(wide[:20])
    with pytest.raises(ValueError, match=r"odd\.jpg"):
        images.images_of_folder(tmp_path)


async def test_a_form_is_read_as_it_was_written() -> None:
    async def body() -> object:
        yield wire.multipart({"request": '{"prompts": []}', "image_id": "ab"}, b"\xff\xd8\r\n--\xff\xd9")

    form = await MultiPartParser(Headers({"Content-Type": wire.CONTENT_TYPE}), body()).parse()  # type: ignore[arg-type]
    image = form["image"]
    assert (form["request"], form["image_id"]) == ('{"prompts": []}', "ab")
    assert not isinstance(image, str)
    assert await image.read() == b"\xff\xd8\r\n--\xff\xd9"
    await form.close()


@pytest.mark.parametrize(
    ("body", "code"),
    [(b'{"code": "overloaded"}', "overloaded"), (b'{"code": 4}', ""), (b"[]", ""), (b"\xff", ""), (None, "")],
)
def test_the_code_is_read_from_a_problem_only(body: bytes | None, code: str) -> None:
    assert wire.problem_code(body) == code


@pytest.mark.parametrize(("header", "seconds"), [("3", 3.0), ("-1", 0.0), (None, 1.0), ("Fri, 31 Dec 1999", 1.0)])
def test_retry_after_is_read_as_seconds(header: str | None, seconds: float) -> None:
    assert wire.retry_after_s(header) == seconds


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--rates", "1,0"], "--rates: .* greater than 0, got 0"),
        (["--fps", "nan"], "--fps: .*finite number, got nan"),
        (["--cameras", "0"], "--cameras: .* greater than or equal to 1, got 0"),
        (["--image-size", "1200"], "--image-size: .*, got 1200"),
        (["--images", "/nowhere/at/all"], "--images: .*directory"),
        (["--images", str(Path(__file__).parent)], "--images: must contain a .jpg or .jpeg file"),
    ],
)
def test_an_invalid_option_is_refused(arguments: list[str], what: str) -> None:
    with pytest.raises(SystemExit, match=what):
        read_options(parsed(*arguments))


def test_one_line_says_that_no_service_answers() -> None:
    host = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SystemExit, match=r"^No service answers at .*; start one with `make serve`, or set HOST\.$"):
        locust_report.loaded_models(host)


@pytest.mark.parametrize("command", [*COMMANDS, "locust", "all"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert command in capsys.readouterr().out


def test_nothing_patched_the_standard_library_for_gevent() -> None:
    assert "locust" not in sys.modules
    assert "gevent.monkey" not in sys.modules
