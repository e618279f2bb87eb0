"""Videos that lie, are cut, or cost more than they should: each gets its sentence, and the next request its latent."""

import asyncio
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

import av
import numpy as np
import pytest

from films import animation, archive, film, moving, picture, pictures, sound_only
from remote_vae.errors import InvalidImage, RequestError, TooLarge, UnsupportedMediaType
from remote_vae.media.frames import Cut, read_video
from remote_vae.media.images import ReadPicture
from remote_vae.server import readers as room
from remote_vae.server.readers import Readers, Terms

CUT = Cut(most=257, most_bytes=2**28)
TERMS = Terms(channels=3, multiple=8, max_pixels=2**20, max_side=2048, use_profile=True)


def read(data: bytes, **choice: Any) -> ReadPicture:
    return read_video(data, **TERMS, cut=replace(CUT, **choice))


def wide_gif() -> bytes:
    """A second frame of 16384x16384 in a GIF of 64x48."""
    data = animation(moving(2))
    at = data.rindex(b"\x2c\0\0\0\0" + struct.pack("<HH", 64, 48))
    return data[: at + 5] + struct.pack("<HH", 16384, 16384) + data[at + 9 :]


def bomb(count: int) -> bytes:
    """A frame of 16x16 pixels, so many times."""
    out = BytesIO()
    with (
        av.open(BytesIO(film(moving(1, 16, 16), "webm", codec="libvpx"))) as one,
        av.open(out, "w", "webm") as container,
    ):
        [packet] = [packet for packet in one.demux(video=0) if packet.size]
        packet.stream = container.add_stream_from_template(one.streams.video[0])
        for number in range(count):
            packet.pts = packet.dts = number * 40
            container.mux_one(packet)
    return out.getvalue()


def wide_webp() -> bytes:
    """An animated WebP whose canvas is 16383x16383."""
    data = animation(moving(2), "WEBP")
    return data[:24] + (16382).to_bytes(3, "little") * 2 + data[30:]


def matroska_that_lies() -> bytes:
    """A Matroska file of 64x48 pixels that says 16x16; its codec says the truth."""
    data = film(moving(2), "matroska")
    assert b"\xb0\x81\x40\xba\x81\x30" in data
    return data.replace(b"\xb0\x81\x40\xba\x81\x30", b"\xb0\x81\x10\xba\x81\x10")


def encrypted_zip() -> bytes:
    """A ZIP that says that its picture is encrypted, in both places."""
    data = bytearray(archive({"a.png": picture(moving()[0])}))
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


def zip_that_lies() -> bytes:
    """A ZIP whose list says that 10 MB of zeros are 100 bytes."""
    data = archive({"a.png": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    return data.replace(struct.pack("<I", 10**7), struct.pack("<I", 100))


def encrypted_matroska() -> bytes:
    """A Matroska file whose track has an encryption, in the place of the void that its writer left."""
    data = film(moving(2), "matroska")
    entry = b"\x62\x40\x88" + b"\x50\x33\x81\x01" + b"\x50\x35\x81\0"
    at = data.index(b"\x1f\x43\xb6\x75")  # the first cluster: the search is in what comes before
    return data[:at] + b"\x6d\x80" + bytes([0x80 | len(entry)]) + entry + data[at:]


REFUSED: dict[str, tuple[Callable[[], bytes], type[RequestError], str]] = {
    "audio alone": (sound_only, InvalidImage, "no video, only audio"),
    "an encrypted MP4": (lambda: film(moving(2)).replace(b"avc1", b"encv"), InvalidImage, "encrypted"),
    "an encrypted Matroska": (encrypted_matroska, InvalidImage, "encrypted"),
    "an encrypted ZIP": (encrypted_zip, InvalidImage, "'a.png' in the ZIP file is encrypted"),
    "an odd codec": (lambda: film(moving(2), "matroska", codec="mpeg2video"), UnsupportedMediaType, "mpeg2video"),
    "an unknown codec": (lambda: film(moving(2)).replace(b"avc1", b"xyz1"), UnsupportedMediaType, "is not read"),
    "no frames": (lambda: film(moving(2)[:0]), InvalidImage, "broken|no video|no frames"),
    "an empty ZIP": (lambda: b"PK\3\4" + archive({}), InvalidImage, "no frames|broken"),
    "a ZIP of folders": (lambda: archive({"a/": b""}), InvalidImage, "no frames"),
    "a ZIP of texts": (lambda: archive({"a.txt": b"hello"}), UnsupportedMediaType, "'a.txt' in the ZIP file"),
    "a ZIP in a ZIP": (lambda: archive({"a.zip": pictures(moving(2))}), UnsupportedMediaType, "a ZIP file"),
    "a video in a ZIP": (lambda: archive({"a.mp4": film(moving(2))}), UnsupportedMediaType, "an MP4 file"),
    "a ZIP of zeros": (lambda: archive({"a.png": bytes(2**24)}, zipfile.ZIP_DEFLATED), TooLarge, "16777216 bytes"),
    "a ZIP of LZMA": (lambda: archive({"a.png": b"a"}, zipfile.ZIP_LZMA), InvalidImage, "than deflate"),
    "a ZIP that lies": (zip_that_lies, InvalidImage, "broken"),
    "a ZIP of many entries": (lambda: archive({f"{n}/": b"" for n in range(10_001)}), InvalidImage, "than 10000"),
    "pictures of two sizes": (
        lambda: archive({"1.png": picture(moving()[0]), "2.png": picture(moving(1, 64, 48)[0])}),
        InvalidImage,
        "frame 2 is 48x64 pixels, those before it 64x48",
    ),
    "a wide WebP": (wide_webp, TooLarge, "16383x16383"),
    "a wide frame of a GIF": (wide_gif, TooLarge, "over 1048576 pixels"),
    "a million pixels more": (lambda: film(np.zeros((1, 1040, 1040, 3), np.uint8)), TooLarge, "1040x1040"),
    "smaller than a cell": (lambda: film(np.zeros((2, 6, 6, 3), np.uint8)), InvalidImage, "6x6 pixels; it needs"),
    "a hundred thousand frames": (lambda: bomb(100_000), TooLarge, "more than 257 frames"),
    "noise in an MP4": (
        lambda: film(moving(2))[:48] + np.random.default_rng(0).bytes(5000), InvalidImage, "broken or cut short"
    ),
    "noise in a Matroska": (
        lambda: film(moving(2), "matroska")[:48] + np.random.default_rng(0).bytes(5000), InvalidImage, "broken|no video"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_each_gets_its_sentence(name: str) -> None:
    """It is refused in a second, with what is wrong."""
    make, error, why = REFUSED[name]
    data = make()
    asked = time.monotonic()
    with pytest.raises(error, match=why):
        read(data)
    assert time.monotonic() - asked < 2


def test_a_container_that_lies_about_its_size() -> None:
    """The size that counts is that of the decoded frames."""
    data = matroska_that_lies()
    with pytest.raises(RequestError):
        read_video(data, **{**TERMS, "max_pixels": 32 * 32}, cut=CUT)


@pytest.mark.parametrize("kind", ["mp4", "mov", "webm", "matroska", "WEBP", "ZIP"])
def test_a_file_that_is_cut_short(kind: str) -> None:
    """Wherever a file ends too early, it is never taken for a whole one."""
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    data = {"ZIP": pictures, "WEBP": lambda f: animation(f, "WEBP")}.get(kind, lambda f: film(f, kind))(frames)
    assert len(read(data).pixels) == 6
    for end in [*range(40, len(data) - 1, len(data) // 23), len(data) - 1]:
        with pytest.raises(RequestError):
            read(data[:end])


def test_an_index_before_the_frames_that_are_cut() -> None:
    """An MP4 whose index comes first is refused if frames are missing, although those that are there can be decoded."""
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    data = film(frames, movflags="faststart")
    for end in range(data.index(b"mdat") + 8, len(data), len(data) // 23):
        with pytest.raises(InvalidImage, match="cut short"):
            read(data[:end])
    with pytest.raises(InvalidImage, match="cut short"):
        read(data[: len(data) * 2 // 3], count=6)


def test_a_gif_without_its_end() -> None:
    """A GIF that is cut between frames is noted, because programs write such files."""
    data = animation(moving(3))
    assert "may be cut short" in read(data[:-1]).note
    with pytest.raises(InvalidImage, match="cut short"):
        read(data[: len(data) * 2 // 3])


def test_a_long_picture_costs_little_memory() -> None:
    """Of a bomb no more is kept than the limit on its pixels."""
    data = animation(np.zeros((64, 256, 256, 3), np.uint8) + np.arange(64, dtype=np.uint8)[:, None, None, None])
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="bytes of pixels"):
            read(data, most_bytes=2**21)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("disposal", [0, 2, 3])
def test_a_wide_frame_takes_no_memory(disposal: int) -> None:
    """The size of a GIF's frame is judged before the imaging library takes memory for it, or for what follows it."""
    code = (
        "import sys; from remote_vae.media.frames import Cut, read_video\n"
        "terms = dict(multiple=8, max_pixels=2**20, max_side=2048, use_profile=True, cut=Cut(9, 2**24))\n"
        "try: read_video(sys.stdin.buffer.read(), **terms)\n"
        "except Exception as exc: print(type(exc).__name__)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    data = wide_gif()
    at = data.rindex(b"!\xf9\x04")
    data = data[: at + 3] + bytes([disposal << 2]) + data[at + 4 :]
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    name, kilobytes = done.stdout.split()
    assert name == b"TooLarge"
    assert int(kilobytes) < 200 * 1024


@pytest.fixture
async def readers() -> AsyncIterator[Readers]:
    found = Readers(share=0.5, most_bytes=2**30)
    yield found
    found.close()


async def test_a_wide_webp(readers: Readers) -> None:
    """An extended WebP is refused for its size, as a video and as a picture, before it is opened."""
    with pytest.raises(TooLarge, match="16383x16383"):
        await readers.video(wide_webp(), TERMS, CUT, client=None, seconds=60)
    with pytest.raises(TooLarge, match="16383x16383"):
        await readers.picture(wide_webp(), TERMS, client=None, seconds=60)


async def test_a_video_that_takes_too_long(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that must be decoded although nobody asked for them end with the CPU time; the next video is read."""
    data = bomb(100_000)
    monkeypatch.setattr(room, "VIDEO_CPU_SECONDS", 0.0)
    with pytest.raises(InvalidImage, match="CPU time"):
        await readers.video(data, TERMS, replace(CUT, fps=0.01), client=None, seconds=60)
    monkeypatch.undo()
    found = await readers.video(film(moving(3)), TERMS, CUT, client=None, seconds=60)
    assert len(found.pixels) == 3


async def test_a_client_that_leaves_ends_its_video(readers: Readers) -> None:
    """The process that reads the video of a client that has gone is ended, and nothing of it is held."""
    data = bomb(100_000)
    task = asyncio.ensure_future(readers.video(data, TERMS, replace(CUT, fps=0.01), client=None, seconds=60))
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert readers._held == 0
    assert len((await readers.video(film(moving(3)), TERMS, CUT, client=None, seconds=60)).pixels) == 3


@pytest.mark.usefixtures("_then_works")
@pytest.mark.parametrize("name", ["audio alone", "an encrypted MP4", "a ZIP of zeros", "no frames"])
def test_by_the_server(live: Any, name: str) -> None:
    """The server says the sentence, and goes on."""
    make, _, why = REFUSED[name]
    reply = live.post("/video/encode", data=make(), headers={"content-type": "video/mp4"})
    assert 400 <= reply.status_code < 500
    if name not in ("a ZIP of zeros", "no frames"):  # the server's limits are wider
        assert why in reply.json()["error"]


@pytest.mark.parametrize("name", ["MP4", "WebP", "GIF", "ZIP", "Matroska"])
def test_the_first_bytes_alone(live: Any, name: str) -> None:
    """A body that ends in the middle of what tells its kind is refused, however short it is."""
    data = {
        "MP4": lambda: film(moving(2)),
        "WebP": lambda: animation(moving(2), "WEBP"),
        "GIF": lambda: animation(moving(2)),
        "ZIP": lambda: pictures(moving(2)),
        "Matroska": lambda: film(moving(2), "matroska"),
    }[name]()
    for end in range(1, 40):
        assert live.post("/video/encode", data=data[:end]).status_code in (415, 422)


@pytest.mark.usefixtures("_then_works")
def test_an_upload_that_breaks_off(live: Any, raw: Any) -> None:
    """Clients that leave in the middle of an upload do not delay a video of another client."""
    data = film(moving())
    head = f"POST /video/encode HTTP/1.1\r\nhost: a\r\ncontent-type: video/mp4\r\ncontent-length: {len(data)}\r\n\r\n"
    for end in (0, 1, len(data) // 2, len(data) - 1, len(data)):
        with raw.connect() as connection:
            connection.sendall(head.encode() + data[:end])
    assert live.post("/video/encode", data=data, headers={"content-type": "video/mp4"}).status_code == 200
