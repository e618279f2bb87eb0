"""What the conveniences of the client cost.

RemoteVAE's decode against `remote_decode` by hand, on a server whose VAE does no work, call by call in turn; and a
pipeline with a preview of its steps against one without, on a core of its own. Exits 1 when a target is missed.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from small import pipeline, prompt
from start import conditions, server

from remote_vae import RemoteVAE, preview_callback, remote_decode

HERE = Path(__file__).parent
MOST_OVERHEAD_MS, MOST_SLOWDOWN = 2.0, 1.03


def main() -> int:
    arguments = _arguments()
    found = {**conditions("diffusers"), "calls": arguments.calls, "rounds": arguments.rounds}
    os.sched_setaffinity(0, {0})
    torch.set_num_threads(1)
    report = {"drop_in": _drop_in(arguments.calls), "previews": _previews(arguments.rounds)}
    print(json.dumps(report, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"conditions": found, **report}, indent=2) + "\n")
    return 0 if all(row["met"] for row in report.values()) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7, help="generations with and without previews")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def _drop_in(calls: int) -> dict[str, Any]:
    latent = torch.zeros(1, 4, 64, 64)
    with server(str(HERE / "servers.py"), "ours", core=1) as port:
        url = f"http://127.0.0.1:{port}/small"
        with RemoteVAE(url) as vae:
            ways: dict[str, Callable[[], Any]] = {
                "RemoteVAE": lambda: vae.decode(latent, return_dict=False),
                "by hand": lambda: remote_decode(url, latent, do_scaling=False, output_type="pt", return_type="pt"),
            }
            found = _in_turn(ways, calls, warm=20)
    ours, hand = (statistics.median(found[name]) * 1000 for name in ways)
    return {
        "remote_vae_ms": ours,
        "by_hand_ms": hand,
        "overhead_ms": ours - hand,
        "met": ours - hand <= MOST_OVERHEAD_MS,
    }


def _previews(rounds: int) -> dict[str, Any]:
    pipe = pipeline()
    how = {**prompt(), "height": 384, "width": 384, "num_inference_steps": 12, "output_type": "latent"}
    with (
        server(str(HERE / "servers.py"), "decoders", core=1) as port,
        preview_callback(f"http://127.0.0.1:{port}", lambda step, image: None, model="taesd") as previews,
    ):
        ways = {"without": lambda: pipe(**how), "with": lambda: pipe(**how, callback_on_step_end=previews)}
        found = _in_turn(ways, rounds, warm=1)
        shown = previews.shown / (rounds + 1)
    ratios = [a / b for a, b in zip(found["with"], found["without"], strict=True)]
    times = statistics.median(ratios)
    return {
        "generation_s": statistics.median(found["without"]),
        "times_without": times,
        "previews_per_generation": shown,
        "steps": how["num_inference_steps"],
        "met": times <= MOST_SLOWDOWN,
    }


def _in_turn(ways: dict[str, Callable[[], Any]], calls: int, *, warm: int) -> dict[str, list[float]]:
    """Seconds of each call, the ways in turn, so that whatever else the machine does meets both."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm + calls):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number >= warm:
                found[name].append(time.perf_counter() - started)
    return found


if __name__ == "__main__":
    sys.exit(main())
