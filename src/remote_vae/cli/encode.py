"""`remote-vae encode`: one picture becomes a latent, or many do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from remote_vae.cli.buckets import Buckets, area_side, buckets_of_kohya, buckets_of_musubi, check_step
from remote_vae.cli.bulk import Plan, encode_all, output_of, report
from remote_vae.cli.caches import FORMS, PLAIN, Cache, check_form
from remote_vae.cli.files import TENSORS, check_output, read_file, write_tensor
from remote_vae.cli.flags import with_flags
from remote_vae.cli.remote import DEFAULT_URL, Authority, Model, Scaled, Timeout, Token, Url, tell
from remote_vae.cli.sources import TAR, find_sources
from remote_vae.cli.terminal import console
from remote_vae.client import AsyncClient, Client
from remote_vae.client.call_bar import CallBar
from remote_vae.client.clients import TRIES
from remote_vae.client.latents import array_of
from remote_vae.client.model import RemoteModel
from remote_vae.errors import ConfigurationError, InvalidReply
from remote_vae.protocol.options import ENCODE_ROWS
from remote_vae.values import Posterior, Tensor

INCOMPLETE: Final = 3  # exit code: some pictures have no latent
INTERRUPTED: Final = 130
MANY: Final = "Many pictures"
KOHYAS_STEP, MUSUBIS_STEP = 64, 16


def _many(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=MANY)


@with_flags(ENCODE_ROWS)
def encode(
    images: Annotated[
        list[str],
        typer.Argument(help="A picture that Pillow reads; or folders, patterns such as 'a/**/*.jpg', and .tar files."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .safetensors or .npy file; for many pictures a folder or a .tar.")
    ],
    url: Url = DEFAULT_URL,
    model: Model = None,
    scaling: Scaled = True,
    form: Annotated[str, _many(f"The form of the files: {', '.join(FORMS)}.")] = PLAIN,
    bucket: Annotated[str | None, _many("The resolution of buckets, as 1024 or 1216x832, if any.")] = None,
    bucket_step: Annotated[int | None, _many("The step between sides: 64, or 16 for musubi-tuner.")] = None,
    bucket_min: Annotated[int | None, _many("The shortest side: 256, or half of a small resolution.")] = None,
    bucket_max: Annotated[int | None, _many("The longest side of a bucket; twice the resolution.")] = None,
    in_flight: Annotated[int, _many("The number of pictures that are at the server at the same time.")] = 4,
    token: Token = None,
    ca_file: Authority = None,
    timeout: Timeout = 300.0,
    **options: Any,
) -> None:
    """Turn pictures into latents.

    One picture becomes one file. Many become a folder of files or a tar, with a manifest; the same command, given
    again, goes on where the last run stopped.
    """
    way: dict[str, Any] = {"token": token, "timeout": timeout, "ca_file": ca_file}
    if not _is_many(images, output):
        _encode_one(Path(images[0]), output, url, way, {"model": model, **options}, scaling=scaling)
        return
    sources = find_sources(images)
    card = _card(url, model, way)
    row = check_form(form, card)
    buckets = _buckets(row, card, bucket, bucket_step, bucket_min, bucket_max)
    plan = _plan(card, row, buckets, scaling, {"model": model, **options})
    settings = _settings(card, plan, form)
    try:
        asynchronous = AsyncClient(url, retries=TRIES, **way)
        tally = encode_all(sources, output_of(output), asynchronous, plan, settings, in_flight=in_flight)
    except KeyboardInterrupt:
        console.print("[bold red]stopped[/]; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
    report(tally, output)
    if tally.bad:
        raise typer.Exit(INCOMPLETE)


def _is_many(images: list[str], output: Path) -> bool:
    """One picture goes to a file that holds one latent, and everything else to a folder or tar."""
    if output.is_dir() or output.suffix.lower() in ("", TAR):
        return True
    first = Path(images[0])
    if len(images) == 1 and not first.is_dir() and first.suffix.lower() != TAR:
        return False
    if output.suffix.lower() in TENSORS:
        raise ConfigurationError(f"{output} holds one latent; give a folder or a .tar for many pictures")
    return True


def _encode_one(
    image: Path, output: Path, url: str, way: Mapping[str, Any], options: Mapping[str, Any], *, scaling: bool
) -> None:
    check_output(output, TENSORS)
    picture = read_file(image)
    with Client(url, **way) as client, CallBar(f"encoding {image.name}") as bar:
        own = scaling and options["posterior"] != Posterior.PARAMETERS
        reply = client.encode_reply(picture, progress=bar, do_scaling=own, **options)
    if not isinstance(reply.payload, Tensor):
        raise InvalidReply("the server did not send a tensor")
    write_tensor(output, array_of(reply.payload))
    tell(output, reply, f"{reply.payload.dtype} {list(reply.payload.shape)}")


def _card(url: str, model: str | None, way: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model's card, before anything is read; *raises* UnknownModel, NotReady, ConfigurationError."""
    with RemoteModel(url, model=model, **way) as found:
        card = found.card
    if not card.get("encodes", True):
        raise ConfigurationError(f"model {card['name']!r} has no encoder; choose another with --model")
    return card


def _buckets(
    row: Cache | None,
    card: Mapping[str, Any],
    bucket: str | None,
    step: int | None,
    smallest: int | None,
    largest: int | None,
) -> Buckets | None:
    if bucket is None:
        if row is not None:
            raise ConfigurationError("a trainer's cache needs --bucket: the resolution in the trainer's own settings")
        if (step, smallest, largest) != (None, None, None):
            raise ConfigurationError("--bucket-step, --bucket-min and --bucket-max need --bucket, the resolution")
        return None
    musubi = row is not None and bool(row.architecture)
    step = step or (MUSUBIS_STEP if musubi else KOHYAS_STEP)
    check_step(step, card["spatial_compression_ratio"])
    if not musubi:
        return buckets_of_kohya(area_side(bucket), step, smallest, largest)
    if (smallest, largest) != (None, None):
        raise ConfigurationError("musubi-tuner's buckets have no --bucket-min and --bucket-max")
    return buckets_of_musubi(area_side(bucket), step)


def _plan(
    card: Mapping[str, Any], row: Cache | None, buckets: Buckets | None, scaling: bool, options: Mapping[str, Any]
) -> Plan:
    """*Raises* ConfigurationError for a posterior that the model or the trainer does not have."""
    own = "mode" if card["deterministic"] else None
    posterior = options["posterior"] or own or (row.posterior if row else card["posterior"])
    if posterior not in tuple(Posterior):
        raise ConfigurationError(f"--posterior {posterior} must be one of {', '.join(Posterior)}")
    if own and posterior != own:
        raise ConfigurationError(f"model {card['name']!r} has no posterior; leave --posterior out, or take mode")
    if row is not None and posterior == Posterior.PARAMETERS:
        raise ConfigurationError("trainers' caches hold latents; take --posterior sample or mode")
    scaled = posterior != Posterior.PARAMETERS and (scaling if row is None else not row.raw)
    rest = {name: value for name, value in options.items() if name != "seed"}
    given = {**rest, "posterior": posterior, "do_scaling": scaled}
    return Plan(row, buckets, given, posterior == Posterior.SAMPLE, options["seed"])


def _settings(card: Mapping[str, Any], plan: Plan, form: str) -> dict[str, Any]:
    """What the manifest says about all latents, and what must be the same in a run that goes on."""
    options = plan.options
    return {
        "model": card["name"],
        "revision": card["revision"],
        "source": card["source"],
        "dtype": card["dtype"],
        "form": form,
        "posterior": options["posterior"],
        "scaling": options["do_scaling"],
        "seed": (plan.seed if plan.seed is not None else "by content") if plan.seeded else None,
        "profile": options["profile"],
        "plan": options["plan"],
        "bucket": plan.buckets and [plan.buckets.resolution, plan.buckets.step, len(plan.buckets.sizes)],
    }
