"""Installs the wheel in empty environments and runs the client's tests there, on every supported Python installed here.

python -m clients.python.try_wheel WHEEL

An interpreter is used if a command of its name runs, for example `python3.12`.
"""

# ruff: noqa: S603, T201 (it runs installers and tests, and is for the terminal)
from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
EXTRAS: Final = "cli,grpc,supervision"
MINORS: Final = (10, 11, 12, 13)

_UV: Final = (sys.executable, "-m", "uv", "--quiet")
_LOOK: Final = """
import importlib.metadata, pomona
names = sorted(each.metadata["Name"] for each in importlib.metadata.distributions())
print(*names)
"""
"""Imports the client and prints what is installed beside it."""


class Failed(Exception):
    """The wheel does not install or its tests fail; the message has the command and its output."""


def main(wheel: Path) -> None:
    """Test on every Python and print a line for each.

    Raises:
        Failed: on one of them, or there is no Python.
    """
    tried = 0
    for minor in MINORS:
        python = f"python3.{minor}"
        version = _version(python)
        if version is None:
            print(f"{python}: not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            print(f"{version}: {try_in(Path(folder), python, wheel)}", flush=True)
        tried += 1
    if not tried:
        raise Failed(f"No Python 3.{MINORS[0]} to 3.{MINORS[-1]} is installed.")


def try_in(folder: Path, python: str, wheel: Path) -> str:
    """Install and test on one Python, and return a summary.

    Raises:
        Failed: a command failed.
    """
    environment = folder / "environment"
    interpreter = environment / "bin" / "python"
    _run(*_UV, "venv", "--python", python, str(environment))
    install = (*_UV, "pip", "install", "--python", str(interpreter))
    _run(*install, str(wheel))
    alone = _run(str(interpreter), "-c", _LOOK).split()
    _run(*install, f"{wheel}[{EXTRAS}]", "--group", f"{FOLDER / 'pyproject.toml'}:test")
    # With the installed package, not the sources beside the tests.
    tests = _run(str(interpreter), "-m", "pytest", "--quiet", "-o", "pythonpath=tests", "tests")
    (passed,) = re.findall(r"^(\d+ passed.*) in ", tests, re.MULTILINE)
    return f"{len(alone)} packages ({', '.join(alone)}); with [{EXTRAS}] {passed}"


def _version(python: str) -> str | None:
    if shutil.which(python) is None:
        return None
    ran = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
    return ran.stdout.strip() if ran.returncode == 0 else None


def _run(*command: str) -> str:
    ran = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise Failed(f"{' '.join(command)}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
