"""What this machine's processor can do."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")
_INT8: Final = frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))
_BF16: Final = frozenset(("avx512_bf16", "amx_bf16"))


def multiplies_int8(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether there are instructions for sums of products of 8-bit numbers (VNNI, AMX).

    Without them int8 gains little, and intermediate sums may overflow (Intel's `VPMADDUBSW` saturates at 16 bits):
    what int8 answers then differs from what it answers with them.

    Args:
        cpuinfo: Linux's description of the processor; where there is none, the answer is no.
    """
    return _has(_INT8, cpuinfo)


def multiplies_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether there are instructions for sums of products of bfloat16 numbers (AVX-512 BF16, AMX).

    Args:
        cpuinfo: Linux's description of the processor; where there is none, the answer is no.
    """
    return _has(_BF16, cpuinfo)


def _has(any_of: frozenset[str], cpuinfo: Path) -> bool:
    try:
        lines = cpuinfo.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.startswith("flags") and not any_of.isdisjoint(line.split()) for line in lines)
