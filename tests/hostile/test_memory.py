"""Hostile requests cost no memory that stays: at most 1 MiB for a hundred of any kind. EVERY=1 tries every kind.

*Source*: the bound is the one that Triton's tests keep for requests of very many chunks.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from .test_bad_input import TABLES, Bad
from .test_connections import REFUSED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

REPEATS = 300
MOST_BYTES = 2**20 * REPEATS // 100
EVERY = bool(os.environ.get("EVERY"))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(pid: int, ask: Callable[[], object]) -> int:
    """Bytes that `REPEATS` requests leave behind after a warm-up; the less of two looks, as allocators settle."""
    found = []
    for _ in range(2):
        for _ in range(REPEATS // 2):
            ask()
        before = resident_bytes(pid)
        for _ in range(REPEATS):
            ask()
        time.sleep(0.05)
        found.append(resident_bytes(pid) - before)
        if found[-1] <= MOST_BYTES:
            break
    return min(found)


def one_of_each() -> dict[str, Bad]:
    chosen = {table: list(kinds.items())[: None if EVERY else 1] for table, kinds in TABLES.items()}
    return {f"{table}: {name}": bad for table, kinds in chosen.items() for name, bad in kinds}


@pytest.mark.parametrize("bad", one_of_each().values(), ids=one_of_each().keys())
def test_a_bad_request(live: Any, bad: Bad) -> None:
    """What is refused by the application."""
    session = requests.Session()
    url = live.url + bad.path
    assert growth(live.process.pid, lambda: session.post(url, bad.body, headers=bad.headers, timeout=30)) <= MOST_BYTES


CONNECTIONS = list(REFUSED) if EVERY else ["two hosts", "20,000 headers", "many trailers", "a megabyte of path"]


@pytest.mark.parametrize("name", CONNECTIONS)
def test_a_bad_connection(live: Any, raw: Any, name: str) -> None:
    """What is refused by the HTTP server itself."""
    assert growth(live.process.pid, lambda: raw.exchange(REFUSED[name][0])) <= MOST_BYTES


def test_a_leak_is_found(start: Any) -> None:
    """A server that keeps 16 KiB of each request fails this check: what it does not find is not there."""
    with start("copy", leak=2**14) as server:
        session = requests.Session()
        ask = lambda: session.post(f"{server.url}/?zzz=1", timeout=30)  # noqa: E731
        assert growth(server.process.pid, ask) > MOST_BYTES
