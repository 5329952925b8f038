"""What stands on every report: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from models.backends.base import BackendName
from models.backends.cpu import cpu_quota

UNKNOWN: Final = "unknown"

_PROJECT: Final = Path(__file__).parents[2]
_PACKAGES: Final = ("openvino", "torch", "numpy", "opencv-python-headless", "pillow")


def machine(backend: BackendName, threads: int) -> dict[str, str]:
    """Processor, cores and versions.

    Args:
        backend: that runs the models.
        threads: of one inference as asked for; 0 for all cores.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    told = {
        "processor": names[0] if names else platform.processor() or UNKNOWN,
        "cores": str(cpu_quota() or os.cpu_count() or UNKNOWN),
        "backend": backend,
        "threads": str(threads) if threads else "all",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            told[package] = version(package)
        except PackageNotFoundError:
            told[package] = "not installed"
    return told


def commit() -> str:
    """The project's commit, with "-dirty" where tracked files were changed; `UNKNOWN` where git does not say."""
    git = shutil.which("git")
    if git is None:
        return UNKNOWN
    told = subprocess.run(  # noqa: S603 (no words of anybody's)
        [git, "-C", str(_PROJECT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or UNKNOWN
