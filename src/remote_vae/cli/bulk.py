"""Many pictures become latents: files are read, sent and written side by side, and a run goes on where one stopped."""

import asyncio
import io
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from PIL import Image
from rich.markup import escape

from remote_vae.cli.buckets import Buckets, fit
from remote_vae.cli.caches import Cache, Size, file_name, written
from remote_vae.cli.manifest import Manifest, Record, digest_of, is_of
from remote_vae.cli.outputs import Folder, Output, Tar
from remote_vae.cli.sources import TAR, Source
from remote_vae.cli.terminal import bar, console
from remote_vae.client import AsyncClient
from remote_vae.client.aio_queue import AsyncQueue
from remote_vae.client.latents import array_of
from remote_vae.client.pictures import BROKEN, readable, write_png
from remote_vae.client.queue import Queue
from remote_vae.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidImage,
    InvalidReply,
    RequestError,
    TooManyRequests,
    Unauthorized,
    UnknownRoute,
)
from remote_vae.media.orientation import metadata_of, upright
from remote_vae.protocol.kinds import LARGEST_SEED
from remote_vae.protocol.messages import Reply
from remote_vae.values import Tensor

AHEAD: Final = 4  # pictures that are read, or wait to be written, for each one at the server
MOST_SHOWN: Final = 20  # bad pictures
OF_ONE: Final = (RequestError, InternalError, DeadlineExceeded)  # errors of one picture, after which others go on
OF_ALL: Final = (Unauthorized, UnknownRoute, TooManyRequests)


@dataclass(frozen=True)
class Plan:
    """What is asked for. `seeded` if the latents are samples; `seed` None takes one from each picture's content."""

    row: Cache | None
    buckets: Buckets | None
    options: Mapping[str, Any]
    seeded: bool
    seed: int | None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is sent, with what its record says about it; `enlarged` above 1 if its bucket is larger."""

    data: bytes
    about: Record
    share_cut: float = 0.0
    enlarged: float = 1.0


@dataclass
class Tally:
    """How a run went."""

    skipped: int = 0
    done: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    cut: float = 0.0
    most_cut: tuple[float, str] = (0.0, "")
    enlarged: int = 0
    most_enlarged: tuple[float, str] = (1.0, "")

    def count(self, picture: Picture) -> None:
        name = picture.about["file"]
        self.done += 1
        self.cut += picture.share_cut
        self.most_cut = max(self.most_cut, (picture.share_cut, name))
        self.enlarged += picture.enlarged > 1
        self.most_enlarged = max(self.most_enlarged, (picture.enlarged, name))


def output_of(path: Path) -> Output:
    return Tar(path) if path.suffix.lower() == TAR else Folder(path)


def encode_all(
    sources: list[Source],
    output: Output,
    client: AsyncClient,
    plan: Plan,
    settings: Mapping[str, Any],
    *,
    in_flight: int,
) -> Tally:
    """Encodes what is not done yet; `settings` are what the manifest says about all latents.

    A bad picture is counted with its reason; *raises* what concerns all pictures."""
    with closing(output), closing(Manifest(output.manifest, settings)) as manifest:
        manifest.keep(output.resume(list(manifest.records.values())))
        tally, sent = Tally(), deque[Source]()

        async def encode(lane: asyncio.Semaphore, source: Source, options: Mapping[str, Any]) -> tuple[Picture, Reply]:
            picture = await asyncio.to_thread(_prepared, source, plan)
            async with lane:
                return picture, await client.encode_reply(picture.data, seed=picture.about["seed"], **options)

        queue = AsyncQueue(
            encode,
            hold=lambda source: source,
            close=client.close,
            options=plan.options,
            in_flight=in_flight,
            size=AHEAD * in_flight,
        )
        with bar("encoding", len(sources)) as advance, Queue(queue) as blocking:
            for item in blocking.items(_undone(sources, manifest, output, tally, sent, advance), {}):
                source = sent.popleft()
                if item.error is None:
                    _write(output, manifest, plan, *item.value)
                    tally.count(item.value[0])
                else:
                    tally.bad.append((source.place, _reason(item.error)))
                advance()
        output.finish()
    return tally


def _undone(
    sources: list[Source], manifest: Manifest, output: Output, tally: Tally, sent: deque[Source], advance: Any
) -> Iterator[Source]:
    """The pictures without a right latent; those whose latents could not have a name are counted as bad."""
    stems = dict[str, str]()
    for source in sources:
        problem = _problem_of_name(source, stems)
        record = manifest.records.get(source.name)
        done = record is not None and is_of(record, source)
        if record is not None and not done and not output.replaces:
            problem = "it has changed since its latent was written into the tar; choose another output"
        if problem is None and not done:
            sent.append(source)
            yield source
            continue
        if problem is None:
            tally.skipped += 1
        else:
            tally.bad.append((source.place, problem))
        advance()


def _problem_of_name(source: Source, stems: dict[str, str]) -> str | None:
    parts = PurePosixPath(source.name).parts
    if source.name.startswith("/") or ".." in parts:
        return "its name leads out of the output's folder"
    first = stems.setdefault(source.stem, source.place)
    return None if first == source.place else f"its latent would have the name of that of {first}; rename one of them"


def _prepared(source: Source, plan: Plan) -> Picture:
    """Reads a picture and brings it to its bucket; *raises* InvalidImage. Without buckets it is sent as it is."""
    data = source.read()
    digest = digest_of(data)
    seed = plan.seed if plan.seed is not None else int(digest[:16], 16) % (LARGEST_SEED + 1)
    about: Record = {
        "file": source.name,
        "source_bytes": source.size,
        "source_changed": source.changed,
        "source_sha256": digest,
        "seed": seed if plan.seeded else None,
    }
    try:
        with Image.open(io.BytesIO(data)) as image:
            if plan.buckets is None:
                turned = upright(Image.new("1", image.size), metadata_of(image))
                return Picture(bytes(readable(data)), {**about, "size": turned.size, "bucket": None, "kept": None})
            image.load()
            whole = upright(image, metadata_of(image))
            bucket = plan.buckets.of(whole.size)
            found = fit(whole, bucket)
            about |= {"size": whole.size, "bucket": bucket, "kept": [round(edge, 2) for edge in found.kept]}
            return Picture(write_png(found.image), about, found.share_cut(whole.size), found.scale)
    except BROKEN as exc:
        raise InvalidImage(f"it is no picture that can be read: {exc}") from exc


def _write(output: Output, manifest: Manifest, plan: Plan, picture: Picture, reply: Reply) -> None:
    """The latent first, its line in the manifest afterwards."""
    if not isinstance(reply.payload, Tensor):
        raise InvalidReply("the server did not send a tensor")
    about, made = dict(picture.about), reply.provenance
    latent = array_of(reply.payload)
    size: Size = about["size"]
    said = {"model": made.model, "revision": made.revision, **about}
    data = written(plan.row, latent, size=size, bucket=about["bucket"], about=said)
    name = file_name(plan.row, str(PurePosixPath(about["file"]).with_suffix("")), size)
    about |= {"latent": name, "bytes": len(data), "sha256": digest_of(data)}
    about |= {"shape": list(latent.shape), "dtype": latent.dtype.name, "plan": made.plan, "note": made.note}
    manifest.add({**about, **output.put(name, data)})


def _reason(error: BaseException) -> str:
    """What is wrong with one picture; *raises* the error if it concerns all of them."""
    if isinstance(error, OF_ONE) and not isinstance(error, OF_ALL):
        return error.message
    raise error


def report(tally: Tally, output: Path) -> None:
    """The end of a run, for people."""
    console.print(f"[green]wrote[/] {tally.done} latents to {escape(str(output))}; {tally.skipped} were there already")
    if tally.most_cut[0] > 0:
        share, name = tally.most_cut
        console.print(
            f"[yellow]note[/] cut away to fit the buckets: {tally.cut / tally.done:.1%} of a picture on average, "
            f"{share:.1%} of {escape(name)} at most"
        )
    if tally.enlarged:
        scale, name = tally.most_enlarged
        console.print(
            f"[yellow]note[/] {tally.enlarged} pictures were smaller than their buckets and were enlarged, "
            f"{scale:.2f} times at most ({escape(name)})"
        )
    if tally.bad:
        console.print(f"[bold red]{len(tally.bad)} pictures have no latent:[/]")
        for place, reason in tally.bad[:MOST_SHOWN]:
            console.print(f"  {escape(place)}: {escape(reason)}")
        if len(tally.bad) > MOST_SHOWN:
            console.print(f"  and {len(tally.bad) - MOST_SHOWN} more")
