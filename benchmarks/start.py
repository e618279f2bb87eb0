"""Starts the servers that are measured, and says on what the figures were taken."""

import http.client
import importlib.metadata
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent

# A program that is told to end ends the servers that it started; by default it would just stop, and leave them.
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@contextmanager
def server(
    *command: str, ready: str = "/ready", core: int | None = None, python: str = sys.executable
) -> Iterator[int]:
    """The port of `python COMMAND PORT`, kept on one core if asked.

    It has a process group of its own, since LitServe's children outlive it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    process = subprocess.Popen(
        [*pinned, python, *command, str(port)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until_ready(port, ready, process)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end_group(process.pid)


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_until_ready(port: int, path: str, process: "subprocess.Popen[bytes]") -> None:
    """Polls until the path answers 200; *raises* RuntimeError when it does not within two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise RuntimeError(f"the server did not become ready ({process.poll()})")


def conditions(*packages: str) -> dict[str, object]:
    """Date, commit, machine and versions."""
    names = ("remote-vae", "torch", *packages)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", ":/src") else ""),
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "real_time": hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) == os.SCHED_RR,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
