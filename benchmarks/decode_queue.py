"""Generating and decoding, one after the other and with DecodeQueue, each on a core of its own.

Generation is a diffusers pipeline with a small UNet here, decoding a VAE of SD 1's size with random weights on a
server. Both were made about equally long, which is where a queue gains most. Cores that share their memory slow each
other down, with a queue or without, so lengths are taken twice: one after the other, and with both cores busy and no
queue. Exits 1 when the target is missed for the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from small import pipeline, prompt
from start import conditions, server

from remote_vae import Client, DecodeQueue
from remote_vae.client.aio_queue import Item

HERE = Path(__file__).parent
OPTIONS: dict[str, Any] = {"model": "sd1", "do_scaling": True}
MOST_TIMES_THE_LONGER = 1.1


@dataclass(frozen=True)
class Span:
    """A generation or a decode; *units*: seconds since its run began."""

    what: str
    index: int
    start: float
    end: float


class Generator:
    """Latents of a picture of `size`, of as many steps as one decode takes."""

    def __init__(self, size: int, steps: int) -> None:
        self._pipe, self._size, self._steps = pipeline(), size, steps

    def __call__(self) -> torch.Tensor:
        latents: torch.Tensor = self._pipe(
            **prompt(), height=self._size, width=self._size, num_inference_steps=self._steps, output_type="latent"
        ).images
        return latents


def main() -> int:
    arguments = _arguments()
    found = {**conditions("diffusers"), "items": arguments.items, "size": arguments.size}
    os.sched_setaffinity(0, {0})
    torch.set_num_threads(1)
    with server(str(HERE / "servers.py"), "decoders", core=1) as port:
        url = f"http://127.0.0.1:{port}"
        generate = Generator(arguments.size, _steps(url, arguments.size))
        serial = _serial(url, generate, arguments.items)
        busy = _busy(url, generate, arguments)
        queued = _queued(url, generate, arguments.items)
    report = _report(serial, busy, queued, arguments.items)
    print(json.dumps({name: value for name, value in report.items() if name != "spans"}, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"conditions": found, **report}, indent=1) + "\n")
    if arguments.picture is not None:
        _draw(serial, queued, arguments.picture)
    return 0 if report["met"] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--size", type=int, default=192, help="pixels per side")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--picture", type=Path, help="draw the timeline here")
    return parser.parse_args()


def _steps(url: str, size: int) -> int:
    """How many steps of generation are as long as a decode."""
    latent = torch.randn(1, 4, size // 8, size // 8)
    with Client(url) as client:
        decode = min(_timed(lambda: client.decode(latent, **OPTIONS)) for _ in range(3))
    one, many = Generator(size, 2), Generator(size, 12)
    one()
    step = (_timed(many) - _timed(one)) / 10
    return max(2, round(decode / step))


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _serial(url: str, generate: Generator, items: int) -> list[Span]:
    spans, started = [], time.perf_counter()
    with Client(url) as client:
        for index in range(items):
            begun = time.perf_counter() - started
            latent = generate()
            made = time.perf_counter() - started
            client.decode(latent, **OPTIONS)
            spans += [Span("generate", index, begun, made)]
            spans += [Span("decode", index, made, time.perf_counter() - started)]
    return spans


LOOP = """
import sys, time, numpy
from remote_vae import Client
side = int(sys.argv[2]) // 8
latent = numpy.random.default_rng(0).standard_normal((1, 4, side, side), numpy.float32)
with Client(sys.argv[1]) as client:
    while True:
        started = time.perf_counter()
        client.decode(latent, model="sd1", do_scaling=True)
        print(time.perf_counter() - started, flush=True)
"""


def _busy(url: str, generate: Generator, arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a generation and of a decode while another process keeps the server decoding."""
    command = [sys.executable, "-c", LOOP, url, str(arguments.size)]
    process = subprocess.Popen(["taskset", "-c", "1", *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    generations = [_timed(generate) for _ in range(arguments.items // 2)]
    process.terminate()
    decodes = [float(line) for line in process.stdout.read().split()]
    process.wait()
    return statistics.median(generations), statistics.median(decodes)


def _queued(url: str, generate: Generator, items: int) -> list[Span]:
    """A decode counts from its put, or from the end of the one before, since the server does one at a time."""
    spans: list[Span] = []
    started = time.perf_counter()
    ends: dict[int, float] = {}

    def on_done(item: Item) -> None:
        item.result()
        ends[item.index] = time.perf_counter() - started

    with DecodeQueue(url, on_done=on_done, **OPTIONS) as queue:
        for index in range(items):
            begun = time.perf_counter() - started
            latent = generate()
            spans.append(Span("generate", index, begun, time.perf_counter() - started))
            queue.put(latent)
    for index in range(items):
        start = max(spans[index].end, ends.get(index - 1, 0.0))
        spans.append(Span("decode", index, start, ends[index]))
    return spans


def _lengths(spans: list[Span], what: str) -> list[float]:
    return [span.end - span.start for span in spans if span.what == what]


def _report(serial: list[Span], busy: tuple[float, float], queued: list[Span], items: int) -> dict[str, Any]:
    generate, decode = (statistics.median(_lengths(serial, what)) for what in ("generate", "decode"))
    total, together = (max(span.end for span in spans) for spans in (serial, queued))
    bound, busy_bound = (MOST_TIMES_THE_LONGER * max(g, d) * items + d for g, d in ((generate, decode), busy))
    return {
        "generate_s": generate,
        "decode_s": decode,
        "busy_generate_s": busy[0],
        "busy_decode_s": busy[1],
        "serial_s": total,
        "queued_s": together,
        "bound_s": bound,
        "busy_bound_s": busy_bound,
        "met_busy": together <= busy_bound,
        "of_serial": together / total,
        "met": together <= bound,
        "spans": {"serial": [asdict(s) for s in serial], "queued": [asdict(s) for s in queued]},
    }


def _draw(serial: list[Span], queued: list[Span], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, figsize=(9, 3.6), sharex=True, layout="constrained")
    runs: Iterator[tuple[Any, str, list[Span]]] = zip(
        axes, ("one after the other", "with DecodeQueue"), (serial, queued), strict=True
    )
    for axis, title, spans in runs:
        for row, what, colour in ((1, "generate", "#3b6fb6"), (0, "decode", "#d9822b")):
            bars = [(span.start, span.end - span.start) for span in spans if span.what == what]
            axis.broken_barh(bars, (row - 0.35, 0.7), facecolors=colour, edgecolors="white")
        axis.set_yticks([1, 0], ["generate", "decode"])
        axis.set_title(f"{title}: {max(span.end for span in spans):.1f} s", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
