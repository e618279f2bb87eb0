"""Unfinished requests: they can be watched and cancelled by their owner, and by nobody else."""

import asyncio
import gc
import json
import logging
import socket
import struct
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx2
import pytest
import requests

from remote_vae.engine.job import DecodeJob
from remote_vae.protocol.messages import DecodeRequest
from remote_vae.server.app import build_app
from remote_vae.server.rendering import Call
from remote_vae.server.settings import Settings

RAW = {"content-type": "tensor/binary"}
COPY = "shape=1,3,8,8&dtype=float32&output_type=pt"
LATENT, LAYERS = bytes(768), b"\0\0\x30\x41" + bytes(764)  # 11.0 makes the VAE take ten layers of 0.2 s each
MINE, OTHERS = "a-key-of-some-length", "another-key-of-some-length"


@pytest.fixture(scope="module")
def server(start: Any) -> Iterator[Any]:
    """A server with two keys and one replica; a job in ten layers takes two seconds."""
    with start("copy", keys=f"{MINE} {OTHERS}", replicas=0) as found:
        yield found


OPENED: list[requests.Response] = []


@pytest.fixture(autouse=True)
def close_streams() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def key(text: str = MINE) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


@contextmanager
def sent(server: Any, body: bytes = LAYERS, name: str = "", **headers: str) -> Iterator[tuple[str, Future[Any]]]:
    """A decode that is under way, by its id."""
    request_id = name or uuid.uuid4().hex
    given = {**RAW, **key(), "x-request-id": request_id, **headers}
    with ThreadPoolExecutor(1) as pool:
        yield (
            request_id,
            pool.submit(requests.post, f"{server.url}/decode?{COPY}", body, headers=given, timeout=60),
        )


def opened(server: Any, request_id: str, who: str = MINE) -> requests.Response:
    """The stream of a job's events, once the server has heard of the job."""
    ends = time.monotonic() + 10
    while True:
        url = f"{server.url}/jobs/{request_id}/events"
        reply = requests.get(url, headers=key(who), stream=True, timeout=30)
        OPENED.append(reply)
        if reply.status_code != 404 or time.monotonic() > ends:
            return reply
        time.sleep(0.02)


def events(reply: requests.Response) -> Iterator[dict[str, Any]]:
    for line in reply.iter_lines():
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


def watched(server: Any, request_id: str) -> list[dict[str, Any]]:
    reply = opened(server, request_id)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return list(events(reply))


def test_the_order_of_events(server: Any) -> None:
    """A job is queued, then runs, then is finished; positions fall, and the steps done of all only rise."""
    with sent(server) as (first, _):
        assert any(event["state"] == "running" for event in events(opened(server, first)))
        with sent(server) as (request_id, reply):
            found = watched(server, request_id)
            assert reply.result().status_code == 200
    order = ["arriving", "queued", "running", "writing", "finished"]
    states = [order.index(event["state"]) for event in found]
    assert states == sorted(states)
    assert {"queued", "running"} < {event["state"] for event in found}
    assert found[-1] == {"state": "finished"}
    assert all(event["position"] == 1 for event in found if event["state"] == "queued")


def test_steps_rise_and_end_where_they_said(server: Any) -> None:
    """From the second job of a kind on, steps are counted as they are done, and the seconds left fall towards zero."""
    with sent(server) as (_, reply):
        reply.result()
    with sent(server) as (request_id, reply):
        found = [event for event in watched(server, request_id) if event.get("total")]
        reply.result()
    shares = [event["done"] / event["total"] for event in found]
    assert shares == sorted(shares)
    assert len(set(shares)) > 4
    assert len({event["total"] for event in found}) == 1
    assert all(0 <= event["seconds_left"] < 10 for event in found if "seconds_left" in event)
    assert found[-1]["seconds_left"] < 1


def test_a_failure_is_an_event(server: Any) -> None:
    """The last event of a job that fails has the code of the error that the reply has."""
    raises = b"\0\0\x10\x41" + bytes(764)
    with sent(server) as (first, _):
        assert any(event["state"] == "running" for event in events(opened(server, first)))
        with sent(server, raises) as (request_id, reply):  # which waits, so that it can be watched
            found = watched(server, request_id)
            assert reply.result().json()["error_type"] == found[-1]["error_type"] == "internal_error"
    assert found[-1]["state"] == "failed"


@pytest.mark.parametrize("waits", [True, False], ids=["queued", "running"])
def test_delete_cancels(server: Any, waits: bool) -> None:
    """DELETE ends a job that waits or runs, within a second; its reply is 409 and its last event says so."""
    with sent(server) as (first, blocker):
        assert any(event["state"] == "running" for event in events(opened(server, first)))
        if not waits:
            second, reply = first, blocker
            found = cancelled(server, second, reply)
        else:
            with sent(server) as (second, reply):
                found = cancelled(server, second, reply)
            assert blocker.result().status_code == 200
    assert found[-1] == {"state": "cancelled", "error_type": "job_cancelled"}
    with sent(server, LATENT) as (_, after):
        assert after.result().status_code == 200


def cancelled(server: Any, request_id: str, reply: Future[Any]) -> list[dict[str, Any]]:
    stream = opened(server, request_id)
    time.sleep(0.3)
    began = time.monotonic()
    answer = requests.delete(f"{server.url}/jobs/{request_id}", headers=key(), timeout=10)
    assert answer.json() == {"cancelled": 1}
    assert reply.result().json()["error_type"] == "job_cancelled"
    assert reply.result().status_code == 409
    found = list(events(stream))
    assert time.monotonic() - began < 1
    assert requests.delete(f"{server.url}/jobs/{request_id}", headers=key(), timeout=10).status_code == 404
    return found


def test_a_job_is_cancelled_while_its_body_arrives(server: Any) -> None:
    """A body that arrives slowly is let go of when its job is cancelled."""
    request_id = uuid.uuid4().hex
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /decode?{COPY} HTTP/1.1\r\nhost: localhost\r\ncontent-type: tensor/binary\r\n"
        head += f"authorization: Bearer {MINE}\r\nx-call-id: {request_id}\r\ncontent-length: 768\r\n\r\n"
        connection.sendall(head.encode() + bytes(100))
        stream = opened(server, request_id)
        assert next(events(stream)) == {"state": "arriving"}
        requests.delete(f"{server.url}/jobs/{request_id}", headers=key(), timeout=10)
        connection.settimeout(5)
        assert connection.recv(65536).startswith(b"HTTP/1.1 409")


def test_hanging_up_cancels(server: Any) -> None:
    """A client that hangs up ends its job: the next one begins at once, and a watcher is told that it was cancelled."""
    request_id = uuid.uuid4().hex
    headers = {**RAW, **key(), "x-request-id": request_id}
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{server.url}/decode?{COPY}", LAYERS, headers=headers, timeout=0.3)
    began = time.monotonic()
    with sent(server, LATENT) as (_, reply):
        assert reply.result().status_code == 200
    assert time.monotonic() - began < 1
    with sent(server, name=request_id) as (_, reply):
        assert watched(server, request_id)[-1]["state"] == "finished"


def test_a_strangers_key_finds_nothing(server: Any) -> None:
    """For another key there is no such job, neither to see nor to cancel; without a key there is nothing at all."""
    with sent(server) as (request_id, reply):
        stream = opened(server, request_id)
        url = f"{server.url}/jobs/{request_id}"
        assert requests.get(f"{url}/events", headers=key(OTHERS), timeout=10).json()["error_type"] == "unknown_job"
        assert requests.delete(url, headers=key(OTHERS), timeout=10).status_code == 404
        assert requests.delete(url, timeout=10).status_code == 401
        assert reply.result().status_code == 200
        stream.close()


def test_an_id_that_two_owners_use(server: Any) -> None:
    """Of jobs with one id each owner has its own; of an owner's two, both are cancelled."""
    name = uuid.uuid4().hex
    with (
        sent(server, name=name) as (_, theirs),
        sent(server, name=name, authorization=f"Bearer {OTHERS}") as (_, first),
        sent(server, name=name, authorization=f"Bearer {OTHERS}") as (_, second),
    ):
        time.sleep(0.5)
        answer = requests.delete(f"{server.url}/jobs/{name}", headers=key(OTHERS), timeout=10)
        assert answer.json() == {"cancelled": 2}
        assert {first.result().status_code, second.result().status_code} == {409}
        assert theirs.result().status_code == 200


def test_a_short_id_is_no_name(server: Any) -> None:
    """An id that could be guessed names no job: without keys, everybody behind one proxy is one client."""
    with sent(server, name="short") as (_, reply):
        time.sleep(0.3)
        assert requests.get(f"{server.url}/jobs/short/events", headers=key(), timeout=10).status_code == 404
        assert requests.delete(f"{server.url}/jobs/short", headers=key(), timeout=10).status_code == 404
        assert reply.result().status_code == 200


def test_wrong_methods(server: Any) -> None:
    """Events are read with GET, jobs are deleted with DELETE, and every other method is told so."""
    for method, path, allowed in (
        ("POST", "/jobs/x/events", "GET"),
        ("HEAD", "/jobs/x/events", "GET"),
        ("GET", "/jobs/x", "DELETE"),
        ("PUT", "/jobs/x", "DELETE"),
    ):
        reply = requests.request(method, server.url + path, headers=key(), timeout=10)
        assert (reply.status_code, reply.headers["allow"]) == (405, allowed)


def test_streams_are_counted(server: Any) -> None:
    """A client watches 64 times at most; a stream that its client has left counts no longer."""
    slow = b"\0\0\x40\x41" + bytes(764)  # 12.0: forty layers
    with sent(server, slow) as (request_id, reply):
        streams = [opened(server, request_id) for _ in range(64)]
        assert {stream.status_code for stream in streams} == {200}
        url = f"{server.url}/jobs/{request_id}"
        assert requests.get(f"{url}/events", headers=key(), timeout=10).status_code == 429
        for stream in streams:
            stream.close()
        server.wait_until(lambda: opened(server, request_id).status_code == 200, seconds=5)
        requests.delete(url, headers=key(), timeout=10)
        assert reply.result().status_code == 409


@asynccontextmanager
async def in_this_process() -> AsyncIterator[Any]:
    """The application of a server, whose objects a test can count: they go with the last reference or not at all."""
    ready = asyncio.Event()
    app = build_app(Settings(models=("copy=.,recipe=sd1",)), loader="misbehaving:load", on_ready=ready.set)
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps what is logged, with its tracebacks
    try:
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(ready.wait(), 240)
            yield app
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


def client_of(app: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1", timeout=60)


class Unread:
    """A stream of a job's events, whose client takes the head of the reply and nothing more."""

    def __init__(self, app: Any, request_id: str) -> None:
        self.began = asyncio.Event()
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "query_string": b""}
        scope |= {"path": f"/jobs/{request_id}/events", "headers": [(b"host", b"127.0.0.1")]}
        scope |= {"client": ("127.0.0.1", 123), "server": ("127.0.0.1", 80), "root_path": ""}
        self.task = asyncio.ensure_future(app(scope, asyncio.Event().wait, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
        else:
            self.began.set()
            await asyncio.Event().wait()


@pytest.mark.parametrize(("ends", "status"), [("finishes", 200), ("fails", 500), ("is cancelled", 409)])
async def test_streams_that_nobody_reads_hold_nothing(ends: str, status: int) -> None:
    """When a watched request is over, no message, job or error of it is left, while its streams still wait."""
    first = {"finishes": 8.0, "fails": 9.0, "is cancelled": 11.0}[ends]
    body = struct.pack("192f", first, *[0.0] * 191)
    others = {id(each) for each in messages()}  # of other tests

    def held() -> list[Any]:
        return [each for each in messages() if id(each) not in others]

    async with in_this_process() as app, client_of(app) as http:
        blocker, request_id = asyncio.create_task(decoded(http, struct.pack("f", 11.0) + body[4:])), uuid.uuid4().hex
        reply = asyncio.create_task(decoded(http, body, request_id))
        while not any(type(each) is Call and each.record.request_id == request_id for each in held()):
            await asyncio.sleep(0.02)
        streams = [Unread(app, request_id) for _ in range(3)]
        await asyncio.gather(*(stream.began.wait() for stream in streams))
        if ends == "is cancelled":
            assert (await http.delete(f"/jobs/{request_id}")).json() == {"cancelled": 1}
        assert (await reply, await blocker) == (status, 200)
        assert held() == []
        assert [stream.task.done() for stream in streams] == [False] * 3
        for stream in streams:
            stream.task.cancel()
        await asyncio.gather(*(stream.task for stream in streams), return_exceptions=True)


async def decoded(http: httpx2.AsyncClient, body: bytes, request_id: str = "") -> int:
    """The status of a decode."""
    reply = await http.post(f"/decode?{COPY}", content=body, headers={**RAW, "x-request-id": request_id or "short"})
    return reply.status_code


def messages() -> list[Any]:
    """What the process has of requests whose replies are not sent yet."""
    # By type, because some objects of other tests' libraries warn if they are asked for their class.
    return [each for each in gc.get_objects() if type(each) in (DecodeRequest, DecodeJob, Call)]
