"""Networks as they are: proxies before a server that restarts, private authorities, IPv6, prefixes."""

import asyncio
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch

from client.conftest import Answers, FaultServer, read_request
from comfyui.running import load
from remote_vae import AsyncClient, Client, DecodeQueue, RemoteVAE, preview_callback, remote_decode
from remote_vae.client.model import RemoteModel
from remote_vae.client.network import _proxy_of_environment
from remote_vae.errors import ClientTimeout, ConfigurationError, ConnectionFailed, ServerError

LATENT = np.full((1, 3, 8, 8), 0.5, np.float32)
PAGE = b"<html><h1>Bad Gateway</h1></html>"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_vae.client.retry.FIRST_PAUSE", 0.02)
    monkeypatch.setattr("remote_vae.client.retry.LONGEST_PAUSE", 0.1)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


def decode(way: str, url: str) -> float:
    """The same latent by one of our clients."""
    if way == "DecodeQueue":
        with DecodeQueue(url, output_type="pt", timeout=60) as queue:
            return float(queue.put(LATENT).result()[0, 0, 0, 0])
    if way == "AsyncClient":
        return asyncio.run(decode_async(url))
    if way == "remote_decode":
        return float(remote_decode(url, LATENT, output_type="pt", return_type="pt", do_scaling=False)[0, 0, 0, 0])
    with Client(url, timeout=60) as client:
        return float(client.decode(LATENT, output_type="pt")[0, 0, 0, 0])


async def decode_async(url: str) -> float:
    async with AsyncClient(url, timeout=60) as client:
        return float((await client.decode(LATENT, output_type="pt"))[0, 0, 0, 0])


OUTAGES = {
    "502": [Answers.http(502, PAGE, content_type="text/html")] * 8,
    "504": [Answers.http(504, PAGE, content_type="text/html")] * 8,
    "resets": [reset] * 6,
    "all of it": [reset, Answers.http(502, PAGE), Answers.error(503, "not_ready"), Answers.http(504, b""), reset] * 2,
}


@pytest.mark.parametrize("outage", OUTAGES)
@pytest.mark.parametrize("way", ["Client", "AsyncClient", "DecodeQueue", "remote_decode"])
def test_a_proxy_before_a_server_that_restarts(serve: Any, way: str, outage: str) -> None:
    """As long as the time-out allows, a proxy's 502, 504 and resets are tried again, in every client."""
    server: FaultServer = serve(*OUTAGES[outage], Answers.tensor(LATENT))
    assert decode(way, server.url) == 0.5
    assert len(server.seen) == len(OUTAGES[outage]) + 1


def test_a_proxy_that_never_reaches_its_server(serve: Any) -> None:
    """The caller's time-out ends the tries, and the error names what the proxy said, unless it came in the last try."""
    server, began = serve(Answers.http(502, PAGE, content_type="text/html")), time.monotonic()
    with Client(server.url, timeout=1.5) as client, pytest.raises((ServerError, ClientTimeout), match=r"502|time"):
        client.decode(LATENT)
    assert time.monotonic() - began < 4
    server.seen.clear()
    with Client(server.url, retries=2) as client, pytest.raises(ServerError, match="502"):
        client.decode(LATENT)
    assert len(server.seen) == 2


def test_an_idle_connection_that_a_firewall_forgot(serve: Any) -> None:
    """A connection that was reset while nobody used it is replaced, with a single try."""

    def once(connection: socket.socket) -> None:
        connection.sendall(Answers.tensor(LATENT, connection="keep-alive"))
        reset(connection)

    server = serve(once)
    with Client(server.url, retries=1) as client:
        for _ in range(3):
            assert float(client.decode(LATENT, output_type="pt")[0, 0, 0, 0]) == 0.5
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("url", "given", "expected"),
    [
        ("http://vae.test", {"http_proxy": "http://proxy:3128"}, "http://proxy:3128"),
        ("https://vae.test", {"https_proxy": "http://proxy:3128"}, "http://proxy:3128"),
        ("https://vae.test", {"http_proxy": "http://proxy:3128"}, None),
        ("http://vae.test", {"all_proxy": "socks5://proxy:1080"}, "socks5://proxy:1080"),
        ("http://vae.test", {"http_proxy": "http://proxy:3128", "no_proxy": "vae.test"}, None),
        ("http://gpu.lan.test", {"http_proxy": "http://proxy:3128", "no_proxy": ".lan.test"}, None),
        ("http://vae.test", {"http_proxy": "http://proxy:3128", "no_proxy": "*"}, None),
        ("http://localhost:8000", {"http_proxy": "http://proxy:3128"}, None),
        ("http://127.0.0.1:8000", {"http_proxy": "http://proxy:3128"}, None),
        ("http://[::1]:8000", {"http_proxy": "http://proxy:3128"}, None),
    ],
)
def test_proxies_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, url: str, given: dict[str, str], expected: str | None
) -> None:
    """The usual variables count, NO_PROXY too; a server on this machine needs no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name.upper() if name != "http_proxy" else name, value)
    assert _proxy_of_environment(url) == expected


@pytest.mark.parametrize("way", ["Client", "AsyncClient", "DecodeQueue", "remote_decode"])
def test_every_client_goes_through_the_environments_proxy(
    serve: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A company's proxy is found by every client, also if its address has no scheme."""
    server = serve(Answers.tensor(LATENT))
    monkeypatch.setenv("http_proxy", server.host)
    assert decode(way, "http://vae.test") == 0.5
    assert server.seen[0].target.startswith("http://vae.test/")


@pytest.mark.parametrize(("proxy", "words"), [("ftp://x", "no http, https or socks5"), ("socks5://x:1", "socksio")])
def test_a_proxy_that_cannot_be(monkeypatch: pytest.MonkeyPatch, proxy: str, words: str) -> None:
    """A proxy of another kind, or one that needs a package, is refused with what to do."""
    monkeypatch.setattr("remote_vae.client.network.find_spec", lambda name: None)
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ConfigurationError, match=words):
        Client("http://vae.test")


@pytest.fixture(scope="module")
def secure(start: Any, certificate: tuple[Path, Path]) -> Iterator[Any]:
    with start("copy", tls_certificate=certificate[0], tls_key=certificate[1], verify=certificate[0]) as server:
        yield server


def name_by(way: str, url: str, ca_file: str | None) -> str:
    """The name of the server's model by one of our clients."""
    if way == "RemoteModel":
        return RemoteModel(url, ca_file=ca_file).name
    if way == "RemoteVAE":
        return str(RemoteVAE(url, ca_file=ca_file)._remote.name)
    if way == "node":
        (vae,) = (
            load("custom_nodes_field")
            .NODE_CLASS_MAPPINGS["RemoteVAELoader"]()
            .run(url, "the server's first", ca_file or "")
        )
        return str(vae._model.name)
    with Client(url, ca_file=ca_file) as client:
        return str(client.models()[0]["name"])


@pytest.mark.parametrize("how", ["argument", "environment", "neither"])
@pytest.mark.parametrize("way", ["Client", "RemoteModel", "RemoteVAE", "node"])
def test_a_private_authority(
    secure: Any, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, way: str, how: str
) -> None:
    """Every client trusts the authority that its argument or the environment names, and says so if none does."""
    if how == "environment":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    if how == "neither":
        with pytest.raises(ConnectionFailed, match="SSL_CERT_FILE or ca_file"):
            name_by(way, secure.url, None)
    else:
        assert name_by(way, secure.url, str(certificate[0]) if how == "argument" else None) == "copy"


def test_the_wrong_scheme(copy: Any, secure: Any) -> None:
    """https:// for a server without TLS, and http:// for one with it, end with an error that names the other."""
    for url, right in (
        (copy.url.replace("http:", "https:"), "http://"),
        (secure.url.replace("https:", "http:"), "https://"),
    ):
        with Client(url, timeout=5, retries=1) as client, pytest.raises(ConnectionFailed, match=right):
            client.models()


def test_the_other_clients_take_a_private_authority(secure: Any, certificate: tuple[Path, Path]) -> None:
    """Queues, previews and the functions take the same argument, and decode."""
    ca_file, shown = certificate[0], threading.Event()
    with DecodeQueue(secure.url, output_type="pt", ca_file=ca_file) as queue:
        assert float(queue.put(LATENT).result()[0, 0, 0, 0]) == 0.5
    found = remote_decode(
        secure.url, torch.from_numpy(LATENT), output_type="pt", return_type="pt", do_scaling=False, ca_file=ca_file
    )
    assert float(found[0, 0, 0, 0]) == 0.5
    with preview_callback(secure.url, lambda step, image: shown.set(), ca_file=ca_file) as previews:
        previews(None, 0, 0, {"latents": torch.from_numpy(LATENT)})
        assert shown.wait(30)


def test_the_command_line_takes_a_private_authority(
    secure: Any,
    certificate: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--ca-file is a flag of every command that asks a server."""
    from remote_vae.cli.main import main

    np.save(tmp_path / "latent.npy", LATENT)
    for words in (["models"], ["decode", str(tmp_path / "latent.npy"), "-o", str(tmp_path / "out.png")]):
        monkeypatch.setattr("sys.argv", ["remote-vae", *words, "--url", secure.url, "--ca-file", str(certificate[0])])
        with pytest.raises(SystemExit) as caught:
            main()
        assert not caught.value.code, capsys.readouterr().err
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"


def test_a_file_of_authorities_that_is_none(tmp_path: Path) -> None:
    """A ca_file that is not there, or is no PEM file, is named before anything is sent."""
    for place in (tmp_path / "none.pem", Path(__file__)):
        with pytest.raises(ConfigurationError, match=f"ca_file={place} holds no certificates"):
            Client("https://127.0.0.1:9", ca_file=place)


class Forward(socketserver.StreamRequestHandler):
    """Hands a connection's bytes to the server on, from an IPv6 address."""

    target = 0

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.target)) as there:
            back = threading.Thread(target=pump, args=(there, self.connection), daemon=True)
            back.start()
            pump(self.connection, there)
            there.shutdown(socket.SHUT_WR)
            back.join(30)


def pump(source: socket.socket, sink: socket.socket) -> None:
    while piece := source.recv(65536):
        sink.sendall(piece)


class V6Server(socketserver.ThreadingTCPServer):
    address_family, daemon_threads = socket.AF_INET6, True


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_an_ipv6_address(copy: Any) -> None:
    """An address in brackets is a server like any other, with a model in its path too."""
    with V6Server(("::1", 0), type("To", (Forward,), {"target": copy.port})) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        url = f"http://[::1]:{proxy.server_address[1]}"
        for way in ("Client", "AsyncClient", "DecodeQueue"):
            assert decode(way, url) == 0.5
        assert RemoteModel(f"{url}/copy").name == "copy"
        proxy.shutdown()


class Prefixed:
    """A proxy that serves the server below a path."""

    def __init__(self, target: str, prefix: str) -> None:
        self.target, self.prefix = target, prefix
        self.paths: list[str] = []

    def __call__(self, connection: socket.socket) -> None:
        seen = read_request(connection)
        self.paths.append(seen.target.partition("?")[0])
        kept = {name: value for name, value in seen.headers.items() if name not in ("host", "connection")}
        if not seen.target.startswith(self.prefix):
            connection.sendall(Answers.http(404, b"no such page"))
            return
        url = self.target + seen.target.removeprefix(self.prefix)
        reply = requests.request(seen.method, url, headers=kept, data=seen.body, timeout=30)
        names = ("content-type", "shape", "dtype", "x-request-id")
        fields = {name.replace("-", "_"): reply.headers[name] for name in names if name in reply.headers}
        connection.sendall(Answers.http(reply.status_code, reply.content, **fields))


def test_a_path_before_the_model(serve: Any, copy: Any) -> None:
    """Behind a proxy that serves it below a path, every client finds the server and its models."""
    proxy = Prefixed(copy.url, "/services/vae")
    server = serve(proxy)
    server.reads = False
    base = server.url + proxy.prefix
    for url in (base, f"{base}/"):
        for way in ("Client", "AsyncClient", "DecodeQueue"):
            assert decode(way, url) == 0.5
    assert RemoteModel(f"{base}/copy").name == RemoteModel(base, model="copy").name == "copy"
    pixels = torch.from_numpy(LATENT)
    assert torch.equal(RemoteVAE(f"{base}/copy").decode(pixels).sample, pixels)
    assert decode("remote_decode", f"{base}/copy/decode") == 0.5
    assert all(path.startswith(proxy.prefix) for path in proxy.paths)
