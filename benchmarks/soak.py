"""Many good requests, and what stays of them: memory by request, file descriptors, threads, processes, shared memory.

The demo VAE decodes and encodes small pictures of several sizes and forms for some clients that wait for their answers;
every body is compared with the one that the same request got alone. Between bursts the server and its processes are
looked at. `--leak` runs the same against a server that keeps 1 KiB of each request, and must say so: what this does not
find there is not there. Exits 1 when something stayed, or with `--leak` when nothing was found.

    python benchmarks/soak.py --json benchmarks/results/soak.json
"""

import argparse
import asyncio
import io
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from load import Answer, Target, alone, closed_load, post
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from start import conditions, server

HERE = Path(__file__).parent
COMMANDS = {
    "sound": ("-m", "remote_vae.cli.main", "serve", "--max-client-share", "1", "--port"),
    "leaking": (str(HERE / "servers.py"), "leaking"),
}
CHANNELS, RATIO = 16, 8
SIDES = (8, 16, 32)
BURST_SECONDS, QUIET_SECONDS = 5.0, 0.5
WARM_UP = 0.2  # of the requests: allocators and caches fill first
MOST_KIB = 0.5


@dataclass(frozen=True, slots=True)
class Look:
    """What a server and its processes hold after so many requests. *Units*: bytes; shared memory in segments."""

    requests: int
    memory: int
    descriptors: int
    threads: int
    processes: int
    shared: int


def main() -> int:
    arguments = _arguments()
    with server(*COMMANDS["leaking" if arguments.leak else "sound"]) as port:
        [process] = psutil.Process().children()
        answers, looks = asyncio.run(_soak(port, process, arguments))
    slope, left = kib_a_request(looks), what_stayed(looks)
    found = {
        "requests": len(answers),
        "not_right": sum(not answer.right for answer in answers),
        "kib_a_request": slope,
        "stayed": left,
    }
    print(json.dumps(found, indent=1))
    if arguments.json is not None:
        document = {"conditions": conditions("starlette", "uvicorn"), "leak": arguments.leak, **found}
        arguments.json.write_text(json.dumps(document | {"looks": [asdict(look) for look in looks]}, indent=1) + "\n")
    if arguments.leak:
        return 0 if slope > MOST_KIB else 1
    return 0 if found["not_right"] == 0 and slope <= MOST_KIB and not left else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--leak", action="store_true", help="the positive control")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


async def _soak(port: int, process: psutil.Process, arguments: argparse.Namespace) -> tuple[list[Answer], list[Look]]:
    target = Target(f"http://127.0.0.1:{port}")
    shots = await alone(target, _requests())
    answers: list[Answer] = []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("requests", total=arguments.requests)
        await closed_load(target, shots, clients=arguments.clients, seconds=BURST_SECONDS)
        looks = [_look(process, 0)]
        while len(answers) < arguments.requests:
            answers += await closed_load(target, shots, clients=arguments.clients, seconds=BURST_SECONDS)
            time.sleep(QUIET_SECONDS)
            looks.append(_look(process, len(answers)))
            progress.update(bar, completed=len(answers))
    target.close()
    return answers, looks


def _requests() -> list[bytes]:
    """Decodes of seeded noise to each form, and encodes, of each size."""
    draw = np.random.default_rng(0)
    found = []
    for side in SIDES:
        cells = side // RATIO
        latent = draw.standard_normal((1, CHANNELS, cells, cells)).astype(np.float16).tobytes()
        query = f"?shape=1,{CHANNELS},{cells},{cells}&dtype=float16&do_scaling=True"
        for accept in ("image/jpeg", "image/png", "tensor/binary"):
            form = "&output_type=pt" if accept == "tensor/binary" else ""
            found.append(post(f"/demo/decode{query}{form}", latent, media="tensor/binary", accept=accept))
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 255, (side, side, 3), np.uint8)).save(file, "PNG")
        query = "/demo/encode?posterior=mode"
        found.append(post(query, file.getvalue(), media="image/png", accept="tensor/binary"))
    return found


def _look(process: psutil.Process, requests: int) -> Look:
    """Of the whole tree; memory is what each process has for itself and its share of what it has with others."""
    tree = [process, *process.children(recursive=True)]
    return Look(
        requests,
        memory=sum(one.memory_full_info().pss for one in tree),
        descriptors=sum(one.num_fds() for one in tree),
        threads=sum(one.num_threads() for one in tree),
        processes=len(tree),
        shared=len(list(Path("/dev/shm").iterdir())),
    )


def kib_a_request(looks: list[Look]) -> float:
    """The slope of memory over requests, by least squares, without the warm-up."""
    warm = [look for look in looks if look.requests >= WARM_UP * looks[-1].requests]
    slope, _ = np.polyfit([look.requests for look in warm], [look.memory / 1024 for look in warm], 1)
    return float(slope)


def what_stayed(looks: list[Look]) -> dict[str, int]:
    """What there is more of at the end than after the first burst."""
    first, last = asdict(looks[0]), asdict(looks[-1])
    names = ("descriptors", "threads", "processes", "shared")
    return {name: last[name] - first[name] for name in names if last[name] > first[name]}


if __name__ == "__main__":
    sys.exit(main())
