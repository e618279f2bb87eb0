"""The process that measures one case: `python benchmarks/decode_measure.py CASE FILE` writes a Row as JSON."""

import json
import math
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from decode_cases import REFERENCE, VARIANTS, Case, Row
from decode_rivals import OPAQUE, Run, prepare

from remote_vae.cli.compare import psnr_db
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.recipe import Recipe
from remote_vae.errors import InvalidValue, NonFiniteOutput, RemoteVAEError, SetupError
from remote_vae.models.fast_import import open_model
from remote_vae.models.loader import resolve_device
from remote_vae.models.vae import DiffusersVAE

SEED = 0
RESET_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def main(case_text: str, file: str) -> None:
    case = Case.from_json(case_text)
    row = Row(case.variant, case.spec["name"], case.direction, case.size, case.spec["dtype"], case.plan)
    found: dict[str, Any] = {}
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    try:
        found |= about(resolve_device(case.spec["device"]))
        found |= measure(case)
    except RemoteVAEError as exc:
        found["error"] = exc.message
    except Exception as exc:  # noqa: BLE001  # boundary: how a rival fails is a result
        found["error"] = f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"
    Path(file).write_text(json.dumps(asdict(row) | found))


@torch.inference_mode()
def measure(case: Case) -> dict[str, Any]:
    """The fields of the row that were measured. *Raises* whatever the variant does."""
    only = VARIANTS[case.variant].only
    vae, recipe = open_model(case.spec)
    if only is not None and vae.device.type != only:
        raise SetupError(f"runs on {only} only")
    given = make_input(vae, recipe, case)
    before = _reset_peaks(vae.device)
    started = time.perf_counter()
    run = prepare(case.variant, vae, recipe, given, decoding=case.direction == "decode", plan=case.plan)
    output, plan = run()
    if not torch.isfinite(output).all():
        raise NonFiniteOutput("the output holds NaN or infinity")
    found: dict[str, Any] = {"first_seconds": time.perf_counter() - started, "plan": plan}
    found["seconds"] = statistics.median(_seconds(run) for _ in range(case.repeats))
    found["rss_bytes"] = _grown(before)
    found["peak_bytes"] = _peak_bytes(case.variant, run, vae.device)
    return found | _quality(case, output.numpy())


def make_input(vae: DiffusersVAE, recipe: Recipe, case: Case) -> torch.Tensor:
    """The same seeded latent, or smooth picture in [0, 1], for every variant. *Raises* InvalidValue, SetupError."""
    ratio = vae.info.spatial_compression_ratio
    if recipe.has_frames:
        raise SetupError("video models are not benchmarked; only those of single pictures")
    if case.size % ratio:
        raise InvalidValue(f"size {case.size} is not a multiple of {ratio}, this model's ratio", name="sizes")
    generator, side = torch.Generator().manual_seed(SEED), case.size // ratio
    if case.direction == "decode":
        return torch.randn(1, vae.info.latent_channels, side, side, generator=generator)
    coarse = torch.rand(1, vae.info.pixel_channels, side, side, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(case.size, case.size), mode="bilinear")


def about(device: torch.device) -> dict[str, Any]:
    """Which device it is, how much memory it has, how many threads torch takes."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, size = properties.name, properties.total_memory
    else:
        name, size = _cpu_name(), psutil.virtual_memory().total
    threads = torch.get_num_threads()
    return {"device": device.type, "device_name": name, "device_bytes": size, "threads": threads}


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


def _seconds(run: Run) -> float:
    started = time.perf_counter()
    run()  # its output comes to the CPU, so that it is done when it returns
    return time.perf_counter() - started


def _reset_peaks(device: torch.device) -> int:
    """Bytes that the process has now, from which on its peak is counted; 0 where the system does not count so."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        RESET_PEAK.write_text("5")
    except OSError:
        return 0
    return int(psutil.Process().memory_info().rss)


def _grown(before: int) -> int | None:
    if not before:
        return None
    peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 - before


def _peak_bytes(variant: str, run: Run, device: torch.device) -> int | None:
    """Of one more call. On a GPU what was there before it, the weights, is not counted."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    if device.type != "cpu" or variant in OPAQUE:
        return None
    with LiveBytes() as live:
        run()
    return int(live.peak)


def _quality(case: Case, output: np.ndarray) -> dict[str, float | None]:
    path = Path(case.reference)
    if case.variant == REFERENCE:
        np.save(path, output)
    if not path.is_file():
        return {}
    reference = np.load(path)
    span = 2.0 if case.direction == "decode" else float(reference.max() - reference.min())
    decibels = psnr_db(output, reference, peak=span)
    return {
        "max_abs": float(np.abs(output - reference).max()),
        "psnr_db": decibels if math.isfinite(decibels) else None,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
