"""A real browser, and a watch over what it says and whom it asks."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
Visit = Callable[..., Page]


def find_browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("no browser: the page's tests must run here; install Chromium")
    if found is None:
        pytest.skip("no browser: install Chromium to run the page's tests")
    return found


# Of a module, not of the session: while it is open, its event loop would be in the way of asynchronous tests.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # A site that attacks by its name, in a browser that does not itself refuse local addresses to sites.
        attacked = ["--host-resolver-rules=MAP site.example 127.0.0.1", "--disable-features=LocalNetworkAccessChecks"]
        running = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", *attacked])
        yield running
        running.close()


class Watch:
    """What went wrong in a browser and where it went."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.complaints: list[str] = []

    def over(self, context: BrowserContext) -> None:
        context.on("request", lambda request: self.asked.append(request.url))
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        context.on("console", self._heard)

    def _heard(self, message: Any) -> None:
        # The browser itself reports each refused or broken request; the page's answers to those are what is tested.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.complaints.append(message.text)


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Iterator[Visit]:
    """Opens the page of a server in a fresh profile; afterwards nothing may have gone wrong or left the host."""
    watch, contexts, hosts = Watch(), [], []

    def open_page(url: str, *, until: str = "ready", **options: Any) -> Page:
        context = browser.new_context(**(DESKTOP | options))
        watch.over(context)
        contexts.append(context)
        hosts.append(url)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.goto(url)
        page.locator("#status").get_by_text(until, exact=True).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert watch.complaints == []
    assert [url for url in watch.asked if not url.removeprefix("blob:").startswith(tuple(hosts))] == []
