"""Captures of a server started as in production: a folder that cannot be written, a full disk, an end in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import PIL.Image
import pytest

from loadtest.server import Server, environment_of, free_port, running
from service.capture.folder import CaptureFolder
from tests.fakes import encode_image
from tests.system.faults.servers import seconds_until
from tests.system.faults.test_disk import mount

pytestmark = pytest.mark.slow

ROOT: Final = Path(__file__).parents[3]
EVERY_FRAME: Final = {
    "models": "unet-mobilenetv2-citrus",
    "backend": "openvino",
    "capture_sample": "1",
    "capture_per_hour": "100000",
}


def frame(seed: int) -> bytes:
    """Return an image that looks like no other one."""
    cells = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return encode_image(np.asarray(PIL.Image.fromarray(cells).resize((640, 480))), "JPEG")


def inspect(server: Server, seed: int) -> int:
    query = {"request": '{"mode": "fast"}'}
    headers = {"content-type": "image/jpeg"}
    return httpx.post(
        f"{server.address}/v1/inspect", content=frame(seed), params=query, headers=headers, timeout=60
    ).status_code


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "size=1m")
    yield folder
    subprocess.run(["/bin/umount", str(folder)], check=True)


def test_a_folder_that_cannot_be_written_ends_the_start_with_one_sentence(tmp_path: Path) -> None:
    environment = environment_of(free_port(), capture_dir="/proc/captures", **EVERY_FRAME)
    ended = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "service.app:Pomona"],
        cwd=ROOT,
        env=environment | {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode != 0
    assert "pomona: POMONA_CAPTURE_DIR must name a folder that the service can write to; /proc/captures" in (
        ended.stdout + ended.stderr
    )


def test_a_full_disk_costs_no_answer_and_captures_go_on_when_there_is_room(tmp_path: Path, disk: Path) -> None:
    filler = disk / "filler"
    filler.write_bytes(bytes(900 * 1024))
    with running(tmp_path, capture_dir=str(disk / "captures"), **EVERY_FRAME) as server:
        assert [inspect(server, seed) for seed in range(12)] == [200] * 12
        seconds_until(lambda: 'pomona_captures_total{result="failed"}' in metrics(server))
        seconds_until(lambda: counted(server, "failed") > 0)
        assert server.log().count("frames cannot be captured") == 1
        assert list((disk / "captures").glob(".part-*")) == []
        filler.unlink()
        before = counted(server, "kept")
        assert inspect(server, 99) == 200
        seconds_until(lambda: counted(server, "kept") > before)
        assert "frames are captured again" in server.log()


def test_an_end_in_the_middle_leaves_whole_captures_only_and_a_restart_counts_them(tmp_path: Path) -> None:
    captures, sent = tmp_path / "captures", threading.Event()

    def send_until_it_ends(server: Server) -> None:
        for seed in range(400):
            try:
                inspect(server, seed)
            except httpx.HTTPError:
                return
            if seed == 10:
                sent.set()

    for end in (signal.SIGTERM, signal.SIGKILL):
        sent.clear()
        folder = tmp_path / end.name
        folder.mkdir()
        with running(folder, capture_dir=str(captures), **EVERY_FRAME) as server:
            caller = threading.Thread(target=send_until_it_ends, args=(server,))
            caller.start()
            assert sent.wait(60)
            if end is signal.SIGTERM:
                server.stop()
            else:
                for process in server.processes():
                    process.kill()
                server.process.wait()
            caller.join(60)
        kept = CaptureFolder(captures, 0).captures()
        assert kept
        assert all(each.read().answer is not None for each in kept)
        if end is signal.SIGTERM:
            assert list(captures.glob(".part-*")) == []
    with running(tmp_path, capture_dir=str(captures), **EVERY_FRAME) as server:
        assert list(captures.glob(".part-*")) == []
        kept = CaptureFolder(captures, 0).captures()
        assert value(server, "pomona_capture_bytes") == sum(each.nbytes for each in kept)


def metrics(server: Server) -> str:
    return httpx.get(f"{server.address}/metrics", timeout=10).text


def counted(server: Server, result: str) -> float:
    """Return how many frames had this result."""
    return value(server, f'pomona_captures_total{{result="{result}"}}')


def value(server: Server, series: str) -> float:
    """Return the value of a series."""
    return next(float(line.split()[-1]) for line in metrics(server).splitlines() if line.startswith(f"{series} "))
