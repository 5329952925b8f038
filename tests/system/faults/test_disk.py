"""A disk that is full or read-only while models are prepared: `python -m service.prepare` on small file systems."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.slow

ROOT: Final = Path(__file__).parents[3]
MODEL: Final = "unet-mobilenetv2-citrus"
"""Its weights are part of the project; converted, it takes 27 MB."""


def mount(folder: Path, options: str) -> None:
    """Mount a file system of memory, or change the options of the one that is there."""
    done = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting needs rights that this user has not: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "size=8m")
    yield folder
    subprocess.run(["/bin/umount", str(folder)], check=True)


def prepare(cache: Path) -> subprocess.CompletedProcess[str]:
    settings = {
        "POMONA_MODELS": MODEL,
        "POMONA_CACHE_DIR": str(cache),
        "POMONA_UNET_PRECISION": "fp32",
        "POMONA_BACKEND": "openvino",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POMONA_")}
    return subprocess.run(
        [sys.executable, "-m", "service.prepare"],
        cwd=ROOT,
        env=kept | settings,
        capture_output=True,
        text=True,
        check=False,
    )


def sentence(ran: subprocess.CompletedProcess[str]) -> str:
    """Return how a start that failed ended, which must not be a traceback."""
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    *_, last = ran.stderr.strip().splitlines()
    return last


def test_a_disk_that_is_full_while_models_are_converted_is_one_sentence_and_leaves_nothing_behind(disk: Path) -> None:
    assert "has no room for the converted models" in sentence(prepare(disk / "cache"))
    assert [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_read_only_cache_serves_what_is_in_it_and_is_one_sentence_where_something_is_missing(
    disk: Path, tmp_path: Path
) -> None:
    mount(disk, "remount,ro")
    ending = sentence(prepare(disk / "cache"))
    assert "Read-only file system" in ending
    assert "POMONA_CACHE_DIR" in ending

    mount(disk, "remount,rw,size=64m")
    assert prepare(tmp_path / "cache").returncode == 0
    shutil.copytree(tmp_path / "cache", disk / "cache")
    mount(disk, "remount,ro")
    assert prepare(disk / "cache").returncode == 0
