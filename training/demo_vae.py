"""Trains the embedded demo VAE from nothing, on a CPU in about an hour, and measures it on pictures it has not seen.

python training/demo_vae.py --minutes 50
python training/demo_vae.py --minutes 50 --seed 1 --resume
python training/demo_vae.py --evaluate
"""

import copy
import hashlib
import json
import math
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from images import OTHERS, PHOTOGRAPHS, Pictures
from measure import measure, measure_linear
from muon import Muon
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from start import fit_linear
from torch import Tensor

from remote_vae.core.filters import arithmetic

FOLDER = Path(__file__).parents[1] / "src/remote_vae/models/demo"
CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 48, 64, 96),
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 1,  # torch takes the step back through one group ten times faster than through several
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": False,
    "sample_size": 512,
}
LEARNING_RATE = 1.2e-3
WARM_UP = 200  # steps
KL_WEIGHT = 1e-5  # only keeps the latents from drifting apart; the picture is what counts
LOG_VARIANCE = -8.0  # at the start: with unit noise, the first steps would only learn to outshout it
EMA_DECAY = 0.998
BATCH, SIDE = 3, 160  # few but large: a norm sees a whole picture, and shall see almost as much in training
PROCEDURAL = 600
MOST_BYTES = 4_000_000
PRECISION = arithmetic(torch.bfloat16, torch.device("cpu"))
CARD = """---
license: apache-2.0
library_name: diffusers
---

# The demo VAE

A small `AutoencoderKL` that shows the whole road from picture to latent to picture without a download. Spatial
ratio 8, {channels} latent channels, {parameters:,} parameters, {size:,} bytes of fp16 weights. It belongs to no
diffusion model.

**Data**: the {pictures} pictures that come with scikit-image at several sizes, its small set of faces, and
{procedural} procedural pictures: dead leaves, 1/f noise, stripes, text. Nothing else.

**Training**: from {start}; then {steps:,} steps of {pixels:,} pixels in {minutes:g} minutes
on a CPU ({machine}; {threads} thread(s)) in {precision}, seed {seed}. The loss is a power of each crop's
squared error and a very small KL term; Muon and AdamW; the weights are an exponential average.

**Measured**: round trip through the posterior's mode with these weights in fp32, pictures as uint8, on scikit-learn's
two sample photographs, which training does not see. Beside it the best linear code of the same size, PCA of 8x8 RGB
patches with {channels} components: fitted on the photographs of the training data, and on the very picture it is then
measured on. PSNR in dB:

| photograph | this model | PCA | PCA of the picture itself |
|---|--:|--:|--:|
{rows}

**Again**: `python training/demo_vae.py --minutes {minutes:g} --seed {seed}{again}`; only measured: `--evaluate`.
Training ends by the clock, so another machine takes another number of steps.
"""
console = Console()


class Run(NamedTuple):
    """What a training run was given and did."""

    minutes: float
    seed: int
    resumed: bool
    steps: int = 0


def main(
    minutes: Annotated[float, typer.Option(help="Of training; the learning rate falls over this time.")] = 50,
    seed: int = 0,
    output: Path = FOLDER,
    resume: Annotated[bool, typer.Option("--resume", help="Start from the weights that are there.")] = False,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Only measure the weights that are there.")] = False,
) -> None:
    """Train, write the folder and print the figures."""
    if evaluate:
        console.print(measure(load(output)))
        return
    torch.manual_seed(seed)
    pictures = Pictures(np.random.default_rng(seed), PROCEDURAL)
    start = load(output).train() if resume else create(pictures)
    model, run = train(start.to(memory_format=torch.channels_last), pictures, Run(minutes, seed, resume))
    with tempfile.TemporaryDirectory(dir=output.parent) as name:
        fresh = Path(name)
        write(model, pictures, fresh)
        text = card(run, load(fresh), weights_of(fresh).stat().st_size)
        (fresh / "README.md").write_text(text)
        install(fresh, output)
    console.print(text, markup=False)


def load(folder: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)


def create(pictures: Pictures) -> AutoencoderKL:
    """The model before training, as good as a linear one can be."""
    model = AutoencoderKL(**CONFIG)
    fit_linear(model, pictures.batch(48, SIDE), LOG_VARIANCE)
    return model


def optimisers_of(model: AutoencoderKL) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the layers between two others, AdamW for the first and last ones, biases and norms."""
    inner, outer = [], []
    for name, value in model.named_parameters():
        (outer if value.ndim < 4 or "conv_in" in name or "conv_out" in name else inner).append(value)
    return Muon(inner, LEARNING_RATE), torch.optim.AdamW(outer, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0)


def train(model: AutoencoderKL, pictures: Pictures, run: Run) -> tuple[AutoencoderKL, Run]:
    """The exponential average of the weights, and the run with the steps it took."""
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimisers = optimisers_of(model)
    started, steps, shown, budget = time.monotonic(), 0, 0.0, run.minutes * 60
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=budget)
        while (elapsed := time.monotonic() - started) < budget:
            rate = LEARNING_RATE * min(1, (steps + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * elapsed / budget))
            error = train_step(model, optimisers, rate, pictures.batch(BATCH, SIDE))
            blend(average, model, min(EMA_DECAY, (steps + 1) / (steps + 10)))
            steps, shown = steps + 1, 0.98 * shown + 0.02 * error if shown else error
            progress.update(task, completed=elapsed, description=f"step {steps}, {psnr_of(shown):.2f} dB")
            if steps % 100 == 0:
                console.print(f"{elapsed / 60:.1f} min, step {steps}, {psnr_of(shown):.2f} dB in training")
    return average, run._replace(steps=steps)


def train_step(
    model: AutoencoderKL, optimisers: tuple[torch.optim.Optimizer, ...], rate: float, batch: Tensor
) -> float:
    """One step; the mean squared error of the batch, as the geometric mean of its crops."""
    with torch.autocast("cpu", torch.bfloat16, enabled=PRECISION is torch.bfloat16):
        posterior = model.encode(batch).latent_dist
        decoded = model.decode(posterior.sample()).sample
    error = (decoded.float() - batch).pow(2).mean((1, 2, 3))
    # Less than the error itself: a busy crop, a hundred times worse than a smooth one, shall not drown it.
    loss = (error + 1e-5).pow(0.75).mean() + KL_WEIGHT * posterior.kl().sum() / batch.numel()
    model.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
    return float((error.detach() + 1e-6).log().mean().exp())


@torch.no_grad()
def blend(average: AutoencoderKL, model: AutoencoderKL, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def psnr_of(error: float) -> float:
    """dB of a mean squared error in [-1, 1]."""
    return 10 * math.log10(4 / error)


def weights_of(folder: Path) -> Path:
    return folder / "diffusion_pytorch_model.safetensors"


@torch.no_grad()
def write(model: AutoencoderKL, pictures: Pictures, folder: Path) -> None:
    """Config and fp16 weights in diffusers' layout, with the factors that make latents zero-mean and unit-size."""
    latents = model.encode(pictures.batch(128, 128)).latent_dist.mode()
    factors = {
        "scaling_factor": round(float(1 / latents.std()), 4),
        "shift_factor": round(float(latents.mean()), 4),
    }
    config = {"_class_name": "AutoencoderKL", **CONFIG, **factors}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    path = weights_of(folder)
    save_file(weights, path, metadata={"format": "pt"})
    path.with_name(path.name + ".sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


def install(fresh: Path, output: Path) -> None:
    """Move the files into place one by one, each whole, so that a reader never sees half of one."""
    size = sum(path.stat().st_size for path in fresh.iterdir())
    if size > MOST_BYTES:
        raise SystemExit(f"the folder has {size} bytes; at most {MOST_BYTES} go into the package")
    output.mkdir(parents=True, exist_ok=True)
    for path in fresh.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
        os.replace(path, output / path.name)


def card(run: Run, model: AutoencoderKL, size: int) -> str:
    """The model card, with the figures of this run."""
    channels = model.config.latent_channels
    figures, (learnt, known) = measure(model), measure_linear(channels)
    rows = "\n".join(f"| {name} | {figures[name]} | {learnt[name]} | {known[name]} |" for name in figures)
    return CARD.format(
        channels=channels,
        parameters=sum(value.numel() for value in model.parameters()),
        size=size,
        pictures=len(PHOTOGRAPHS) + len(OTHERS),
        procedural=PROCEDURAL,
        start="the weights of an earlier run" if run.resumed else "a linear code fitted in closed form",
        steps=run.steps,
        pixels=BATCH * SIDE * SIDE,
        minutes=run.minutes,
        seed=run.seed,
        again=" --resume" if run.resumed else "",
        threads=torch.get_num_threads(),
        precision=str(PRECISION).removeprefix("torch."),
        machine=f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        rows=rows,
    )


if __name__ == "__main__":
    typer.run(main)
