"""Videos: when a stream begins, how much longer an MP4 takes than raw frames, and the server's memory over many clips.

Clips are 480x832. A tiny VAE of Wan's architecture computes on the CPU, beside which the encoder has no core of its
own. A second VAE computes nothing and gives frames at a fixed pace, as a GPU does while the CPU is free. The times of
one clip's forms are taken by turns. Exits 1 if a goal is missed.

    python benchmarks/streams.py --json benchmarks/results/streams.json
"""

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from start import conditions, server

from remote_vae.protocol.multipart import PartsReader

PACED: Final = (str(Path(__file__).parent / "servers.py"), "paced")
CHANNELS, RATIO, GROUP, FPS = 16, 8, 4, 16
SIZE: Final = (480, 832)
LONG, DEFAULT = 8 * FPS + 1, 81  # frames
SMALL: Final = (9, 64, 96)  # frames, rows and columns of the clips that are many
MOST_SHARE, MOST_SECONDS, MOST_GROWTH = 0.25, 0.35, 1.05
RAW, MP4 = "output_type=pt&partial_postprocess=True", "output_type=mp4"
FORMS: Final = {
    "raw frames": (RAW, "tensor/binary"),
    "MP4": (MP4, "video/mp4"),
    "streamed MP4": (f"{MP4}&stream=true", "video/mp4"),
    "streamed frames": (f"{RAW}&stream=true", "multipart/mixed"),
}


def main() -> int:
    arguments = _arguments()
    paces = {f"{pace:g} frames a second": pace for pace in arguments.paces}
    with server(*PACED) as port:
        found = {name: _times(port, arguments.rounds, pace) for name, pace in paces.items()}
    with tempfile.TemporaryDirectory() as folder:
        with server(*_tiny_wan(folder)) as port:
            found["tiny Wan on the CPU"] = _times(port, arguments.cpu_rounds)
        with server(*_tiny_wan(folder)) as port:
            [process] = psutil.Process().children()
            memory = _memory(port, process, arguments.clips)
    document = {"conditions": conditions("av"), "cpu_rounds": arguments.cpu_rounds, "rounds": arguments.rounds}
    document |= {"clips": found, "memory": memory, "missed": _missed(found, memory)}
    print(json.dumps(document, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if document["missed"] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-rounds", type=int, default=1, help="with the VAE that computes on the CPU")
    parser.add_argument("--paces", type=float, nargs="*", default=[20.0, 40.0, 80.0], help="frames a second")
    parser.add_argument("--clips", type=int, default=500, help="small ones, for the memory")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def _tiny_wan(folder: str) -> tuple[str, ...]:
    """The command of a server of a VAE with Wan's factors and few channels."""
    if not list(Path(folder).iterdir()):
        import diffusers
        import torch

        torch.manual_seed(0)
        module: Any = diffusers.AutoencoderKLWan(base_dim=8, z_dim=CHANNELS, num_res_blocks=1)
        module.save_pretrained(folder)
    return "-m", "remote_vae.cli.main", "serve", "--model", f"wan2.1={folder}", "--port"


def _times(port: int, rounds: int, pace: float = 0.0) -> dict[str, Any]:
    """Of the clip of 8 s, the share of the time until the first frames of a stream; of the default one, all times."""
    shares: dict[str, list[float]] = {}
    for _ in range(rounds):
        for form in ("streamed MP4", "streamed frames"):
            first, total = _clip(port, form, (LONG, *SIZE), pace)
            shares.setdefault(form, []).append(first / total)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for form in FORMS:
            seconds.setdefault(form, []).append(_clip(port, form, (DEFAULT, *SIZE), pace)[1])
    raw = seconds["raw frames"]
    more = {
        form: statistics.median(own - least for own, least in zip(seconds[form], raw, strict=True))
        for form in ("MP4", "streamed MP4")
    }
    medians = {form: statistics.median(values) for form, values in shares.items()}
    return {"first_frames_share": medians, "more_seconds_than_raw": more, "shares": shares, "seconds": seconds}


def _clip(port: int, form: str, size: tuple[int, int, int], pace: float = 0.0) -> tuple[float, float]:
    """The seconds until the first frames of a reply could be shown, and until its end."""
    query, accept = FORMS[form]
    started = time.perf_counter()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        latent = _latent(size, pace)
        query = f"shape={','.join(map(str, latent.shape))}&dtype=float16&do_scaling=True&{query}"
        head = {"content-type": "tensor/binary", "accept": accept}
        connection.request("POST", f"/wan2.1/decode?{query}", latent.tobytes(), head)
        reply = connection.getresponse()
        if reply.status != 200:
            raise RuntimeError(f"{form} was answered with {reply.status}: {reply.read()!r}")
        begins = _first_part(reply.headers["content-type"]) if accept == "multipart/mixed" else _first_fragment()
        first = 0.0
        while chunk := reply.read1(1 << 20):
            if not first and begins(chunk):
                first = time.perf_counter() - started
        return first, time.perf_counter() - started


def _latent(size: tuple[int, int, int], pace: float) -> np.ndarray:
    """Smooth noise, because random weights would make a storm of white noise; its first value is the pace."""
    frames, height, width = size
    draw, groups = np.random.default_rng(0), 1 + (frames - 1) // GROUP
    one = draw.standard_normal((1, CHANNELS, 1, height // RATIO, width // RATIO)).cumsum(3).cumsum(4)
    drift = draw.standard_normal((1, CHANNELS, groups, 1, 1)).cumsum(2)
    latent = (one / np.abs(one).max() + drift / 10).astype(np.float16)
    latent[0, 0, 0, 0, 0] = pace
    return latent


def _first_fragment() -> Callable[[bytes], bool]:
    """Whether an MP4 has a whole fragment, an index and its frames, after these bytes more."""
    came = bytearray()

    def take(chunk: bytes) -> bool:
        nonlocal came
        came += chunk
        return any(name == b"mdat" for name in _whole_boxes(came))

    return take


def _whole_boxes(data: bytearray) -> Iterator[bytes]:
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4])
        if size < 8 or place + size > len(data):
            return
        yield bytes(data[place + 4 : place + 8])
        place += size


def _first_part(content_type: str) -> Callable[[bytes], bool]:
    reader = PartsReader(content_type, most_bytes=1 << 30)
    return lambda chunk: bool(list(reader.take(chunk)))


def _memory(port: int, process: psutil.Process, clips: int) -> dict[str, Any]:
    """The resident MB of the server and of each process of it, after a tenth of the clips and after all."""
    looks = {}
    for number, form in enumerate(islice(cycle(FORMS), clips), 1):
        _clip(port, form, SMALL)
        if number in (clips // 10, clips):
            tree = [process, *process.children(recursive=True)]
            looks[number] = [round(one.memory_info().rss / 1e6, 1) for one in tree]
    (_, early), (_, late) = looks.items()
    return {"resident_mb": looks, "growth": sum(late) / sum(early)}


def _missed(found: dict[str, Any], memory: dict[str, Any]) -> list[str]:
    """The goals that were missed. The encoder overlaps only if the VAE leaves it a core."""
    missed = []
    for name, times in found.items():
        for form, share in times["first_frames_share"].items():
            if share > MOST_SHARE:
                missed.append(f"{name}: {form} begins after {share:.0%}")
        for form, more in times["more_seconds_than_raw"].items():
            if more > MOST_SECONDS:
                missed.append(f"{name}: {form} takes {more:.2f} s more than raw frames")
    if memory["growth"] > MOST_GROWTH:
        missed.append(f"the memory grew to {memory['growth']:.2f} times")
    return missed


if __name__ == "__main__":
    sys.exit(main())
