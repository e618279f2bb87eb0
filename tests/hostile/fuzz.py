"""Coverage-guided fuzzing of what reads a stranger's bytes: `python tests/hostile/fuzz.py TARGET [libFuzzer options]`.

Targets: `image` (pictures), `container` (what a picture's file is made of), `video` (videos in files), `latents` (files
of latents), `connection` (the bytes of a connection, into the whole server without a model), `request` (head and body),
`reply` (what a client gets), `parts` (a reply that is read while it comes). An exception that is none of the project's
own is a finding; libFuzzer then ends with the input that caused it. The folder `tests` must be on Python's path.
"""

import asyncio
import contextlib
import io
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import av
import numpy as np
import uvicorn
from uvicorn.server import ServerState

import films

with atheris.instrument_imports(include=["remote_vae", "PIL"]):
    from PIL import Image

    Image.init()  # imports the readers of the formats, which would come without instruments later

    from remote_vae.cli.files import LATENTS, read_latents
    from remote_vae.errors import ConfigurationError, InvalidImage, RemoteVAEError, RequestError
    from remote_vae.media import containers, jpeg, orientation, png
    from remote_vae.media.frames import Cut, kind_of_video, read_video
    from remote_vae.media.images import read_image
    from remote_vae.protocol import digest, replies, wire
    from remote_vae.protocol.multipart import PartsReader, PartsWriter
    from remote_vae.values import Tensor

    if "connection" in sys.argv[1:2]:
        from remote_vae.server.app import build_app
        from remote_vae.server.connection import Connection
        from remote_vae.server.settings import Settings

MOST_PIXELS, MOST_SIDE = 2**18, 2048
BOUNDARY = "b"
warnings.simplefilter("ignore")  # the imaging library's, about broken pictures


def image(data: bytes) -> None:
    """A picture is refused, or read within the limits, with and without transparency."""
    for channels in (3, 4):
        try:
            pixels = read_image(data, channels, multiple=8, max_pixels=MOST_PIXELS, max_side=MOST_SIDE).pixels
        except RequestError:
            continue
        height, width, found = pixels.shape
        if found != channels or height % 8 or width % 8 or height * width > MOST_PIXELS:
            raise AssertionError(pixels.shape)


def container(data: bytes) -> None:
    """The parts of a file are told apart, and no more of them are looked at than there are bytes."""
    parts = png.read_parts(memoryview(data))
    if len(parts.pixels) > len(data) + len(png.SIGNATURE):
        raise AssertionError(len(parts.pixels))
    orientation.upright(Image.new("L", (1, 2)), data)
    try:
        jpeg.check_markers(data)
    except InvalidImage:
        return


def video(data: bytes) -> None:
    """A video is refused, or read within the limits, by its frames and at an even rate."""
    if not kind_of_video(data):
        return
    with contextlib.suppress(InvalidImage):
        containers.check_whole(memoryview(data), "Matroska" if data[:1] == b"\x1a" else "MP4")
    terms = {"multiple": 8, "max_pixels": MOST_PIXELS, "max_side": MOST_SIDE, "use_profile": True}
    for fps in (None, 3.0):
        cut = Cut(most=6, most_bytes=2**22, fps=fps, leave_rest=True)
        # FFmpeg refuses a table that claims too much memory as if there were none; the server answers that too.
        with contextlib.suppress(RequestError, av.error.MemoryError):
            pixels = read_video(data, **terms, cut=cut).pixels
            if pixels.ndim != 4 or len(pixels) > cut.most or pixels.nbytes > cut.most_bytes:
                raise AssertionError(pixels.shape)


def latents(data: bytes) -> None:
    """The first byte chooses the kind of file, and the rest is the file."""
    path = FOLDER / f"latents{LATENTS[data[0] % len(LATENTS)] if data else '.npy'}"
    path.write_bytes(data[1:])
    try:
        found = read_latents(path)
    except ConfigurationError:
        return
    if len(memoryview(found.latent.buffer).cast("B")) > 2 * len(data):  # float16 becomes float32 at most
        raise AssertionError(found.latent.shape)


def request(data: bytes) -> None:
    """The first lines are query, content type, Accept, and the time or the digest; the rest is the body."""
    query, media, accept, told, body = (*data.split(b"\n", 4), b"", b"", b"", b"")[:5]
    headers = {"content-type": media.decode("latin-1"), "accept": accept.decode("latin-1")}
    with contextlib.suppress(RequestError):
        digest.check_digest(told.decode("latin-1"), body)
    try:
        head = wire.parse_head("/", query, {**headers, "x-request-timeout-seconds": told.decode("latin-1")})
        parse = wire.parse_decode if head.decode_options is not None else wire.parse_encode
        parse(head, body)
    except RequestError as exc:
        if not 400 <= exc.status < 500 or not exc.message.isprintable():
            raise AssertionError(exc.message) from exc


def reply(data: bytes) -> None:
    """The first lines are content type, shape, dtype and timing; the rest is the body."""
    *fields, body = (*data.split(b"\n", 4), b"", b"", b"", b"")[:5]
    names = ("content-type", "shape", "dtype", "server-timing")
    headers = {name: value.decode("latin-1") for name, value in zip(names, fields, strict=True)}
    try:
        replies.parse_reply(200, headers, body)
    except RemoteVAEError:
        return


def parts(data: bytes) -> None:
    """The first byte says where the bytes are cut, which makes no difference to what is read."""
    cut, body = data[0] if data else 0, data[1:]
    whole, halves = _read_parts(body), _read_parts(body[:cut], body[cut:])
    if whole != halves:
        raise AssertionError((whole, halves))


def _read_parts(*pieces: bytes) -> tuple[list[bytes], str]:
    """The tensors' bytes, and the code of the error at the end, if there is one."""
    reader, found = PartsReader(f"multipart/mixed; boundary={BOUNDARY}", most_bytes=2**16), list[bytes]()
    try:
        for piece in pieces:
            found.extend(bytes(tensor.buffer) for tensor in reader.take(piece))
        reader.end()
    except RemoteVAEError as exc:
        return found, exc.code
    return found, ""


class Sink(asyncio.Transport):
    """The other end of a connection: keeps what is sent to it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("127.0.0.1", 8000)})
        self.sent, self.closed = bytearray(), False

    def write(self, data: Any) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Server:
    """The server without a model, and connections to it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.settings = Settings(models=("demo",))
        self.app = build_app(self.settings)
        self.config = uvicorn.Config(self.app, log_config=None, access_log=False, ws="none", lifespan="off")
        self.config.load()

    def __call__(self, data: bytes) -> None:
        """Each answer is a whole one and no 500. The first byte says where the bytes are cut, as a network does."""
        self.loop.run_until_complete(self._connect(data[1:], data[0] if data else 0))

    async def _connect(self, data: bytes, cut: int) -> None:
        sink, state = Sink(), ServerState()
        connection = Connection(
            self.settings, self.app.state.metrics, config=self.config, server_state=state, app_state={}, _loop=self.loop
        )
        connection.connection_made(sink)
        for part in (data[:cut], data[cut:]):
            if part and not sink.closed:
                connection.data_received(part)
            for _ in range(8):
                await asyncio.sleep(0)
        connection.connection_lost(None)
        await asyncio.wait([*state.tasks, asyncio.ensure_future(asyncio.sleep(0))], timeout=5)
        if sink.sent and (not sink.sent.startswith(b"HTTP/1.1 ") or b"HTTP/1.1 500" in sink.sent):
            raise AssertionError(bytes(sink.sent[:500]))
        if state.tasks:
            raise AssertionError("a request is still at work although its connection is closed")


def pictures() -> list[bytes]:
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHxxI", 8, 1, 0x112, 3, 1, 6, 0)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    found = []
    for kind, modes in {
        "PNG": ("RGB", "L", "P", "RGBA"),
        "JPEG": ("RGB", "L", "CMYK"),
        "WEBP": ("RGB", "RGBA"),
    }.items():
        for mode in modes:
            out = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(out, kind, exif=exif, **({} if kind == "PNG" else {"xmp": xmp}))
            found.append(out.getvalue())
    return found


def videos() -> list[bytes]:
    frames = films.moving(3, 16, 16)
    kinds = [films.film(frames, kind) for kind in ("mp4", "mov", "webm", "matroska")]
    kinds.append(films.av1(frames, "matroska"))
    return [*kinds, films.animation(frames), films.animation(frames, "WEBP"), films.pictures(frames)]


SHAPE = b"shape=1,1,1,1&dtype=float16"
JSON = b'{"inputs": "AAA=", "parameters": {"shape": [1, 1, 1, 1], "dtype": "float16"}}'


def files() -> list[bytes]:
    """Latents as .safetensors, .npy and ComfyUI's .latent, each behind the byte that chooses its kind."""
    from safetensors.numpy import save

    out = io.BytesIO()
    np.save(out, np.zeros((1, 1, 1, 2), np.float32))
    tensors = {name: np.zeros((1, 1, 1, 2), np.float32) for name in ("latent_tensor", "latent_format_version_0")}
    found = {
        ".safetensors": save({"latents": tensors["latent_tensor"]}),
        ".npy": out.getvalue(),
        ".latent": save(tensors),
    }
    return [bytes([LATENTS.index(suffix)]) + body for suffix, body in found.items()]


def connections() -> list[bytes]:
    """Requests behind the byte that cuts them."""
    heads = (
        b"GET / HTTP/1.1\r\nhost: a\r\naccept: text/html\r\n\r\n",
        b"GET /page/main.js HTTP/1.1\r\nhost: a\r\nrange: bytes=0-1\r\n\r\nGET /docs HTTP/1.0\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: a\r\naccept: application/openmetrics-text;version=1.0.0\r\n\r\n",
        b"POST /demo/decode?"
        + SHAPE
        + b" HTTP/1.1\r\nhost: a:1\r\norigin: http://a:1\r\ncontent-length: 2\r\n\r\n\0\0",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\n\0\0\r\n0\r\na: b\r\n\r\n",
        b"OPTIONS / HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade\r\nx-forwarded-for: 1.2.3.4\r\n\r\n",
    )
    return [b"\x14" + head for head in heads]


def streams() -> list[bytes]:
    """Two tensors and the end, and an error, each behind the byte that cuts them."""
    writer = PartsWriter()
    tensors = [part for size in (1, 2) for part in writer.tensor(Tensor("uint8", (size,), bytes(size)), [])]
    found = [[*tensors, writer.end()], [*tensors, *writer.error(RequestError("a reason"))]]
    own = writer.content_type.partition("=")[2].encode()
    return [b"\x14" + b"".join(stream).replace(own, BOUNDARY.encode()) for stream in found]


def seeds(target: str) -> list[bytes]:
    """Good inputs to begin with."""
    return {
        "image": pictures,
        "video": videos,
        "container": lambda: [*pictures(), b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"],
        "latents": files,
        "connection": connections,
        "parts": streams,
        "request": lambda: [
            SHAPE + b"&scaling_factor=0.18215\ntensor/binary\nimage/png\n1.5\n\0\0",
            b"\napplication/json\n*/*\n\n" + JSON,
            b"\napplication/json\n*/*\n\n" + JSON.replace(b"AAA=", b"\\/AA\\n".rjust(1203, b"A")),
        ],
        "reply": lambda: [
            b"tensor/binary\n[1, 2]\nfloat16\nqueue;dur=1.5\n\0\0\0\0",
            b'tensor/base64\n\n\n\n{"inputs": "AAA="}',
        ],
    }[target]()


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """As the fuzzer mutates by itself, but with the right checksums in a PNG, without which no reader goes on."""
    found: bytes = atheris.Mutate(data, most)
    if not found.startswith(png.SIGNATURE):
        return found
    parts, rest = [png.SIGNATURE], found[len(png.SIGNATURE) :]
    while len(rest) >= 8:
        end = 8 + int.from_bytes(rest[:4])
        parts += [rest[:end], struct.pack(">I", zlib.crc32(rest[4:end]))]
        rest = rest[end + 4 :]
    return b"".join(parts)[:most]


def main() -> None:
    name = sys.argv.pop(1)
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    for number, seed in enumerate(seeds(name)):
        (folders[0] / f"seed-{number}").write_bytes(seed)
    targets: dict[str, Callable[[bytes], None]] = {
        "image": image,
        "video": video,
        "container": container,
        "latents": latents,
        "request": request,
        "reply": reply,
        "parts": parts,
    }
    how = {"custom_mutator": mutate} if name in ("image", "container") else {}
    atheris.Setup(sys.argv, Server() if name == "connection" else targets[name], **how)
    atheris.Fuzz()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        FOLDER = Path(folder)
        main()
