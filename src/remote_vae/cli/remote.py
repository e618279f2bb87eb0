"""`remote-vae decode | models | verify`: the client at the command line."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from remote_vae.cli.compare import psnr_db
from remote_vae.cli.files import TENSORS, check_output, read_latents, write_file, write_tensor
from remote_vae.cli.flags import with_flags
from remote_vae.cli.terminal import console, human_bytes, print_json, show_table, working
from remote_vae.client import Client
from remote_vae.client.call_bar import CallBar
from remote_vae.client.endpoint import split_endpoint
from remote_vae.client.latents import array_of
from remote_vae.client.network import run
from remote_vae.errors import ConfigurationError, InvalidReply
from remote_vae.protocol.messages import Reply
from remote_vae.protocol.options import DECODE_ROWS
from remote_vae.values import FORMATS, VIDEO_FORMATS, Format, Tensor

Url = Annotated[str, typer.Option("--url", envvar="REMOTE_VAE_ENDPOINT", help="Address of the server.")]
Token = Annotated[
    str | None,
    typer.Option(envvar="REMOTE_VAE_API_KEY", show_envvar=True, help="The server's API key, sent as a bearer token."),
]
Authority = Annotated[
    Path | None, typer.Option("--ca-file", help="A PEM file with a certificate authority to trust as well.")
]
Model = Annotated[str | None, typer.Option(help="The server's model to use.", show_default="its first")]
Timeout = Annotated[float, typer.Option(help="The seconds that all tries together may take.")]
Scaled = Annotated[
    bool,
    typer.Option("--scaling/--no-scaling", help="Whether latents are normalised, as diffusers' pipelines have them."),
]
ScaledIfSo = Annotated[
    bool | None,
    typer.Option(
        "--scaling/--no-scaling",
        help="Whether the latent is normalised, as diffusers' pipelines have it.",
        show_default="--scaling, unless the file says that its latent is raw, as ComfyUI's and trainers' do",
    ),
]
Side = Annotated[int | None, typer.Option(help="The picture's side in pixels, which packed latents need.")]
Key = Annotated[str | None, typer.Option(help="The name of the tensor, in a file that holds several.")]
LATENT_FILE = "A file with a latent: .safetensors, .npy, .npz, or ComfyUI's .latent."
DEFAULT_URL = "http://127.0.0.1:8000"
PICTURES = {suffix: row for row in FORMATS.values() if row.is_image for suffix in row.suffixes}
VIDEOS = {suffix: row for row in VIDEO_FORMATS.values() for suffix in row.suffixes}
BOTH = " ".join(suffix for suffix in PICTURES if suffix in VIDEOS)
DECODED = (
    f"The file to write. {' '.join(PICTURES)}: the first picture of a batch or video. {' '.join(VIDEOS)}: a video, "
    f"which {BOTH} are if the model is of videos. {' '.join(TENSORS)}: the VAE's raw output."
)


@with_flags(DECODE_ROWS)
def decode(
    latents: Annotated[Path, typer.Argument(help=LATENT_FILE)],
    output: Annotated[Path, typer.Option("--output", "-o", help=DECODED)],
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="The format to write, such as png or mp4.", show_default="the suffix of --output"
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    model: Model = None,
    scaling: ScaledIfSo = None,
    key: Key = None,
    token: Token = None,
    ca_file: Authority = None,
    timeout: Timeout = 300.0,
    **options: Any,
) -> None:
    """Turn a latent into a picture, a video, or the VAE's raw output."""
    said = None if form is None else f".{form.lower()}"
    check_output(output, tuple(dict.fromkeys((*PICTURES, *VIDEOS, *TENSORS))), said)
    frame, scaled = _latent(latents, key, scaling)
    way: Any = {"token": token, "timeout": timeout, "ca_file": ca_file}
    asked = _format(said or output.suffix.lower(), url, model, way)
    image_format = asked.name if asked is not None and asked.is_image else None
    output_type = "pt" if asked is None else "pil" if asked.is_image else asked.name
    with Client(url, **way) as client, CallBar(f"decoding {list(frame.shape)}") as bar:
        reply = client.decode_reply(
            frame,
            progress=bar,
            model=model,
            do_scaling=scaled,
            output_type=output_type,
            image_format=image_format,
            **options,
        )
    if isinstance(reply.payload, Tensor):
        write_tensor(output, array_of(reply.payload), said)
    else:
        write_file(output, reply.payload)
    tell(output, reply, human_bytes(output.stat().st_size))


def _format(suffix: str, url: str, model: str | None, way: Any) -> Format | None:
    """The format of a suffix; None for a tensor's. If pictures and videos have it, the model's card decides."""
    picture, video = PICTURES.get(suffix), VIDEOS.get(suffix)
    if picture is None or video is None:
        return picture or video
    base, name = split_endpoint(url, model)
    with Client(base, **way) as client:
        card = run(client.card(name))
    return video if card is not None and card["kind"] == video.kind else picture


def _latent(path: Path, key: str | None, scaling: bool | None) -> tuple[Tensor, bool]:
    """The latent of a file, and whether it is to be scaled; says so if the file decides that."""
    found = read_latents(path, key=key)
    if scaling is not None:
        return found.latent, scaling
    if found.raw is None:
        raise ConfigurationError(
            f"{path} does not say whether its latent is raw, as the VAE gave it, or normalised, as pipelines have it; "
            "say --no-scaling for raw or --scaling for normalised"
        )
    if found.raw:
        console.print(f"[yellow]note[/] by its file the latent in {escape(str(path))} is raw: it is not scaled")
    return found.latent, not found.raw


def tell(output: Path, reply: Reply, what: str) -> None:
    """What was written, and how it was made, for people."""
    made = reply.provenance
    stages = ", ".join(f"{stage} {ms:.0f} ms" for stage, ms in made.timings_ms.items())
    by = escape(f"{output} ({what}) by {made.model}, plan {made.plan}, {made.dtype}; {stages}")
    console.print(f"[green]wrote[/] {by}")
    if made.note:
        console.print(f"[yellow]note[/] {escape(made.note)}")


def models(
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca_file: Authority = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
    known: Annotated[
        bool, typer.Option("--known", help="List the models that this version can serve, and ask no server.")
    ] = False,
) -> None:
    """List a server's models, with their names, layouts and factors."""
    if known:
        _list_known(as_json=json)
        return
    with Client(url, token=token, ca_file=ca_file) as client:
        cards = client.models()
    if json:
        print_json(cards)
        return
    table = Table("model", "kind", "channels", "ratio", "scaling", "shift", "dtype", "also called", "weights")
    for card in cards:
        names = ", ".join(card["aliases"])
        ratio = f"{card['spatial_compression_ratio']}x" + (
            f", {card['temporal_compression_ratio']} frames" if card["temporal_compression_ratio"] > 1 else ""
        )
        factors = (str(card[name] if card[name] is not None else "-") for name in ("scaling_factor", "shift_factor"))
        channels = str(card["latent_channels"])
        table.add_row(card["name"], card["kind"], channels, ratio, *factors, card["dtype"], names, card["source"])
    show_table(table)


def _list_known(*, as_json: bool) -> None:
    """The models of the registry; neither torch nor a server is needed."""
    from remote_vae.models.families import MODELS

    cards: list[dict[str, Any]] = [
        {
            "name": model.name,
            "kind": "video" if model.recipe.has_frames else "image",
            "aliases": list(model.aliases),
            "preview": model.preview,
            "weights": model.repository or model.file or "in the package",
        }
        for model in MODELS.values()
    ]
    if as_json:
        print_json(cards)
        return
    table = Table("model", "kind", "also called", "preview", "weights")
    for card in cards:
        names = ", ".join(card["aliases"])
        table.add_row(card["name"], card["kind"], names, card["preview"], card["weights"])
    show_table(table)


def verify(
    latents: Annotated[Path, typer.Argument(help=LATENT_FILE)],
    vae: Annotated[str, typer.Option(help="The local VAE: a known name, or NAME=SOURCE[,recipe=R].")],
    url: Url = DEFAULT_URL,
    model: Model = None,
    height: Side = None,
    width: Side = None,
    scaling: ScaledIfSo = None,
    dtype: Annotated[
        str, typer.Option(help="The precision of the local VAE: float32, float16 or bfloat16.")
    ] = "float32",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Take the seeded weights that the server has, too.")
    ] = False,
    key: Key = None,
    token: Token = None,
    ca_file: Authority = None,
    timeout: Timeout = 300.0,
) -> None:
    """Decode the same latent on the server and here, and say how far apart the pixels are."""
    frame, scaled = _latent(latents, key, scaling)
    with Client(url, token=token, timeout=timeout, ca_file=ca_file) as client, working("decoding on the server"):
        reply = client.decode_reply(frame, model=model, do_scaling=scaled, output_type="pt", height=height, width=width)
    if not isinstance(reply.payload, Tensor):
        raise InvalidReply("the server did not send a tensor")
    with working("decoding here"):
        local = _decode_locally(frame, vae, dtype, random_weights, scaling=scaled, height=height, width=width)
    theirs = array_of(reply.payload).astype(np.float32)
    if theirs.shape != local.shape:
        raise InvalidReply(f"the server's pixels have shape {list(theirs.shape)}, the local ones {list(local.shape)}")
    table = Table("server", "here", "largest difference", "PSNR")
    largest = float(np.abs(theirs - local).max())
    psnr = psnr_db(theirs, local, peak=2.0)
    table.add_row(
        f"{reply.provenance.model} {reply.provenance.dtype}", f"{vae} {dtype}", f"{largest:.3g}", f"{psnr:.1f} dB"
    )
    show_table(table)


def _decode_locally(
    frame: Tensor,
    vae: str,
    dtype: str,
    random_weights: bool,
    *,
    scaling: bool,
    height: int | None,
    width: int | None,
) -> np.ndarray:
    """Here the command line needs torch and diffusers, as a pipeline would."""
    try:
        import torch

        from remote_vae.core.decode import decode as run
        from remote_vae.core.layout import fit_latent
        from remote_vae.models.fast_import import open_model
        from remote_vae.models.spec import parse_spec
        from remote_vae.values import Output, Scaling, ScalingMode
    except ImportError as exc:
        raise ConfigurationError(
            "verify needs a local VAE; run in remote-vae's folder: pip install '.[server]'"
        ) from exc
    spec = parse_spec(vae, random_weights=random_weights, dtype=dtype)
    loaded, recipe = open_model(spec.to_json())
    fit = fit_latent(recipe, loaded.info, frame.shape, model=spec.name, height=height, width=width)
    latent = torch.frombuffer(bytearray(frame.buffer), dtype=getattr(torch, frame.dtype)).reshape(frame.shape)
    pixels = run(
        loaded,
        recipe,
        latent,
        fit=fit,
        scaling=Scaling(ScalingMode.MODEL if scaling else ScalingMode.NONE),
        output=Output.RAW,
    ).tensor
    found: np.ndarray = pixels.float().numpy()
    return found
