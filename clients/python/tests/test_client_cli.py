"""The command line, against the stand-in for a service."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner, Result
from stand_in import ANSWERS, INSPECTED, PATIENCE_S, SEGMENTED, Problem, Received, Reply, StandIn

from pomona.cli.bench import Measurement, measure
from pomona.cli.main import pomona
from pomona.errors import ConnectionFailed, Overloaded


def invoke(http: StandIn, *arguments: str, **options: Any) -> Result:
    command, *rest = arguments
    return CliRunner().invoke(pomona, [command, "--url", http.address, "--no-retry", *rest], **options)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images, of which the second is text, and a copy of the first."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        PIL.Image.fromarray(np.full((8, 16, 3), 80 * number, np.uint8)).save(tmp_path / f"{number}.png")
    shutil.copy(tmp_path / "0.png", tmp_path / "copy")
    (tmp_path / "1.png").write_bytes(b"text")
    return tmp_path


@pytest.fixture
def picky(http: StandIn) -> StandIn:
    """Refuses what is not an image."""

    def answer(received: Received) -> Any:
        return Problem("not_an_image") if received.image == b"text" else ANSWERS[received.operation]

    http.answer = answer
    return http


def test_segment_writes_the_mask_and_shows_its_score(http: StandIn, folder: Path) -> None:
    done = invoke(http, "segment", "0.png", "--point", "3,3", "--point", "9,1,0", "-o", "mask.png")
    assert (done.exit_code, done.stdout) == (0, "0.png: score 0.900, 20 pixels, box 2,1,6,6\n")
    with PIL.Image.open("mask.png") as mask:
        assert (mask.mode, int(np.asarray(mask).sum())) == ("1", 20)
    assert http.received[0].fields["prompts"] == [
        {"multimask": True, "points": [[3.0, 3.0], [9.0, 1.0]], "labels": [1, 0]}
    ]


def test_segment_reads_standard_input_and_writes_standard_output(http: StandIn, folder: Path) -> None:
    data = Path("0.png").read_bytes()
    done = invoke(http, "segment", "-", "--box", "1,1,5,5", "--single", "-o", "-", input=data)
    assert done.exit_code == 0
    assert http.received[0].image == data
    with PIL.Image.open(io.BytesIO(done.stdout_bytes)) as mask:
        assert mask.size == (16, 8)
    assert "score" in done.stderr


def test_segment_draws_the_mask_over_the_image(http: StandIn, folder: Path) -> None:
    done = invoke(http, "segment", "0.png", "--box", "1,1,5,5", "--overlay", "-o", "drawn.png")
    assert done.exit_code == 0
    with PIL.Image.open("drawn.png") as drawn:
        assert np.asarray(drawn)[1:6, 2:6].any(axis=2).all()


def test_segment_goes_on_after_an_image_that_fails_and_counts_it(picky: StandIn, folder: Path) -> None:
    done = invoke(picky, "segment", "*.png", "none.png", "--box", "1,1,5,5", "-o", "masks/", "--json")
    assert done.exit_code == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["image"], line["ok"]) for line in lines] == [
        ("0.png", True),
        ("1.png", False),
        ("2.png", True),
        ("none.png", False),
    ]
    assert lines[0]["result"]["results"][0][0]["mask"] == {"size": [8, 16], "counts": "a05300000_2"}
    assert lines[1]["error"]["code"] == "not_an_image"
    assert lines[3]["error"]["code"] == "UnreadableImage"
    assert "2 of 4 failed: 1 not_an_image, 1 UnreadableImage" in done.stderr
    assert sorted(path.name for path in Path("masks").iterdir()) == ["0.png", "2.png"]


def test_segment_takes_a_mask_as_prompt_and_several_boxes_as_several_objects(http: StandIn, folder: Path) -> None:
    PIL.Image.fromarray(np.eye(8, 16, dtype=np.uint8) * 255).save("guess.png")
    assert invoke(http, "segment", "0.png", "--mask", "guess.png", "--point", "3,3").exit_code == 0
    assert http.received[0].fields["prompts"][0]["mask"]["size"] == [8, 16]
    http.always(SEGMENTED | {"results": SEGMENTED["results"] * 2})
    for _ in range(2):  # its own output is replaced
        done = invoke(http, "segment", "0.png", "--box", "1,1,5,5", "--box", "2,2,6,6", "-o", "objects.png")
        assert done.exit_code == 0, done.output
    assert len(http.received[1].fields["prompts"]) == 2
    with PIL.Image.open("objects.png") as objects:
        assert sorted(np.unique(np.asarray(objects))) == [0, 2]  # the second object covers the first
        shown = np.asarray(objects.convert("RGB"))
    assert shown.max(axis=2)[1:6, 2:6].min() > 100  # not black


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "0.png"], "--point 500,375"),
        (["segment", "0.png", "--point", "x"], "as 500,375"),
        (["segment", "0.png", "--point", "1,2,7"], "as 500,375"),
        (["segment", "0.png", "--point", "1,2,0.7"], "as 500,375"),
        (["segment", "0.png", "--point", "nan,2"], "as 500,375"),
        # What a shell makes of `-o *.png` and `--csv *.png`.
        (["segment", "-o", "0.png", "2.png", "--point", "1,1"], "did not write"),
        (["segment", "-o", "0.png", "0.png", "--point", "1,1"], "one of the images to read"),
        (["segment", "-o", "0.png", "2.png", "--point", "1,1", "--overlay"], "did not write"),
        (["segment", "-o", ".", "0.png", "2.png", "--point", "1,1"], "one of the images to read"),
        (["segment", "-o", "2.png", "0.png", "--mask", "2.png"], "one of the images to read"),
        (["inspect", "--csv", "0.png", "1.png", "2.png"], "did not write"),
        (["inspect", "--csv", "3.JPG", "0.png"], "must name a table"),
        (["inspect", "--csv", "copy", "0.png"], "did not write"),
        (["segment", "0.png", "--box", "5,5,1,1"], "left,top"),
        (["segment", "0.png", "--box", "1,1,5,5", "--box", "1,1,5,5", "--point", "1,1"], "object each"),
        (["segment", "0.png", "--point", "1,1", "--overlay"], "needs -o"),
        (["segment", "0.png", "--point", "1,1", "--json", "-o", "-"], "standard output"),
        (["segment", "0.png", "2.png", "--point", "1,1", "-o", "-"], "exactly one image"),
        (["segment", "0.png", "a/0.png", "--point", "1,1", "-o", "out/"], "several images"),
        (["segment", "-", "-", "--point", "1,1"], "given once"),
        (["segment", "none*.jpg", "--point", "1,1"], "No file matches"),
        (["segment", "0.png", "--mask", "none.png"], "cannot be read"),
        (["segment", "0.png", "--point", "1,1", "-o", "0.png/"], "cannot be made"),
        (["inspect", "0.png", "--json", "--csv", "-"], "standard output"),
        (["inspect", "0.png", "--grade", "A"], "A=0.01"),
        (["inspect", "0.png", "--csv", "no/where.csv"], "cannot be written"),
        (["inspect", "0.png", "a/0.png", "--overlay", "out"], "several images"),
        (["inspect", "0.png", "--deadline", "0"], "above 0"),
        (["inspect"], "Missing argument"),
        (["bench", "none.jpg"], "cannot be read"),
        (["models", "--url", "ftp://x"], "url must start with"),
    ],
)
def test_wrong_usage_is_reported_before_anything_is_sent(
    http: StandIn, folder: Path, arguments: list[str], message: str
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    rest = arguments if "--url" in arguments else [*arguments, "--url", http.address]
    done = CliRunner().invoke(pomona, rest)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())
    assert http.received == []
    assert {path: path.read_bytes() for path in before} == before


def test_inspect_writes_a_row_for_each_fruit_and_each_failure(picky: StandIn, folder: Path) -> None:
    done = invoke(picky, "inspect", "0.png", "1.png", "2.png", "--csv", "out.csv", "-j", "2", "--grade", "A=0.05")
    assert done.exit_code == 1
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert [(row["image"], row["grade"], row["error"]) for row in rows] == [
        ("0.png", "B", ""),
        ("1.png", "", "not_an_image"),
        ("2.png", "B", ""),
    ]
    first = rows[0]
    assert (first["x0"], first["y0"], first["x1"], first["y1"], first["area"]) == ("2", "1", "6", "6", "20")
    assert (first["infected_fraction"], first["class"], first["mode"]) == ("0.1", "infected", "fast")
    assert picky.received[0].fields["grades"] == [{"grade": "A", "max_infected_fraction": 0.05}]
    assert "1 of 3 failed: 1 not_an_image" in done.stderr


def test_inspect_writes_lines_json_and_csv(http: StandIn, folder: Path) -> None:
    assert invoke(http, "inspect", "0.png").stdout == "0.png: 1 fruit: B 10% (fast, 22 ms)\n"
    (line,) = invoke(http, "inspect", "0.png", "--json").stdout.splitlines()
    assert json.loads(line)["result"]["fruits"][0]["grade"] == "B"
    table = invoke(http, "inspect", "0.png", "--csv", "-").stdout.splitlines()
    assert (len(table), table[0].split(",")[:2]) == (2, ["image", "fruit"])
    http.always(Reply(body=INSPECTED | {"fruits": [], "degraded": True}))
    assert invoke(http, "inspect", "0.png").stdout == "0.png: 0 fruits (fast, degraded, 22 ms)\n"
    empty = invoke(http, "inspect", "0.png", "--csv", "-").stdout.splitlines()
    assert empty[1].startswith("0.png,,")


def test_inspect_writes_the_overlays_of_the_service(http: StandIn, folder: Path) -> None:
    import base64

    overlay = base64.b64encode(Path("2.png").read_bytes()).decode()
    http.always(Reply(body=INSPECTED | {"overlay": overlay}))
    assert invoke(http, "inspect", "0.png", "2.png", "--overlay", "overlays").exit_code == 0
    assert sorted(path.name for path in Path("overlays").iterdir()) == ["0.png", "2.png"]
    assert http.received[0].fields["overlay"] is True


def test_models_and_ping(http: StandIn) -> None:
    listed = invoke(http, "models").stdout.splitlines()
    assert listed[0] == "mobile-sam  sam       6dbb90523a35  openvino on cpu  (Apache-2.0)"
    assert listed[1].split() == [
        "63faa6075a0d",
        "beside",
        "the",
        "active",
        "one,",
        *["answers", "0.25", "of", "the", "frames", "too"],
    ]
    assert "not loaded" in listed[2]
    assert json.loads(invoke(http, "models", "--json").stdout)[1]["name"] == "sam-vit-b"
    ready = invoke(http, "ping")
    assert (ready.exit_code, "is ready" in ready.stdout) == (0, True)


def test_a_service_that_is_loading_can_be_waited_for(http: StandIn) -> None:
    http.always(Reply(503, b""))
    waiting = invoke(http, "ping")
    assert (waiting.exit_code, waiting.stdout) == (3, "")
    assert "still loading" in waiting.stderr
    replies = [Reply(503, b""), Reply(200, b"")]
    http.answer = lambda received: replies.pop(0)
    assert invoke(http, "ping", "--wait", "5").exit_code == 0


def test_an_unreachable_service_has_an_exit_code_of_its_own(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        unreachable = StandIn(f"http://127.0.0.1:{listening.getsockname()[1]}")
    for arguments in (["ping"], ["models"], ["inspect", "0.png", "2.png"], ["segment", "0.png", "--point", "1,1"]):
        done = invoke(unreachable, *arguments)
        assert (done.exit_code, done.stdout) == (3, "")
        assert "cannot be reached" in done.stderr
    done = CliRunner().invoke(pomona, ["bench", "--url", unreachable.address, "--seconds", "5"])
    assert done.exit_code == 3


@pytest.mark.parametrize("task", ["segment", "inspect"])
def test_bench_counts_answers_and_failures(http: StandIn, task: str) -> None:
    seen: list[Received] = []

    def answer(received: Received) -> Any:
        seen.append(received)
        return Problem("overloaded") if len(seen) % 5 == 1 else ANSWERS[received.operation]

    http.answer = answer
    options = ["--url", http.address, "--task", task, "--seconds", "0.3", "-j", "2", "--json"]
    done = CliRunner().invoke(pomona, ["bench", *options])
    assert done.exit_code == 1
    figures = json.loads(done.stdout)
    assert figures["answered"] + figures["failed"] == len(seen)
    assert figures["failures"] == {"overloaded": -(-len(seen) // 5)}
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["worst_ms"]
    assert figures["per_second"] == pytest.approx(figures["answered"] / figures["seconds"], rel=0.01)
    assert len({received.image for received in seen}) == len(seen)


def test_bench_can_send_the_same_bytes_each_time(http: StandIn, folder: Path) -> None:
    options = ["--url", http.address, "--seconds", "0.1", "--same", "-j", "1"]
    done = CliRunner().invoke(pomona, ["bench", "0.png", *options])
    assert done.exit_code == 0
    assert "per second" in done.stdout
    assert {received.image for received in http.received} == {Path("0.png").read_bytes()}


def test_measuring_stops_if_the_service_is_unreachable() -> None:
    def refuse() -> None:
        raise ConnectionFailed("unreachable")

    gone = measure(refuse, seconds=60, jobs=3)
    assert (gone.unreachable, gone.failures["ConnectionFailed"], gone.seconds < 5) == (3, 3, True)
    assert Measurement().figures["per_second"] == 0

    def overloaded() -> None:
        raise Overloaded("full")

    busy = measure(overloaded, seconds=0.05, jobs=1)
    assert busy.failures["overloaded"] > 1


@pytest.mark.parametrize(
    ("way", "arguments"),
    [
        ("http", ["inspect", "0.png", "2.png"]),
        ("grpc_service", ["segment", "0.png", "--point", "1,1"]),
        ("http", ["bench", "0.png"]),
        ("grpc_service", ["models"]),
    ],
)
def test_an_interrupt_ends_a_command_at_once_while_the_service_is_silent(
    request: pytest.FixtureRequest, folder: Path, way: str, arguments: list[str]
) -> None:
    service: StandIn = request.getfixturevalue(way)
    released = threading.Event()
    service.answer = lambda received: released.wait(PATIENCE_S) and ANSWERS[received.operation]
    with start(*arguments, address=service.address) as program:
        try:
            service.wait_for(lambda: bool(service.received))
            program.send_signal(signal.SIGINT)
            _, said = program.communicate(timeout=PATIENCE_S)
            assert (program.returncode, said) == (130, "interrupted\n")
            assert not released.is_set()
        finally:
            program.kill()
            released.set()


def test_an_interrupt_ends_a_command_that_waits_for_standard_input(http: StandIn, folder: Path) -> None:
    with start("segment", "-", "--point", "1,1", address=http.address, stdin=subprocess.PIPE) as program:
        assert program.stdin is not None
        program.stdin.write("x" * 500_000)  # more than a pipe holds, so the program is reading when this returns
        program.stdin.flush()
        program.send_signal(signal.SIGINT)
        assert (program.wait(PATIENCE_S), http.received) == (130, [])


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, on which every write fails")
def test_a_full_disk_is_one_sentence_and_an_exit_code(http: StandIn, folder: Path) -> None:
    commands = (
        ["inspect", "0.png", "--csv", str(FULL)],
        ["inspect", "0.png", "--json"],
        ["segment", "0.png", "--point", "1,1", "-o", "-"],
    )
    with FULL.open("w") as full:
        programs = [start(*arguments, address=http.address, stdout=full) for arguments in commands]
        for program in programs:
            _, said = program.communicate(timeout=PATIENCE_S)
            assert program.returncode == 1, said
            assert said.splitlines()[-1] == "Reading or writing failed: No space left on device."
            assert "Traceback" not in said


def start(*arguments: str, address: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command line as a program that an interrupt reaches, also where the tests run in the background."""
    environment = {"PYTHONPATH": ":".join(sys.path), "POMONA_URL": address}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    program = [sys.executable, "-m", "pomona", *arguments]
    reachable = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(program, env=environment, text=True, preexec_fn=reachable, **streams)  # noqa: PLW1509


@pytest.mark.parametrize("command", [[], ["segment"], ["inspect"], ["track"], ["models"], ["ping"], ["bench"]])
def test_help_shows_examples(command: list[str]) -> None:
    done = CliRunner().invoke(pomona, [*command, "--help"])
    assert done.exit_code == 0
    assert "Examples:\n  " in done.stdout
    assert "  pomona " in done.stdout


def test_the_package_runs_as_a_program_and_says_how_to_install_what_is_missing(http: StandIn) -> None:
    with start("ping", address=http.address) as program:
        said, _ = program.communicate(timeout=PATIENCE_S)
    assert (program.returncode, "is ready" in said) == (0, True)
    path = {"PYTHONPATH": ":".join(sys.path)}
    code = "import sys; sys.modules['click'] = None; from pomona.__main__ import main; main()"
    missing = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert "pomona-client[cli]" in missing.stderr
