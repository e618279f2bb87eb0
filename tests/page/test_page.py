"""The page in a real browser, against a real server: from a file to what is seen."""

import io
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import requests
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect
from safetensors.torch import save_file

from remote_vae.models.families import find_recipe

from .conftest import PHONE, Visit

EACH = [*(f"{name}.safetensors" for name in ("sd", "several", "packed", "video")), "double.npy", "it's a photo.png"]
SLEEP = 8.0  # a first value at which the copying VAE takes a second
DARK = {"color_scheme": "dark"}
SD = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as people have them: latents of several kinds and dtypes, a photograph of noise."""
    save_file({"latent": SD.half()}, tmp_path / "sd.safetensors")
    save_file({"ids": torch.arange(4), "a": SD.bfloat16(), "b's": SD.bfloat16() / 2}, tmp_path / "several.safetensors")
    save_file({"latent": torch.randn(1, 64, 64).bfloat16()}, tmp_path / "packed.safetensors")
    save_file({"latent": torch.randn(1, 16, 3, 4, 4).half()}, tmp_path / "video.safetensors")
    save_file({"latent": torch.randn(1, 9, 8, 8)}, tmp_path / "odd.safetensors")
    np.save(tmp_path / "single.npy", SD.numpy())
    np.save(tmp_path / "double.npy", SD.numpy().astype("<f8"))
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "it's a photo.png")
    return tmp_path


def choose(page: Page, path: Path) -> None:
    page.locator("#file").set_input_files(path)
    page.locator("#chosen-name", has_text=path.name).wait_for()


def send(page: Page) -> None:
    page.locator("#go").click()
    page.locator("#result").wait_for()
    page.locator("#go:not(:disabled)").wait_for()


def saved(page: Page, name: str) -> bytes:
    """What the link `name` gives."""
    with page.expect_download() as download:
        page.get_by_role("link", name=name).click()
    return Path(download.value.path()).read_bytes()


def frames_of(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def decoded_by(live: Any, model: str, latent: torch.Tensor, **query: object) -> bytes:
    """The server's own answer, asked without the page."""
    dtype = str(latent.dtype).removeprefix("torch.")
    query = {"shape": list(latent.shape), "dtype": dtype, "do_scaling": "True", **query}
    headers = {"content-type": "tensor/binary", "accept": "image/png"}
    body = latent.contiguous().view(torch.uint8).numpy().tobytes()
    reply = live.post(f"/{model}/decode", params=query, data=body, headers=headers)
    assert reply.status_code == 200, reply.text
    return bytes(reply.content)


def test_a_browser_gets_the_page_and_programs_get_json(live: Any) -> None:
    """GET / is the page for who accepts text/html, and JSON for everybody else, health checks included."""
    for accept in ("text/html,application/xhtml+xml,*/*;q=0.8", "TEXT/HTML;q=0.9"):
        reply = requests.get(live.url, headers={"accept": accept}, timeout=10)
        assert reply.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert "accept" in reply.headers["vary"]
    for accept in (None, "*/*", "application/json", "text/plain"):
        reply = requests.get(live.url, headers={"accept": accept}, timeout=10)
        assert reply.json()["service"] == "remote-vae"
        assert "accept" in reply.headers["vary"]


def test_the_parts_of_the_page(live: Any) -> None:
    """Below /page are the page's own files and nothing else, for GET and HEAD."""
    reply = requests.get(f"{live.url}/page/main.js", timeout=10)
    assert "javascript" in reply.headers["content-type"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    same = {"if-none-match": reply.headers["etag"]}
    assert requests.get(f"{live.url}/page/main.js", headers=same, timeout=10).status_code == 304
    plain = requests.get(f"{live.url}/page/main.js", headers={"accept-encoding": "identity"}, timeout=10)
    assert (reply.headers["content-encoding"], plain.headers.get("content-encoding")) == ("gzip", None)
    assert reply.content == plain.content
    assert requests.head(f"{live.url}/page/main.js", timeout=10).content == b""
    for name in ("nothing.js", "..%2fapp.py", "%2e%2e/app.py", "main.js/x"):
        assert requests.get(f"{live.url}/page/{name}", timeout=10).status_code == 404
    assert requests.post(f"{live.url}/page/main.js", timeout=10).status_code == 405


def test_it_is_light(live: Any, visit: Visit) -> None:
    """All that a first visit transfers, headers included, is below 90 kB."""
    page = visit(live.url)
    sizes = page.evaluate("performance.getEntries().map((entry) => entry.transferSize ?? 0)")
    assert 10_000 < sum(sizes) < 90_000


@pytest.mark.parametrize(
    ("name", "latent"),
    [("sd.safetensors", SD.half()), ("single.npy", SD), ("double.npy", SD)],
    ids=lambda case: str(case)[:12],
)
def test_a_latent_becomes_the_picture(live: Any, visit: Visit, folder: Path, name: str, latent: torch.Tensor) -> None:
    """A latent of any format and dtype is shown as the very picture that the server sends to others."""
    page = visit(live.url)
    choose(page, folder / name)
    send(page)
    image = page.locator("#stage img")
    image.evaluate("image => image.decode()")
    assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 64]
    latent = SD.half() if name == "sd.safetensors" else SD
    assert saved(page, "Save the picture") == decoded_by(live, "sd", latent)


def test_one_of_several_tensors(live: Any, visit: Visit, folder: Path) -> None:
    """Of a file with several tensors the chosen one is decoded; the ones that are no latents are not offered."""
    page = visit(live.url)
    choose(page, folder / "several.safetensors")
    options = page.get_by_label("Tensor", exact=True)
    assert options.locator("option").all_inner_texts() == ["a [1,4,8,8]", "b's [1,4,8,8]"]
    options.select_option(index=1)
    page.get_by_text("Apply the model's scaling").click()
    send(page)
    assert saved(page, "Save the picture") == decoded_by(live, "sd", SD.bfloat16() / 2, do_scaling="False")


def test_a_packed_latent(live: Any, visit: Visit, folder: Path) -> None:
    """For packed latents the size is asked for, a square is guessed, and a model that fits is taken."""
    page = visit(live.url)
    choose(page, folder / "packed.safetensors")
    assert page.get_by_label("Model", exact=True).input_value() == "flux"
    assert page.get_by_label("Height, pixels").input_value() == "128"
    page.get_by_label("Height, pixels").fill("64")
    page.get_by_label("Width, pixels").fill("256")
    send(page)
    assert Image.open(io.BytesIO(saved(page, "Save the picture"))).size == (256, 64)


@pytest.mark.parametrize(
    ("shape", "suits", "packed"),
    [
        ([1, 128, 8, 8], True, False),
        ([1, 32, 16, 16], True, False),
        ([1, 64, 128], True, True),
        ([1, 128, 8, 128], True, False),
        ([1, 64, 8, 8], False, False),
    ],
)
def test_patches_as_channels(live: Any, visit: Visit, shape: list[int], suits: bool, packed: bool) -> None:
    """The page knows FLUX.2's latents by their shape, and asks for the size of those that do not show it."""
    card = {
        "kind": "image",
        "latent_channels": 32,
        "latent_layouts": [layout.wire for layout in find_recipe("flux2").layouts],
    }
    script = "import('/page/models.js').then(({ suits, packed }) => [suits(card, shape), packed(card, shape)])"
    assert visit(live.url).evaluate(f"([card, shape]) => {script}", [card, shape]) == [suits, packed]


@pytest.mark.parametrize(
    ("recipe", "channels", "shape", "suits", "packing"),
    [
        ("qwen-image-2.1", 64, [1, 64, 8, 8], True, None),
        ("qwen-image-2.1", 64, [1, 64, 1, 8, 8], True, None),
        ("qwen-image-2.1", 64, [1, 64, 2, 8, 8], False, None),
        ("qwen-image-2.1", 64, [1, 16, 64], True, {"tokens": 16, "cells": 1}),
        ("qwen-image-2.1", 64, [1, 16, 256], False, None),
        ("qwen-image-layered", 16, [1, 16, 4, 8, 8], True, None),
        ("qwen-image-layered", 16, [1, 48, 64], True, {"tokens": 0, "cells": 2}),
        ("qwen-image", 16, [1, 16, 64], True, {"tokens": 16, "cells": 2}),
        ("qwen-image", 16, [1, 16, 4, 8, 8], False, None),
        ("hunyuanvideo", 16, [1, 16, 3, 8, 8], True, None),
    ],
)
def test_tokens_and_layers(
    live: Any, visit: Visit, recipe: str, channels: int, shape: list[int], suits: bool, packing: object
) -> None:
    """The page knows a packed latent by its layouts, and guesses no size if frames or layers are among the tokens."""
    layouts = [layout.wire for layout in find_recipe(recipe).layouts]
    card = {"latent_channels": channels, "latent_layouts": layouts}
    script = "import('/page/models.js').then(({ suits, packing }) => [suits(card, shape), packing(card, shape)])"
    assert visit(live.url).evaluate(f"([card, shape]) => {script}", [card, shape]) == [suits, packing]


def test_a_video_plays(live: Any, visit: Visit, folder: Path) -> None:
    """A latent of a video model becomes a video of all its frames, which plays."""
    page = visit(live.url)
    choose(page, folder / "video.safetensors")
    assert page.get_by_label("Model", exact=True).input_value() == "video"
    send(page)
    video = page.locator("#stage video")
    video.evaluate("video => video.readyState >= 2 || new Promise((done) => (video.oncanplay = () => done()))")
    assert video.evaluate("video => [video.videoWidth, video.videoHeight, video.duration]") == [32, 32, 9 / 24]
    video.evaluate("video => video.play()")
    moved = "video => new Promise((done) => (video.ontimeupdate = () => video.currentTime > 0.2 && done(true)))"
    assert video.evaluate(moved)
    assert saved(page, "Save the video")[4:8] == b"ftyp"


def test_a_video_is_shown_while_it_comes(start: Any, visit: Visit, tmp_path: Path) -> None:
    """The first frames play, and those that have come are counted, before the last one is decoded."""
    latent = torch.zeros(1, 3, 48, 64, 64)
    latent[0, 0, 24:, 0, 0] = SLEEP / 2  # the model's own scaling doubles it
    save_file({"latent": latent}, tmp_path / "films.safetensors")
    with start("films") as server:
        page = visit(server.url)
        choose(page, tmp_path / "films.safetensors")
        page.locator("#go").click()
        growing = page.get_by_label("What has come of films.safetensors")
        growing.wait_for()
        assert page.locator("#go").is_disabled()
        growing.evaluate("video => video.buffered.length || new Promise((done) => (video.onloadeddata = () => done()))")
        page.locator("#progress-text", has_text=" of 48 frames have come").wait_for()
        assert page.locator("#go").is_disabled()
        page.locator("#go:not(:disabled)").wait_for(timeout=60_000)
        video = page.locator("#stage video")
        assert video.get_attribute("aria-label") == "What films decoded from films.safetensors"
        video.evaluate(
            "video => video.readyState >= 1 || new Promise((done) => (video.onloadedmetadata = () => done()))"
        )
        assert video.evaluate("video => video.duration") == 48 / 24
        assert "until the first frames" in page.locator("#timings").inner_text()


def test_a_video_that_breaks_off(start: Any, visit: Visit, tmp_path: Path) -> None:
    """What has come of it is taken off the page, and the failure is said."""
    latent = torch.zeros(1, 3, 48, 64, 64)
    latent[0, 0, 47, 0, 0] = 9.0 / 2  # at twice of which the copying VAE raises
    save_file({"latent": latent}, tmp_path / "films.safetensors")
    with start("films") as server:
        page = visit(server.url)
        choose(page, tmp_path / "films.safetensors")
        page.locator("#go").click()
        page.locator("#failure-title", has_text="The connection was lost").wait_for()
        assert page.locator("#result").is_hidden()


@pytest.mark.parametrize("model", ["sd", "video"])
def test_a_round_trip_is_measured(live: Any, visit: Visit, folder: Path, model: str) -> None:
    """A picture goes to a latent and back; the page's PSNR is that of the pictures, the stages those of both ways."""
    page = visit(live.url)
    choose(page, folder / "it's a photo.png")
    page.get_by_label("Model", exact=True).select_option(model)
    send(page)
    pair = [Image.open(folder / "it's a photo.png"), Image.open(io.BytesIO(saved(page, "Save the picture")))]
    original, decoded = (np.asarray(picture.convert("RGB"), dtype=np.float64) for picture in pair)
    psnr = 10 * np.log10(255**2 / np.mean((original - decoded) ** 2))
    assert f"PSNR{psnr:.1f} dB" in page.locator("#summary").inner_text().replace("\n", "")
    assert np.load(io.BytesIO(saved(page, "Save the latent"))).shape[-2:] == (8, 12)
    stages = page.locator("#timings li").all_inner_texts()
    named = [re.sub(r" [\d.]+( \+ [\d.]+)? ms", "", text) for text in stages]
    assert len(named) == len(set(named))
    assert {"network and browser", "encode", "decode"} <= set(named)
    assert set(named) <= {"network and browser", "queue", "encode", "decode", "writing the file", "other"}
    size = (folder / "it's a photo.png").stat().st_size
    assert f"{size / 1000:.1f} kB sent" in page.locator("#timings").inner_text()


def test_the_slider_moves_by_keyboard(live: Any, visit: Visit, folder: Path) -> None:
    """The line between original and decoded follows the arrow keys."""
    page = visit(live.url)
    choose(page, folder / "it's a photo.png")
    send(page)
    page.get_by_role("slider").focus()
    clip = "element => getComputedStyle(element).clipPath"
    places = []
    for key in ("Home", "ArrowRight", "End"):
        page.keyboard.press(key)
        places.append(page.get_by_alt_text("Original").evaluate(clip))
    assert places == ["inset(0px 100% 0px 0px)", "inset(0px 99% 0px 0px)", "inset(0px 0% 0px 0px)"]


def test_all_of_it_by_keyboard(live: Any, visit: Visit, folder: Path) -> None:
    """Tab and Enter are enough to choose a file, send it and copy the code."""
    page = visit(live.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the decoder"
    # From here on, not only around Enter: a chooser that opens before the browser has heard of it is the desktop's own.
    with page.expect_file_chooser() as chooser:
        tab_to(page, "file")
        page.keyboard.press("Enter")
    chooser.value.set_files(folder / "sd.safetensors")
    page.locator("#go:not(:disabled)").wait_for()
    tab_to(page, "go")
    page.keyboard.press("Enter")
    page.locator("#code").wait_for()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#result").wait_for()
    tab_to(page, "python", past=-1)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#python").text_content()


def tab_to(page: Page, element: str, past: int = 0) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == element:
            return
    raise AssertionError(f"#{element} is not reached by Tab")


@pytest.mark.parametrize("language", ["python", "curl"])
@pytest.mark.parametrize(
    "name",
    [
        "sd.safetensors",
        "several.safetensors",
        "double.npy",
        "packed.safetensors",
        "it's a photo.png",
        "video.safetensors",
    ],
)
def test_the_code_does_the_same(live: Any, visit: Visit, folder: Path, name: str, language: str) -> None:
    """The Python and the curl that the page shows, run as they stand, give the bytes that the page has.

    Of a video, which the page takes while it is decoded, they give the frames, in a file that is written as a whole.
    """
    page = visit(live.url)
    choose(page, folder / name)
    send(page)
    code = page.locator(f"#{language}").text_content() or ""
    link = page.locator("#downloads a").first
    mine = saved(page, link.inner_text())
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-ec", code]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert said.returncode == 0, said.stderr + said.stdout
    found = (folder / str(link.get_attribute("download"))).read_bytes()
    if name.startswith("video"):
        frames, same = frames_of(found).astype(int), frames_of(mine)
        assert frames.shape == same.shape
        assert np.abs(frames - same).mean() < 12  # levels: a video of noise, which is lossy
    else:
        assert found == mine


@pytest.mark.parametrize("options", [{}, DARK, PHONE, DARK | PHONE], ids=["light", "dark", "phone", "dark phone"])
def test_accessibility(live: Any, visit: Visit, folder: Path, options: dict[str, Any]) -> None:
    """axe finds no violation on the empty page, on a result, on a failure, and with the key's field open."""
    page = visit(live.url, **options)
    found = [axe(page)]
    choose(page, folder / "it's a photo.png")
    send(page)
    found.append(axe(page))
    choose(page, folder / "odd.safetensors")
    page.locator("#go").click()
    page.get_by_role("alert").wait_for()
    page.get_by_role("button", name="Key").click()
    found.append(axe(page))
    assert found == [[], [], []]


def axe(page: Page) -> list[str]:
    violations = Axe().run(page).response["violations"]
    return [f"{item['id']}: {node['html']}" for item in violations for node in item["nodes"]]


def test_dark_mode(live: Any, visit: Visit) -> None:
    """The colours follow the system's scheme: light text on dark ground at night, the reverse by day."""
    sums = []
    for options in ({}, DARK):
        page = visit(live.url, **options)
        style = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        sums.append([sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in style])
    (day, ink), (night, chalk) = sums
    assert night < ink + 100 < 300
    assert min(day, chalk) > 600


def test_on_a_phone(live: Any, visit: Visit, folder: Path) -> None:
    """On a narrow screen nothing is wider than the screen and everything works by touch."""
    page = visit(live.url, **PHONE)
    choose(page, folder / "it's a photo.png")
    page.locator("#go").tap()
    page.locator("#result").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    heights = "[...document.querySelectorAll('button, select')].map((item) => item.offsetHeight)"
    assert min(filter(None, page.evaluate(heights))) >= 24


def test_an_old_result_is_named_as_such(live: Any, visit: Visit, folder: Path) -> None:
    """The result of another file is marked until the new one comes, and the code is always that of the chosen file."""
    page = visit(live.url)
    choose(page, folder / "it's a photo.png")
    send(page)
    stale, code = page.locator("#stale"), page.locator("#python")
    assert stale.is_hidden()
    choose(page, folder / "sd.safetensors")
    expect(stale).to_have_text("The result of the request before, of it's a photo.png:")
    expect(code).to_contain_text("sd.safetensors")
    send(page)
    assert stale.is_hidden()
    page.locator("#file").set_input_files(folder / "odd.safetensors")
    page.locator("#go").click()
    page.get_by_role("alert").wait_for()
    expect(stale).to_have_text("The result of the request before, of sd.safetensors:")


def test_how_to_connect(live: Any, visit: Visit) -> None:
    """Before any file is chosen, the page says how programs reach a model, and its JavaScript works as it stands."""
    page = visit(live.url)
    page.get_by_label("Model", exact=True).select_option("flux")
    assert page.locator("#address").inner_text() == f"{live.url}/flux"
    assert f'RemoteVAE("{live.url}/flux")' in page.locator("#way").inner_text()
    page.get_by_role("button", name="JavaScript").click()
    script = page.locator("#way").inner_text()
    kind = "async () => { const latent = new Float32Array(16 * 64 * 64);" + script + "return picture.type; }"
    assert page.evaluate(kind) == "image/png"
    page.get_by_role("button", name="curl").click()
    assert f'"{live.url}/flux/encode"' in page.locator("#way").inner_text()


def test_zoom_and_difference(live: Any, visit: Visit, folder: Path) -> None:
    """Both pictures grow together, by buttons and keys, and the difference is that of the pictures."""
    page = visit(live.url)
    choose(page, folder / "it's a photo.png")
    send(page)
    page.get_by_role("button", name="800 %").click()
    widths = "[...document.querySelectorAll('#stage img')].map((image) => image.offsetWidth)"
    expect(page.locator("#stage img").first).to_have_css("width", f"{96 * 8}px")
    assert page.evaluate(widths) == [96 * 8, 96 * 8]
    page.locator("#stage").press("-")
    expect(page.locator("#stage img").first).to_have_css("width", f"{96 * 4}px")
    page.get_by_role("button", name="Difference").click()
    shown = page.get_by_role("img", name="The difference")
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    found = np.reshape(shown.evaluate(read), (64, 96, 4))[..., :3]
    pair = [Image.open(folder / "it's a photo.png"), Image.open(io.BytesIO(saved(page, "Save the picture")))]
    first, second = (np.asarray(picture.convert("RGB")).astype(int) for picture in pair)
    assert np.array_equal(found, np.minimum(16 * np.abs(first - second), 255))


def test_several_files_and_pasted_ones(live: Any, visit: Visit, folder: Path) -> None:
    """Of several files each can be chosen, and a picture in the clipboard is taken."""
    page = visit(live.url)
    assert page.locator("#go").inner_text() == "Choose a file first"
    page.locator("#file").set_input_files([folder / "sd.safetensors", folder / "single.npy"])
    expect(page.locator("#chosen-name")).to_have_text("sd.safetensors")
    page.get_by_role("button", name="single.npy").click()
    expect(page.locator("#chosen-name")).to_have_text("single.npy")
    page.evaluate(
        "async () => { const canvas = new OffscreenCanvas(16, 16); canvas.getContext('2d').fillRect(0, 0, 9, 9);"
        "const items = new DataTransfer(); items.items.add(new File([await canvas.convertToBlob()], 'pasted.png'));"
        "dispatchEvent(new ClipboardEvent('paste', { clipboardData: items })); }"
    )
    expect(page.locator("#chosen-name")).to_have_text("pasted.png")
    assert page.locator("#thumb").is_visible()


def test_the_test_picture(live: Any, visit: Visit) -> None:
    """Who has no file can take a picture that the page draws."""
    page = visit(live.url)
    page.get_by_role("button", name="test picture").click()
    page.locator("#chosen-name", has_text="test-picture.png").wait_for()
    send(page)
    assert "512x512" in page.locator("#summary").inner_text()


def test_the_models_are_shown(live: Any, visit: Visit) -> None:
    """Every model is listed with its channels, ratio and factors, and the limits below."""
    page = visit(live.url)
    rows = [row.inner_text().split("\t") for row in page.locator("#models tr").all()]
    assert [row[0].split("\n")[0] for row in rows] == ["sd", "flux", "video"]
    assert all(row[7].startswith("cpu\n") for row in rows)
    assert re.fullmatch(r"cpu · .+ · [\d.]+ GB · float32", page.locator("#device").inner_text())
    assert [row[2:6] for row in rows] == [
        ["4", "8x", "0.31", "none"],
        ["16", "8x", "0.41", "0.17"],
        ["16", "8x, 4 frames", "0.47", "none"],
    ]
    assert "8192 pixels a side" in page.locator("#limits").inner_text()


def test_the_live_view_moves(start: Any, visit: Visit) -> None:
    """Queue, device memory and throughput follow what the server does, while others use it."""
    with start("copy") as server:
        page = visit(server.url)
        tiles = {tile.locator("h3").inner_text(): tile for tile in page.locator("#tiles .tile").all()}
        assert list(tiles) == ["Queue", "Memory of the models", "Throughput"]
        expect(tiles["Memory of the models"].locator("output")).to_have_text(re.compile(r"^[\d.]+ [MG]B$"))
        expect(tiles["Throughput"].locator("output")).to_have_text("0.0 requests/s")
        with ThreadPoolExecutor(3) as others:
            asked = [others.submit(server.decode, SLEEP) for _ in range(3)]
            expect(tiles["Queue"].locator("output")).to_have_text(re.compile("^[123] request"))
            assert all(reply.result().status_code == 200 for reply in asked)
        expect(tiles["Throughput"].locator("output")).not_to_have_text("0.0 requests/s")
        expect(tiles["Queue"].locator("output")).to_have_text("0 requests")
        for tile in tiles.values():
            assert len((tile.locator("polyline").get_attribute("points") or "").split()) >= 3


def test_a_latent_of_comfyui(visit: Visit, folder: Path, live: Any) -> None:
    """ComfyUI's file says that it is raw, so the scaling is switched off; the next file has it again."""
    page = visit(live.url)
    save_file({"latent_tensor": SD, "latent_format_version_0": torch.tensor([])}, folder / "ComfyUI_1_.latent")
    save_file({"latent_tensor": SD}, folder / "old.latent")
    choose(page, folder / "ComfyUI_1_.latent")
    assert not page.locator("#scaling").is_checked()
    send(page)
    assert saved(page, "Save the picture") == decoded_by(live, "sd", SD, do_scaling="False")
    choose(page, folder / "sd.safetensors")
    assert page.locator("#scaling").is_checked()
    page.locator("#file").set_input_files(folder / "old.latent")
    expect(page.locator("#failure-text")).to_contain_text("is of an old ComfyUI")


def test_latents_of_trainers(visit: Visit, folder: Path, live: Any) -> None:
    """A trainer's cache says whether its latent is raw; an archive and bfloat16 of numpy are read as they are."""
    page = visit(live.url)
    sizes = {"original_size": np.array([64, 64]), "crop_ltrb": np.array([0, 0, 64, 64])}
    np.savez(folder / "photo_0064x0064_sd.npz", latents=SD[0].numpy(), **sizes)
    choose(page, folder / "photo_0064x0064_sd.npz")
    assert not page.locator("#scaling").is_checked()
    send(page)
    assert saved(page, "Save the picture") == decoded_by(live, "sd", SD[0], do_scaling="False")
    half = SD.bfloat16()
    np.save(folder / "half.npy", np.frombuffer(half.view(torch.uint8).numpy().tobytes(), "V2").reshape(half.shape))
    choose(page, folder / "half.npy")
    assert page.locator("#scaling").is_checked()
    send(page)
    assert saved(page, "Save the picture") == decoded_by(live, "sd", half)
