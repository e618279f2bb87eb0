"""The pictures of docs/page.md, of the page as it is now: `python docs/figures/page.py`, or `make picture`."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from remote_vae import Client
from remote_vae.cli.demo import FLOWER

IMAGES = Path(__file__).parents[1] / "images"
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 1.5, "color_scheme": "dark"}


def main() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "remote_vae.cli.main", "serve", "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        with Client(url, retries=1) as client:
            while not client.ready():
                time.sleep(0.2)
        take(url)
    finally:
        server.terminate()
        server.wait(timeout=60)


def take(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        photograph = Path(folder) / "flower.png"
        with FLOWER.open("rb") as file:
            Image.open(file).crop((0, 0, 640, 416)).save(photograph)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, options in (("page", DESKTOP), ("page-phone", PHONE)):
            page = browser.new_page(**options)
            page.set_default_timeout(120_000)
            page.goto(url)
            page.locator("#file").set_input_files(photograph)
            round_trips(page, 5)
            save(page, name)
        browser.close()


def round_trips(page: Page, count: int) -> None:
    """A few, so that the live view has something to show."""
    for _ in range(count):
        page.locator("#go:not(:disabled)").click()
        page.locator("#go:not(:disabled)").wait_for()


def save(page: Page, name: str) -> None:
    picture = Image.open(BytesIO(page.screenshot(full_page=name == "page")))
    picture.convert("RGB").save(IMAGES / f"{name}.webp", quality=82, method=6)


if __name__ == "__main__":
    main()
