"""How much longer the first request of a shape takes than a later one: `python benchmarks/first_request.py`.

A server for each model, on loopback, with seeded random weights of the true architecture in float32 on the CPU. It is
asked ten times to decode a latent, then ten times to encode what came of it, if the model encodes, then four times to
decode a second size. The first request has to do what later ones find done: predictions of plans, kernels, memory,
libraries. Latents are small, because a fixed cost is the largest part of a small request. Beside the seconds stand
those of the cores, which other work on the machine changes less. Exits 1 if a first request took more than twice as
long as the median of the last three. A run that is stopped keeps the rows of the models before; `--add` adds others.

    python benchmarks/first_request.py --json benchmarks/results/first_request.json
"""

import http.client
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import psutil
import typer
from command import run
from start import conditions, server
from table import rows_in

from remote_vae.cli.terminal import console
from remote_vae.errors import InvalidValue

# Models of each structure. Rows and columns of the first latent and of the second, in cells; videos have latent frames
# before them.
CASES: Final[dict[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "sd1": ((16, 16), (12, 20)),
    "sdxl": ((16, 16), (12, 20)),
    "flux1": ((16, 16), (12, 20)),
    "qwen-image": ((16, 16), (12, 20)),
    "hunyuan-image-2.1": ((5, 5), (4, 6)),
    "sana": ((5, 5), (4, 6)),
    "taesd": ((8, 8), (16, 16)),
    "wan2.1": ((2, 6, 8), (3, 4, 6)),
    "hunyuanvideo": ((2, 4, 6), (3, 4, 4)),
    "hunyuanvideo-1.5": ((1, 3, 3), (2, 2, 3)),
    "ltx2": ((2, 3, 4), (3, 2, 3)),
    "cogvideox": ((1, 6, 8), (2, 4, 6)),
    "mochi": ((2, 5, 6), (3, 4, 4)),
    "taehv": ((2, 8, 8), (3, 16, 16)),
}
TIMES: Final = 10
TIMES_SECOND: Final = 4  # requests of the second size; the median of the last three is to be without the first
MOST_RATIO: Final = 2.0
CLOCK: Final = 0.01  # the step in which CPU time is told
COMMAND: Final = ("--random-weights", "--dtype", "float32", "--device", "cpu", "--max-client-share", "1", "--port")
BINARY: Final = "tensor/binary"


def main(
    models: Annotated[str, typer.Option(help="names, comma-separated")] = ",".join(CASES),
    add: Annotated[bool, typer.Option("--add", help="keep rows of other models in the file")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where rows are written")] = None,
) -> None:
    """Prints a row for each model, direction and size, and writes them as JSON if asked."""
    rows = rows_in(json_file) if add else []
    for model in models.split(","):
        if model not in CASES:
            raise InvalidValue(f"model {model!r} is not one of {', '.join(CASES)}", name="models")
        with (
            server("-m", "remote_vae.cli.main", "serve", "--model", model, *COMMAND) as port,
            closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection,
        ):
            rows = [row for row in rows if row["model"] != model] + measure(connection, model)
        if json_file is not None:
            document = {"conditions": conditions("diffusers"), "most_ratio": MOST_RATIO, "rows": rows}
            json_file.write_text(json.dumps(document, indent=1) + "\n")
    missed = [f"{row['model']} {row['what']} {row['ratio']:.1f}" for row in rows if row["ratio"] > MOST_RATIO]
    if missed:
        console.print(f"above {MOST_RATIO:g} times the later requests: {', '.join(missed)}")
        raise SystemExit(1)


def measure(connection: http.client.HTTPConnection, model: str) -> list[dict[str, Any]]:
    """The rows of a model: decode, encode, and decode of a second size."""
    connection.request("GET", "/models")
    card = json.loads(connection.getresponse().read())["models"][0]
    first, second = (latent(card, cells) for cells in CASES[model])
    found, pixels = ask(connection, "decode", first, TIMES)
    rows = [row(model, "decode", first, found)]
    if card["encodes"]:
        found, _ = ask(connection, "encode", pixels, TIMES)
        rows.append(row(model, "encode", pixels, found))
    found, _ = ask(connection, "decode", second, TIMES_SECOND)
    return [*rows, row(model, "second size", second, found)]


def latent(card: dict[str, Any], cells: Sequence[int]) -> np.ndarray:
    """Small noise in the first layout of the model's card."""
    names = card["latent_layouts"][0].split()
    sizes = {"b": 1, "c": card["latent_channels"], **dict(zip("whf", reversed(cells), strict=False))}
    shape = [sizes[name] for name in names]
    return (np.random.default_rng(0).standard_normal(shape) / 4).astype(np.float16)


def ask(
    connection: http.client.HTTPConnection, operation: str, values: np.ndarray, times: int
) -> tuple[dict[str, list[float]], np.ndarray]:
    """The seconds, and those of the cores, of each of so many equal requests; and what the last one was answered."""
    query = f"shape={','.join(map(str, values.shape))}&dtype={values.dtype.name}&do_scaling=True"
    if operation == "decode":
        query += "&output_type=pt&partial_postprocess=True"
    found: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    head = {"content-type": BINARY, "accept": BINARY}
    for _ in range(times):
        started, cpu = time.perf_counter(), cpu_seconds()
        connection.request("POST", f"/{operation}?{query}", values.tobytes(), head)
        reply = connection.getresponse()
        body = reply.read()
        found["seconds"].append(time.perf_counter() - started)
        found["cpu_seconds"].append(cpu_seconds() - cpu)
        if reply.status != 200:
            raise RuntimeError(f"{operation} was answered with {reply.status}: {body[:500]!r}")
    pixels = np.frombuffer(body, reply.headers["dtype"]).reshape(json.loads(reply.headers["shape"]))
    return found, pixels if pixels.ndim == values.ndim else pixels[None]  # one video comes without its batch


def cpu_seconds() -> float:
    """CPU time of the server's processes."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in times)


def row(model: str, what: str, values: np.ndarray, found: dict[str, list[float]]) -> dict[str, Any]:
    """Prints a row and returns it; of later requests the median of three tells, because small ones are noisy."""
    first, later = ({name: of(each) for name, each in found.items()} for of in (itemgetter(0), last_three))
    ratio, size = first["seconds"] / later["seconds"], "x".join(map(str, values.shape))
    cpu = first["cpu_seconds"] / max(later["cpu_seconds"], CLOCK)
    console.print(
        f"{model:18} {what:12} {size:16} first {first['seconds']:6.2f} s, later {later['seconds']:6.2f}, "
        f"ratio {ratio:.2f}; of the cores {first['cpu_seconds']:6.2f}, {later['cpu_seconds']:6.2f}, ratio {cpu:.2f}"
    )
    return {"model": model, "what": what, "shape": values.shape, "ratio": ratio, "cpu_ratio": cpu, **found}


def last_three(values: list[float]) -> float:
    return statistics.median(values[-3:])


if __name__ == "__main__":
    run(main)
