"""`remote-vae demo`: a photograph to a latent and back, in every form that the server can send."""

import base64
import contextlib
import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import httpx2
import numpy as np
import typer
from PIL import Image
from rich.markup import escape
from rich.table import Table

from remote_vae.cli.compare import psnr_db
from remote_vae.cli.files import check_output, read_file, write_file, write_tensor
from remote_vae.cli.terminal import console, human_bytes, show_table, working
from remote_vae.client import Client
from remote_vae.client.latents import array_of
from remote_vae.errors import ConfigurationError, InvalidReply, SetupError
from remote_vae.protocol.replies import parse_reply
from remote_vae.values import Tensor

FLOWER = resources.files("remote_vae.models") / "demo" / "flower.jpg"
JPEG_AGREES_DB = 30.0  # JPEG at quality 95 against the lossless picture


@dataclass
class Report:
    """What --json writes. *Units*: dB, bytes over the wire, milliseconds per stage, seconds."""

    model: str = ""
    psnr_db: float = math.nan
    bytes: dict[str, int] = field(default_factory=dict)
    stages_ms: dict[str, float] = field(default_factory=dict)
    total_s: float = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        with working(name.replace("_", " ")):
            yield
        self.stages_ms[name] = round((time.perf_counter() - started) * 1000, 1)


def demo(
    model: Annotated[str, typer.Option(help="The model, as for serve, or only a folder or hub id.")] = "demo",
    image: Annotated[Path | None, typer.Option(help="The picture to send.", show_default="a flower")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the pictures.")] = Path("demo-output"),
    json_file: Annotated[Path | None, typer.Option("--json", help="The file to write the figures to.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="The precision: float32, float16 or bfloat16.", show_default="the model's own")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Take seeded weights instead of a download.")
    ] = False,
) -> None:
    """Start a server, send it a photograph, get the latent, send it back, compare the pictures."""
    started, report = time.perf_counter(), Report(model=model)
    with working("reading the photograph"):
        photograph = _photograph(image)
    _make_folder(output)
    if json_file is not None:
        check_output(json_file, (json_file.suffix.lower(),))
    options = [*(["--dtype", dtype] if dtype else []), *(["--random-weights"] if random_weights else [])]
    with _server(_spec_text(model), options, report) as url, Client(url, timeout=600) as client:
        decoded = _round_trip(client, url, photograph, report, output)
    report.psnr_db = round(psnr_db(np.asarray(photograph), np.asarray(decoded), peak=255), 2)
    _side_by_side(photograph, decoded).save(output / "comparison.png")
    report.total_s = round(time.perf_counter() - started, 2)
    _show(report, output)
    if json_file is not None:
        write_file(json_file, (json.dumps(vars(report), indent=2) + "\n").encode())


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"folder {path} cannot be made: {exc.strerror}") from exc


def _spec_text(model: str) -> str:
    """What serve takes for `model`, which may also be a folder or hub id alone.

    A round trip undoes its own normalisation, so of the recipes only the layout and the constants' names matter.
    """
    from remote_vae.models.families import MODELS, find_model, recipes_for

    source, comma, options = model.partition(",")
    if "=" in source or find_model(source) is not None:
        return model
    of_repository = (name for name, known in MODELS.items() if known.repository == source)
    config = _config_in(Path(source))
    recipe = next(iter((*of_repository, *(recipes_for(config) if config else ()), "sd3")))
    return f"model={source},recipe={recipe}{comma}{options}"


def _config_in(folder: Path) -> dict[str, object]:
    """The config of the VAE in a folder of diffusers' layout; empty if there is no such folder, as for a hub id."""
    for place in (folder / "config.json", folder / "vae" / "config.json"):
        if place.is_file():
            with contextlib.suppress(ValueError, AttributeError):  # the server says what is wrong with it
                return dict(json.loads(read_file(place)).items())
    return {}


def _photograph(path: Path | None) -> Image.Image:
    """Cropped to a multiple of 16, so that the comparison is pixel by pixel."""
    data = FLOWER.read_bytes() if path is None else read_file(path)
    try:
        picture = Image.open(BytesIO(data)).convert("RGB")
    except (OSError, ValueError, SyntaxError) as exc:
        raise ConfigurationError(f"{path} is not a picture that can be read") from exc
    width, height = (side - side % 16 for side in picture.size)
    if min(width, height) < 16:
        raise ConfigurationError(f"the picture is {picture.width}x{picture.height}; it needs at least 16x16 pixels")
    return picture.crop((0, 0, width, height))


@contextlib.contextmanager
def _server(model: str, options: list[str], report: Report) -> Iterator[str]:
    """A server on a free port in another process, started as a user would start it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "remote_vae.cli.main", "serve", "--port", str(port), "--model", model, *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"
    try:
        with report.stage("start_server"), Client(url, retries=1) as client:
            while not client.ready():
                if process.poll() is not None:
                    said = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
                    raise SetupError(f"the server did not start: {said.removeprefix('remote-vae: ')}")
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _round_trip(client: Client, url: str, photograph: Image.Image, report: Report, output: Path) -> Image.Image:
    """Encodes once, decodes in four forms, and checks that they agree; gives the lossless picture."""
    picture = BytesIO()
    photograph.save(picture, "PNG")
    report.bytes["photograph_png"] = len(picture.getvalue())
    with report.stage("encode"):
        latent = client.encode_reply(picture.getvalue(), posterior="mode", do_scaling=True).payload
    if not isinstance(latent, Tensor):
        raise InvalidReply("the server did not send a latent")
    report.bytes["latent"] = memoryview(latent.buffer).nbytes
    write_tensor(output / "latents.safetensors", array_of(latent))
    forms: dict[str, Any] = {}
    for name in ("png", "jpg"):
        with report.stage(f"decode_{name}"):
            forms[name] = client.decode_reply(latent, do_scaling=True, image_format=name).payload
        write_file(output / f"decoded.{name}", forms[name])
        report.bytes[name] = len(forms[name])
    with report.stage("decode_tensor"):
        raw = client.decode_reply(latent, do_scaling=True, output_type="pt").payload
    report.bytes["tensor"] = memoryview(raw.buffer).nbytes if isinstance(raw, Tensor) else 0
    with report.stage("decode_base64"):
        again, report.bytes["base64"] = _decode_base64(url, latent)
    decoded = Image.open(BytesIO(forms["png"])).convert("RGB")
    jpeg = Image.open(BytesIO(forms["jpg"])).convert("RGB")
    _check(raw, again, np.asarray(decoded), np.asarray(jpeg))
    return decoded


def _decode_base64(url: str, latent: Tensor) -> tuple[Tensor | bytes, int]:
    """The dialect of the first clients: base64 in JSON, both ways."""
    query = {"output_type": "pt", "do_scaling": "True", "dtype": latent.dtype, "shape": json.dumps(latent.shape)}
    reply = httpx2.post(
        url,
        params=query,
        content=json.dumps({"inputs": base64.b64encode(latent.buffer).decode()}),
        headers={"content-type": "tensor/base64", "accept": "tensor/base64"},
        timeout=600,
    )
    return parse_reply(reply.status_code, reply.headers, reply.content).payload, len(reply.content)


def _check(raw: object, again: object, png: np.ndarray, jpeg: np.ndarray) -> None:
    """*Raises* InvalidReply unless the four forms show one picture."""
    if not isinstance(raw, Tensor) or not isinstance(again, Tensor) or again.buffer != raw.buffer:
        raise InvalidReply("the raw tensor and the base64 tensor differ")
    floats = array_of(raw).reshape(3, *png.shape[:2])
    unit = np.clip(floats * floats.dtype.type(0.5) + floats.dtype.type(0.5), 0, 1).astype(np.float32)
    if not np.array_equal((unit * 255).round().astype(np.uint8).transpose(1, 2, 0), png):
        raise InvalidReply("the PNG and the raw tensor differ")
    if psnr_db(jpeg, png, peak=255) < JPEG_AGREES_DB:
        raise InvalidReply("the JPEG and the PNG differ by more than JPEG explains")


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width + 8, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 8, 0))
    return both


def _show(report: Report, output: Path) -> None:
    table = Table("stage", "ms")
    for stage, milliseconds in report.stages_ms.items():
        table.add_row(stage.replace("_", " "), f"{milliseconds:.0f}")
    show_table(table)
    sizes = Table("over the wire", "size")
    for name, count in report.bytes.items():
        sizes.add_row(name.replace("_", " "), human_bytes(count))
    show_table(sizes)
    console.print(
        f"{escape(report.model)}: {report.psnr_db:.2f} dB after the round trip, {report.total_s:.1f} s in all."
    )
    where = escape(str(output / "comparison.png"))
    console.print(f"JPEG, PNG, tensor and base64 show the same picture. Look at [bold]{where}[/].")
