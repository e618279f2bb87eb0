"""What the page says when something goes wrong, and that the next try works."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Page
from safetensors.torch import save_file

from .conftest import Visit
from .test_page import choose, send

GOOD = torch.randn(1, 4, 8, 8)


class Line:
    """A TCP connection to the server that can be cut once enough bytes have gone to it, or be down for a while."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # else it holds the whole file
        self._address = self._listener.getsockname()
        self._ends: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._address[1]}"
        self.cut_after = 2**40
        threading.Thread(target=self._accept, daemon=True).start()

    def up(self) -> None:
        self._listener = socket.create_server(self._address)
        threading.Thread(target=self._accept, daemon=True).start()

    def down(self) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._ends.clear()

    def _accept(self) -> None:
        listener = self._listener
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            self._ends += (near, far)
            for source, target, counted in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._carry, args=(source, target, counted), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        gone = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                gone += len(data)
                if counted and gone > self.cut_after:
                    break
                target.sendall(data)
        for end in (target, source):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


@pytest.fixture
def line(live: Any) -> Iterator[Line]:
    made = Line(live.url)
    yield made
    made.down()


def failure(page: Page) -> str:
    page.get_by_role("alert").wait_for()
    return page.get_by_role("alert").inner_text()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    save_file({"latent": GOOD}, tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


def bad_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Names, bytes, and a word of what the page must say."""
    whole = (folder / "good.safetensors").read_bytes()
    np.save(folder / "f.npy", np.asfortranarray(GOOD.numpy()))
    np.save(folder / "i.npy", np.zeros((1, 4, 8, 8), dtype=np.int64))
    torch.save(GOOD, folder / "t.pt")
    Image.new("RGB", (8, 8)).save(folder / "p.gif")
    save_file({"weight": torch.zeros(4)}, folder / "flat.safetensors")
    save_file({"ids": torch.zeros(1, 4, 8, 8, dtype=torch.int32)}, folder / "ints.safetensors")
    return {
        "tensor.pt": ((folder / "t.pt").read_bytes(), "pickle"),
        "renamed.safetensors": ((folder / "t.pt").read_bytes(), "pickle"),
        "letter.safetensors": (b"Dear reader, this is a letter and not a latent", "neither a latent"),
        "empty.safetensors": (b"", "neither a latent"),
        "short.safetensors": (whole[:-1], "cut short"),
        "lying.safetensors": (whole.replace(b"[1,4,8,8]", b"[1,4,8,9]"), "broken"),
        "garbled.safetensors": (whole[:8] + b"\xff" + whole[9:], "broken"),
        "flat.safetensors": ((folder / "flat.safetensors").read_bytes(), "3 to 5 axes"),
        "ints.safetensors": ((folder / "ints.safetensors").read_bytes(), "no floats"),
        "fortran.npy": ((folder / "f.npy").read_bytes(), "Fortran"),
        "integers.npy": ((folder / "i.npy").read_bytes(), "<i8"),
        "short.npy": ((folder / "i.npy").read_bytes()[:100], "cut short"),
        "moving.gif": ((folder / "p.gif").read_bytes(), "image/gif"),
    }


def test_files_that_are_none(live: Any, visit: Visit, good: Path) -> None:
    """A file that is no latent or picture is refused in words, before anything is sent; the next one works."""
    page = visit(live.url)
    posts: list[str] = []
    page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
    for name, (data, words) in bad_files(good.parent).items():
        page.locator("#file").set_input_files(
            {"name": name, "mimeType": "image/gif" if name.endswith("gif") else "", "buffer": data}
        )
        page.locator("#failure-text", has_text=name).wait_for()
        assert words in failure(page), name
        assert page.locator("#go").is_disabled()
    assert posts == []
    choose(page, good)
    send(page)
    assert not page.get_by_role("alert").is_visible()


def test_a_refusal_is_in_the_servers_words(live: Any, visit: Visit, good: Path) -> None:
    """A latent of the wrong channels: the server's sentence, its code, and the file kept for the next try."""
    page = visit(live.url)
    choose(page, good)
    page.get_by_label("Model", exact=True).select_option("flux")
    page.locator("#go").click()
    said = failure(page)
    assert "latent of shape [1, 4, 8, 8] has 4 channels; model 'flux' takes 16" in said
    assert "latent_mismatch · request " in said
    page.get_by_label("Model", exact=True).select_option("sd")
    page.get_by_role("button", name="Try again").click()
    page.locator("#stage img").wait_for()
    assert not page.get_by_role("alert").is_visible()


def test_a_picture_too_large(live: Any, visit: Visit, tmp_path: Path) -> None:
    """A picture above the server's limit: the server's sentence with the numbers."""
    Image.new("RGB", (8200, 8)).save(tmp_path / "wide.png")
    page = visit(live.url)
    choose(page, tmp_path / "wide.png")
    page.locator("#go").click()
    said = failure(page)
    assert "This is too large" in said
    assert "8200x8" in said


def test_a_body_too_large_is_not_sent(live: Any, visit: Visit, tmp_path: Path) -> None:
    """What is above the server's limit for a request is said at once, with both numbers, and not uploaded."""
    with (tmp_path / "huge.npy").open("wb") as file:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, 8192, 10240), }"
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        file.truncate(10 + len(header) + 4 * 4 * 8192 * 10240)
    page = visit(live.url)
    posts: list[str] = []
    page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
    choose(page, tmp_path / "huge.npy")
    page.locator("#go").click()
    assert "1.34 GB; the server takes at most 1.07 GB" in failure(page)
    assert posts == []


def test_a_connection_lost_during_the_upload(line: Line, visit: Visit, tmp_path: Path, good: Path) -> None:
    """A line that breaks while a file is sent: said so, with how much had gone; the file is kept for the next try."""
    # More than the system holds for a connection that nobody reads: else it may all be gone before the line breaks.
    noise = np.random.default_rng(0).integers(0, 255, (1536, 1536, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "big.png")
    page = visit(line.url)
    choose(page, tmp_path / "big.png")
    line.cut_after = 100_000
    page.locator("#go").click()
    said = failure(page)
    assert "The connection was lost" in said
    assert "of 7.09 MB were sent" in said
    assert page.locator("#chosen-name").inner_text() == "big.png"
    line.cut_after = 2**40
    page.get_by_role("button", name="Try again").click()
    page.locator("#result").wait_for(timeout=90_000)  # a large picture: seconds on a slow core


def test_a_server_that_is_away_for_a_while(line: Line, visit: Visit, good: Path) -> None:
    """While the server cannot be reached the page says so; when it is back the page is ready, with the file kept."""
    page = visit(line.url)
    choose(page, good)
    line.down()
    page.locator("#status").get_by_text("no connection", exact=True).wait_for()
    page.locator("#go").click()
    assert "The connection was lost" in failure(page)
    line.up()
    page.locator("#status").get_by_text("ready", exact=True).wait_for()
    page.get_by_role("button", name="Try again").click()
    page.locator("#result").wait_for()


def test_cancelling(visit: Visit, start: Any, tmp_path: Path) -> None:
    """A decode that takes too long can be cancelled; it is no failure, and the file is kept."""
    slow = torch.full((1, 3, 8, 8), 0.0)
    slow[0, 0, 0, 0] = 8.0
    save_file({"latent": slow}, tmp_path / "slow.safetensors")
    with start("copy") as server:
        page = visit(server.url)
        choose(page, tmp_path / "slow.safetensors")
        page.get_by_text("Apply the model's scaling").click()
        page.locator("#go").click()
        page.get_by_role("button", name="Cancel").click()
        page.locator("#go:not(:disabled)").wait_for()
        assert not page.get_by_role("alert").is_visible()
        assert page.locator("#chosen-name").inner_text() == "slow.safetensors"


def test_a_key(start: Any, visit: Visit, good: Path, tmp_path: Path) -> None:
    """The page asks for a key, says when it is wrong, works with the right one, and forgets it on reload."""
    save_file({"latent": torch.zeros(1, 3, 8, 8)}, tmp_path / "copy.safetensors")
    with start("copy", keys="a-key-of-sixteen-signs") as server:
        page = visit(server.url, until="needs a key")
        box = page.get_by_label("Key of this server")
        assert box.evaluate("box => box === document.activeElement")
        box.fill("another-key-of-someone")
        box.press("Enter")
        page.locator("#status").get_by_text("wrong key", exact=True).wait_for()
        box.fill("a-key-of-sixteen-signs")
        box.press("Enter")
        page.locator("#status").get_by_text("ready", exact=True).wait_for()
        assert not box.is_visible()
        choose(page, tmp_path / "copy.safetensors")
        send(page)
        stores = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        everything = page.content() + page.url + stores
        assert "sixteen" not in everything
        assert "$REMOTE_VAE_API_KEY" in page.locator("#curl").inner_text()
        page.reload()
        page.locator("#status").get_by_text("needs a key", exact=True).wait_for()
        assert box.input_value() == ""


def test_a_key_that_is_withdrawn(start: Any, visit: Visit, tmp_path: Path) -> None:
    """A key that the server no longer takes: said so, with the field open and the file kept."""
    save_file({"latent": torch.zeros(1, 3, 8, 8)}, tmp_path / "copy.safetensors")
    with start("copy", keys="a-key-of-sixteen-signs") as server:
        page = visit(server.url, until="needs a key")
        page.get_by_label("Key of this server").fill("a-key-of-sixteen-signs")
        page.get_by_role("button", name="Use", exact=True).click()
        page.locator("#status").get_by_text("ready", exact=True).wait_for()
        choose(page, tmp_path / "copy.safetensors")
        page.get_by_role("button", name="Key").click()
        page.get_by_label("Key of this server").fill("another-key-of-someone")
        page.get_by_role("button", name="Use", exact=True).click()
        page.locator("#status").get_by_text("wrong key", exact=True).wait_for()
        assert page.locator("#chosen-name").inner_text() == "copy.safetensors"
