"""What the server says when it is ready: on which device it runs, how large a picture may be, and what to do next."""

import math
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.markup import escape

from remote_vae import __version__

if TYPE_CHECKING:
    from remote_vae.engine.place import Loaded, Place
    from remote_vae.server.settings import Settings

GPUS: Final = {  # files by which a system shows that a driver has found a GPU
    "dev/nvidiactl": "an NVIDIA GPU",
    "proc/driver/nvidia/version": "an NVIDIA GPU",
    "dev/kfd": "an AMD GPU",
    "dev/dxg": "a GPU of Windows",
}
REVISION: Final = 7  # digits of a commit
GB: Final = 1e9


def banner(settings: "Settings", address: str, models: "list[Loaded]", *, root: Path = Path("/")) -> Iterator[str]:
    """The lines, in the markup of rich. `root` is where the files of devices are looked for."""
    yield f"[green]ready[/] remote-vae {__version__}, at {address}"
    for model in models:
        yield from (f"  {line}" for line in _about(model, settings))
    yield f"  page and API  {address} and {address}/docs"
    if models:
        yield f'  diffusers     [bold]vae = RemoteVAE("{address}/{models[0].name}")[/], from remote_vae'
    yield f"  access        {_access(settings)}"
    yield "  to stop       Ctrl-C; accepted work is finished first, and a second Ctrl-C stops at once"
    on_cpu = any(place.device == "cpu" for model in models for place in model.places)
    if settings.device == "auto" and on_cpu and (gpu := unused_gpu(root)):
        yield f"[bold yellow]warning[/] {escape(gpu)}"


def _about(model: "Loaded", settings: "Settings") -> Iterator[str]:
    name = f"[bold]{escape(model.name)}[/]"
    if model.info is None:
        yield f"{name}  is loaded when it is first asked for" if settings.lazy else f"{name}  is not loaded yet"
        return
    info = model.info
    revision = (
        f"@{info.revision[:REVISION]}" if len(info.revision) > REVISION else info.revision and f", {info.revision}"
    )
    yield f"{name}  {escape(info.source + revision)}, {info.dtype}, loaded in {model.seconds:.1f} s"
    for place in dict.fromkeys(map(_where, model.places)):
        yield f"    on {escape(place)}"
    limit = min(settings.max_side, math.isqrt(settings.max_pixels))
    least = min(model.places, key=lambda place: place.free_bytes or 0) if model.places else None
    sizes = [f"{side}x{side} by plan {plan}" for plan, side in _sides(least, limit).items()]
    if sizes:
        yield f"    decodes up to {', '.join(sizes)}"


def _sides(place: "Place | None", limit: int) -> dict[str, int]:
    """By plan; a plan that reaches no further than one before it is left out."""
    found: dict[str, int] = {}
    for plan, side in place.largest.items() if place else ():
        if min(side, limit) > max(found.values(), default=0):
            found[plan] = min(side, limit)
    return found


def _where(place: "Place") -> str:
    free = "" if place.free_bytes is None else f"{place.free_bytes / GB:.1f} of "
    return f"{place.device} ({place.title}), {free}{place.total_bytes / GB:.1f} GB{' free' if free else ''}"


def _access(settings: "Settings") -> str:
    if settings.host in ("127.0.0.1", "::1", "localhost"):
        here = "only this machine can reach it"
        return here if settings.keys or settings.keys_file else f"{here}; --host and --keys-file let others in"
    if settings.keys or settings.keys_file:
        return "every machine that reaches this address, with an API key"
    return "every machine that reaches this address, [bold]without a key[/]"


def unused_gpu(root: Path) -> str | None:
    """A sentence about a GPU that the machine has, for a server that runs on the CPU."""
    found = next((what for name, what in GPUS.items() if (root / name).exists()), None)
    if found is None:
        return None
    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "torch"
    return (
        f"this machine has {found}, but {torch} cannot use it, so the CPU does the work; install the PyTorch for the "
        f"GPU by the command of https://pytorch.org/get-started/locally/ or say --device cpu"
    )
