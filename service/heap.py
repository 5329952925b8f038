"""Keeps the C library's heap small: what requests freed goes back to the system.

glibc keeps freed memory in one arena per thread and core, and raises by itself the size from which it maps memory apart
to 32 MiB: after a burst of large images a process kept hundreds of megabytes that nothing used. Elsewhere than on glibc
all this does nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
from typing import Final

from service.memory import MemoryBudget

_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""Numbers of `mallopt`, from malloc.h."""

_MAPPED: Final = 4 << 20
"""Bytes from which memory is mapped apart, and so returned the moment it is freed."""

_ARENAS: Final = 4
_WORTH: Final = 64 << 20
"""Bytes that requests held since the last time, from which returning memory is worth its milliseconds."""

_EVERY_S: Final = 5.0


def bound() -> None:
    """Set the bounds of the heap, before threads are started."""
    library = _glibc()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, _MAPPED)
        library.mallopt(_M_ARENA_MAX, _ARENAS)


def return_memory() -> None:
    """Return free memory to the system; takes milliseconds, without Python's lock."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


async def keep_small(memory: MemoryBudget) -> None:
    """Return memory to the system every few seconds in which requests held much of it; ends when cancelled."""
    while True:
        await asyncio.sleep(_EVERY_S)
        if memory.take_turnover(_WORTH):
            await asyncio.to_thread(return_memory)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None
