"""Videos that are sent while they are decoded."""

import http.client
import io
import json
import os
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import av
import numpy as np
import pytest
import requests

from films import moving
from remote_vae.engine.job import Outcome
from remote_vae.errors import InternalError, InvalidReply, RemoteVAEError, ReplicaFailed
from remote_vae.media.terms import VideoTerms
from remote_vae.protocol.multipart import PartsReader
from remote_vae.server.streams import whole_film
from remote_vae.server.threads import Threads
from remote_vae.values import VIDEO_FORMATS, Tensor

ON_RAY = os.environ.get("TEST_ON") == "ray"
DIE, SLEEP, RAISE, HANG = 7.0, 8.0, 9.0, 10.0  # of misbehaving.py
RAW = {"content-type": "tensor/binary"}
PARTS = {**RAW, "accept": "multipart/mixed"}
MP4 = {**RAW, "accept": "video/mp4"}
LARGE = 1024  # a side with which a raw frame has 12 MiB


@pytest.fixture(scope="module")
def films(start: Any) -> Iterator[Any]:
    """A server whose VAE copies videos frame by frame."""
    with start("films", "copy", replicas=int(ON_RAY)) as server:  # with one replica, jobs can be asked for on Ray too
        yield server


def latent(frames: int, *, side: int = 16, first: dict[int, float] | None = None) -> np.ndarray:
    """Frames of one level each; the first values of some may make the VAE misbehave. *Shapes*: [1,3,F,H,W]."""
    values = np.empty((1, 3, frames, side, side), np.float32)
    values[:] = np.linspace(-1, 1, frames).reshape(-1, 1, 1)
    for frame, value in (first or {}).items():
        values[0, 0, frame, 0, 0] = value
    return values


def post(server: Any, sent: np.ndarray, *, headers: Any = PARTS, query: str = "", stream: bool = True) -> Any:
    shape = ",".join(map(str, sent.shape))
    query = f"shape={shape}&dtype=float32&stream={stream}&{query}"
    return requests.post(f"{server.url}/?{query}", sent.tobytes(), headers=headers, stream=True, timeout=60)


def blocks(reply: Any) -> Iterator[np.ndarray]:
    """The blocks as they come; *raises* what the stream ended with."""
    assert reply.status_code == 200, reply.text
    reader = PartsReader(reply.headers["content-type"], most_bytes=2**30)
    try:
        for chunk in reply.iter_content(None):
            yield from map(array, reader.take(chunk))
    except requests.RequestException:
        pass  # what came is judged by its form
    reader.end()


def array(tensor: Tensor) -> np.ndarray:
    return np.frombuffer(tensor.buffer, tensor.dtype).reshape(tensor.shape)


def shown(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def is_idle(server: Any) -> bool:
    """No job is in the server's hands."""
    text = requests.get(f"{server.url}/metrics", timeout=10).text
    return 'remote_vae_accepted_jobs{model="films"} 0.0' in text


@pytest.mark.parametrize(
    ("query", "axis"),
    [("output_type=pil", None), ("output_type=pt", 1), ("output_type=pt&partial_postprocess=True", None)],
)
@pytest.mark.parametrize("model", ["films", "video"])
def test_the_frames_are_those_of_a_whole_reply(films: Any, live: Any, model: str, query: str, axis: int | None) -> None:
    """Joined, the parts of a stream are the frames of the plain answer, bit by bit; frames come first in each.

    They come one by one, or at the end of a model that finishes all frames together.
    """
    shape = (1, 3, 9, 8, 8) if model == "films" else (1, 16, 3, 4, 4)
    sent = np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)
    url = f"{(films if model == 'films' else live).url}/{model}/decode"
    url += f"?shape={','.join(map(str, shape))}&dtype=float32&{query}"
    plain = requests.post(url, sent.tobytes(), headers={**RAW, "accept": "tensor/binary"}, timeout=60)
    reply = requests.post(f"{url}&stream=true", sent.tobytes(), headers=PARTS, stream=True, timeout=60)
    found = list(blocks(reply))
    whole = np.frombuffer(plain.content, plain.headers["dtype"]).reshape(json.loads(plain.headers["shape"]))
    whole = whole if axis is None else np.moveaxis(whole[0], axis, 0)
    assert np.array_equal(np.concatenate(found), whole)
    assert len(found) == (9 if model == "films" else 1)
    assert int(reply.headers["x-frames"]) == len(whole) == 9
    for name in ("x-model", "x-plan", "x-dtype"):
        assert reply.headers[name] == plain.headers[name]


@pytest.mark.parametrize("asked", ["accept", "mp4", "mp4&codec=av1", "webm", "mkv", "gif", "zip"])
def test_a_file_that_grows(live: Any, asked: str) -> None:
    """A streamed file holds what a whole one holds, and comes in chunks without a length."""
    sent = np.random.default_rng(3).normal(size=(1, 16, 3, 8, 8)).astype(np.float32)
    query = "shape=1,16,3,8,8&dtype=float32" + ("" if asked == "accept" else f"&output_type={asked}")
    headers = MP4 if asked == "accept" else RAW
    plain = live.post(f"/video/decode?{query}", data=sent.tobytes(), headers=headers)
    reply = live.post(f"/video/decode?{query}&stream=true", data=sent.tobytes(), headers=headers, stream=True)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == plain.headers["content-type"]
    assert reply.headers["transfer-encoding"] == "chunked"
    data = reply.content
    if asked == "zip":
        assert len(data) > 1000
        return
    found, whole = shown(data), shown(plain.content)
    assert found.shape == whole.shape
    limit = 0 if asked in ("mkv", "gif") else 30
    assert np.abs(found.astype(int) - whole).max() <= limit
    if asked in ("accept", "mp4", "mp4&codec=av1"):
        assert data.count(b"moof") >= 1


@pytest.mark.parametrize("headers", [PARTS, MP4])
def test_the_first_frames_come_first(films: Any, headers: dict[str, str]) -> None:
    """The reply begins before the last frame is there, and an MP4 with a fragment that can be shown."""
    frames = 72
    sent = latent(frames, side=64, first={frame: SLEEP for frame in range(40, frames)})
    started, came, early = time.monotonic(), b"", 0.0
    with post(films, sent, headers=headers) as reply:
        for chunk in reply.iter_content(None):
            came += chunk
            if b"moof" in came or headers is PARTS:
                early = time.monotonic() - started
                break
    assert 0 < early < 20  # of 32 seconds


@pytest.mark.parametrize(("first", "error"), [(DIE, ReplicaFailed), (RAISE, InternalError)])
def test_a_fault_in_the_middle(films: Any, first: float, error: type[RemoteVAEError]) -> None:
    """The frames before it come, then the error, and no end; the server goes on."""
    films.wait_until_live()
    found: list[np.ndarray] = []
    with post(films, latent(9, first={6: first})) as reply, pytest.raises(error):
        found.extend(blocks(reply))
    assert sum(map(len, found)) == 6
    films.wait_until_live()
    assert sum(map(len, blocks(post(films, latent(9))))) == 9
    films.wait_until(lambda: is_idle(films), seconds=30)


@pytest.mark.parametrize("headers", [MP4, PARTS])
def test_a_reply_that_breaks_off(films: Any, headers: dict[str, str]) -> None:
    """The connection of a reply that cannot be finished is closed without the end of its chunks, and of its parts."""
    came: list[bytes] = []
    with post(films, latent(60, side=64, first={59: RAISE}), headers=headers) as reply:
        assert reply.status_code == 200
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            came.extend(reply.iter_content(None))
    assert len(b"".join(came)) > 1000
    assert not b"".join(came).endswith(b"--\r\n")
    films.wait_until(lambda: is_idle(films), seconds=30)


def test_a_whole_file_is_tried_again(films: Any) -> None:
    """A reply that has not begun is computed again, after any frame: two processes die over it, and not one."""
    films.wait_until_live()
    reply = post(films, latent(9, side=64, first={6: DIE}), headers=MP4, stream=False)
    assert (reply.status_code, reply.json()["error_type"]) == (500, "poison_request")
    films.wait_until_live()
    films.wait_until(lambda: is_idle(films), seconds=30)


async def test_a_file_begins_again_with_its_frames() -> None:
    """Each block is written as it comes; if the first frame comes again, so does the file."""
    frames, written = moving(4), list[int]()

    async def source() -> AsyncGenerator[Outcome, None]:
        for first, last in ((0, 2), (2, 3), (0, 1), (1, 4)):
            block = Tensor("uint8", (last - first, 48, 64, 3), frames[first:last].tobytes())
            yield Outcome(block, "frames", "float32", str(first), {}, first=first)
            written.append(last)

    asked, terms = VIDEO_FORMATS["mkv"], VideoTerms(4, 48, 64, fps=10)
    outcome, file, _ = await whole_film(source(), asked, terms, Threads())
    assert np.array_equal(shown(file), frames)
    assert (outcome.note, written) == ("1", [2, 3, 1, 4])


def test_a_fault_before_the_first_frame(films: Any) -> None:
    """It is answered as without a stream."""
    reply = post(films, latent(9, first={0: RAISE}))
    assert (reply.status_code, reply.json()["error_type"]) == (500, "internal_error")


@contextmanager
def opened(server: Any, sent: np.ndarray, **headers: str) -> Iterator[http.client.HTTPResponse]:
    """A reply of which only the head is read, over a connection that takes little at once."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    connection.sock.settimeout(60)
    connection.sock.connect(("127.0.0.1", server.port))
    shape = ",".join(map(str, sent.shape))
    path = f"/films?shape={shape}&dtype=float32&stream=1&output_type=pt"
    with closing(connection):
        connection.request("POST", path, sent.tobytes(), PARTS | headers)
        with connection.getresponse() as reply:
            assert reply.status == 200
            yield reply


def drained(reply: http.client.HTTPResponse, found: list[Tensor]) -> None:
    """Reads a stream to its end; *raises* what it ends with."""
    reader = PartsReader(reply.headers["content-type"], most_bytes=2**30)
    while chunk := reply.read1(2**20):
        found += reader.take(chunk)
    reader.end()


def test_a_reader_that_stops(films: Any) -> None:
    """Its job stops, and after the deadline the replica serves others; what it reads then is not whole."""
    seconds = "10" if ON_RAY else "4"  # in which the body must arrive too, and through Ray it takes longer
    with opened(films, latent(16, side=LARGE), **{"x-request-timeout-seconds": seconds}) as reply:
        assert not is_idle(films)
        other = post(films, latent(3))  # which waits for the replica
        assert sum(map(len, blocks(other))) == 3
        assert films.decode(path="/copy").status_code == 200
        found: list[Tensor] = []
        with pytest.raises(RemoteVAEError, match="not done within"):
            drained(reply, found)
        assert 0 < len(found) < 16
    films.wait_until(lambda: is_idle(films), seconds=30)


def test_a_reader_that_hangs_up(films: Any) -> None:
    """Its job is cancelled: the model is free for the next one."""
    before = films.replicas()
    for _ in range(3):
        with opened(films, latent(90, first={frame: SLEEP for frame in range(2, 90)})) as reply:
            reply.read1(2**16)
        films.wait_until(lambda: is_idle(films), seconds=30)
    assert sum(map(len, blocks(post(films, latent(3))))) == 3
    assert films.replicas() == before


def test_a_job_that_is_cancelled(films: Any) -> None:
    """The job of a stream can be watched and cancelled until the stream ends."""
    name = "a-stream-of-frames-1"
    with opened(films, latent(16, side=LARGE), **{"x-request-id": name}) as reply:
        events = requests.get(f"{films.url}/jobs/{name}/events", stream=True, timeout=10).iter_lines(chunk_size=None)
        assert b"running" in next(events)
        assert requests.delete(f"{films.url}/jobs/{name}", timeout=10).json() == {"cancelled": 1}
        films.wait_until(lambda: is_idle(films), seconds=60)
        assert any(b"cancelled" in line for line in events)
        with pytest.raises((http.client.IncompleteRead, ConnectionError, InvalidReply)):
            drained(reply, [])
    assert requests.delete(f"{films.url}/jobs/{name}", timeout=10).status_code == 404
    films.wait_until(lambda: is_idle(films), seconds=30)


def test_limits_count_what_is_held(start: Any) -> None:
    """A clip whose frames together are above the limit of a reply, and of all replies, can be streamed."""
    with start("films", max_reply_bytes=2**26, max_unsent_bytes=2**26) as server:
        sent, query = latent(12, side=LARGE), "output_type=pt"
        whole = post(server, sent, query=query, headers=RAW, stream=False)
        assert (whole.status_code, whole.json()["error_type"]) == (413, "too_large")
        for _ in range(3):
            assert sum(len(block) for block in blocks(post(server, sent, query=query))) == 12


@pytest.mark.parametrize(
    ("model", "query", "headers", "status", "says"),
    [
        ("copy", "shape=1,3,8,8", PARTS, 422, "stream is for models of videos"),
        ("films", "shape=2,3,1,8,8&output_type=pt", PARTS, 422, "take output_type=pt without stream"),
        ("films", "shape=1,3,2,8,8&image_format=png", PARTS, 422, "leave one of them out"),
        ("films", "shape=1,3,2,8,8&output_type=webp", RAW, 422, "webp is written as a whole"),
        ("films", "shape=1,3,2,8,8&output_type=avif", RAW, 422, "avif is written as a whole"),
        ("films", "shape=1,3,2,8,8&output_type=pt", {**RAW, "accept": "tensor/base64"}, 406, "multipart/mixed"),
        ("films", "shape=1,3,2,8,8", {**RAW, "accept": "image/png"}, 406, "multipart/mixed"),
    ],
)
def test_what_cannot_be_streamed(films: Any, model: str, query: str, headers: Any, status: int, says: str) -> None:
    """What is no video, or cannot come in parts, is refused with what to do."""
    count = 2 * 3 * 64
    url = f"{films.url}/{model}/decode?{query}&dtype=float32&stream=true"
    reply = requests.post(url, bytes(4 * (count if "shape=1,3,8" not in query else 192)), headers=headers, timeout=30)
    assert (reply.status_code, says in reply.json()["error"]) == (status, True), reply.text


def whole_stream() -> tuple[str, bytes, list[int]]:
    """A content type, a body of three parts, and where its parts end."""
    from remote_vae.protocol.multipart import PartsWriter

    writer, body, ends = PartsWriter(), b"", []
    for number in range(1, 4):
        body += b"".join(writer.tensor(Tensor("uint8", (number,), b"\r\n-"[:number]), [("x-plan", "frames")]))
        ends.append(len(body))
    return writer.content_type, body + writer.end(), ends


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_parts_are_read_as_they_come(step: int) -> None:
    """However the bytes are cut, the tensors come out when they are complete, and only the end makes it whole."""
    media, body, ends = whole_stream()
    reader, found = PartsReader(media, most_bytes=100), list[Tensor]()
    for start in range(0, len(body), step):
        found += reader.take(body[start : start + step])
        assert len(found) >= sum(end <= start for end in ends)
    reader.end()
    assert [(tensor.shape, bytes(tensor.buffer)) for tensor in found] == [((n,), b"\r\n-"[:n]) for n in (1, 2, 3)]


def test_no_half_is_taken_for_whole() -> None:
    """A body that is cut anywhere is not whole."""
    media, body, _ = whole_stream()
    for end in range(len(body) - 2):  # the last line break says nothing more
        reader = PartsReader(media, most_bytes=100)
        list(reader.take(body[:end]))
        with pytest.raises(InvalidReply, match="broke off"):
            reader.end()


@pytest.mark.parametrize(
    "change",
    [
        (b"content-length: 1\r\n", b"content-length: 101\r\n"),
        (b"content-length: 1\r\n", b"content-length: -1\r\n"),
        (b"content-length: 1\r\n", b""),
        (b"shape: [1]", b"shape: [2]"),
        (b"shape: [1]", b"shape: " + b"[" * 5000),
        (b"--", b"-x"),
        (b"dtype: uint8", b"dtype: object"),
        (b"shape: [1]", b"x: " + b"y" * 40000),
    ],
)
def test_parts_that_lie(change: tuple[bytes, bytes]) -> None:
    """A part that breaks the rules is refused, before its bytes are collected."""
    media, body, _ = whole_stream()
    with pytest.raises(InvalidReply):
        list(PartsReader(media, most_bytes=100).take(body.replace(*change, 1)))
    with pytest.raises(InvalidReply):
        PartsReader("tensor/binary", most_bytes=100)
