"""Where figures come from: the processor, the versions of packages, the project's commit."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

UNKNOWN: Final = "unknown"

_PROJECT: Final = Path(__file__).parents[1]


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or UNKNOWN


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of packages, "not installed" of those that are not."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """Return the project's commit, with "-dirty" where tracked files but reports differ; `UNKNOWN` without git."""
    revision = _git("rev-parse", "--short=12", "HEAD")
    if not revision:
        return UNKNOWN
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)**/reports/**")
    return f"{revision}-dirty" if changed else revision


def _git(*arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run([git, "-C", str(_PROJECT), *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip()
