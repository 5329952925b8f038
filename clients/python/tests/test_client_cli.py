"""The command line, against a service that is not there."""

from __future__ import annotations

import csv
import io
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner, Result
from stand_in import INSPECTED, Got, Reply, StandIn, problem

from pomona.cli.bench import Measured, measure
from pomona.cli.main import pomona
from pomona.errors import ConnectionFailed, Overloaded


def invoke(service: StandIn, *arguments: str, **options: Any) -> Result:
    command, *rest = arguments
    return CliRunner().invoke(pomona, [command, "--url", service.address, "--no-retry", *rest], **options)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures; the second is refused."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        PIL.Image.fromarray(np.full((8, 16, 3), 80 * number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    return tmp_path


@pytest.fixture
def picky(service: StandIn) -> StandIn:
    """Refuses what is no picture."""

    def answer(got: Got) -> Reply:
        return problem(415, "not_an_image") if got.body == b"no picture" else Reply(body=service.usual(got))

    service.answer = answer
    return service


def test_segment_writes_the_mask_and_tells_its_figures(service: StandIn, folder: Path) -> None:
    done = invoke(service, "segment", "0.png", "--point", "3,3", "--point", "9,1,0", "-o", "mask.png")
    assert (done.exit_code, done.stdout) == (0, "0.png: score 0.900, 20 pixels, box 2,1,6,6\n")
    with PIL.Image.open("mask.png") as mask:
        assert (mask.mode, int(np.asarray(mask).sum())) == ("1", 20)
    assert service.got[0].fields["prompts"] == [
        {"multimask": True, "points": [[3.0, 3.0], [9.0, 1.0]], "labels": [1, 0]}
    ]


def test_segment_reads_from_and_writes_to_a_pipe(service: StandIn, folder: Path) -> None:
    data = Path("0.png").read_bytes()
    done = invoke(service, "segment", "-", "--box", "1,1,5,5", "--single", "-o", "-", input=data)
    assert done.exit_code == 0
    assert service.got[0].body == data
    with PIL.Image.open(io.BytesIO(done.stdout_bytes)) as mask:
        assert mask.size == (16, 8)
    assert "score" in done.stderr


def test_segment_draws_the_mask_in(service: StandIn, folder: Path) -> None:
    done = invoke(service, "segment", "0.png", "--box", "1,1,5,5", "--overlay", "-o", "drawn.png")
    assert done.exit_code == 0
    with PIL.Image.open("drawn.png") as drawn:
        assert np.asarray(drawn)[1:6, 2:6].any(axis=2).all()


def test_segment_of_several_pictures_goes_on_after_a_failure_and_counts_it(picky: StandIn, folder: Path) -> None:
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


def test_segment_takes_a_mask_as_prompt_and_several_boxes_as_several_things(service: StandIn, folder: Path) -> None:
    PIL.Image.fromarray(np.eye(8, 16, dtype=np.uint8) * 255).save("guess.png")
    assert invoke(service, "segment", "0.png", "--mask", "guess.png", "--point", "3,3").exit_code == 0
    assert service.got[0].fields["prompts"][0]["mask"]["size"] == [8, 16]
    assert invoke(service, "segment", "0.png", "--box", "1,1,5,5", "--box", "2,2,6,6").exit_code == 0
    assert len(service.got[1].fields["prompts"]) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["segment", "0.png"], "--point 500,375"),
        (["segment", "0.png", "--point", "x"], "500,375 would be one"),
        (["segment", "0.png", "--point", "1,2,7"], "500,375 would be one"),
        (["segment", "0.png", "--box", "5,5,1,1"], "left, top"),
        (["segment", "0.png", "--box", "1,1,5,5", "--box", "1,1,5,5", "--point", "1,1"], "thing each"),
        (["segment", "0.png", "--point", "1,1", "--overlay"], "needs -o"),
        (["segment", "0.png", "--point", "1,1", "--json", "-o", "-"], "to the pipe"),
        (["segment", "0.png", "2.png", "--point", "1,1", "-o", "-"], "one picture"),
        (["segment", "0.png", "a/0.png", "--point", "1,1", "-o", "out/"], "Several pictures"),
        (["segment", "-", "-", "--point", "1,1"], "by the pipe"),
        (["segment", "none*.jpg", "--point", "1,1"], "no file like"),
        (["segment", "0.png", "--mask", "none.png"], "cannot be read"),
        (["segment", "0.png", "--point", "1,1", "-o", "0.png/"], "cannot be made"),
        (["inspect", "0.png", "--json", "--csv", "-"], "to the pipe"),
        (["inspect", "0.png", "--grade", "A"], "A=0.01"),
        (["inspect", "0.png", "--csv", "no/where.csv"], "cannot be written"),
        (["inspect", "0.png", "a/0.png", "--overlay", "out"], "same name"),
        (["inspect", "0.png", "--deadline", "0"], "above 0"),
        (["inspect"], "Missing argument"),
        (["bench", "none.jpg"], "cannot be read"),
        (["models", "--url", "ftp://x"], "no address"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(
    service: StandIn, folder: Path, arguments: list[str], says: str
) -> None:
    rest = arguments if "--url" in arguments else [*arguments, "--url", service.address]
    done = CliRunner().invoke(pomona, rest)
    assert done.exit_code == 2, done.output
    assert says in " ".join(done.stderr.split())
    assert service.got == []


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
    assert picky.got[0].fields["grades"] == [{"grade": "A", "max_infected_fraction": 0.05}]
    assert "1 of 3 failed: 1 not_an_image" in done.stderr


def test_inspect_tells_people_and_pipes(service: StandIn, folder: Path) -> None:
    assert invoke(service, "inspect", "0.png").stdout == "0.png: 1 fruit: B 10% (fast, 22 ms)\n"
    (line,) = invoke(service, "inspect", "0.png", "--json").stdout.splitlines()
    assert json.loads(line)["result"]["fruits"][0]["grade"] == "B"
    table = invoke(service, "inspect", "0.png", "--csv", "-").stdout.splitlines()
    assert (len(table), table[0].split(",")[:2]) == (2, ["image", "fruit"])
    service.always(Reply(body=INSPECTED | {"fruits": [], "degraded": True}))
    assert invoke(service, "inspect", "0.png").stdout == "0.png: 0 fruits (fast, degraded, 22 ms)\n"
    empty = invoke(service, "inspect", "0.png", "--csv", "-").stdout.splitlines()
    assert empty[1].startswith("0.png,,")


def test_inspect_writes_the_service_s_drawings(service: StandIn, folder: Path) -> None:
    import base64

    drawing = base64.b64encode(Path("2.png").read_bytes()).decode()
    service.always(Reply(body=INSPECTED | {"overlay": drawing}))
    assert invoke(service, "inspect", "0.png", "2.png", "--overlay", "drawn").exit_code == 0
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["0.png", "2.png"]
    assert service.got[0].fields["overlay"] is True


def test_models_and_ping(service: StandIn) -> None:
    listed = invoke(service, "models").stdout.splitlines()
    assert listed[0] == "mobile-sam  sam   6dbb90523a35  openvino on cpu  (Apache-2.0)"
    assert "not loaded" in listed[1]
    assert json.loads(invoke(service, "models", "--json").stdout)[1]["name"] == "sam-vit-b"
    ready = invoke(service, "ping")
    assert (ready.exit_code, "is ready" in ready.stdout) == (0, True)


def test_a_service_that_is_loading_can_be_waited_for(service: StandIn) -> None:
    service.always(Reply(503, b""))
    waiting = invoke(service, "ping")
    assert (waiting.exit_code, waiting.stdout) == (3, "")
    assert "still loading" in waiting.stderr
    replies = [Reply(503, b""), Reply(200, b"")]
    service.answer = lambda got: replies.pop(0)
    assert invoke(service, "ping", "--wait", "5").exit_code == 0


def test_an_unreachable_service_has_an_exit_code_of_its_own(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        nobody = StandIn(f"http://127.0.0.1:{listening.getsockname()[1]}")
    for arguments in (["ping"], ["models"], ["inspect", "0.png", "2.png"], ["segment", "0.png", "--point", "1,1"]):
        done = invoke(nobody, *arguments)
        assert (done.exit_code, done.stdout) == (3, "")
        assert "cannot be reached" in done.stderr
    done = CliRunner().invoke(pomona, ["bench", "--url", nobody.address, "--seconds", "5"])
    assert done.exit_code == 3


@pytest.mark.parametrize("task", ["segment", "inspect"])
def test_bench_counts_answers_and_failures(service: StandIn, task: str) -> None:
    seen: list[Got] = []

    def answer(got: Got) -> Reply:
        seen.append(got)
        return problem(429, "overloaded") if len(seen) % 5 == 0 else Reply(body=service.usual(got))

    service.answer = answer
    options = ["--url", service.address, "--task", task, "--seconds", "0.3", "-j", "2", "--json"]
    done = CliRunner().invoke(pomona, ["bench", *options])
    assert done.exit_code == 1
    figures = json.loads(done.stdout)
    assert figures["answered"] + figures["failed"] == len(seen)
    assert figures["failures"] == {"overloaded": len(seen) // 5}
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["worst_ms"]
    assert figures["per_second"] == pytest.approx(figures["answered"] / figures["seconds"], rel=0.01)
    assert len({got.body for got in seen}) == len(seen)


def test_bench_of_one_picture_can_send_the_same_bytes_always(service: StandIn, folder: Path) -> None:
    options = ["--url", service.address, "--seconds", "0.1", "--same", "-j", "1"]
    done = CliRunner().invoke(pomona, ["bench", "0.png", *options])
    assert done.exit_code == 0
    assert "per second" in done.stdout
    assert {got.body for got in service.got} == {Path("0.png").read_bytes()}


def test_measuring_stops_where_nobody_answers() -> None:
    def refuse() -> None:
        raise ConnectionFailed("nobody")

    gone = measure(refuse, seconds=60, jobs=3)
    assert (gone.unreachable, gone.failures["ConnectionFailed"], gone.seconds < 5) == (3, 3, True)
    assert Measured().figures["per_second"] == 0

    def overloaded() -> None:
        raise Overloaded("full")

    busy = measure(overloaded, seconds=0.05, jobs=1)
    assert busy.failures["overloaded"] > 1


def test_an_interrupted_command_ends_as_shells_expect_it(
    service: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*names: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pomona.cli.inspect.run", interrupted)
    assert invoke(service, "inspect", "0.png").exit_code == 130


@pytest.mark.parametrize("command", [[], ["segment"], ["inspect"], ["models"], ["ping"], ["bench"]])
def test_help_shows_examples(command: list[str]) -> None:
    done = CliRunner().invoke(pomona, [*command, "--help"])
    assert done.exit_code == 0
    assert "Examples:\n  " in done.stdout
    assert "  pomona " in done.stdout


def test_it_runs_as_a_program_and_says_what_it_lacks(service: StandIn) -> None:
    path = {"PYTHONPATH": ":".join(sys.path), "POMONA_URL": service.address}
    done = subprocess.run(
        [sys.executable, "-m", "pomona", "ping"], env=path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "is ready" in done.stdout) == (0, True)
    code = "import sys; sys.modules['click'] = None; from pomona.__main__ import main; main()"
    lacking = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=False)
    assert lacking.returncode == 2
    assert "pomona-client[cli]" in lacking.stderr
