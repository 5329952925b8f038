"""Notices that files were replaced, such as API keys and certificates that are renewed while the service runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

_CHECK_EVERY_S: Final = 1.0
_Signature: TypeAlias = "tuple[int, int, int] | None"


class WatchedFiles:
    """Files that are looked at when asked, at most once a second.

    Args:
        paths: of the files.
        clock: seconds, monotonic.
    """

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = tuple(paths)
        self._clock = clock
        self._seen = self._signatures()
        self._looked = clock()

    def changed(self) -> bool:
        """Return whether a file differs from when it was last looked at, in time, size or inode."""
        now = self._clock()
        if now - self._looked < _CHECK_EVERY_S:
            return False
        self._looked = now
        seen, self._seen = self._seen, self._signatures()
        return self._seen != seen

    def _signatures(self) -> tuple[_Signature, ...]:
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> _Signature:
    try:
        found = path.stat()  # of what a link refers to: Kubernetes swaps links
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
