"""Many GPUs, as a simulation: latency by load and by cost, from measured service times.

The model: requests arrive at random (Poisson), a balancer gives each to the replica with the fewest requests, a replica
works on one at a time and takes as long as a time drawn from those that were measured, and every request spends what
the way there and back costs besides. What it leaves out: batching, the network between machines, the start of replicas,
failures, and any limit of the balancer itself; it takes every replica for equal.

The measured times come from results/ray_serve.json (`ray_serve.py --json`), taken while every replica had one request
and none waited. The runs with one and two replicas are what it is checked against first: same number of clients, each
sending its next request when the last one is answered.
"""

import argparse
import heapq
import json
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
GPUS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
RATES = (10, 30, 100, 300, 1000, 3000, 10000)
MOST_ERROR = 0.10
MOST_LOAD = 0.98  # above, a queue grows for as long as one looks at it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=RESULTS / "ray_serve.json")
    parser.add_argument("--service-ms", type=float, help="a mean service time of your own GPU; its spread stays")
    parser.add_argument("--requests", type=int, default=20_000, help="of each point")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here")
    arguments = parser.parse_args()
    measured = json.loads(arguments.measured.read_text())
    checks = check(measured)
    for row in checks:
        print(
            "{replicas} replicas: simulated {simulated:.2f}/s, measured {measured:.2f}/s, off by {error:.1%}".format(
                **row
            )
        )
    times = service_times(measured, arguments.service_ms)
    extra = measured["figures"]["ray_p50_ms"] / 1000
    points = sweep(times, extra, arguments.requests)
    print(f"mean service time {1000 * statistics.mean(times):.1f} ms")
    print(table(points))
    if arguments.json is not None:
        report = {"checks": checks, "service_seconds": statistics.mean(times), "points": points}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.plot is not None:
        draw(points, arguments.plot)
    return 0 if all(row["error"] <= MOST_ERROR for row in checks) else 1


def service_times(measured: dict, mean_ms: float | None) -> list[float]:
    """Seconds; scaled to another mean where one is given."""
    found = [ms / 1000 for round_ in measured["scale"]["ray_one"] for ms in round_["service_ms"]]
    factor = mean_ms / 1000 / statistics.mean(found) if mean_ms else 1.0
    return [factor * one for one in found]


def check(measured: dict) -> list[dict[str, float]]:
    """The closed loop of the benchmark, simulated and measured."""
    rows = []
    for name, replicas in (("ray_one", 1), ("ray_two", 2)):
        rounds = measured["scale"][name]
        times = [ms / 1000 for round_ in rounds for ms in round_["service_ms"]]
        clients, calls = 4, len(rounds[0]["latencies_ms"])
        simulated = closed_loop(times, replicas=replicas, clients=clients, requests=50 * calls)
        found = statistics.median(round_["per_second"] for round_ in rounds)
        rows.append(
            {"replicas": replicas, "simulated": simulated, "measured": found, "error": abs(simulated / found - 1)}
        )
    return rows


def closed_loop(times: Sequence[float], *, replicas: int, clients: int, requests: int, seed: int = 0) -> float:
    """Requests per second when every client sends the next one as the last is answered."""
    draw_one, ordered = random.Random(seed), sorted(times)
    free = [0.0] * replicas
    asks = [0.0] * clients
    heapq.heapify(asks)
    for _ in range(requests):
        now = heapq.heappop(asks)
        at = min(range(replicas), key=free.__getitem__)
        free[at] = max(now, free[at]) + _draw(draw_one, ordered)
        heapq.heappush(asks, free[at])
    return requests / max(free)


def open_loop(
    times: Sequence[float], *, replicas: int, rate: float, requests: int, extra: float, seed: int = 0
) -> list[float]:
    """Seconds that each request takes when they come at `rate`, the first tenth left out."""
    rng, ordered = random.Random(seed), sorted(times)
    # Work that is first come, first served at the replica that is free first is what fewest requests comes to when
    # replicas are equal and the balancer sees each end at once.
    free = [0.0] * replicas
    now, found = 0.0, []
    for _ in range(requests):
        now += rng.expovariate(rate)
        begin = max(now, free[0])
        end = begin + _draw(rng, ordered)
        heapq.heapreplace(free, end)
        found.append(end - now + extra)
    return found[requests // 10 :]


def _draw(rng: random.Random, ordered: Sequence[float]) -> float:
    """A time between two neighbours of those that were measured, every place alike."""
    place = rng.random() * (len(ordered) - 1)
    lower = int(place)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (place - lower) * (ordered[upper] - ordered[lower])


def sweep(times: Sequence[float], extra: float, requests: int) -> list[dict[str, float | None]]:
    """p50 and p95 for every number of GPUs and every rate; None where the load is more than the GPUs can do."""
    points: list[dict[str, float | None]] = []
    mean = statistics.mean(times)
    for gpus in GPUS:
        for rate in RATES:
            load = rate * mean / gpus
            point: dict[str, float | None] = {"gpus": gpus, "rate": rate, "load": load, "p50": None, "p95": None}
            if load < MOST_LOAD:
                many = max(requests, 40 * gpus)
                found = sorted(open_loop(times, replicas=gpus, rate=rate, requests=many, extra=extra))
                point["p50"], point["p95"] = found[len(found) // 2], found[int(0.95 * len(found))]
            points.append(point)
    return points


def table(points: list[dict[str, float | None]]) -> str:
    """p95 in milliseconds, GPUs downwards and rates across."""
    found = {(point["gpus"], point["rate"]): point["p95"] for point in points}
    lines = ["| GPUs | " + " | ".join(f"{rate}/s" for rate in RATES) + " |", "|--:|" + "--:|" * len(RATES)]
    for gpus in GPUS:
        cells = [found[gpus, rate] for rate in RATES]
        lines.append(
            f"| {gpus} | " + " | ".join("too much" if one is None else f"{1000 * one:.0f}" for one in cells) + " |"
        )
    return "\n".join(lines)


def draw(points: list[dict[str, float | None]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (latency, cost) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for gpus in GPUS:
        row = [point for point in points if point["gpus"] == gpus and point["p95"] is not None]
        if row:
            latency.semilogx(
                [p["rate"] for p in row], [1000 * (p["p95"] or 0) for p in row], "o-", ms=3, label=str(gpus)
            )
    latency.set(xlabel="requests per second", ylabel="p95, ms", title="latency by load")
    latency.legend(title="GPUs", fontsize=7, ncols=2)
    for rate in RATES:
        row = [point for point in points if point["rate"] == rate and point["p95"] is not None]
        if row:
            costs = [1000 * (p["gpus"] or 0) / 3600 / rate for p in row]
            cost.semilogx(costs, [1000 * (p["p95"] or 0) for p in row], "o-", ms=3, label=f"{rate}/s")
    cost.set(xlabel="GPU-hours for 1,000 requests", ylabel="p95, ms", title="latency by cost")
    cost.legend(title="load", fontsize=7)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
