"""The process that measures one job of `gpu_run.py`: `python benchmarks/gpu_measure.py JOB DEVICE FILE`.

It appends a line to the file for each row.

Every way starts with a latent or a picture on the device and ends with what a server sends: pixels of 8 bits, or the
parameters of the posterior, in the host's memory. diffusers' ways run a module of their own, in the layout in which
diffusers loads it, because ours changes the layout of its weights on a GPU.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from decode_cases import OURS, Row
from decode_measure import SEED, about
from gpu_plan import COMPILED, EAGER, Item, Job

from remote_vae.cli.compare import psnr_db
from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.pixels import channels_last, pictures_of, signed, to_uint8, to_unit
from remote_vae.core.recipe import Recipe
from remote_vae.engine.memory import free_bytes
from remote_vae.models.families import family_of, find_model
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Posterior, Scaling

Found = tuple[torch.Tensor, str | None]  # the output in the host's memory, and the plan
Run = Callable[[], Found]
MOST_REPEATS, REPEAT_SECONDS = 7, 1.5
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def main(job_text: str, device: str, file: str) -> None:
    job = Job.from_json(json.loads(job_text))
    deadline = time.monotonic() + job.seconds
    spec = ModelSpec(job.model, device=device, random_weights=True)
    vae, recipe = load(spec), spec.resolve_recipe()
    plain = Plain(job.model, vae)
    with Path(file).open("a") as out, torch.inference_mode():
        for item in job.items:
            reference: np.ndarray | None = None
            for way in sorted(item.ways, key=lambda way: way != EAGER):  # the others are compared with it
                row, output = measure(job.model, item, way, vae, recipe, plain, reference, deadline)
                reference = output if way == EAGER else reference
                out.write(json.dumps(asdict(row)) + "\n")
                out.flush()


class Plain:
    """diffusers' module as a user has it, and how its family calls it."""

    def __init__(self, name: str, vae: DiffusersVAE) -> None:
        model = find_model(name)
        assert model is not None
        family = family_of(model)
        self.module = torch.nn.Module.to(copy.deepcopy(vae.module), memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.calls = {"decode": family.decode, "encode": family.encode}

    @contextmanager
    def ready(self, way: str, direction: str, axes: int) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """The call of a way, while the module is prepared for it."""
        call, last = self.calls[direction], LAYOUTS[axes]
        assert call is not None
        layout = last if way in ("diffusers-channels-last", COMPILED) else torch.contiguous_format
        self._lay(layout)
        if way == "diffusers-tiled":
            self.module.enable_tiling()
        run = torch.compile(call, dynamic=False) if way == COMPILED else call
        try:
            yield lambda given: run(self.module, given.contiguous(memory_format=layout))
        finally:
            if way == "diffusers-tiled":
                self.module.disable_tiling()
            self._lay(torch.contiguous_format)

    def _lay(self, layout: torch.memory_format) -> None:
        axes = {torch.channels_last: 4, torch.channels_last_3d: 5}.get(layout, 0)
        for weight in self.module.parameters():
            if weight.ndim == axes or not axes:
                weight.data = weight.data.contiguous(memory_format=layout)


def measure(
    model: str,
    item: Item,
    way: str,
    vae: DiffusersVAE,
    recipe: Recipe,
    plain: Plain,
    reference: np.ndarray | None,
    deadline: float,
) -> tuple[Row, np.ndarray | None]:
    """The row of one way, and its output. What fails is a row with the reason."""
    found = about(vae.device)
    head = {"variant": way, "model": model, "direction": item.direction, "size": item.height}
    head |= {"dtype": str(vae.dtype).removeprefix("torch."), "chosen": way == OURS}
    if time.monotonic() > deadline:
        return Row(**head, **found, error="no time was left"), None
    try:
        given = given_for(vae, item)
        with plain.ready(way, item.direction, given.ndim) as call:
            run = ours(vae, recipe, given, item.direction) if way == OURS else theirs(vae, call, given, item.direction)
            timed, output = timings(run, vae.device, deadline)
    except Exception as exc:  # noqa: BLE001  # boundary: how a way fails is a result
        error = f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"
        if vae.device.type == "cuda":
            torch.cuda.empty_cache()
        return Row(**head, **found, error=error), None
    return Row(**head, **found, **timed, **quality(output, reference, item.direction)), output


def given_for(vae: DiffusersVAE, item: Item) -> torch.Tensor:
    """The same seeded latent, or smooth picture in [-1, 1], for every way, on the device."""
    generator, ratio = torch.Generator().manual_seed(SEED), vae.info.spatial_compression_ratio
    cells = item.height // ratio, item.width // ratio
    video = [vae.info.frames.latent(item.frames)] if item.frames else []
    if item.direction == "decode":
        has_frames = [*video] or ([1] if _takes_frames(vae) else [])
        found = torch.randn(1, vae.info.latent_channels, *has_frames, *cells, generator=generator)
    else:
        coarse = torch.rand(1, vae.info.pixel_channels, *cells, generator=generator)
        found = signed(torch.nn.functional.interpolate(coarse, size=(item.height, item.width), mode="bilinear"))
        found = found.unsqueeze(2) if _takes_frames(vae) else found
    return found.to(vae.device, vae.dtype)


def _takes_frames(vae: DiffusersVAE) -> bool:
    return any(isinstance(part, torch.nn.Conv3d) for part in vae.module.modules())


def ours(vae: DiffusersVAE, recipe: Recipe, given: torch.Tensor, direction: str) -> Run:
    """As the server's replica runs it, with what the device has free."""
    wire = given[:, :, 0] if given.ndim == 5 and not recipe.has_frames else given

    def run() -> Found:
        options = RunOptions(None, lambda: free_bytes(vae.device))
        if direction == "encode":
            unit = (wire.float() + 1) / 2
            done = encode(vae, recipe, unit, scaling=Scaling(), posterior=Posterior.PARAMETERS, options=options)
        else:
            fit = fit_latent(recipe, vae.info, tuple(wire.shape), model="", height=None, width=None)
            done = decode(vae, recipe, wire, fit=fit, scaling=Scaling(), output=Output.UINT8, options=options)
        return done.tensor, done.plan

    return run


def theirs(vae: DiffusersVAE, call: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor, direction: str) -> Run:
    def run() -> Found:
        found = call(given)
        pixels = channels_last(to_uint8(to_unit(pictures_of(found)))) if direction == "decode" else found
        return pixels.cpu(), None

    return run


def timings(run: Run, device: torch.device, deadline: float) -> tuple[dict[str, object], np.ndarray]:
    """Median seconds after a first call, those of the first call, the most bytes of one more call, and the output."""
    started = time.perf_counter()
    output, plan = run()
    first = time.perf_counter() - started
    seconds: list[float] = []
    while not seconds or (
        len(seconds) < MOST_REPEATS and sum(seconds) < REPEAT_SECONDS and time.monotonic() < deadline
    ):
        started = time.perf_counter()
        run()  # its output comes to the host, so that it is done when it returns
        seconds.append(time.perf_counter() - started)
    peak = peak_bytes(run, device)
    timed = {"seconds": statistics.median(seconds), "first_seconds": first, "peak_bytes": peak, "plan": plan}
    return timed, output.float().numpy()


def peak_bytes(run: Run, device: torch.device) -> int:
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with LiveBytes() as live:
        run()
    return live.peak


def quality(output: np.ndarray, reference: np.ndarray | None, direction: str) -> dict[str, float | None]:
    """The distance from diffusers' eager output in the same precision: levels of 8 bits, or values of the posterior."""
    if reference is None or reference.size != output.size:
        return {}
    there = reference.reshape(output.shape)
    span = 255.0 if direction == "decode" else float(there.max() - there.min())
    decibels = psnr_db(output, there, peak=span)
    return {"max_abs": float(np.abs(output - there).max()), "psnr_db": decibels if np.isfinite(decibels) else None}


if __name__ == "__main__":
    main(*sys.argv[1:])
