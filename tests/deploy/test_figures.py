"""The simulation of many GPUs against what queueing theory says, and the formula of what a thousand pictures cost."""

import random
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scripts import load_script

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


def module(name: str) -> ModuleType:
    return load_script(BENCHMARKS / f"{name}.py")


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_replica_waits_as_theory_says(load: float) -> None:
    """With one service time the mean time is that of an M/D/1 queue: S + load S / (2 (1 - load))."""
    found = module("simulate").open_loop([0.1], replicas=1, rate=load / 0.1, requests=200_000, extra=0.0)
    assert statistics.mean(found) == pytest.approx(0.1 + load * 0.1 / (2 * (1 - load)), rel=0.04)


def test_two_replicas_wait_as_theory_says() -> None:
    """With exponential service times the mean time is that of an M/M/2 queue: S / (1 - load squared)."""
    rng = random.Random(5)
    times = [rng.expovariate(10) for _ in range(100_000)]
    rate, mean = 12.0, statistics.mean(times)
    found = module("simulate").open_loop(times, replicas=2, rate=rate, requests=200_000, extra=0.5)
    load = rate * mean / 2
    assert statistics.mean(found) == pytest.approx(0.5 + mean / (1 - load**2), rel=0.04)


@pytest.mark.parametrize(("replicas", "per_second"), [(1, 10), (2, 20), (4, 40), (8, 40)])
def test_a_closed_loop_is_as_fast_as_its_bottleneck(replicas: int, per_second: float) -> None:
    """Four clients keep at most four replicas busy."""
    found = module("simulate").closed_loop([0.1], replicas=replicas, clients=4, requests=1000)
    assert found == pytest.approx(per_second, rel=0.02)


def test_a_load_that_is_too_much() -> None:
    """Where the replicas cannot keep up the simulation says so and gives no latency."""
    points = module("simulate").sweep([0.1], 0.0, 100)
    assert {(p["gpus"], p["rate"]) for p in points if p["p95"] is None} >= {(1, 10), (1, 10000), (500, 10000)}
    assert all((p["p95"] is None) == (float(p["load"]) >= 0.98) for p in points)


def test_a_thousand_pictures() -> None:
    """A GPU at 3.60 an hour that works all the time and takes 100 ms a picture costs 0.10 for a thousand."""
    assert module("cost").cost_of_thousand(3.6, 0.1, 1.0) == pytest.approx(0.1)
    command = [
        sys.executable,
        str(BENCHMARKS / "cost.py"),
        "--date",
        "2026-11-20",
        "--gpu",
        "L4=3.6,100",
        "--busy",
        "0.5",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert printed.splitlines()[-1] == "| L4 | 3.60 | 100 | 0.2000 |"
    assert "2026-11-20" in printed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--date", "2026-11-20"], "give --gpu NAME=PRICE,MS"),
        (["--gpu", "L4=1,2"], "--date"),
        (["--date", "2026-11-20", "--gpu", "L4"], "'L4' is not NAME=PRICE,MS"),
        (["--date", "2026-11-20", "--gpu", "L4=0,1"], "must be above 0"),
        (["--date", "2026-11-20", "--gpu", "L4=1,1", "--busy", "1.5"], "--busy 1.5 must be"),
    ],
)
def test_a_price_without_a_day_or_a_time(arguments: list[str], text: str) -> None:
    """A cost is computed of a price, its day and a time, or not at all."""
    command = [sys.executable, str(BENCHMARKS / "cost.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert text in ended.stderr
