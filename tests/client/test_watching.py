"""Calls that are watched: what their callers are told, how they end them, and that watching harms no call."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import requests
from rich.console import Console

from remote_vae.client import AsyncClient, Client, call_bar
from remote_vae.client.call_bar import CallBar, in_words
from remote_vae.client.model import RemoteModel
from remote_vae.client.watching import CallProgress

from .conftest import FaultServer, http, read_request

UNDER_WAY = ["sent", "arriving", "queued", "running", "writing", "finished"]
ALONE = "an-id-for-the-job-in-front"


def layers(first: float = 11.0, batch: int = 1) -> np.ndarray:
    """A latent for which the VAE takes ten layers of 0.2 s each, or forty for 12.0."""
    latent = np.zeros((batch, 3, 8, 8), np.float32)
    latent[:, 0, 0, 0] = first
    return latent


@pytest.fixture(scope="module")
def server(start: Any) -> Iterator[Any]:
    """A server with one replica that takes at most two latents at a time."""
    with start("copy", replicas=0, max_batch=2) as found:
        yield found


class Told(list[CallProgress]):
    """What a caller was told, and in which thread."""

    def __init__(self) -> None:
        self.threads = set[int]()

    def __call__(self, progress: CallProgress) -> None:
        self.threads.add(threading.get_ident())
        self.append(progress)

    @property
    def states(self) -> list[str]:
        """Each state once, in the order in which they came."""
        return list(dict.fromkeys(each.state for each in self))


def accepted(server: Any) -> float:
    text = requests.get(f"{server.url}/metrics", timeout=10).text
    found = re.search(r'remote_vae_accepted_jobs\{model="copy"\} (\S+)', text)
    assert found is not None
    return float(found[1])


@pytest.fixture
def busy(server: Any) -> Iterator[None]:
    """The only replica has work for the test's first seconds."""
    with Client(server.url) as client:
        thread = threading.Thread(target=client.decode, args=(layers(),), kwargs={"output_type": "pt"})
        thread.start()
        server.wait_until(lambda: accepted(server) == 1, seconds=10)
        yield
        thread.join()


def test_a_call_is_told_how_far_it_is(server: Any, call: Any, busy: None) -> None:
    """It waits in the queue, then its steps are done one after the other, in the caller's thread, up to the end."""
    told = Told()
    call(server.url, "decode", layers(), output_type="pt", progress=told)
    order = [UNDER_WAY.index(state) for state in told.states]
    assert order == sorted(order)
    assert {"queued", "running"} < set(told.states)
    assert told[-1] == CallProgress("finished")
    assert {each.position for each in told if each.state == "queued"} == {1}
    shares = [each.share for each in told if each.share is not None]
    assert shares == sorted(shares)
    assert len(set(shares)) > 4
    assert any(each.seconds_left for each in told if each.state == "running")
    assert told.threads == {threading.get_ident()}


def test_a_picture_is_watched_too(server: Any, call: Any, busy: None) -> None:
    """An encode is told of as a decode is."""
    told = Told()
    call(server.url, "encode", layers(1.0) - 1, progress=told)
    assert "queued" in told.states
    assert told[-1].share == 1


def test_parts_of_a_batch_count_together(server: Any, call: Any) -> None:
    """Of a batch that goes in parts the share never falls, and each part is a piece of it."""
    told = Told()
    call(server.url, "decode", layers(batch=4), output_type="pt", progress=told)
    parts = [each for each in told if each.parts == 2]
    assert [each.part for each in parts] == sorted(each.part for each in parts)
    assert {each.part for each in parts} == {0, 1}
    shares = [each.share for each in parts if each.share is not None]
    assert shares == sorted(shares)


def test_what_the_function_raises_ends_the_call(server: Any, call: Any) -> None:
    """It reaches the caller as it is, at once, and the server drops the job."""

    def enough(progress: CallProgress) -> None:
        if progress.state == "running":
            raise TimeoutError("enough")  # of a type that the network has too

    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^enough$"):
        call(server.url, "decode", layers(12.0), output_type="pt", progress=enough)
    assert time.monotonic() - began < 4  # of eight seconds
    server.wait_until(lambda: accepted(server) == 0, seconds=2)


def test_a_model_is_watched(server: Any) -> None:
    """The objects for pipelines and workflows hand the function on, both ways."""
    with RemoteModel(f"{server.url}/copy") as model:
        for work in (
            lambda told: model.decode(layers(), progress=told),
            lambda told: model.decode_levels(layers(), progress=told),
            lambda told: model.encode(layers(-1.0), posterior="mode", progress=told),
        ):
            told = Told()
            work(told)
            assert told[-1].state == "finished"


def test_a_short_call_opens_no_other_connection(serve: Any, answers: Any, call: Any, latent: np.ndarray) -> None:
    """The server is asked about a job only when the call has lasted a moment."""
    server, told = serve(answers.picture()), Told()
    call(server.url, "decode", latent, progress=told)
    assert [seen.method for seen in server.seen] == ["POST"]
    assert told == [CallProgress("finished")]


class Unhelpful(FaultServer):
    """Answers a decode after a second and a half, and questions about its job as it is told."""

    def __init__(self, decoded: bytes, about_jobs: Any) -> None:
        self.asked, self._decoded, self._about = 0, decoded, about_jobs
        self.wait: Callable[[float], object] = lambda seconds: self.over.wait(seconds / 20)
        super().__init__(self._answer)
        self.reads = False

    def _answer(self, connection: Any) -> None:
        seen = read_request(connection)
        if seen.method == "POST":
            self.wait(30)
            connection.sendall(self._decoded)
            return
        self.asked += 1
        if callable(self._about):
            self._about(connection)
        else:
            connection.sendall(self._about)


def event(**data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
ABOUT_JOBS = {
    "no such route": http(404, b'{"error": "no", "error_type": "unknown_route"}'),
    "of another kind": http(404, b"<html>", content_type="text/html"),
    "a page for everything": http(200, b"<html>data: {}\n\n", content_type="text/html"),
    "not allowed": http(401, b""),
    "too many": http(429, b""),
    "hangs up": b"",
    "no JSON": STREAM + b"data: nonsense\n\ndata: [1]\n\ndata: {}\n\n" + event(state=7) + event(state="unheard-of"),
    "no numbers": STREAM + event(state="running", done="1", total=True, position=-1, seconds_left=1e999),
    "more than all": STREAM + event(state="running", done=7, total=0, seconds_left=[]),
    "endless": STREAM + b"data: " + b"x" * 300_000,
    "not HTTP": b"nonsense\r\n\r\n",
}


HOPELESS = ("no such route", "of another kind", "a page for everything", "not allowed")


@pytest.mark.parametrize("about", ABOUT_JOBS)
def test_a_server_that_tells_nothing(about: str, answers: Any, call: Any, latent: np.ndarray) -> None:
    """The call goes on as if nobody watched it, and a server without jobs is asked once."""
    server, told = Unhelpful(answers.picture(), ABOUT_JOBS[about]), Told()
    try:
        began = time.monotonic()
        assert call(server.url, "decode", latent, progress=told).size == (32, 32)
        assert time.monotonic() - began < 3
        assert server.asked == 1 if about in HOPELESS else server.asked > 1
        assert told.states in (["sent", "finished"], ["sent", "running", "finished"])
        assert all(each.share is None and each.position is None for each in told[:-1])
    finally:
        server.close()


SENT = {"nothing": b"", "the head": STREAM, "an event": STREAM + event(state="running", done=1, total=4)}


@pytest.mark.parametrize("before", SENT.values(), ids=SENT)
def test_a_proxy_that_keeps_the_events(before: bytes, answers: Any, call: Any, latent: np.ndarray) -> None:
    """A stream whose events never come, or stop coming, holds up neither the call nor the program's end."""

    def silent(connection: Any) -> None:
        connection.sendall(before)
        server.over.wait(30)

    server, told = Unhelpful(answers.picture(), silent), Told()
    try:
        began = time.monotonic()
        call(server.url, "decode", latent, progress=told)
        assert time.monotonic() - began < 3
        assert (told[-2].share == 0.25) == (b"data" in before)
        ends = time.monotonic() + 10
        while any(thread.name == "remote-vae-watch" for thread in threading.enumerate()):
            assert time.monotonic() < ends
            time.sleep(0.02)
    finally:
        server.close()


def test_a_stream_that_ends_early_is_opened_again(answers: Any, call: Any, latent: np.ndarray) -> None:
    """A lost connection, or a job that is not known yet, is asked about again."""
    unknown = http(404, json.dumps({"error": "no", "error_type": "unknown_job"}).encode())
    replies = [unknown, STREAM + event(state="queued", position=2), STREAM + event(state="running", done=1, total=2)]

    def one_after_the_other(connection: Any) -> None:
        connection.sendall(replies[min(server.asked, len(replies)) - 1])

    server, told = Unhelpful(answers.picture(), one_after_the_other), Told()
    try:
        call(server.url, "decode", latent, progress=told)
        assert told.states == ["sent", "queued", "running", "finished"]
    finally:
        server.close()


async def test_a_cancelled_task_ends_its_watch(server: Any) -> None:
    """A task that is cancelled leaves no job on the server, and nothing in the loop."""
    async with AsyncClient(server.url) as client:
        told = Told()
        task = asyncio.create_task(client.decode(layers(12.0), output_type="pt", progress=told))
        while "running" not in told.states:
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
    await asyncio.to_thread(server.wait_until, lambda: accepted(server) == 0, seconds=2)


async def test_many_at_a_time(answers: Any, latent: np.ndarray) -> None:
    """Calls do not wait for connections over which others are watched: the server has all of them at once."""
    server, everybody = Unhelpful(answers.picture(), lambda _: server.over.wait(30)), threading.Barrier(120)
    server.wait = everybody.wait
    try:
        async with AsyncClient(server.url, timeout=60) as client:
            calls = [asyncio.create_task(client.decode(latent, progress=Told())) for _ in range(60)]
            while server.asked < 60:
                await asyncio.sleep(0.02)
            calls += [asyncio.create_task(client.decode(latent)) for _ in range(60)]
            assert len(await asyncio.gather(*calls)) == 120
    finally:
        everybody.abort()
        server.close()


def test_the_bar(monkeypatch: pytest.MonkeyPatch, server: Any) -> None:
    """`progress=True` draws a line on a terminal from the second second on; without a terminal it draws nothing."""
    drawn = []
    with Client(server.url) as client:
        client.decode(layers(), output_type="pt")  # of which the server knows how long the next one will take
    for is_terminal in (True, False):
        console = Console(force_terminal=is_terminal, width=100, record=True)
        monkeypatch.setattr("rich.console.Console", lambda console=console, **_: console)
        with Client(server.url) as client:
            client.decode(layers(), output_type="pt", progress=True)
            drawn.append(console.export_text())
            client.decode(layers(1.0), output_type="pt", progress=True)
            assert console.export_text() == ""
    assert re.search(r"decoding .*s left", drawn[0])
    assert "0:00:02" in drawn[0]  # since the call began
    assert drawn[1] == ""


def test_words_of_the_bar() -> None:
    """The bar says in words what the server does."""
    assert in_words(CallProgress()) == "waiting"
    assert in_words(CallProgress("queued", position=1)) == "next in the queue"
    assert in_words(CallProgress("queued", position=3)) == "number 3 in the queue"
    assert in_words(CallProgress("running", seconds_left=4.4)) == "4 s left"
    assert in_words(CallProgress("running")) == "running"
    with CallBar("decoding") as bar:
        bar(CallProgress())
        assert bar._bar is None
    assert call_bar.QUIET_SECONDS == 1
