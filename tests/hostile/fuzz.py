"""Coverage-guided fuzzing of what reads a stranger's bytes: `python tests/hostile/fuzz.py TARGET [libFuzzer options]`.

Targets: `image` (pictures), `request` (head and body), `reply` (what a client gets). An exception that is none of the
project's own is a finding; libFuzzer then ends with the input that caused it.
"""

import io
import sys
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["remote_vae", "PIL"]):
    from PIL import Image

    from remote_vae.errors import RemoteVAEError, RequestError
    from remote_vae.media.images import read_image
    from remote_vae.protocol import replies, wire

MOST_PIXELS, MOST_SIDE = 2**18, 2048


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


def request(data: bytes) -> None:
    """The first lines are query, content type and Accept; the rest is the body."""
    query, media, accept, body = (*data.split(b"\n", 3), b"", b"", b"")[:4]
    headers = {"content-type": media.decode("latin-1"), "accept": accept.decode("latin-1")}
    try:
        head = wire.parse_head("/", query, headers)
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


def seeds(target: str) -> list[bytes]:
    """Good inputs to begin with."""
    if target == "image":
        pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        found = []
        for kind in ("PNG", "JPEG", "WEBP"):
            for mode in ("RGB", "L"):
                out = io.BytesIO()
                Image.fromarray(pixels).convert(mode).save(out, kind)
                found.append(out.getvalue())
        return found
    if target == "request":
        query = b"shape=1,1,1,1&dtype=float16&scaling_factor=0.18215"
        json = b'{"inputs": "AAA=", "parameters": {"shape": [1, 1, 1, 1], "dtype": "float16"}}'
        return [query + b"\ntensor/binary\nimage/png\n\0\0", b"\napplication/json\n*/*\n" + json]
    return [b"tensor/binary\n[1, 2]\nfloat16\nqueue;dur=1.5\n\0\0\0\0", b'tensor/base64\n\n\n\n{"inputs": "AAA="}']


def main() -> None:
    name = sys.argv.pop(1)
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    for number, seed in enumerate(seeds(name)):
        (folders[0] / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, {"image": image, "request": request, "reply": reply}[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
