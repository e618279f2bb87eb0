"""The cores and the memory that the system and a container's limits allow to this process."""

import math
import os
from pathlib import Path
from typing import Final

import psutil

CGROUP: Final = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """The cores that the system gives to this process, or fewer if a container's limit on CPU time says so."""
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, (CGROUP / "cpu.max").read_text().split())
    except (OSError, ValueError):  # no container, or one without a limit: "max 100000"
        return given
    return min(given, max(1, math.ceil(quota / period)))


def machine_bytes() -> int:
    """The bytes of the machine's memory, or of the container's limit if that is less."""
    total: int = psutil.virtual_memory().total
    try:
        most = (CGROUP / "memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(most)) if most.isdigit() else total


def container_bytes() -> int | None:
    """The bytes that are left of the container's memory limit; None if there is no limit."""
    try:
        most, used = (CGROUP / "memory.max").read_text().strip(), int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return max(0, int(most) - used) if most.isdigit() else None
