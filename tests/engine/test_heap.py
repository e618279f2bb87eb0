"""Freed memory is kept while a process is busy, and given back when it rests."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import psutil
from remote_vae.engine import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [bytes(1 << 20) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return psutil.Process().memory_info().rss

by_itself = faults()
heap.keep_freed()
faults()
kept, held = faults(), resident()
heap.give_back()
print(by_itself, kept, held - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory() -> None:
    """Blocks of a megabyte, freed and wanted again, come without the system's help, until the process rests."""
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    by_itself, kept, given_back = (int(word) for word in ended.stdout.split())
    assert kept < by_itself / 10
    assert given_back > 4 << 20
