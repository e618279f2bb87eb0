"""The site's search finds a page by the words that people type, in a real browser."""

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from docs.test_site import ROOT, build
from page.conftest import find_browser

FOUND = {
    "VRAM": "vram/",
    "out of memory": "vram/",
    "OOM": "vram/",
    "API key": "operating/",
    "rate limit": "operating/",
    "CORS": "operating/",
    "reverse proxy": "operating/",
    "load testing": "operating/",
    "docker": "deploying/",
    "kubernetes": "deploying/",
    "troubleshooting": "troubleshooting/",
    "Windows": "guides/vae-box/",
    "AMD": "guides/vae-box/",
    "ROCm": "guides/vae-box/",
    "ComfyUI": "comfyui/",
    "comparison": "comparison/",
    "architecture": "architecture/",
}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("site")
    said = build(ROOT, folder)
    assert said.returncode == 0, said.stdout + said.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(30_000)
        yield page
        browser.close()


@pytest.mark.parametrize("words", FOUND)
def test_what_people_type(site: str, page: Page, words: str) -> None:
    """The first result of a search is the page about it."""
    page.goto(site)
    field = page.locator("[data-md-component=search-query]")
    field.click()
    field.fill(words)
    field.press("End")  # the search listens to keys
    first = page.locator(".md-search-result__link").first
    assert (first.get_attribute("href") or "").removeprefix(site).split("?")[0].split("#")[0] == FOUND[words]
