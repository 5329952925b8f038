"""The Python client and its command line against the real server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from loadtest.server import Server
from pomona import AsyncClient, Box, Client, Point, Segment, errors
from pomona.cli.main import pomona as command_line
from tests.system import calls
from tests.system.calls import ENTRY, FRUITS, Scene, iou

ROOT = Path(__file__).parents[2]
ADDRESS = "http://localhost:3000"


@pytest.fixture(scope="module", params=["http", "grpc"])
def address(request: pytest.FixtureRequest, server: Server, grpc_port: int) -> str:
    """Of each of the real server's doors."""
    return server.address if request.param == "http" else f"grpc://127.0.0.1:{grpc_port}"


@pytest.fixture(scope="module")
def pomona(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_the_example_of_the_readme_runs_as_it_stands(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(ROOT)
    exec(compile(example.replace(ADDRESS, server.address), "README.md", "exec"), {"__name__": "example"})  # noqa: S102
    best, *fruits = capsys.readouterr().out.splitlines()
    assert best.endswith("(800, 1200)")
    assert all(re.fullmatch(r"(A|B|C|reject) \d+%", fruit) for fruit in fruits)
    assert len(fruits) == 6


def test_a_service_is_ready_and_lists_what_it_loaded(pomona: Client) -> None:
    assert pomona.ready()
    loaded = [model for model in pomona.models() if model.loaded]
    assert (loaded[0].name, loaded[0].revision) == (ENTRY.name, ENTRY.revision)


def test_a_box_finds_its_fruit_and_logits_refine_it(pomona: Client, scene: Scene) -> None:
    box = Box(*scene.box(1))
    mask = pomona.segment(scene.data, box, multimask=False).masks[0]
    assert iou(mask.array, scene.fruit(1)) > 0.9
    guess = pomona.segment(scene.data, box, multimask=False, logits=True).masks[0]
    # Logits are upsampled here in one step and there in two, after rounding to half precision.
    assert iou(guess.array, mask.array) > 0.99
    x, y = scene.centre(1)
    refined = pomona.segment(scene.data, [guess, Point(x, y)], multimask=False).masks[0]
    assert iou(refined.array, scene.fruit(1)) > 0.9


def test_a_mask_is_the_same_as_the_one_that_http_gives(pomona: Client, scene: Scene, server: Server) -> None:
    import httpx

    with httpx.Client(base_url=server.address, timeout=60) as raw:
        expected = calls.segment(raw, scene.data, {"points": [scene.centre(1)]})
    x, y = scene.centre(1)
    result = pomona.segment(scene.data, [Point(x, y)])
    assert [mask.score for mask in result.masks] == [mask.score for mask in expected.results[0].masks]
    for mask, other in zip(result.masks, expected.results[0].masks, strict=True):
        np.testing.assert_array_equal(mask.array, calls.pixels_of(other))


def test_both_doors_give_the_same_masks(server: Server, grpc_port: int, scene: Scene) -> None:
    boxes = [[Box(*scene.box(number))] for number in range(1, FRUITS + 1)]
    with Client(server.address) as over_http, Client(f"grpc://127.0.0.1:{grpc_port}") as over_grpc:
        for logits in (False, True):
            one, other = (each.segment(scene.data, boxes, logits=logits) for each in (over_http, over_grpc))
            assert other.results == one.results
            assert (other.model, other.image) == (one.model, one.image)
        streamed = over_grpc.stream([scene.data] * 3, Segment(boxes), in_flight=2)
        expected = over_http.segment(scene.data, boxes)
        assert [answer.unwrap().results for answer in streamed] == [expected.results] * 3


def test_an_embedding_is_prompted_and_a_stream_answered(pomona: Client, scene: Scene) -> None:
    embedding = pomona.embed(scene.data)
    boxes = [[Box(*scene.box(number))] for number in range(1, FRUITS + 1)]
    again = pomona.segment(embedding, boxes, multimask=False)
    assert again.batch.encode == 0
    assert all(iou(best.array, scene.fruit(number)) > 0.9 for number, best in enumerate(again.best, start=1))
    answers = list(pomona.stream([scene.data] * 3, Segment(boxes, multimask=False), in_flight=2))
    assert [answer.frame_id for answer in answers] == ["0", "1", "2"]
    assert all(len(answer.unwrap().best) == FRUITS for answer in answers)


async def test_the_async_client_gets_the_same(pomona: Client, scene: Scene, address: str) -> None:
    box = Box(*scene.box(2))
    expected = await asyncio.to_thread(pomona.segment, scene.data, box)
    async with AsyncClient(address) as waiting:
        results = await asyncio.gather(*(waiting.segment(scene.data, box) for _ in range(3)))
    for result in results:
        np.testing.assert_array_equal(result.masks[0].array, expected.masks[0].array)


def test_refusals_and_deadlines_are_raised_as_their_classes(pomona: Client, scene: Scene) -> None:
    with pytest.raises(errors.NotAnImage):
        pomona.segment(b"an orange", Point(1, 1))
    with pytest.raises(errors.ModelNotLoaded):
        pomona.segment(scene.data, Point(1, 1), model="sam-vit-b")
    with pytest.raises(errors.UploadTooLarge):
        pomona.segment(bytes(5 << 20), Point(1, 1))
    fresh = calls.render_scene(71).data
    with pytest.raises(errors.TooLate):
        pomona.segment(fresh, Point(1, 1), deadline=0.005)


def test_the_command_line_writes_the_mask(address: str, scene: Scene, tmp_path: Path) -> None:
    image_bytes, target = tmp_path / "oranges.png", tmp_path / "mask.png"
    image_bytes.write_bytes(scene.data)
    box = ",".join(str(side) for side in scene.box(1))
    arguments = ["segment", str(image_bytes), "--url", address, "--box", box, "--single"]
    done = CliRunner().invoke(command_line, [*arguments, "-o", str(target)])
    assert done.exit_code == 0, done.output
    with PIL.Image.open(target) as mask:
        assert iou(np.asarray(mask, np.bool_), scene.fruit(1)) > 0.9
    done = CliRunner().invoke(command_line, ["ping", "--url", address])
    assert done.exit_code == 0
    options = ["--url", address, "--seconds", "1", "--task", "embed", "--same", "--json"]
    measured = json.loads(CliRunner().invoke(command_line, ["bench", *options]).stdout)
    assert measured["answered"] > 0 == measured["failed"]
