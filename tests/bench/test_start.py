"""benchmarks/start.py: what a program starts ends with it."""

import signal
import subprocess
import sys

import psutil
import start

PROGRAM = f"""
import sys, time
sys.path.append({str(start.HERE)!r})
from start import server
with server("-m", "http.server", "--bind", "127.0.0.1", ready="/"):
    print("ready", flush=True)
    time.sleep(300)
"""


def test_a_program_that_is_told_to_end() -> None:
    """A benchmark that gets SIGTERM ends the server that it started, and says so by its status."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        [server] = psutil.Process(program.pid).children()
        try:
            program.send_signal(signal.SIGTERM)
            assert program.wait(60) == 128 + signal.SIGTERM
            assert not server.is_running()
        finally:
            program.kill()
            if server.is_running():
                server.kill()
