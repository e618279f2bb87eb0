"""Our load generator against an independent one, ApacheBench (`ab`, in Debian's apache2-utils): the same requests, the
same number of clients, one server.

    python benchmarks/crosscheck.py --json benchmarks/results/crosscheck.json

Both send one latent again and again, each client its next when it has its answer, in turn, several times each; the
medians are shown. Exits 1 when the two rates, or the two median latencies, differ by more than a tenth.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from load import Target, alone, closed_load, post, summarise
from start import conditions, server

QUERY = "/?shape=1,16,8,8&dtype=float16&do_scaling=True"
MEDIA = "tensor/binary"
MOST_APART = 0.1

Row = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=10, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    body = np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(np.float16).tobytes()
    rounds: dict[str, list[Row]] = {"ours": [], "ab": []}
    with server("-m", "remote_vae.cli.main", "serve", "--max-client-share", "1", "--port") as port:
        asyncio.run(_ours(port, body, arguments.clients, 2))
        for _ in range(arguments.rounds):
            rounds["ours"].append(asyncio.run(_ours(port, body, arguments.clients, arguments.seconds)))
            rounds["ab"].append(_ab(port, body, arguments.clients, arguments.seconds))
    rows = {
        name: {key: statistics.median(row[key] for row in found) for key in found[0]} for name, found in rounds.items()
    }
    apart = {key: rows["ab"][key] / rows["ours"][key] for key in rows["ours"]}
    print(json.dumps({"rows": rows, "ab_by_ours": apart}, indent=1))
    if arguments.json is not None:
        report = {"conditions": conditions("starlette", "uvicorn"), "rows": rows, "ab_by_ours": apart, "rounds": rounds}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(abs(value - 1) <= MOST_APART for value in apart.values()) else 1


async def _ours(port: int, body: bytes, clients: int, seconds: int) -> Row:
    target = Target(f"http://127.0.0.1:{port}")
    shots = await alone(target, [post(QUERY, body, media=MEDIA, accept="image/jpeg")])
    found = summarise(await closed_load(target, shots, clients=clients, seconds=seconds), seconds=seconds)
    target.close()
    assert found.p50_s is not None
    return {"requests_s": found.goodput, "p50_ms": found.p50_s * 1000}


def _ab(port: int, body: bytes, clients: int, seconds: int) -> Row:
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        said = subprocess.run(
            ["ab", "-q", "-k", "-c", str(clients), "-t", str(seconds), "-n", "1000000", "-p", file.name, "-T", MEDIA,
             "-H", "Accept: image/jpeg", f"http://127.0.0.1:{port}{QUERY}"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    if "Non-2xx" in said or "Failed requests:        0" not in said:
        raise SystemExit(said)
    return {"requests_s": _number(said, r"Requests per second: +([\d.]+)"), "p50_ms": _number(said, r"50% +(\d+)")}


def _number(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(text)
    return float(found[1])


if __name__ == "__main__":
    sys.exit(main())
