"""What a report says about where its figures come from: machine, versions and commit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from models.backends.cpu import cpu_quota
from models.evaluation.loading import Loader

UNKNOWN: Final = "unknown"

_PROJECT: Final = Path(__file__).parents[2]
_PACKAGES: Final = ("openvino", "torch", "numpy", "opencv-python-headless", "pillow")


def machine(loader: Loader) -> dict[str, str]:
    """Return processor, cores, backend and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = {
        "processor": names[0] if names else platform.processor() or UNKNOWN,
        "cores": str(cpu_quota() or os.cpu_count() or UNKNOWN),
        "backend": loader.backend,
        "threads": str(loader.threads) if loader.threads else "all",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """Return the project's commit, with "-dirty" where tracked files are changed; `UNKNOWN` without git."""
    git = shutil.which("git")
    if git is None:
        return UNKNOWN
    described = subprocess.run(  # noqa: S603 constant arguments
        [git, "-C", str(_PROJECT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or UNKNOWN
