"""Add, list and remove API keys in the file POMONA_API_KEYS_FILE: `python -m service.keys add NAME`.

A running service reads the file again within a second of its next request. A key is shown once, when it is added: the
file has its salted hash only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from filelock import FileLock

from models.errors import PomonaError
from service.access import SCOPES, ApiKey, ApiKeys, KeyFileError, new_key, read_keys

_FILE_VARIABLE: Final = "POMONA_API_KEYS_FILE"
_LOCK_WITHIN_S: Final = 10


def add(path: Path, key: ApiKey) -> None:
    """Add a key to a file, which is made where there is none.

    Raises:
        KeyFileError: there is a key of that name, or the file is malformed or cannot be written.
    """
    with _locked(path):
        before = read_keys(path) if path.exists() else ApiKeys()
        if any(one.name == key.name for one in before.keys):
            raise KeyFileError(f"There is a key {key.name} already; remove it first, or choose another name.")
        _write(path, (*before.keys, key))


def remove(path: Path, name: str) -> None:
    """Remove a key from a file.

    Raises:
        KeyFileError: there is no key of that name, or the file is malformed or cannot be written.
    """
    with _locked(path):
        before = read_keys(path).keys
        left = tuple(key for key in before if key.name != name)
        if len(left) == len(before):
            names = ", ".join(key.name for key in before) or "none"
            raise KeyFileError(f"There is no key {name}; there are: {names}.")
        _write(path, left)


def describe(key: ApiKey) -> str:
    """Return a line that says what a key is for."""
    limits = [f"{key.rate:g} per second"] if key.rate else []
    limits += [f"{key.concurrency} at a time"] if key.concurrency else []
    return f"{key.name}  {','.join(key.scopes)}  {key.created}  {', '.join(limits) or 'no limits'}"


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says, and return the exit status."""
    given = _parser().parse_args(arguments)
    path: Path | None = given.file
    if path is None:
        sys.stderr.write(f"pomona: set {_FILE_VARIABLE}, or name the file with --file\n")
        return 2
    try:
        if given.command == "add":
            scopes = tuple(scope for scope in SCOPES if scope in (given.scope or SCOPES[:1]))
            key, text = new_key(given.name, scopes, rate=given.rate, concurrency=given.concurrency)
            add(path, key)
            sys.stderr.write(f"{describe(key)}\nThe key, which is not shown again:\n")
            sys.stdout.write(f"{text}\n")
        elif given.command == "remove":
            remove(path, given.name)
        else:
            sys.stdout.writelines(f"{describe(key)}\n" for key in read_keys(path).keys)
    except PomonaError as error:
        sys.stderr.write(f"pomona: {error.detail}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service.keys", description="API keys of the service.")
    given = os.environ.get(_FILE_VARIABLE)
    parser.add_argument("--file", type=Path, default=Path(given) if given else None, help=f"else {_FILE_VARIABLE}")
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="make a key, and print it once")
    adding.add_argument("name", help="for logs and metrics, such as line-3")
    adding.add_argument("--scope", action="append", choices=SCOPES, help="what it is for (infer); may be repeated")
    adding.add_argument("--rate", type=float, help="most requests and frames per second")
    adding.add_argument("--concurrency", type=int, help="most requests and frames at a time")
    commands.add_parser("list", help="print names, scopes, dates and limits")
    commands.add_parser("remove", help="make a key invalid").add_argument("name")
    return parser


def _locked(path: Path) -> FileLock:
    """Return a lock of the file, so that nothing is lost where two are added at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock", timeout=_LOCK_WITHIN_S)


def _write(path: Path, keys: tuple[ApiKey, ...]) -> None:
    """Replace the file in one step: a service that reads it meanwhile sees all of it."""
    try:
        content = ApiKeys(keys=keys).model_dump_json(indent=1)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), mode)
            file.write(f"{content}\n")
        Path(made).replace(path)
    except (OSError, ValueError) as error:
        raise KeyFileError(f"The file of keys {path} cannot be written: {error}.") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
