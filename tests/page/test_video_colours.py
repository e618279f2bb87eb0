"""A browser shows the colours that were written."""

import base64
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from playwright.sync_api import Browser, sync_playwright
from tests.page.conftest import find_browser

from remote_vae.media.terms import VideoTerms
from remote_vae.media.video import open_video
from remote_vae.values import VIDEO_FORMATS

# Without a graphics card Chromium converts BT.709 with a factor of at most 2, in place of 2.112, so that blue is 243.
SHADERS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SEEN = """async ([media, data, kind]) => {
  const url = `data:${media};base64,${data}`;
  const element = document.createElement(kind);
  const ready = new Promise((resolve, reject) => {
    element.onerror = () => reject(new Error("it does not play"));
    element.onloadeddata = element.onload = resolve;
  });
  element.muted = true;
  element.src = url;
  await ready;
  if (kind === "video") {
    const shown = new Promise((resolve) => element.requestVideoFrameCallback(resolve));
    document.body.append(element);
    await element.play();
    await shown;
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [element.videoWidth ?? element.width, element.videoHeight ?? element.height];
  const context = canvas.getContext("2d");
  context.drawImage(element, 0, 0);
  const at = (x) => [...context.getImageData(x, canvas.height / 2, 1, 1).data].slice(0, 3);
  return [[canvas.width, canvas.height], ...[32, 96, 160].map(at)];
}"""


@pytest.fixture(scope="module")
def graphics() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=find_browser(), args=SHADERS)
        yield running
        running.close()


@pytest.mark.parametrize("height", [480, 720])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("mp4", "h264"), ("mp4", "av1"), ("webm", "vp9"), ("webm", "av1"), ("gif", ""), ("webp", ""), ("avif", "")],
)
def test_saturated_colours(graphics: Browser, name: str, codec: str, height: int) -> None:
    """Saturated red, green and blue come back within 4 levels, at heights of both matrices."""
    pixels = np.zeros((3, height, 192, 3), np.uint8)
    for channel in range(3):
        pixels[:, :, channel * 64 : channel * 64 + 64, channel] = 255
    out, asked = BytesIO(), VIDEO_FORMATS[name]
    writer = open_video(out, asked, VideoTerms(*pixels.shape[:3], fps=8, codec=codec))
    writer.add(pixels)
    writer.end()
    page = graphics.new_page()
    try:
        kind = "video" if asked.media_type.startswith("video/") else "img"
        size, *found = page.evaluate(SEEN, [asked.media_type, base64.b64encode(out.getvalue()).decode(), kind])
    finally:
        page.close()
    assert size == [192, height]
    np.testing.assert_allclose(found, 255 * np.eye(3), atol=4)
