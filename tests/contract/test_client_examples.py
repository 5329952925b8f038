"""The client's README and its page of examples, run as they stand against the door."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pomona.cli.main import pomona
from tests.contract.live import LiveDoor, live_door
from tests.fakes import encode_image

PAGES = Path(__file__).parents[2] / "clients" / "python"
ADDRESS = "http://localhost:3000"
GRPC_ADDRESS = "grpc://localhost:3001"


def blocks(language: str) -> list[str]:
    pages = [(PAGES / name).read_text() for name in ("README.md", "EXAMPLES.md")]
    return [
        block for page in pages for block in re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    ]


def commands() -> list[str]:
    return [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ pomona ")]


@pytest.fixture(scope="module")
def live() -> Iterator[LiveDoor]:
    with live_door(grpc=True) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `orange.jpg` and a `frame.jpg`, with a healthy fruit and one infected in a corner."""
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((600, 800, 3), np.uint8)
    pixels[100:300, 100:300, 1] = 255
    pixels[300:500, 450:650, 1] = 255
    pixels[300:360, 450:520] = (255, 0, 0)
    for name in ("orange.jpg", "frame.jpg"):
        (tmp_path / name).write_bytes(encode_image(pixels, "JPEG", quality=95))
    return tmp_path


def test_there_are_examples() -> None:
    assert len(blocks("python")) >= 10
    assert len(commands()) >= 6


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_an_example_runs_as_it_stands(live: LiveDoor, folder: Path, number: int) -> None:
    example = blocks("python")[number]
    assert ADDRESS in example or GRPC_ADDRESS in example or "MockTransport" in example
    here = example.replace(ADDRESS, live.address).replace(GRPC_ADDRESS, live.grpc_address)
    exec(compile(here, f"example {number}", "exec"), {"__name__": "example"})  # noqa: S102


@pytest.mark.parametrize("command", commands())
def test_a_command_runs_as_it_stands(live: LiveDoor, folder: Path, command: str) -> None:
    _, *arguments = shlex.split(command.replace(GRPC_ADDRESS, live.grpc_address))
    done = CliRunner().invoke(pomona, arguments, env={"POMONA_URL": live.address})
    assert done.exit_code == 0, done.output
