"""What this machine's processor can do, and how much of it the container may use."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")
_INT8: Final = frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))
_BF16: Final = frozenset(("avx512_bf16", "amx_bf16"))

_CGROUP: Final = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1: Final = Path("/sys/fs/cgroup/cpu")


def has_int8_instructions(cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether there are instructions for sums of products of 8-bit integers (VNNI, AMX).

    Without them int8 gains little, and intermediate sums may overflow (Intel's `VPMADDUBSW` saturates at 16 bits), so
    results differ from those with them.

    Args:
        cpuinfo: Linux's description of the processor; if it is missing, the result is False.
    """
    return _has_any(_INT8, cpuinfo)


def has_bf16_instructions(cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether there are instructions for sums of products of bfloat16 numbers (AVX-512 BF16, AMX).

    Args:
        cpuinfo: Linux's description of the processor; if it is missing, the result is False.
    """
    return _has_any(_BF16, cpuinfo)


def cpu_quota(v2: Path = _CGROUP, v1: Path = _CGROUP_V1) -> int:
    """Return the container's CPU limit in cores, rounded up, at least 1; 0 if there is no limit.

    Model libraries start a thread for each core that they see. With more threads than the limit has cores, all of them
    are stopped together for the rest of each period (Linux CFS bandwidth control), which costs far more than it gains.

    Args:
        v2: limit of control groups version 2: quota and period in microseconds, or "max".
        v1: folder with `cpu.cfs_quota_us` (-1 for no limit) and `cpu.cfs_period_us`.
    """
    try:
        limit, period = v2.read_text().split()
    except (OSError, ValueError):
        try:
            limit, period = ((v1 / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return 0
    if not limit.isdecimal() or not period.isdecimal() or int(period) == 0:
        return 0
    return max(1, math.ceil(int(limit) / int(period)))


def _has_any(flags: frozenset[str], cpuinfo: Path) -> bool:
    try:
        lines = cpuinfo.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.startswith("flags") and not flags.isdisjoint(line.split()) for line in lines)
