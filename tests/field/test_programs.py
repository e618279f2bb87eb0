"""Programs as people write them: forks, spawned and remote tasks, event loops, interrupts and what is abandoned."""

import asyncio
import copy as copying
import gc
import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from client.conftest import http, read_request
from remote_vae import AsyncClient, AsyncDecodeQueue, Client, DecodeQueue, RemoteVAE, preview_callback
from remote_vae.client.model import RemoteModel
from remote_vae.errors import ConfigurationError, InvalidReply

# People forget to close; what must not follow from it is checked here.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

WAIT = 60.0
EACH = 20


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a test did not close is collected here, and not during a test of another file."""
    yield
    gc.collect()


def latent(value: float) -> np.ndarray:
    return np.full((1, 3, 8, 8), value, np.float32)


def first(pixels: Any) -> float:
    return float(pixels[0, 0, 0, 0])


def by_client(url: str) -> Callable[[float], float]:
    client = Client(url)
    return lambda value: first(client.decode(latent(value), output_type="pt"))


def by_async_client(url: str) -> Callable[[float], float]:
    """The same event loop before and after the fork, which is the worst that can be done to it."""
    client, loop = AsyncClient(url), asyncio.new_event_loop()
    return lambda value: first(loop.run_until_complete(client.decode(latent(value), output_type="pt")))


def by_model(url: str) -> Callable[[float], float]:
    model = RemoteModel(url)
    return lambda value: first(model.decode(torch.from_numpy(latent(value))))


def by_vae(url: str) -> Callable[[float], float]:
    vae = RemoteVAE(url)
    return lambda value: first(vae.decode(torch.from_numpy(latent(value))).sample)


WAYS = {"Client": by_client, "AsyncClient": by_async_client, "RemoteModel": by_model, "RemoteVAE": by_vae}


def decode_in_a_child(decode: Callable[[float], float], values: list[float], found: Any) -> None:
    try:
        found.put([decode(value) for value in values])
    except Exception as exc:  # noqa: BLE001  # the parent shows it
        found.put(repr(exc))


@pytest.mark.parametrize("way", WAYS)
def test_forked_processes_get_their_own_pictures(copy: Any, way: str) -> None:
    """Parent and children go on with a client that has a connection: each gets the replies to its own requests."""
    context, decode = get_context("fork"), WAYS[way](copy.url)
    found = context.Queue()
    assert decode(-0.5) == -0.5
    lists = [[(EACH * child + n + 20) / 256 for n in range(EACH)] for child in range(3)]
    children = [context.Process(target=decode_in_a_child, args=(decode, values, found)) for values in lists]
    for child in children:
        child.start()
    mine = [-n / 256 for n in range(EACH)]
    assert [decode(value) for value in mine] == mine
    assert sorted(found.get(timeout=WAIT) for _ in children) == lists
    for child in children:
        child.join(WAIT)
    assert decode(-0.25) == -0.25


def test_what_a_fork_cannot_carry_on(copy: Any) -> None:
    """A queue and an injected client say in a forked process what to do; the parent goes on with both."""
    context = get_context("fork")
    found = context.Queue()
    with httpx2.Client() as http_client, DecodeQueue(copy.url, output_type="pt") as queue:
        client = Client(copy.url, http=http_client)
        tries: list[Callable[[float], Any]] = [
            lambda value: first(client.decode(latent(value), output_type="pt")),
            lambda value: first(queue.put(latent(value)).result(WAIT)),
        ]
        for attempt, words in zip(tries, ("in each process", "made before a fork"), strict=True):
            assert attempt(0.5) == 0.5
            child = context.Process(target=decode_in_a_child, args=(attempt, [0.25], found))
            child.start()
            assert words in str(found.get(timeout=WAIT))
            child.join(WAIT)
            assert attempt(0.5) == 0.5


def answered(connection: socket.socket, request_id: str | None, *, call_id: bool = False, value: float = 0.5) -> None:
    """Answers the request that comes next; `request_id` None repeats its own, and "" leaves it out."""
    seen = read_request(connection)
    fields = {"x_request_id": seen.headers["x-request-id"] if request_id is None else request_id}
    fields["x_call_id"] = seen.headers["x-call-id"] if call_id else ""
    head = {"content_type": "tensor/binary", "shape": "[1,3,8,8]", "dtype": "float32"}
    connection.sendall(http(200, latent(value).tobytes(), **head, **fields))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_reply_to_another_request_is_never_handed_out(serve: Any, kind: type) -> None:
    """A reply with another request's id is dropped, and the request is sent again over another connection."""
    server = serve(b"")
    server.reads = False
    server.acts = [lambda connection: answered(connection, "somebody-elses", value=0.75)]
    with pytest.raises(InvalidReply, match="to request 'somebody-elses' and not to"):
        decode_once(kind, server.url)
    server.acts = [lambda connection: (server.acts.pop(0), answered(connection, "somebody-elses", value=0.75))]
    server.acts.append(lambda connection: answered(connection, None))
    assert decode_once(kind, server.url) == 0.5


@pytest.mark.parametrize(("request_id", "call_id"), [(None, False), ("", False), ("of-the-proxy", True)])
def test_a_proxy_may_have_its_own_ids(serve: Any, request_id: str | None, call_id: bool) -> None:
    """A reply without an id is taken, and one whose request id a proxy replaced, if its other id is right."""
    server = serve(lambda connection: answered(connection, request_id, call_id=call_id))
    server.reads = False
    assert decode_once(Client, server.url) == 0.5


def test_the_server_repeats_both_ids(copy: Any) -> None:
    """The id that the client's check relies on comes back, through a proxy too that replaces the request id."""
    given = {"x-request-id": "of-the-proxy", "x-call-id": "of-the-client"}
    reply = httpx2.get(f"{copy.url}/models", headers=given)
    assert {name: reply.headers[name] for name in given} == given
    assert "x-call-id" not in httpx2.get(f"{copy.url}/models").headers


def decode_once(kind: type, url: str) -> float:
    if kind is Client:
        with Client(url) as client:
            return first(client.decode(latent(0.5), output_type="pt"))

    async def decode() -> float:
        async with AsyncClient(url) as client:
            return first(await client.decode(latent(0.5), output_type="pt"))

    return asyncio.run(decode())


def decode_with(client: Client | RemoteModel, value: float) -> float:
    """What a spawned process or a task on another machine is given: a function and its pickled arguments."""
    if isinstance(client, RemoteModel):
        return first(client.decode(torch.from_numpy(latent(value))))
    return first(client.decode(latent(value), output_type="pt"))


def test_clients_travel_to_spawned_processes_as_their_address(copy: Any) -> None:
    """A pickled client or model opens a connection where it arrives, with the same bounds and credential."""
    clients = [Client(copy.url, timeout=77), RemoteModel(copy.url)]
    with get_context("spawn").Pool(1) as pool:
        assert pool.starmap(decode_with, [(client, 0.25) for client in clients]) == [0.25, 0.25]
    for client in clients:
        assert decode_with(copying.deepcopy(client), 0.5) == 0.5

    async def asynchronous() -> float:
        async with pickle.loads(pickle.dumps(AsyncClient(copy.url))) as client:
            return first(await client.decode(latent(0.25), output_type="pt"))

    assert asyncio.run(asynchronous()) == 0.25
    endpoint = pickle.loads(pickle.dumps(Client("http://host", token="a-token-0123456789")))._endpoint
    assert endpoint.authorization == {"authorization": "Bearer a-token-0123456789"}


def test_what_cannot_travel_says_so(copy: Any) -> None:
    """Queues, previews, a RemoteVAE and a client with an injected http client refuse to be pickled, in a sentence."""
    previews = preview_callback(copy.url, lambda step, image: None)
    with DecodeQueue(copy.url) as queue, httpx2.Client() as http_client:
        for value in (queue, AsyncDecodeQueue(copy.url), previews, RemoteVAE(copy.url)):
            with pytest.raises(pickle.PicklingError, match="make another"):
                pickle.dumps(value)
        with pytest.raises(pickle.PicklingError, match="make another"):
            pickle.dumps(Client(copy.url, http=http_client))
    previews.close()


@pytest.mark.alone
def test_tasks_and_actors_of_ray(copy: Any) -> None:
    """On a real Ray, clients and models reach tasks and actors as their address, by argument, closure and store; our
    errors come back as such; a RemoteVAE and a queue are refused in the program, with what to do instead."""
    command = [sys.executable, str(Path(__file__).with_name("ray_tasks.py")), copy.url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True).stdout
    found = json.loads(said.splitlines()[-1])
    classes, text = found.pop("an error of a task")
    assert "LatentMismatch" in classes
    assert "has 2 channels; model 'copy' takes 3" in text
    refused = {name: found.pop(name) for name in list(found) if "VAE" in name or "queue" in name}
    assert found == dict.fromkeys(found, 0.5)
    assert (len(found), len(refused)) == (5, 4)
    for name, (classes, text) in refused.items():
        assert classes[0] == "PicklingError", name
        assert f"make another with the same URL, RemoteVAE('{copy.url}')" in text or "make another one" in text, name


def test_an_interrupt_leaves_no_reply_behind(copy: Any) -> None:
    """After Control-C in the middle of a call, the next call with the same client gets its own picture."""
    sleep = 8.0  # makes the copying VAE wait for a second
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with Client(copy.url) as client:
            assert decode_with(client, 0.5) == 0.5
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                client.decode(latent(sleep), output_type="pt")
            assert [decode_with(client, value) for value in (0.25, 0.125)] == [0.25, 0.125]
    finally:
        signal.signal(signal.SIGALRM, before)


async def test_a_cancelled_task_leaves_no_reply_behind(copy: Any) -> None:
    """After a task was cancelled in the middle of a call, the next call gets its own picture."""
    async with AsyncClient(copy.url) as client:
        task = asyncio.create_task(client.decode(latent(8.0), output_type="pt"))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert first(await client.decode(latent(0.25), output_type="pt")) == 0.25


def test_abandoned_generators_leave_no_thread_and_no_warning(copy: Any) -> None:
    """Leaving `map` without closing anything gives no warning, and the queue goes on with other latents."""
    before = {*threading.enumerate()}  # of other tests, whose calls may still end
    with DecodeQueue(copy.url, output_type="pt") as queue:
        for item in queue.map(latent(n / 8) for n in range(8)):
            assert first(item.result()) == 0.0
            break
        assert first(queue.put(latent(0.5)).result(WAIT)) == 0.5

    async def abandon() -> float:
        async with AsyncDecodeQueue(copy.url, output_type="pt") as waiting:
            async for item in waiting.map(latent(n / 8) for n in range(8)):
                assert first(item.result()) == 0.0
                break
            return first(await (await waiting.put(latent(0.5))))

    assert asyncio.run(abandon()) == 0.5
    gc.collect()
    left = {*threading.enumerate()} - before
    assert not [thread for thread in left if thread.name.startswith("remote-vae")]


async def test_a_notebooks_running_loop(copy: Any) -> None:
    """Where an event loop runs already, every blocking client works, and nested `asyncio.run` is not needed."""
    for way in ("Client", "RemoteModel", "RemoteVAE"):
        assert WAYS[way](copy.url)(0.5) == 0.5
    with DecodeQueue(copy.url, output_type="pt") as queue:
        assert first(queue.put(latent(0.5)).result(WAIT)) == 0.5


def test_threads_of_a_data_loader(copy: Any) -> None:
    """Eight threads share a client and a model, encoding and decoding at once; each gets its own."""
    client, wrong = Client(copy.url), []

    def work(number: int) -> None:
        value = number / 256
        for _ in range(5):
            level = np.full((8, 8, 3), 10 * number, np.uint8)
            encoded = client.encode(Image.fromarray(level))
            wrong.append(decode_with(client, value) != value or abs(first(encoded) - (20 * number / 255 - 1)) > 1e-6)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    client.close()
    assert wrong == [False] * 40


def test_an_injected_client_has_its_own_route() -> None:
    """What an injected client decides by itself cannot be asked of ours as well."""
    with httpx2.Client() as http_client:
        for given in ({"proxy": "http://proxy"}, {"ca_file": "authority.pem"}):
            with pytest.raises(ConfigurationError, match="http excludes"):
                Client("http://host", http=http_client, **given)
