"""How much of the machine's processors this process may use; containers are given less than they see."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

_CGROUP: Final = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1: Final = Path("/sys/fs/cgroup/cpu")


def quota(v2: Path = _CGROUP, v1: Path = _CGROUP_V1) -> int:
    """Whole cores of the container's CPU limit, rounded up, at least 1; 0 where there is no limit.

    Model libraries start a thread for each core that they see. With more threads than the limit has cores, all of them
    are stopped together for the rest of each period (Linux CFS bandwidth control), which costs far more than it gains.

    Args:
        v2: the limit of control groups version 2: quota and period in microseconds, or "max".
        v1: folder with `cpu.cfs_quota_us` (-1 where there is none) and `cpu.cfs_period_us`.
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
