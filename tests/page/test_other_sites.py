"""Other sites in a real browser: what they send to a server on this machine, and what they may read of it."""

import functools
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from .conftest import Watch

POST = "([url, mode]) => fetch(url, {method: 'POST', mode, body: new Blob([new Uint8Array(768)])}).then(r => r.status)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves an empty folder without writing of it."""

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def site(tmp_path: Any) -> Iterator[int]:
    """The port of a site."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


@pytest.fixture(scope="module")
def copy(start: Any) -> Iterator[Any]:
    with start("copy") as server:
        yield server


def test_a_site_cannot_use_the_server(copy: Any, site: int, browser: Browser) -> None:
    """The server refuses what a page of another site sends it, be it without asking first or under the site's name."""
    page = browser.new_page()
    statuses: list[int] = []
    page.on("response", lambda reply: statuses.append(reply.status) if "/decode" in reply.url else None)
    page.goto(f"http://site.example:{site}/")
    path = "/copy/decode?shape=1,3,8,8&dtype=float32"
    assert page.evaluate(POST, [copy.url + path, "no-cors"]) == 0
    assert statuses == [403]
    rebound = copy.url.replace("127.0.0.1", "site.example")
    assert page.goto(rebound).status == 421
    page.route(f"{rebound}/before", lambda route: route.fulfill(body="the site, before its name points here"))
    page.goto(f"{rebound}/before")
    assert page.evaluate(POST, [path, "cors"]) == 421


def test_the_page_may_use_the_server(copy: Any, browser: Browser) -> None:
    """A page of the server itself is served, under every name of the machine."""
    page = browser.new_page()
    for url in (copy.url, copy.url.replace("127.0.0.1", "localhost"), copy.url.replace("127.0.0.1", "vae.localhost")):
        page.goto(f"{url}/")
        assert page.evaluate(POST, ["/copy/decode?shape=1,3,8,8&dtype=float32", "cors"]) == 200


def test_the_description_is_shown_as_it_should_be(copy: Any, browser: Browser) -> None:
    """The description's own style is the one thing that its content security policy lets in."""
    context, watch = browser.new_context(), Watch()
    watch.over(context)
    page = context.new_page()
    page.goto(f"{copy.url}/docs")
    assert page.evaluate("getComputedStyle(document.body).maxWidth") == "960px"
    assert watch.complaints == []
    page.evaluate("document.body.innerHTML = '<img src=x onerror=document.title=1>'; document.body.style.cssText")
    assert page.title().startswith("remote-vae")
    assert watch.complaints
    context.close()
