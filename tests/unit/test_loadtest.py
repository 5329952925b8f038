"""The load tests' own parts: when frames fall due, what counts as what, the figures, the photographs, the options."""

from __future__ import annotations

import argparse
import io
import json
import socket
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from loadtest import photos
from loadtest.drawn import render_line
from loadtest.figures import Percentiles, summarise
from loadtest.options import add_options, read_options
from loadtest.outcomes import Kind, Outcome, Record, judge
from loadtest.plan import Camera, Plan, schedule
from loadtest.plot import draw
from loadtest.run import as_arguments, main
from loadtest.wire import CONTENT_TYPE, multipart, problem_code, retry_after_s
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


def jpeg_of(size: Size, **save: object) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (size.height, size.width, 3), np.uint8)
    encoded = io.BytesIO()
    PIL.Image.fromarray(pixels).save(encoded, "JPEG", **save)
    return encoded.getvalue()


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser)
    return parser.parse_args(list(arguments))


def test_steps_lie_between_pauses() -> None:
    assert [(step.rate, step.start, step.end) for step in PLAN.steps] == [(0.5, 1.0, 5.0), (1.0, 6.0, 10.0)]
    assert PLAN.duration_s == 11.0


def test_a_pause_belongs_to_no_step_and_a_step_begins_on_its_first_moment() -> None:
    at = {now: step.number if (step := PLAN.step_at(now)) else None for now in (0.0, 1.0, 4.9, 5.0, 6.0, 10.5, 99.0)}
    assert at == {0.0: None, 1.0: 0, 4.9: 0, 5.0: None, 6.0: 1, 10.5: None, 99.0: None}


def test_a_closed_loop_waits_for_the_next_step_and_does_not_spin_after_the_last() -> None:
    assert [PLAN.wait_at(now) for now in (0.25, 2.0, 5.5, 10.25, 12.0)] == [0.75, 0.0, 0.5, 1.0, 1.0]


def test_frames_fall_due_at_the_steps_rate_and_none_in_a_pause() -> None:
    due = [(frame.step.rate, frame.due) for frame in schedule(PLAN, fps=1.0, phase=0.0)]
    assert due == [(0.5, 1.0), (0.5, 3.0), (1.0, 6.0), (1.0, 7.0), (1.0, 8.0), (1.0, 9.0)]


def test_the_second_of_two_cameras_is_half_a_frame_later() -> None:
    due = [frame.due for frame in schedule(PLAN, fps=1.0, phase=0.5)]
    assert due == [2.0, 4.0, 6.5, 7.5, 8.5, 9.5]


@pytest.mark.parametrize("fps", [3.0, 7.0, 10.0, 29.97, 30.0])
def test_rounding_adds_no_frame_to_a_step(fps: float) -> None:
    plan = Plan(rates=(0.1,), step_s=100.0, pause_s=3.0)
    assert len(list(schedule(plan, fps, phase=0.0))) == int(np.ceil(fps * 10))


def test_a_camera_takes_frames_on_time_although_answers_are_slower_than_frames() -> None:
    camera = Camera(schedule(ONE_STEP, fps=1.0, phase=0.0), limit=10)
    assert film(camera, answer_takes_s=100.0) == [(float(now), True) for now in range(6)]


def test_a_frame_beyond_the_limit_is_skipped_and_the_next_is_sent_once_one_has_landed() -> None:
    camera = Camera(schedule(ONE_STEP, fps=1.0, phase=0.0), limit=2)
    assert [sent for _, sent in film(camera, answer_takes_s=2.5)] == [True, True, False, True, True, False]


def test_an_answer_at_the_very_moment_of_the_next_frame_frees_its_place() -> None:
    camera = Camera(schedule(ONE_STEP, fps=1.0, phase=0.0), limit=1)
    assert all(sent for _, sent in film(camera, answer_takes_s=1.0))


def test_a_camera_that_was_held_up_takes_all_that_fell_due() -> None:
    camera = Camera(schedule(ONE_STEP, fps=1.0, phase=0.0), limit=2)
    taken = [camera.take(2.5) for _ in range(4)]
    assert [(frame[0].due, frame[1]) if frame else None for frame in taken] == [
        (0.0, True),
        (1.0, True),
        (2.0, False),
        None,
    ]
    assert camera.due == 3.0


def test_after_its_last_frame_a_camera_has_none_due() -> None:
    camera = Camera(schedule(ONE_STEP, fps=1.0, phase=0.0), limit=1)
    film(camera, answer_takes_s=0.0)
    assert camera.due is None
    assert camera.take(1e9) is None


@pytest.mark.parametrize(
    ("status", "code", "seconds", "outcome"),
    [
        (200, "", 0.3, Outcome.IN_TIME),
        (200, "", 0.5, Outcome.IN_TIME),
        (200, "", 0.501, Outcome.LATE),
        (429, "overloaded", 0.01, Outcome.REFUSED),
        (504, "deadline_unreachable", 0.01, Outcome.REFUSED),
        (504, "deadline_exceeded", 0.6, Outcome.REFUSED),
        (503, "not_ready", 0.01, Outcome.REFUSED),
        (504, "", 0.01, Outcome.FAILED),
        (422, "no_prompt", 0.01, Outcome.FAILED),
        (302, "", 0.01, Outcome.FAILED),
        (500, "internal_error", 0.01, Outcome.FAILED),
        (0, "", 0.9, Outcome.FAILED),
    ],
)
def test_an_answer_is_judged_by_status_code_and_deadline(
    status: int, code: str, seconds: float, outcome: Outcome
) -> None:
    assert judge(status, code, seconds, deadline_s=0.5) is outcome


def test_an_answer_without_a_deadline_is_never_late() -> None:
    assert judge(200, "", 59.0, None) is Outcome.IN_TIME


def test_a_record_survives_its_line() -> None:
    record = frame(Outcome.REFUSED, 0.02, "overloaded", 0.001)
    assert Record.parse(record.line()) == record
    assert record.line().count("\n") == 1


def test_percentiles_lie_between_neighbours() -> None:
    assert Percentiles.of([0.4, 0.1, 0.2, 0.3, 0.5]) == Percentiles(p50=300.0, p95=480.0, p99=496.0)
    assert Percentiles.of([0.25]) == Percentiles(250.0, 250.0, 250.0)
    assert Percentiles.of([]) is None


def test_figures_are_those_computed_by_hand() -> None:
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
    figures = summarise(records, step_s=4.0)
    counts = (figures.offered, figures.in_time, figures.late, figures.refused, figures.failed, figures.skipped)
    assert counts == (8, 2, 1, 3, 1, 1)
    assert (figures.offered_per_s, figures.answered_per_s, figures.goodput_per_s) == (2.0, 0.75, 0.5)
    assert figures.refused_share == 0.375
    assert figures.latency_ms == Percentiles(p50=200.0, p95=830.0, p99=886.0)
    assert figures.refused_after_ms == Percentiles(p50=30.0, p95=453.0, p99=490.6)
    assert {code: refusals.count for code, refusals in figures.refusals.items()} == {
        "deadline_exceeded": 1,
        "overloaded": 2,
    }
    assert figures.refusals["overloaded"].after_ms == Percentiles(p50=20.0, p95=29.0, p99=29.8)
    assert figures.failures == {"ConnectionRefusedError": 1}
    assert figures.lag_ms is not None
    assert figures.lag_ms.p50 == 2.0


def test_figures_of_nothing_are_noughts() -> None:
    figures = summarise([], step_s=4.0)
    assert (figures.offered, figures.goodput_per_s, figures.refused_share, figures.latency_ms) == (0, 0.0, 0.0, None)


def test_the_plot_is_drawn_also_where_nothing_was_answered(tmp_path: Path) -> None:
    steps = [
        summarise([frame(Outcome.IN_TIME, 0.1), frame(Outcome.SKIPPED)], 1.0),
        summarise([frame(Outcome.REFUSED, 0.01, "overloaded")], 1.0),
        summarise([], 1.0),
    ]
    draw(tmp_path / "plot.png", [0.5, 1.0, 2.0], steps, 500.0, "a title")
    with PIL.Image.open(tmp_path / "plot.png") as plot:
        assert plot.size == (960, 840)


@pytest.mark.parametrize(
    "save", [{}, {"progressive": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\1\x12\0\x03\0\0\0\1\0\6\0\0\0\0\0\0"}]
)
def test_a_image_made_unique_has_another_id_and_the_same_pixels(save: dict[str, object]) -> None:
    jpeg = jpeg_of(Size(40, 60), **save)
    first, second = photos.unique(jpeg), photos.unique(jpeg)
    assert len({content_id(data) for data in (jpeg, first, second)}) == 3
    expected = decode(jpeg, max_pixels=MAX_PIXELS).pixels
    assert np.array_equal(decode(first, max_pixels=MAX_PIXELS).pixels, expected)
    assert np.array_equal(decode(second, max_pixels=MAX_PIXELS).pixels, expected)


def test_each_fruit_of_a_drawn_image_has_a_point_on_it_and_its_box() -> None:
    size = Size(160, 240)
    for seed, image in enumerate(photos.drawn(size)):
        sample = render_line(seed, size)
        assert decode(image.jpeg, max_pixels=MAX_PIXELS).size == size
        points = [prompt["points"][0] for prompt in image.prompts if "points" in prompt]
        assert [np.asarray(sample.instance_map)[int(y), int(x)] for x, y in points] == [1, 2, 3, 4, 5]
        boxes = [tuple(prompt["box"]) for prompt in image.prompts if "box" in prompt]
        assert boxes == [fruit.box for fruit in sample.instances]


def test_the_images_of_a_folder_are_its_jpeg_files_as_they_are(tmp_path: Path) -> None:
    wide, tall = jpeg_of(Size(40, 60)), jpeg_of(Size(80, 20))
    (tmp_path / "b.JPG").write_bytes(tall)
    (tmp_path / "a.jpeg").write_bytes(wide)
    (tmp_path / "notes.txt").write_text("no image")
    first, second = photos.of_folder(tmp_path)
    assert (first.jpeg, second.jpeg) == (wide, tall)
    assert first.prompts == ({"points": [[30.0, 20.0]]}, {"box": [15.0, 10.0, 45.0, 30.0], "multimask": False})


@pytest.mark.parametrize(
    ("content", "what"), [(b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG image ends early"), (b"RIFF", "is no JPEG")]
)
def test_a_folder_with_a_file_that_is_no_sound_jpeg_is_refused_by_its_name(
    tmp_path: Path, content: bytes, what: str
) -> None:
    (tmp_path / "odd.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=rf"odd\.jpg.*{what}"):
        photos.of_folder(tmp_path)


async def test_the_form_is_read_as_it_was_written() -> None:
    async def body() -> object:
        yield multipart({"request": '{"prompts": []}', "image_id": "ab"}, b"\xff\xd8\r\n--\xff\xd9")

    form = await MultiPartParser(Headers({"Content-Type": CONTENT_TYPE}), body()).parse()  # type: ignore[arg-type]
    image = form["image"]
    assert (form["request"], form["image_id"]) == ('{"prompts": []}', "ab")
    assert not isinstance(image, str)
    assert await image.read() == b"\xff\xd8\r\n--\xff\xd9"
    await form.close()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (json.dumps({"code": "overloaded"}).encode(), "overloaded"),
        (b'{"code": 4}', ""),
        (b"[]", ""),
        (b"<html>", ""),
        (b"\xff", ""),
        (None, ""),
    ],
)
def test_the_code_is_found_in_a_problem_and_nowhere_else(body: bytes | None, code: str) -> None:
    assert problem_code(body) == code


@pytest.mark.parametrize(
    ("header", "seconds"), [("3", 3.0), ("0", 0.0), ("-1", 0.0), (None, 1.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 1.0)]
)
def test_a_refused_job_waits_as_long_as_it_is_told(header: str | None, seconds: float) -> None:
    assert retry_after_s(header) == seconds


def test_the_defaults_are_one_camera_and_drawn_images() -> None:
    options = read_options(parsed())
    assert (options.cameras, options.annotators, options.batch_jobs, options.images) == (1, 0, 0, None)
    assert (options.plan.rates, options.image_size) == ((0.25, 0.5, 1.0, 2.0), Size(800, 1200))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--rates", "1,0"], "0 is not above 0"),
        (["--rates", "1,,2"], "1,,2 is not of the form R,R,…"),
        (["--fps", "nan"], "nan is not of the form F"),
        (["--cameras", "0"], "0 is below 1"),
        (["--image-size", "1200"], "1200 is not of the form WxH"),
        (["--images", "/nowhere/at/all"], "is no folder"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_before_anything_starts(arguments: list[str], what: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=what):
        parsed(*arguments)


def test_locust_is_given_the_options_that_were_given_here(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    for given in ([], ["--rates", "0.1,3", "--image-size", "300x200", "--images", str(tmp_path), "--fps", "29.97"]):
        options = read_options(parsed(*given))
        assert read_options(parsed(*as_arguments(options))) == options


def test_where_no_service_answers_one_line_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SystemExit) as ended:
        main(["--host", host, "--out", str(tmp_path / "report")])
    assert str(ended.value).startswith(f"No service answers at {host} (")
    assert "\n" not in str(ended.value)
    assert not (tmp_path / "report").exists()


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(argparse.ArgumentError, match=r"holds no .jpg or .jpeg file"):
        parsed("--images", str(tmp_path))


def test_none_of_this_patched_the_standard_library_for_gevent() -> None:
    assert "locust" not in sys.modules
    assert "gevent.monkey" not in sys.modules
