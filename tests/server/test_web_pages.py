"""Web pages: no site that a user visits can use the server through the user's browser, and every other client can."""

import http.client
import json
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import typer

from remote_vae.cli.main import app
from remote_vae.errors import ForeignOrigin, UnknownHost
from remote_vae.server.settings import read_settings

DECODE = "/copy/decode?shape=1,3,8,8&dtype=float32"
LATENT = bytes(768)
SITE = "https://site.example"
KEY = "a-key-of-some-length"
POLICY = "default-src 'none'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"


@pytest.fixture(scope="module")
def named(start: Any) -> Iterator[Any]:
    """A server that names two origins."""
    with start("copy", cors_origins=f"{SITE} http://app.example:3000") as server:
        yield server


def ask(server: Any, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, Any, bytes]:
    """Status, headers and body; `host` and every other header as they are given."""
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"content-type": "tensor/binary", **given} if body else given)
    reply = connection.getresponse()
    found = reply.status, reply.headers, reply.read()
    connection.close()
    return found


FOREIGN = {
    "a simple POST": {"origin": SITE, "sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
    "of a browser that says less": {"origin": SITE},
    "from another port of this machine": {"origin": "http://localhost:3000", "sec_fetch_site": "same-site"},
    "from a page in a sandbox": {"origin": "null", "sec_fetch_site": "cross-site"},
    "from a page without an origin in a form": {"origin": "null", "sec_fetch_mode": "navigate"},
    "a part of another page": {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
    "from a name that begins like ours": {"origin": "http://127.0.0.1.site.example"},
    "an origin that is no text": {"origin": "\xff\xfe"},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_page_is_refused(copy: Any, headers: dict[str, str]) -> None:
    """A page of another origin gets 403 for whatever it asks, and the message says how to name its origin."""
    for method, path, body in (("POST", DECODE, LATENT), ("GET", "/models", b""), ("OPTIONS", DECODE, b"")):
        status, found, text = ask(copy, path, method, body, **headers)
        error = json.loads(text)
        assert (status, error["error_type"]) == (403, ForeignOrigin.code), (method, path)
        assert "--allow-origin https://" in error["error"] or f"--allow-origin {headers['origin']}" in error["error"]
        assert error["request_id"] == found["x-request-id"]
        assert not [name for name in found if name.lower().startswith("access-control")]


def test_a_link_may_be_followed(copy: Any) -> None:
    """A link on another site to the server's page opens the page; a form of that site is refused."""
    click = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "accept": "text/html"}
    assert ask(copy, "/", **click)[0] == 200
    assert ask(copy, DECODE, "POST", LATENT, **click)[0] == 403


REBOUND = ("site.example", "site.example:80", "127.0.0.1.site.example", "localhost.site.example:8000", "SITE.EXAMPLE.")


@pytest.mark.parametrize("host", [*REBOUND, "user@site.example", "1.2.3.4.5", "a+b.site.example", "site.example:80:80"])
def test_a_rebound_name_is_refused(copy: Any, host: str) -> None:
    """Under a name that a web site may have pointed at the server, every path gets 421, and the option is named."""
    same = {"origin": f"http://{host}", "sec_fetch_site": "same-origin"}
    for method, path, body in (
        ("POST", DECODE, LATENT),
        ("GET", "/models", b""),
        ("GET", "/", b""),
        ("GET", "/x", b""),
    ):
        for headers in ({}, same):
            status, _, text = ask(copy, path, method, body, host=host, **headers)
            assert (status, json.loads(text)["error_type"]) == (421, UnknownHost.code), (method, path)
            assert "--allow-origin http://" in json.loads(text)["error"]


OURS = (
    "127.0.0.1",
    "127.0.0.1:9",
    "localhost:80",
    "LOCALHOST",
    "[::1]:8000",
    "192.168.1.20:8000",
    "gpu",
    "gpu.local:80",
)
CLUSTER = ("vae.team.svc.cluster.local", "host.docker.internal", "app.localhost:8000", socket.gethostname())


@pytest.mark.parametrize("host", [*OURS, *CLUSTER])
def test_names_that_no_site_has(copy: Any, host: str) -> None:
    """An IP address, a name without a dot and a name of a private network are the server's own."""
    assert ask(copy, DECODE, "POST", LATENT, host=host)[0] == 200
    assert ask(copy, DECODE, "POST", LATENT, host=host, origin=f"http://{host}".lower())[0] == 200


def test_programs_are_served(copy: Any) -> None:
    """Programs that are no browsers say nothing of a page, or no more than that they fetch, and are served."""
    for headers in ({}, {"sec_fetch_mode": "cors"}, {"referer": SITE}, {"sec_fetch_site": "none"}):
        assert ask(copy, DECODE, "POST", LATENT, **headers)[0] == 200
    assert requests.post(copy.url + DECODE, data=LATENT, headers={"content-type": "tensor/binary"}, timeout=60).ok
    with socket.create_connection(urlsplit(copy.url).netloc.split(":"), timeout=10) as connection:
        connection.sendall(b"GET /models HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_behind_a_proxy_that_changes_the_name(copy: Any) -> None:
    """The server's page works behind a proxy that asks under another name: the browser says that both are one site."""
    headers = {"host": "127.0.0.1:8000", "origin": "https://vae.example", "sec_fetch_site": "same-origin"}
    assert ask(copy, DECODE, "POST", LATENT, **headers)[0] == 200


def test_named_origins(named: Any) -> None:
    """Pages of a named origin use the server, which also answers to its name; others are refused as ever."""
    for origin, status in ((SITE, 200), ("http://app.example:3000", 200), ("http://app.example", 403), ("null", 403)):
        found = ask(named, DECODE, "POST", LATENT, origin=origin, sec_fetch_site="cross-site")
        assert found[0] == status, origin
        assert found[1].get("access-control-allow-origin") == (origin if status == 200 else None)
    assert [ask(named, "/models", host=host)[0] for host in ("site.example", "app.example:80", "other.example")] == [
        200,
        200,
        421,
    ]


def test_all_origins(start: Any) -> None:
    """With * every page may use the server, under every name."""
    with start("copy", cors_origins="*") as server:
        headers = {"host": "vae.example", "origin": SITE, "sec_fetch_site": "cross-site"}
        assert ask(server, DECODE, "POST", LATENT, **headers)[0] == 200


def test_a_key_makes_every_name_ours(start: Any) -> None:
    """A server with keys answers under every name, because a site has none; its pages are foreign all the same."""
    with start("copy", keys=KEY) as server:
        key = {"authorization": f"Bearer {KEY}"}
        assert ask(server, DECODE, "POST", LATENT, host="vae.example", **key)[0] == 200
        assert ask(server, f"/{KEY}{DECODE}", "POST", LATENT, origin=SITE)[0] == 403


@pytest.mark.parametrize("value", ["https://a.example chrome-ext://b", ("https://a.example", "chrome-ext://b")])
def test_several_origins(value: object) -> None:
    """Origins are given one by one, or with spaces between them."""
    assert read_settings({"cors_origins": value}).cors_origins == ("https://a.example", "chrome-ext://b")


def test_both_flags() -> None:
    """The option has two names, each of which may be repeated."""
    command: Any = typer.main.get_command(app)
    origins = ["https://a.example", "https://b.example https://c.example", "https://d.example"]
    given = ["--allow-origin", origins[0], "--cors-origins", origins[1], "--allow-origin", origins[2]]
    serve = command.get_command(command.make_context("remote-vae", ["serve"]), "serve")
    with serve.make_context("serve", given) as context:
        found = read_settings({"cors_origins": context.params["cors_origins"]})
    assert found.cors_origins == tuple(f"https://{name}.example" for name in "abcd")


def test_every_reply_is_harmless_in_a_browser(copy: Any) -> None:
    """Pages, pictures and errors say what they may load and that they are what they say, whatever answers."""
    replies = [
        ask(copy, path, method, body, **headers)
        for path, method, body, headers in (
            ("/", "GET", b"", {"accept": "text/html"}),
            ("/", "GET", b"", {}),
            ("/page/main.js", "GET", b"", {}),
            ("/page/nothing.js", "GET", b"", {}),
            ("/docs", "GET", b"", {}),
            ("/docs/", "HEAD", b"", {}),
            ("/models", "GET", b"", {}),
            ("/models", "DELETE", b"", {}),
            ("/metrics", "GET", b"", {}),
            ("/openapi.json", "GET", b"", {}),
            ("/nothing", "GET", b"", {}),
            ("/<script>", "POST", b"x", {}),
            (DECODE, "POST", LATENT, {}),
            (DECODE, "POST", b"short", {}),
            ("/models", "GET", b"", {"host": "site.example"}),
            ("/models", "GET", b"", {"origin": SITE}),
            ("/models", "GET", b"", {f"x-{number}": "a" for number in range(200)}),
            ("/models?" + "a" * 40_000, "GET", b"", {}),
        )
    ]
    for data in (
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
    ):
        with socket.create_connection(urlsplit(copy.url).netloc.split(":"), timeout=10) as connection:
            connection.sendall(data)
            reply = http.client.HTTPResponse(connection)
            reply.begin()
            replies.append((reply.status, reply.headers, reply.read()))
    assert {status for status, _, _ in replies} >= {200, 400, 403, 404, 405, 414, 421, 431}
    for status, headers, text in replies:
        assert headers.get_all("x-content-type-options") == ["nosniff"], (status, text[:80])
        (policy,) = headers.get_all("content-security-policy")
        assert policy.startswith(POLICY), (status, text[:80])
        assert not re.search("unsafe|http|\\*", policy)
