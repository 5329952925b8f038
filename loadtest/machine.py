"""What stands on every report: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

REPORTS: Final = Path(__file__).parent / "reports"
"""Where all reports go."""

_PACKAGES: Final = ("bentoml", "openvino", "torch", "timm", "pillow", "numpy")


def machine(*more: str) -> dict[str, Any]:
    """Processor, cores, commit, and versions of Python and of what the figures depend on, `more` packages among it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in (*_PACKAGES, *more)},
    }


def footer(told: Mapping[str, Any]) -> str:
    """One line of Markdown of what `machine` told."""
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    return f"{told['cpu']}, {told['cores']} cores; Python {told['python']}; {versions}; commit {told['commit']}."
