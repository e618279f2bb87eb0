"""What the service costs beside a VAE: ours, a bare server and LitServe, all with a VAE that does no work.

Each server runs in a process of its own, one at a time, on loopback; every round starts each of them afresh, and the
medians over the rounds are shown. Exits 1 when a target is missed.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from replies import SMALL_REPLY, WIDE_REPLY
from start import conditions, server

from client import form_request, latencies, raw_request, throughput

HERE = Path(__file__).parent
SMALL_BODY, LARGE_BODY = bytes(64 << 10), bytes(50 << 20)
OURS = "?shape=1,{}&dtype=float32&output_type=pt"
OURS_TARGETS = ("/small/decode" + OURS.format("4,64,64"), "/wide/decode" + OURS.format("800,128,128"))
FORMS = ("litserve", "litserve_fast_queue")
LABELS = {
    "ours": "remote-vae",
    "bare": "bare Starlette on uvicorn",
    "litserve": "LitServe",
    "litserve_fast_queue": "LitServe, fast_queue=True",
}
FIGURES = ("p50_ms", "p95_ms", "requests_s", "large_ms")
MOST_P50_MS, LEAST_TIMES_LITSERVE, MOST_TIMES_BARE = 3.0, 2.0, 3.0

Row = dict[str, float]


def main() -> int:
    arguments = _arguments()
    rounds: dict[str, list[Row]] = {name: [] for name in LABELS}
    for number in range(arguments.rounds):
        for name, rows in rounds.items():
            print(f"round {number + 1} of {arguments.rounds}: {LABELS[name]}", file=sys.stderr)
            rows.append(_measure(name, arguments.calls))
    rows = {
        name: {figure: statistics.median(row[figure] for row in rounds[name]) for figure in FIGURES} for name in LABELS
    }
    targets = _targets(rows)
    print(_table(rows, targets))
    if arguments.json is not None:
        found = conditions("starlette", "uvicorn", "uvloop", "httptools", "litserve")
        found |= {"rounds": arguments.rounds, "calls": arguments.calls}
        report = {"conditions": found, "rows": rows, "targets": targets, "rounds": rounds}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(target["met"] for target in targets) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=400, help="small requests of one client")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def _measure(name: str, calls: int) -> Row:
    requests = _requests(name)
    command = [str(HERE / "servers.py"), name]
    with server(*command, ready="/health" if name in FORMS else "/ready") as port:
        alone = latencies(port, requests[0], len(SMALL_REPLY), warm=50, calls=calls)
        rate = throughput(port, requests[0], len(SMALL_REPLY), clients=4, calls=calls // 2)
        large = latencies(port, requests[1], len(WIDE_REPLY), warm=2, calls=8)
    return {
        "p50_ms": statistics.median(alone) * 1000,
        "p95_ms": statistics.quantiles(alone, n=20)[-1] * 1000,
        "requests_s": rate,
        "large_ms": statistics.median(large) * 1000,
    }


def _requests(name: str) -> tuple[bytes, bytes]:
    """The small and the large request in the form that the server takes."""
    if name in FORMS:
        return form_request("/predict", SMALL_BODY), form_request("/predict", LARGE_BODY)
    small, large = OURS_TARGETS if name == "ours" else ("/predict", "/predict")
    return raw_request(small, SMALL_BODY), raw_request(large, LARGE_BODY)


def _targets(rows: dict[str, Row]) -> list[dict[str, object]]:
    """Each target with what was reached; of LitServe's two rows the better one counts."""
    ours, bare = rows["ours"], rows["bare"]
    rival = max(rows[name]["requests_s"] for name in FORMS)
    found = (
        ("p50 of one client, ms", ours["p50_ms"], "at most", MOST_P50_MS),
        ("requests/s of 4 clients, times LitServe's", ours["requests_s"] / rival, "at least", LEAST_TIMES_LITSERVE),
        ("50 MiB in, times the bare server's", ours["large_ms"] / bare["large_ms"], "at most", MOST_TIMES_BARE),
    )
    return [
        {"name": name, "value": value, "bound": f"{word} {limit:g}", "met": _met(value, word, limit)}
        for name, value, word, limit in found
    ]


def _met(value: float, word: str, limit: float) -> bool:
    return value <= limit if word == "at most" else value >= limit


def _table(rows: dict[str, Row], targets: list[dict[str, object]]) -> str:
    lines = ["| server | p50 ms | p95 ms | requests/s, 4 clients | 50 MiB in, ms |", "|---|--:|--:|--:|--:|"]
    lines += [
        f"| {LABELS[name]} | {r['p50_ms']:.2f} | {r['p95_ms']:.2f} | {r['requests_s']:.0f} | {r['large_ms']:.0f} |"
        for name, r in rows.items()
    ]
    lines += ["", "| target | bound | reached |", "|---|---|---|"]
    lines += [f"| {t['name']} | {t['bound']} | {t['value']:.2f}{'' if t['met'] else ', missed'} |" for t in targets]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
