"""Content hashes of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest_of(path: Path, algorithm: str) -> str:
    """Hash a file without reading it into memory.

    Args:
        path: the file.
        algorithm: a name that hashlib knows, such as "sha256".

    Returns:
        Lower-case hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def sha256_of(path: Path) -> str:
    """Hash a file with SHA-256 without reading it into memory.

    Args:
        path: the file.

    Returns:
        64 lower-case hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    return digest_of(path, "sha256")
