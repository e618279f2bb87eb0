"""How many cores this process may use."""

import math
import os
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")


def cores_here() -> int:
    """Those that the system gives it, or fewer where a container's limit says so, which torch does not ask for."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, (CGROUP / "cpu.max").read_text().split())
    except (OSError, ValueError):  # no container, or one without a limit: "max 100000"
        return there
    return min(there, max(1, math.ceil(quota / period)))
