"""What a change costs: two commits serve the same weights, and one request goes to both of them by turns.

    python benchmarks/commits.py 7482806 HEAD --json benchmarks/results/commits.json

Each commit is checked out into a temporary folder and runs with the packages that are installed here. Requests go over
HTTP, so that any two commits that understand the wire can be compared. The order changes from call to call: first,
second, second, first.
"""

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from math import prod
from pathlib import Path
from typing import Annotated

import psutil
import typer
from command import run
from rich.console import Console
from rich.progress import Progress
from start import conditions, server
from table import show

HERE = Path(__file__).parent
RATIO = 8  # pixels to a side of a latent cell, in both models
CHANNELS = {"demo": 16, "sd1": 4}
WARM = 2  # calls of each server that are not counted
SERVE = ("--random-weights", "--device", "cpu", "--dtype", "float32")
ENTER = "import sys; sys.path.insert(0, {!r}); from remote_vae.cli.main import main; main()"


@dataclass(frozen=True)
class Case:
    model: str
    direction: str
    size: int
    calls: int

    @property
    def request(self) -> tuple[str, bytes]:
        """The target and a tensor of zeros."""
        if self.direction == "decode":
            shape = (1, CHANNELS[self.model], self.size // RATIO, self.size // RATIO)
        else:
            shape = (1, 3, self.size, self.size)
        query = f"shape={','.join(map(str, shape))}&dtype=float32"
        return f"/{self.direction}?{query}" + "&output_type=pt" * (self.direction == "decode"), bytes(4 * prod(shape))


class Side:
    """One commit's server."""

    def __init__(self, case: Case, port: int) -> None:
        self._target, self._body = case.request
        self._port = port
        self.seconds: list[float] = []

    def call(self) -> float:
        """Seconds until the last byte of the reply; *raises* RuntimeError for any answer but 200."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=600)  # an idle one would be closed meanwhile
        started = time.perf_counter()
        connection.request("POST", self._target, self._body, {"content-type": "tensor/binary"})
        reply = connection.getresponse()
        body = reply.read()
        seconds = time.perf_counter() - started
        connection.close()
        if reply.status != 200:
            raise RuntimeError(f"the server answered {reply.status} {body[:300]!r}")
        return seconds

    def peak_mb(self) -> float:
        """The most memory that the server's processes ever held, added up."""
        [owner] = {
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == "LISTEN" and each.laddr.port == self._port
        }
        processes = [psutil.Process(owner), *psutil.Process(owner).children(recursive=True)]
        lines = [line for each in processes for line in Path(f"/proc/{each.pid}/status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main(
    first: Annotated[str, typer.Argument(help="A commit, the one before the change.")],
    second: Annotated[str, typer.Argument(help="A commit, the one after it.")] = "HEAD",
    calls: Annotated[int, typer.Option(help="Of each commit for a picture of sd1; small ones get more.")] = 6,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Print the second commit's seconds and memory as a multiple of the first one's."""
    cases = (
        Case("demo", "decode", 64, 50 * calls),
        Case("demo", "decode", 512, 4 * calls),
        Case("demo", "encode", 512, 4 * calls),
        Case("sd1", "decode", 512, calls),
        Case("sd1", "encode", 512, calls),
    )
    rows: list[dict[str, object]] = []
    with checkout(first) as before, checkout(second) as after, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("calls", total=2 * sum(case.calls for case in cases))
        for case in cases:
            rows.append(measure(case, (before, after), lambda: progress.advance(task)))
    show(rows)
    if json_file is not None:
        found = conditions() | {"first": first, "second": second}
        json_file.write_text(json.dumps({"conditions": found, "rows": rows}, indent=2) + "\n")


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The sources of a commit in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit, "src"], cwd=HERE.parent, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], check=True, input=archive.stdout)
        yield Path(folder, "src")


def measure(case: Case, folders: Sequence[Path], advance: Callable[[], None]) -> dict[str, object]:
    """A row of the table: medians of both sides, and the most memory that each held."""
    with ExitStack() as stack:
        sides = []
        for folder in folders:
            words = ("-c", ENTER.format(str(folder)), "serve", "--model", case.model, *SERVE, "--port")
            sides.append(Side(case, stack.enter_context(server(*words))))
        for side in sides:
            for _ in range(WARM):
                side.call()
        for number in range(case.calls):
            for side in sides if number % 2 == 0 else reversed(sides):
                side.seconds.append(side.call())
                advance()
        medians = [statistics.median(side.seconds) * 1000 for side in sides]
        peaks = [side.peak_mb() for side in sides]
    return {
        "model": case.model,
        "direction": case.direction,
        "size": case.size,
        "first_ms": round(medians[0], 2),
        "second_ms": round(medians[1], 2),
        "times": round(medians[1] / medians[0], 3),
        "first_mb": round(peaks[0]),
        "second_mb": round(peaks[1]),
        "times_memory": round(peaks[1] / peaks[0], 3),
    }


if __name__ == "__main__":
    run(main)
