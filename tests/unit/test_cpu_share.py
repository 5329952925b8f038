"""The CPU limit of a container."""

from pathlib import Path

import pytest

from models.backends.cpu_share import quota


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000\n", 2), ("150000 100000\n", 2), ("20000 100000\n", 1), ("max 100000\n", 0)]
)
def test_the_limit_is_whole_cores_rounded_up(tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert quota(tmp_path / "cpu.max", tmp_path) == cores


@pytest.mark.parametrize(("limit", "cores"), [("400000", 4), ("-1", 0)])
def test_older_control_groups_are_read_too(tmp_path: Path, limit: str, cores: int) -> None:
    (tmp_path / "cpu.cfs_quota_us").write_text(f"{limit}\n")
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    assert quota(tmp_path / "none", tmp_path) == cores


@pytest.mark.parametrize("text", ["", "nonsense", "100000 0\n", "a b\n"])
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert quota(tmp_path / "cpu.max", tmp_path / "none") == 0
