"""Freed memory is kept while a process is busy, and given back when it rests."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import time
import psutil
from remote_vae.engine import malloc

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [bytes(1 << 20) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return psutil.Process().memory_info().rss

by_itself = faults()
malloc.keep_freed()
faults()
kept, held = faults(), resident()
malloc.give_back()
given_back = held - resident()
trim, blocks = malloc.Trim(), [b"x" * (1 << 20) for _ in range(64)]
del blocks[::2]
gaps = resident()
trim.when_due()
early = gaps - resident()
time.sleep(malloc.TRIM_SECONDS)
trim.when_due()
print(by_itself, kept, given_back, early, gaps - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory() -> None:
    """Blocks of a megabyte, freed and wanted again, come without the system's help, until the process rests. Over a
    long job the gaps between those that stay are given back every second.
    """
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    by_itself, kept, given_back, early, gaps = (int(word) for word in ended.stdout.split())
    assert kept < by_itself / 10
    assert given_back > 4 << 20
    assert early < 4 << 20
    assert gaps > 24 << 20
