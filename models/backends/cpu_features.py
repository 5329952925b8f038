"""What this machine's processor can do."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")
_INT8: Final = frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))


def multiplies_int8(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether there are instructions for sums of products of 8-bit numbers (VNNI, AMX).

    Without them int8 gains little, and intermediate sums may overflow (Intel's `VPMADDUBSW` saturates at 16 bits):
    what int8 answers then differs from what it answers with them.

    Args:
        cpuinfo: Linux's description of the processor; where there is none, the answer is no.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.startswith("flags") and not _INT8.isdisjoint(line.split()) for line in lines)
