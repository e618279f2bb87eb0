"""Pictures that cost more than they should: refused by what they hold, or ended with the process that reads them."""

import asyncio
import contextlib
import gc
import io
import os
import signal
import struct
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from remote_vae.errors import DeadlineExceeded, InternalError, InvalidImage, NotReady, Overloaded
from remote_vae.media import png
from remote_vae.media.images import ReadPicture, read_image
from remote_vae.media.png import SIGNATURE, read_parts, write_png
from remote_vae.server import readers as room
from remote_vae.server.forks import Fork
from remote_vae.server.readers import QUICK_BYTES, Reader, Readers, Terms
from remote_vae.server.turns import MOST_WAITING

TERMS = Terms(channels=3, multiple=8, max_pixels=2**24, max_side=8192, use_profile=True)
BUSY = 30  # seconds, for a machine that has other work
Read = Callable[..., Any]


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def huffman(kind: int, symbol: int) -> bytes:
    """A table of one code, of one bit."""
    return segment(0xC4, bytes([kind << 4, 1, *[0] * 15, symbol]))


def many_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG; each of its scans of a few bytes goes over all blocks, and says that they are empty."""
    quantities, size = segment(0xDB, bytes([0, *[1] * 64])), struct.pack(">BHHB", 8, side, side, 1)
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes((side // 8) ** 2 // 8)
    run = f"0{2**14 - 1:014b}" * -(-((side // 8) ** 2) // (2**15 - 1))
    run += "1" * (-len(run) % 8)
    data = int(run, 2).to_bytes(len(run) // 8).replace(b"\xff", b"\xff\0")
    rest = (segment(0xDA, b"\1\1\0\1\x3f\0") + data) * scans
    tables = huffman(0, 0) + huffman(1, 0xE0)
    return b"\xff\xd8" + quantities + segment(0xC2, size + b"\1\x11\0") + tables + first + rest + b"\xff\xd9"


def many_markers(marker: int, count: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "JPEG")
    return out.getvalue()[:2] + segment(marker, b"") * count + out.getvalue()[2:]


REFUSED = {
    "scans": (many_scans(4096, 10_000), "more than 200 scans"),
    "scans of a small picture": (many_scans(64, 100_000), "more than 200 scans"),
    "comments": (many_markers(0xFE, 1_000_000), "more than 5000 markers"),
    "fill bytes": (b"\xff\xd8\xff" + b"\xff" * 1_000_000 + b"\0", "broken"),
    "application data": (many_markers(0xE5, 1_000_000), "more than 5000 markers"),
}


@pytest.mark.parametrize(("data", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_a_jpeg_of_many_parts(live: Any, data: bytes, why: str) -> None:
    """A JPEG that makes its reader go over the picture thousands of times is refused before it does."""
    asked = time.monotonic()
    reply = live.post("/sd/encode", data=data, headers={"content-type": "image/jpeg"})
    assert (reply.status_code, reply.json()["error_type"]) == (422, "invalid_image")
    assert why in reply.json()["error"]
    assert time.monotonic() - asked < 5


def test_a_webp_of_many_chunks() -> None:
    """A WebP of millions of empty chunks is refused before an object is made of each of them."""
    out = io.BytesIO()
    Image.new("RGBA", (64, 64), (1, 2, 3, 4)).save(out, "WEBP", exif=b"Exif\0\0II*\0")
    rest = out.getvalue()[12:] + b"prVt\0\0\0\0" * 1_000_000
    data = b"RIFF" + struct.pack("<I", 4 + len(rest)) + b"WEBP" + rest
    with pytest.raises(InvalidImage, match="more than 20000 chunks"):
        read_image(data, **TERMS)


def png_chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_a_text_of_many_words() -> None:
    """Metadata that is compressed text of many short words takes no more memory than the text a few times over."""
    text = zlib.compress(b"\nexif\n 3\n" + b"41 " * 80_000)
    data = SIGNATURE + png_chunk(b"zTXt", b"Raw profile type exif\0\0" + text)
    tracemalloc.start()
    try:
        found = read_parts(memoryview(data))
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()
    assert found.metadata == b"A" * 80_000


def test_metadata_is_unpacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a PNG has a profile or EXIF that unpacks to a thousand times its size, little of it is unpacked."""
    unpacked: list[int] = []
    unpack = png._unpacked

    def counted(packed: bytes, most: int) -> bytes:
        unpacked.append(len(found := unpack(packed, most)))
        return found

    monkeypatch.setattr(png, "_unpacked", counted)
    packed = zlib.compress(b"41 " * 2**21)
    chunks = png_chunk(b"iCCP", b"a\0\0" + packed) + png_chunk(b"zTXt", b"Raw profile type exif\0\0" + packed)
    read_parts(memoryview(SIGNATURE + chunks * 100))
    assert sum(unpacked) <= 8 * 2**20


def test_a_png_of_many_chunks() -> None:
    """A PNG of a chunk for each line is read; one of hundreds of thousands is refused after a few of them."""
    picture = np.zeros((8192, 8, 3), np.uint8)
    whole = write_png(picture)
    at = whole.index(b"IDAT") - 4
    lines = zlib.compress(bytes(25 * 8192), 0)
    chunks = [png_chunk(b"IDAT", lines[i : i + 25]) for i in range(0, len(lines), 25)]
    data = whole[:at] + b"".join(chunks) + png_chunk(b"IEND")
    assert read_image(data, **TERMS).pixels.shape == picture.shape
    many = SIGNATURE + whole[8:at] + png_chunk(b"prVt") * 300_000 + whole[at:]
    assert read_parts(memoryview(many)).broken == f"it has more than {10_000 + len(many) // 1024} chunks"
    with pytest.raises(InvalidImage, match="broken"):
        read_image(many, **TERMS)


def test_an_ordinary_number_of_scans(live: Any) -> None:
    """A JPEG of as many scans and markers as may be is read."""
    reply = live.post("/sd/encode", data=many_scans(64, 199), headers={"content-type": "image/jpeg"})
    assert reply.status_code == 200
    reply = live.post("/sd/encode", data=many_markers(0xFE, 4_900), headers={"content-type": "image/jpeg"})
    assert reply.status_code == 200


@pytest.fixture
async def pictures(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Readers]:
    """Processes that misbehave if a picture says so, and a second of CPU time for each picture."""
    monkeypatch.setattr(room, "COMMAND", (sys.executable, str(Path(__file__).with_name("spinning.py"))))
    monkeypatch.setattr(room, "CPU_SECONDS", 1.0)
    monkeypatch.setattr(room, "available_cores", lambda: 2)
    found = Readers(share=0.5, most_bytes=2**30)
    yield found
    found.close()


def ask(
    pictures: Readers, order: bytes, *, client: str = "a", seconds: float = 60, size: int = 6
) -> "asyncio.Task[ReadPicture]":
    data = (order.ljust(5) + b"\x07").ljust(size, b"\0")
    return asyncio.ensure_future(pictures.picture(data, TERMS, client=client, seconds=seconds))


async def works(pictures: Readers, **words: Any) -> int:
    """Reads a good picture; the id of the process that did."""
    found = await asyncio.wait_for(ask(pictures, b"good", **words), BUSY)
    assert found.pixels.shape == (8, 8, 3)
    assert (found.pixels == 7).all()
    return int(found.note)


async def ended(pid: int) -> None:
    async with asyncio.timeout(BUSY):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("size", [6, QUICK_BYTES + 1])
async def test_cpu_time_is_limited(pictures: Readers, size: int) -> None:
    """A picture that takes more CPU time than it may is refused, and its process is replaced."""
    with pytest.raises(InvalidImage, match="CPU time"):
        await asyncio.wait_for(ask(pictures, b"spin", size=size), BUSY)
    await works(pictures)


async def test_memory_is_limited(pictures: Readers) -> None:
    """A picture that takes more memory than it may is refused, and its process reads the next one."""
    pid = await works(pictures)
    with pytest.raises(InvalidImage, match="memory"):
        await asyncio.wait_for(ask(pictures, b"eat"), BUSY)
    assert await works(pictures) == pid


async def test_models_come_first(pictures: Readers) -> None:
    """A process that reads pictures gets little of a core that a model or a connection needs too."""
    pid = await works(pictures)
    assert os.getpriority(os.PRIO_PROCESS, pid) >= min(19, os.getpriority(os.PRIO_PROCESS, 0) + 15)


async def test_a_process_that_dies(pictures: Readers) -> None:
    """A picture that ends its process is refused, and the next one is read."""
    with pytest.raises(InvalidImage):
        await asyncio.wait_for(ask(pictures, b"die"), BUSY)
    await works(pictures)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_fault_starts_no_program(pictures: Readers) -> None:
    """The process after one that has been ended is another fork of the same small process, so no program starts."""
    parent = parent_of(await works(pictures))
    for order in (b"die", b"sleep"):
        with pytest.raises((InvalidImage, DeadlineExceeded)):
            await asyncio.wait_for(ask(pictures, order, seconds=1), BUSY)
        assert parent_of(await works(pictures)) == parent


async def test_the_small_process_is_ended(pictures: Readers) -> None:
    """If the process that the others are forks of is ended, a new one starts, and the old forks read nothing more."""
    pid = await works(pictures)
    parent = parent_of(pid)
    os.kill(parent, signal.SIGKILL)
    async with asyncio.timeout(BUSY):
        while parent_of(pid) == parent:
            await asyncio.sleep(0.05)
    assert parent_of(await works(pictures)) not in (parent, 1)
    await ended(pid)


async def test_all_processes_end_with_the_server(pictures: Readers) -> None:
    """Whatever they read, no process outlives the server's end of their sockets, and no new one starts after it."""
    pid = await works(pictures)
    parent = parent_of(pid)
    sleeping = [ask(pictures, b"sleep", seconds=600), ask(pictures, b"sleep", client="b", seconds=600)]
    await asyncio.sleep(0.3)
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    assert len(children) == 2
    pictures.close()
    for each in (parent, *map(int, children)):
        await ended(each)
    await asyncio.gather(*sleeping, return_exceptions=True)
    with pytest.raises(NotReady):
        await ask(pictures, b"good")


def test_nothing_is_left_when_the_event_loop_ends_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose answer comes when nobody waits for it is closed, though no event loop runs any more."""
    readers = Readers(share=0.5, most_bytes=2**30)
    ends: list[Reader] = []

    def end(reader: Reader) -> None:
        ends.append(reader)

    monkeypatch.setattr(Reader, "kill", lambda _: None)  # so that it answers
    monkeypatch.setattr(Reader, "end", end)
    answering = threading.Event()
    monkeypatch.setattr(Reader, "read", lambda *_: answering.wait(BUSY))

    async def leave() -> None:
        with pytest.raises(DeadlineExceeded):
            await ask(readers, b"good", seconds=0.1)

    asyncio.run(leave())
    assert not ends
    answering.set()
    readers._threads.shutdown()
    [reader] = ends
    monkeypatch.undo()
    reader.end()
    readers.close()


async def test_a_fork_keeps_nothing_open(pictures: Readers) -> None:
    """A fork has its own pipe and no other, so that it sees nothing of other bodies."""
    await works(pictures)
    sleeping = ask(pictures, b"sleep", seconds=60)
    pid = await works(pictures, client="b")
    assert sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd")) == [0, 1, 2]
    sleeping.cancel()
    await asyncio.gather(sleeping, return_exceptions=True)


async def test_no_process_can_be_started(pictures: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process a picture is refused for now; one that has a process needs no second one to be started."""
    fork, left = room.ForkServer.fork, 0

    def rationed(server: room.ForkServer) -> Fork:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("no memory for a process")
        return fork(server)

    monkeypatch.setattr(room.ForkServer, "fork", rationed)
    with pytest.raises(Overloaded, match="start no process"):
        await asyncio.wait_for(ask(pictures, b"good"), BUSY)
    left = 1
    pid = await works(pictures)
    assert await works(pictures) == pid


async def test_a_fault_of_the_library(pictures: Readers, caplog: pytest.LogCaptureFixture) -> None:
    """An error that nobody expected is an internal one; the log says where it was raised and nothing of the picture."""
    with pytest.raises(InternalError):
        await asyncio.wait_for(ask(pictures, b"raise"), BUSY)
    [record] = [each for each in caplog.records if each.name == "remote_vae.server"]
    assert record.__dict__["exception"] == "RuntimeError"
    assert "raise\\x07" not in str(record.__dict__)
    await works(pictures)


async def test_the_deadline_ends_a_picture(pictures: Readers) -> None:
    """At the request's deadline the process that reads its picture is ended."""
    pid = await works(pictures)
    with pytest.raises(DeadlineExceeded):
        await ask(pictures, b"sleep", seconds=0.3)
    await ended(pid)
    await works(pictures)


async def test_nobody_waits_for_what_goes_wrong(
    pictures: Readers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What becomes of a body whose client has gone is no error of the server's: the log says nothing of it."""
    gone = threading.Event()

    def refuse(data: bytes) -> None:
        gone.wait(BUSY)
        raise InvalidImage("no JSON")

    monkeypatch.setattr(room, "read_json_body", refuse)
    asked = [ask(pictures, b"sleep"), asyncio.ensure_future(pictures.json(b"[", client="b", seconds=60))]
    pid = await works(pictures, client="c")
    for task in asked:
        task.cancel()
    asyncio.get_running_loop().call_later(0.1, gone.set)
    await asyncio.gather(*asked, return_exceptions=True)
    pictures.close()
    pictures._threads.shutdown()
    await ended(pid)
    asked.clear()
    del task
    gc.collect()
    assert not [each for each in caplog.records if each.name == "asyncio"]


async def test_a_gone_client_ends_its_picture(pictures: Readers) -> None:
    """The process that reads the picture of a client that has gone is ended, and its turn passes on."""
    pid = await works(pictures)
    sleeping = [ask(pictures, b"sleep") for _ in range(5)]
    await asyncio.sleep(0.2)
    for task in sleeping:
        task.cancel()
    await asyncio.gather(*sleeping, return_exceptions=True)
    await ended(pid)
    await works(pictures)


@pytest.mark.parametrize("size", [6, QUICK_BYTES + 1])
async def test_one_clients_pictures_hold_up_no_other_client(pictures: Readers, size: int) -> None:
    """While one client's pictures take all the time that they may, another client's of the same size is read."""
    sleeping = [ask(pictures, b"sleep", size=size) for _ in range(20)]
    await asyncio.sleep(0.2)
    await works(pictures, client="b", size=size)
    for task in sleeping:
        task.cancel()
    await asyncio.gather(*sleeping, return_exceptions=True)


async def test_small_pictures_do_not_wait_for_large_ones(pictures: Readers) -> None:
    """A client's large pictures, known by their bytes or their pixels, do not hold up its small ones."""
    sleeping = [ask(pictures, b"sleep", size=QUICK_BYTES + 1) for _ in range(10)]
    await asyncio.sleep(0.2)
    await works(pictures)
    large = ask(pictures, b"large")
    await works(pictures)
    assert not large.done()
    for task in (*sleeping, large):
        task.cancel()
    await asyncio.gather(*sleeping, large, return_exceptions=True)


async def test_few_pictures_wait(pictures: Readers) -> None:
    """Too many pictures, of one client or in all, are refused at once; so are too many bytes of them."""
    sleeping = [ask(pictures, b"sleep") for _ in range(MOST_WAITING // 2 + 1)]
    await asyncio.sleep(0.1)
    with pytest.raises(Overloaded):
        await ask(pictures, b"good")
    await works(pictures, client="b")
    held = [ask(pictures, b"sleep", client="c", size=2**29 - 2**20) for _ in range(2)]
    await asyncio.sleep(0.1)
    with pytest.raises(Overloaded, match="bytes"):
        await ask(pictures, b"good", client="b", size=2**22)
    for task in (*sleeping, *held):
        task.cancel()
    await asyncio.gather(*sleeping, *held, return_exceptions=True)
    await works(pictures)


def test_nothing_waits_for_gone_clients(patient: Any) -> None:
    """Slow pictures whose senders have gone do not delay a small picture, and leave no process behind."""
    server = patient.server
    body = many_scans(4096, 190)
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "PNG")
    head = f"POST /encode HTTP/1.1\r\nhost: a\r\ncontent-type: image/jpeg\r\ncontent-length: {len(body)}\r\n\r\n"

    def small() -> float:
        asked = time.monotonic()
        reply = requests.post(server.url + "/encode", out.getvalue(), headers={"content-type": "image/png"}, timeout=60)
        assert reply.status_code == 200
        return time.monotonic() - asked

    small()
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(patient.raw.connect()).sendall(head.encode() + body)
        assert small() < 2
    assert small() < 2
