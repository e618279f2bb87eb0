"""A newcomer's ways to a first result, by the commands of the documentation: the seconds of each step.

    python benchmarks/newcomer.py --json benchmarks/results/newcomer.json

From an empty folder, each with a virtual environment of its own: clone to picture; a server beside a diffusers
pipeline, whose UNet is tiny and has random weights; the nodes, loaded and run as ComfyUI does it, without ComfyUI. What
the newcomer has already, such as torch in ComfyUI's Python, is installed before and is not in the sum. How long
packages take depends on where pip gets them.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from start import HERE, conditions, server

PIPELINE = """
import sys
from remote_vae import RemoteVAE
from small import pipeline, prompt
pipeline(RemoteVAE(sys.argv[1]))(**prompt(), num_inference_steps=4).images[0].save("first.png")
"""
COMFYUI = """
import importlib.util, sys, torch
from PIL import Image
folder = "ComfyUI/custom_nodes/remote-vae"
spec = importlib.util.spec_from_file_location(folder, folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules[folder] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
node = module.NODE_CLASS_MAPPINGS["RemoteVAEDecode"]
latent, url = {"samples": torch.zeros(1, 4, 32, 32)}, sys.argv[1]
assert node.VALIDATE_INPUTS(url, "sd1") is True
(pictures,) = getattr(node(), node.FUNCTION)(samples=latent, url=url, model="sd1")
Image.fromarray((pictures[0].numpy() * 255).astype("uint8")).save("first.png")
"""
Way = dict[str, float]


class Newcomer:
    """Runs commands in the folder of the clone, and takes their seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ways: dict[str, Way] = {}

    @contextmanager
    def step(self, way: str, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.ways.setdefault(way, {})[name] = round(time.perf_counter() - started, 1)

    def run(self, way: str, command: str) -> None:
        """A line of the documentation, in bash."""
        with self.step(way, command):
            self.quietly(command)

    def quietly(self, command: str) -> None:
        found = subprocess.run(["bash", "-c", command], cwd=self.folder, capture_output=True, text=True, check=False)
        if found.returncode:
            raise SystemExit(
                f"{command!r} ended with {found.returncode}:\n{found.stdout[-3000:]}{found.stderr[-3000:]}"
            )

    def picture(self, way: str, python: Path, script: str, url: str) -> None:
        """A script by which the first picture comes."""
        picture = self.folder / "first.png"
        with self.step(way, "first picture"):
            environment = {**os.environ, "PYTHONPATH": str(self.folder / "benchmarks")}
            subprocess.run([python, "-c", script, url], cwd=self.folder, env=environment, check=True)
        picture.unlink()


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Go each way once."""
    os.environ.pop("PYTHONPATH", None)  # a newcomer has none, and this checkout is not what is tried
    with tempfile.TemporaryDirectory(prefix="newcomer-") as empty:
        newcomer = Newcomer(Path(empty) / "remote-vae")
        clone_to_picture(newcomer)
        pipeline_and_comfyui(newcomer)
    table = Table("way", "step", "seconds")
    for way, steps in newcomer.ways.items():
        for name, seconds in {**steps, "sum": round(sum(steps.values()), 1)}.items():
            table.add_row(way, escape(name), f"{seconds:.1f}")
    Console().print(table)
    if json_file is not None:
        found = {"conditions": conditions("diffusers"), "ways": newcomer.ways}
        json_file.write_text(json.dumps(found, indent=2) + "\n")


def clone_to_picture(newcomer: Newcomer) -> None:
    way = "clone to picture"
    with newcomer.step(way, "git clone"):
        subprocess.run(["git", "clone", "--quiet", HERE.parent, newcomer.folder], check=True)
    newcomer.run(way, "make demo")
    if not (newcomer.folder / "demo-output" / "comparison.png").exists():
        raise SystemExit("make demo wrote no picture")
    with newcomer.step("the second time", "make demo"):
        newcomer.quietly("make demo")


def pipeline_and_comfyui(newcomer: Newcomer) -> None:
    """One server for both."""
    way, python = "install to a pipeline's picture", newcomer.folder / "mine" / "bin" / "python"
    newcomer.quietly(f"{sys.executable} -m venv mine && mine/bin/python -m pip install torch diffusers transformers")
    newcomer.run(way, "mine/bin/python -m pip install '.[server]'")
    started = time.perf_counter()
    with server(
        "-m", "remote_vae.cli.main", "serve", "--model", "sd1", "--random-weights", "--port", python=str(python)
    ) as port:
        newcomer.ways[way]["remote-vae serve --model sd1 --random-weights"] = round(time.perf_counter() - started, 1)
        url = f"http://127.0.0.1:{port}"
        newcomer.picture(way, python, PIPELINE, url)
        way, python = "ComfyUI's nodes to a picture", newcomer.folder / "ComfyUI" / "venv" / "bin" / "python"
        newcomer.quietly(f"mkdir -p ComfyUI/custom_nodes && {sys.executable} -m venv ComfyUI/venv")
        newcomer.quietly("ComfyUI/venv/bin/python -m pip install torch numpy pillow")
        newcomer.run(way, "cp -r integrations/comfyui ComfyUI/custom_nodes/remote-vae")
        newcomer.run(way, "ComfyUI/venv/bin/python -m pip install .")
        newcomer.picture(way, python, COMFYUI, url)


if __name__ == "__main__":
    typer.run(main)
