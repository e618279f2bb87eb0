"""demo: a server of its own, a photograph to a latent and back, the figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

STAGES = ["start_server", "encode", "decode_png", "decode_jpg", "decode_tensor", "decode_base64"]
SIZES = ["photograph_png", "latent", "png", "jpg", "tensor", "base64"]


def test_a_folder(live: Any, command: Any, tmp_path: Path) -> None:
    """With a folder alone as --model it round-trips the picture, writes files and figures, and exits 0."""
    picture, output, figures = tmp_path / "in.png", tmp_path / "new" / "out", tmp_path / "figures.json"
    noise = np.random.default_rng(0).integers(0, 255, (70, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)
    said = command("demo", "--model", live.folder / "sd", "--image", picture, "-o", output, "--json", figures)
    assert said.code == 0, said.err
    found = json.loads(figures.read_text())
    assert list(found) == ["model", "psnr_db", "bytes", "stages_ms", "total_s"]
    assert list(found["stages_ms"]) == STAGES
    assert list(found["bytes"]) == SIZES
    assert found["bytes"]["tensor"] == 3 * 64 * 96 * 4
    assert found["bytes"]["latent"] == 4 * 8 * 12 * 4
    assert found["total_s"] * 1000 > sum(found["stages_ms"].values())
    assert 0 < found["psnr_db"] < 60
    assert f"{found['psnr_db']:.2f} dB" in said.text
    assert sorted(path.name for path in output.iterdir()) == [
        "comparison.png",
        "decoded.jpg",
        "decoded.png",
        "latents.safetensors",
    ]
    with Image.open(output / "comparison.png") as both:
        assert both.size == (2 * 96 + 8, 64)
        np.testing.assert_array_equal(np.asarray(both)[:, :96], noise[:64, :96])


WRONG = {
    "no such folder": (["--model", "./nowhere"], "the server did not start: there is no config.json in folder"),
    "no such picture": (["--image", "nothing.png"], "nothing.png cannot be read: No such file"),
    "not a picture": (["--image", "text.png"], "text.png is not a picture that can be read"),
    "too small": (["--image", "small.png"], "the picture is 8x8; it needs at least 16x16 pixels"),
    "a file as folder": (["--image", "good.png", "-o", "text.png"], "folder text.png cannot be made: File exists"),
    "no folder for figures": (["--image", "good.png", "--json", "no/f.json"], "no/f.json cannot be written"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_sentence(
    name: str, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong is one sentence and exit code 1, and no process is left."""
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("this is no picture")
    Image.new("RGB", (8, 8)).save("small.png")
    Image.new("RGB", (32, 32)).save("good.png")
    words, sentence = WRONG[name]
    said = command("demo", *words)
    assert said.code == 1
    assert sentence in said.err
    assert said.err.strip().count("\n") == 0
