"""Processes that are there within milliseconds: forks of a small one, which has imported all that they need.

`ForkServer` is the server's side, and `serve_forks` runs in the small process. Two sockets belong to each fork. One is
the fork's only pipe. On the other the small process says how the fork ended, and it ends the fork if the server closes
that socket.
"""

import io
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
STATUS_BYTES: Final = 4
PIPE_BYTES: Final = 1 << 20
END_SECONDS: Final = 5.0  # for the small process to end its forks, which takes milliseconds
FIRST_FILE, LAST_FILE = 3, 4096  # after stdin, stdout and stderr; the small process has a few for each fork

Work = Callable[[io.FileIO], None]


class Fork:
    """A process, seen from the server; `pipe` leads to it."""

    def __init__(self, pipe: socket.socket, life: socket.socket) -> None:
        self.pipe = io.FileIO(pipe.detach(), "r+b")
        self._life = life

    @property
    def alive(self) -> bool:
        try:
            self._life.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError as exc:  # any other one if it is closed
            return isinstance(exc, BlockingIOError)
        return False

    def wait(self) -> int | None:
        """Waits for its end. The exit code, or minus a signal; None if it never was, or has lost the small process."""
        told = self._life.recv(STATUS_BYTES)
        return int.from_bytes(told, signed=True) if told else None

    def kill(self) -> None:
        """Ends the process, after which nothing more comes from `pipe`."""
        with suppress(OSError):  # it has ended
            self._life.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Ends the process and closes what leads to it."""
        self._life.close()
        self.pipe.close()


class ForkServer:
    """The small process, which starts with the first fork, and starts again if something has ended it."""

    def __init__(self, command: tuple[str, ...], *, niceness: int) -> None:
        self._command, self._niceness = command, niceness
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None

    def fork(self) -> Fork:
        """A new fork, which need not be there yet. *Raises* OSError."""
        (pipe, its_pipe), (life, its_life) = (socket.socketpair() for _ in range(2))
        for end in (pipe, its_pipe):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_BYTES)
        with its_pipe, its_life:
            try:
                if self._process is None or self._orders is None or self._process.poll() is not None:
                    self.close()
                    self._orders = self._start()
                socket.send_fds(self._orders, [b"."], [its_pipe.fileno(), its_life.fileno()])
            except OSError:
                pipe.close()
                life.close()
                raise
        return Fork(pipe, life)

    def _start(self) -> socket.socket:
        orders, its_orders = socket.socketpair()
        with its_orders:
            self._process = subprocess.Popen(
                self._command,
                stdin=its_orders.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **ONE_THREAD},
            )
        with suppress(OSError):  # it has ended already, which the next fork will find
            os.setpriority(os.PRIO_PROCESS, self._process.pid, os.getpriority(os.PRIO_PROCESS, 0) + self._niceness)
        return orders

    def close(self) -> None:
        """Ends the small process and with it all forks, which it does itself: a signal would leave them running."""
        if self._orders is not None:
            self._orders.close()
        if self._process is not None:
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def serve_forks(work: Work) -> None:
    """Forks for each pair of sockets on stdin; the fork does `work` with the first. When stdin ends, all forks do."""
    orders, deaths = socket.socket(fileno=sys.stdin.fileno()), _deaths()
    lives: dict[int, socket.socket] = {}
    while True:
        ready = select.select([orders, deaths, *lives.values()], [], [])[0]
        for pid in [pid for pid, life in lives.items() if life in ready]:  # the server has closed its end
            os.kill(pid, signal.SIGKILL)
            lives.pop(pid).close()
        if deaths in ready:
            deaths.recv(PIPE_BYTES)
            for pid, code in _ended():
                if (life := lives.pop(pid, None)) is not None:
                    _tell(life, code)
        if orders in ready:
            _, files, _, _ = socket.recv_fds(orders, 1, 2)
            if not files:
                break
            with suppress(OSError):  # no process can be started, which the end of both sockets tells
                lives[_fork(work, files[0])] = socket.socket(fileno=os.dup(files[1]))
            for file in files:
                os.close(file)
    for pid in lives:
        os.kill(pid, signal.SIGKILL)


def _deaths() -> socket.socket:
    """A socket that can be read from when a child has ended."""
    found, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is written
    return found


def _ended() -> Iterator[tuple[int, int]]:
    """The children that have ended, and how."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found[0], os.waitstatus_to_exitcode(found[1])


def _tell(life: socket.socket, code: int) -> None:
    with life, suppress(OSError):  # the server has closed its end
        life.send(code.to_bytes(STATUS_BYTES, signed=True))


def _fork(work: Work, pipe: int) -> int:
    """The id of the new process, which keeps no open file but the pipe. *Raises* OSError."""
    if pid := os.fork():
        return pid
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(pipe, sys.stdin.fileno())
        os.closerange(FIRST_FILE, LAST_FILE)
        work(io.FileIO(sys.stdin.fileno(), "r+b", closefd=False))
    finally:
        os._exit(0)
