"""encode, decode, models and verify against a live server."""

import io
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import requests
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from ports import free_port

SCALE = 0.31  # of the model "sd" that the live server has


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    noise = np.random.default_rng(3).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    path = tmp_path / "in.npy"
    np.save(path, np.random.default_rng(4).standard_normal((1, 4, 8, 12)).astype(np.float32))
    return path


def decoded(live: Any, path: Path, *, scale: float = SCALE) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = live.modules["sd"].decode(torch.from_numpy(np.load(path)) / scale).sample
    return found


def tensor_in(path: Path) -> np.ndarray:
    return load_file(path)["latents"] if path.suffix == ".safetensors" else np.load(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npy"])
def test_encode_writes_the_latent(live: Any, command: Any, photo: Path, tmp_path: Path, suffix: str) -> None:
    """encode writes the normalised mode of the picture, as .safetensors under "latents" or as .npy, and says so."""
    output = tmp_path / f"out{suffix}"
    said = command("encode", photo, "-o", output, "--url", live.url, "--posterior", "mode")
    assert said.code == 0
    with Image.open(photo) as picture:
        pixels = VaeImageProcessor(vae_scale_factor=8).preprocess(picture)
    with torch.no_grad():
        expected = live.modules["sd"].encode(pixels).latent_dist.mode() * SCALE
    np.testing.assert_allclose(tensor_in(output), expected.numpy(), atol=1e-5)
    assert "float32 [1, 4, 8, 12]" in said.err
    assert "by sd, plan whole" in said.err


def test_encode_options(live: Any, command: Any, photo: Path, tmp_path: Path) -> None:
    """--seed makes a sample again, --no-scaling leaves the factors out, parameters have twice the channels."""
    found = {}
    for name, options in {
        "seed 1": ["--seed", 1],
        "seed 1 again": ["--seed", 1],
        "seed 2": ["--seed", 2],
        "plain": ["--posterior", "mode", "--no-scaling"],
        "parameters": ["--posterior", "parameters"],
    }.items():
        output = tmp_path / "out.npy"
        assert command("encode", photo, "-o", output, "--url", live.url, *options).code == 0
        found[name] = np.load(output)
    np.testing.assert_array_equal(found["seed 1"], found["seed 1 again"])
    assert np.abs(found["seed 1"] - found["seed 2"]).max() > 1e-3
    assert found["parameters"].shape == (1, 8, 8, 12)
    np.testing.assert_array_equal(found["plain"], found["parameters"][:, :4])


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP"), (".avif", "AVIF")]
)
def test_decode_to_a_picture(live: Any, command: Any, latents: Path, tmp_path: Path, suffix: str, kind: str) -> None:
    """The suffix chooses the picture's format, and the picture is the local VAE's."""
    output = tmp_path / f"out{suffix}"
    assert command("decode", latents, "-o", output, "--url", live.url).code == 0
    expected = VaeImageProcessor(vae_scale_factor=8).postprocess(decoded(live, latents))[0]
    with Image.open(output) as picture:
        assert picture.format == kind
        difference = np.abs(np.asarray(picture, np.int16) - np.asarray(expected, np.int16))
    assert difference.max() == 0 if kind == "PNG" else difference.mean() < 20


def test_quality(live: Any, command: Any, latents: Path, tmp_path: Path) -> None:
    """--quality makes a JPEG smaller, and one that is out of range is refused by name."""
    sizes = []
    for quality in (20, 95):
        command("decode", latents, "-o", tmp_path / "q.jpg", "--url", live.url, "--quality", quality)
        sizes.append((tmp_path / "q.jpg").stat().st_size)
    assert sizes[0] < sizes[1] / 2
    assert "quality=101 must be from 1 to 100" in command("decode", latents, "-o", "q.jpg", "--quality", 101).err


@pytest.mark.parametrize("suffix", [".safetensors", ".npy"])
def test_decode_to_a_tensor(live: Any, command: Any, latents: Path, tmp_path: Path, suffix: str) -> None:
    """A tensor's suffix gives the VAE's raw output; --no-scaling takes the latent as it is."""
    output = tmp_path / f"out{suffix}"
    for options, scale in (([], SCALE), (["--no-scaling"], 1.0)):
        assert command("decode", latents, "-o", output, "--url", live.url, *options).code == 0
        np.testing.assert_allclose(tensor_in(output), decoded(live, latents, scale=scale).numpy(), atol=1e-5)


def test_decode_to_a_named_format(live: Any, command: Any, latents: Path, tmp_path: Path) -> None:
    """--format stands for the suffix, of pictures and of tensors; what is no format is refused with the formats."""
    output = tmp_path / "out.bin"
    assert command("decode", latents, "-o", output, "--format", "webp", "--url", live.url).code == 0
    assert Image.open(io.BytesIO(output.read_bytes())).format == "WEBP"
    assert command("decode", latents, "-o", output, "--format", "NPY", "--url", live.url).code == 0
    np.testing.assert_allclose(np.load(io.BytesIO(output.read_bytes())), decoded(live, latents).numpy(), atol=1e-5)
    said = command("decode", latents, "-o", output, "--format", "tiff", "--url", live.url)
    assert (said.code, "'tiff' is no format; expected one of jpg" in said.text) == (1, True)


def test_decode_to_a_video(live: Any, command: Any, tmp_path: Path) -> None:
    """.mp4 of a video model has the frames of the latent; of an image model it is refused in a sentence."""
    path, output = tmp_path / "video.npy", tmp_path / "out.mp4"
    np.save(path, np.random.default_rng(5).standard_normal((1, 16, 2, 4, 4)).astype(np.float32))
    assert command("decode", path, "-o", output, "--url", live.url, "--model", "video").code == 0
    with av.open(io.BytesIO(output.read_bytes())) as film:
        assert len(list(film.decode(video=0))) == 5
    np.save(path, np.zeros((1, 4, 4, 4), np.float32))
    said = command("decode", path, "-o", output, "--url", live.url)
    assert (said.code, "model 'sd' gives pictures" in said.err) == (1, True)


def frames_in(path: Path) -> int:
    """The frames of a picture, a video, or a ZIP of pictures."""
    data = io.BytesIO(path.read_bytes())
    if path.suffix == ".zip":
        return len(zipfile.ZipFile(data).namelist())
    if path.suffix in (".mp4", ".webm", ".mkv"):
        with av.open(data) as film:
            return len(list(film.decode(video=0)))
    with Image.open(data) as picture:
        return getattr(picture, "n_frames", 1)


@pytest.mark.parametrize("way", ["--model video", "address"])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".gif", ".webp", ".avif", ".AVIF", ".zip", ".png", ".jpg"])
def test_decode_a_video_to_every_format(live: Any, command: Any, tmp_path: Path, suffix: str, way: str) -> None:
    """Every format that holds frames has them all; a picture is the first one, which is said."""
    path, output = tmp_path / "video.npy", tmp_path / f"out{suffix}"
    np.save(path, np.random.default_rng(5).standard_normal((1, 16, 2, 4, 4)).astype(np.float32))
    where = ["--url", live.url, "--model", "video"] if way != "address" else ["--url", f"{live.url}/video"]
    said = command("decode", path, "-o", output, *where)
    assert said.code == 0
    still = suffix in (".png", ".jpg")
    assert frames_in(output) == (1 if still else 5)
    assert ("the first of 5 frames; a video has them all" in " ".join(said.text.split())) == still


def test_decode_to_av1(live: Any, command: Any, tmp_path: Path) -> None:
    """--codec chooses the codec of an MP4; one that the format does not have is refused with those that it has."""
    path, output = tmp_path / "video.npy", tmp_path / "out.mp4"
    np.save(path, np.zeros((1, 16, 2, 4, 4), np.float32))
    words = ["decode", path, "--url", live.url, "--model", "video", "--codec", "av1", "-o"]
    assert command(*words, output).code == 0
    with av.open(io.BytesIO(output.read_bytes())) as film:
        assert film.streams.video[0].codec_context.name == "libdav1d"
    said = command(*words, tmp_path / "out.gif")
    assert (said.code, "codec=av1 is not one that gif has; leave codec out" in " ".join(said.text.split())) == (1, True)


def test_packed_latents_and_bfloat16(live: Any, command: Any, tmp_path: Path) -> None:
    """Packed bfloat16 latents of a .safetensors file decode with --height, --width and --key, and not without."""
    path, output = tmp_path / "packed.safetensors", tmp_path / "out.png"
    save_torch({"packed": torch.randn(1, 24, 64).bfloat16(), "other": torch.zeros(1)}, path)
    words = ["decode", path, "-o", output, "--url", f"{live.url}/flux"]
    assert "holds other, packed; choose one with --key" in command(*words).text
    assert "needs height and width" in command(*words, "--key", "packed").text
    assert command(*words, "--key", "packed", "--height", 64, "--width", 96).code == 0
    with Image.open(output) as picture:
        assert picture.size == (96, 64)


def test_big_endian_latents(live: Any, command: Any, latents: Path, tmp_path: Path) -> None:
    """An array of the other byte order gives the same picture, not noise."""
    other, output = tmp_path / "big.npy", tmp_path / "out.npy"
    np.save(other, np.load(latents).astype(">f4"))
    assert command("decode", other, "-o", output, "--url", live.url).code == 0
    np.testing.assert_allclose(np.load(output), decoded(live, latents).numpy(), atol=1e-5)


def test_models(live: Any, command: Any) -> None:
    """models shows a table, and --json the cards that GET /models has."""
    table = command("models", "--url", live.url)
    assert table.code == 0
    assert re.search(r"sd\W+image\W+4\W+8x\W+0\.31\W+float32", table.out.replace(" - ", " "))
    assert re.search(r"video\W+video\W+16\W+8x, 4 frames\W+0\.47", table.out)
    cards = json.loads(command("models", "--url", live.url, "--json").out)
    assert cards == live_cards(live)


def live_cards(live: Any) -> Any:
    return requests.get(f"{live.url}/models", timeout=10).json()["models"]


def test_verify(live: Any, command: Any, latents: Path, tmp_path: Path) -> None:
    """verify prints the largest difference and the PSNR: next to none with the same weights, much with others."""
    same = command("verify", latents, "--url", live.url, "--vae", f"local={live.folder / 'sd'},recipe=sd1")
    assert same.code == 0
    largest, psnr = figures(same.out)
    assert largest < 1e-5
    assert psnr > 100
    assert same.err == ""
    rescaled = shutil.copytree(live.folder / "sd", tmp_path / "rescaled")
    config = json.loads((rescaled / "config.json").read_text())
    (rescaled / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.9}))
    other = command("verify", latents, "--url", live.url, "--vae", f"local={rescaled},recipe=sd1", "--dtype", "float32")
    largest, psnr = figures(other.out)
    assert largest > 1e-2
    assert psnr < 60


def figures(table: str) -> tuple[float, float]:
    row = [cell.strip() for cell in next(line for line in table.splitlines() if " dB" in line).split("│")[1:-1]]
    return float(row[2]), float(row[3].removesuffix(" dB"))


def test_no_server(command: Any, latents: Path) -> None:
    """Without a server the end is one sentence with its address, and exit code 1."""
    port = free_port()
    said = command("decode", latents, "-o", "out.png", "--url", f"http://127.0.0.1:{port}")
    assert said.code == 1
    assert said.err.startswith(f"remote-vae: the connection to 127.0.0.1:{port} failed")
    assert said.err.count("\n") == 1


WRONG = {
    "a missing file": (["decode", "missing.npy", "-o", "out.png"], "missing.npy cannot be read: No such file"),
    "a missing picture": (["encode", "missing.png", "-o", "out.npy"], "missing.png cannot be read: No such file"),
    "a folder": (["decode", "folder.npy", "-o", "out.png"], "folder.npy cannot be read: Is a directory"),
    "an empty file": (["decode", "empty.npy", "-o", "out.png"], "empty.npy cannot be read"),
    "an archive": (["decode", "archive.npy", "-o", "out.png"], "archive.npy cannot be read"),
    "a header cut short": (["decode", "cut.npy", "-o", "out.png"], "cut.npy cannot be read: its header is not one"),
    "more than there is": (["decode", "more.npy", "-o", "out.png"], "more.npy cannot be read: its header is not one"),
    "a pickle": (["decode", "objects.npy", "-o", "out.png"], "objects.npy cannot be read: Object arrays"),
    "integers": (["decode", "integers.npy", "-o", "out.png"], "dtype 'int64' is not one that travels"),
    "broken safetensors": (["decode", "broken.safetensors", "-o", "out.png"], "broken.safetensors cannot be read"),
    "two tensors": (["decode", "two.safetensors", "-o", "out.png"], "two.safetensors holds a, b"),
    "an unknown suffix": (
        ["decode", "latents.gz", "-o", "out.png"],
        "latents are read from .safetensors, .npy, .latent",
    ),
    "an unknown output": (["decode", "good.npy", "-o", "out.bmp"], "out.bmp has suffix '.bmp'; expected one of .jpg"),
    "a latent as picture": (["encode", "photo.png", "-o", "out.png"], "expected one of .safetensors, .npy"),
    "no output folder": (["decode", "good.npy", "-o", "none/out.png"], "none/out.png cannot be written: there is no"),
    "no URL": (["models", "--url", "localhost:8000"], "the endpoint is not an http or https URL"),
    "markup": (["decode", "[/red].npy", "-o", "out.png"], "[/red].npy cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_sentence(
    name: str, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with the arguments' files is one sentence on stderr and exit code 1, without a server."""
    monkeypatch.chdir(tmp_path)
    np.save("good.npy", np.zeros((1, 4, 4, 4), np.float32))
    np.save("integers.npy", np.zeros((1, 4, 4, 4), np.int64))
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    with Path("archive.npy").open("wb") as file:
        np.savez(file, a=np.zeros(1))
    save_file({"a": np.zeros(1), "b": np.zeros(1)}, "two.safetensors")
    Path("broken.safetensors").write_bytes(b"\xff" * 100)
    good = Path("good.npy").read_bytes()
    Path("cut.npy").write_bytes(good.replace(b"False", b"(    "))
    Path("more.npy").write_bytes(good.replace(b"(1, 4, 4, 4), }        ", b"(1, 4, 4, 99999999999) }"))
    Path("empty.npy").touch()
    Path("folder.npy").mkdir()
    Image.new("RGB", (32, 32)).save("photo.png")
    words, sentence = WRONG[name]
    said = command(*words)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("remote-vae: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_an_error_of_the_server(live: Any, command: Any, tmp_path: Path) -> None:
    """What the server refuses is its sentence, with the request id to ask about, and exit code 1."""
    path = tmp_path / "wide.npy"
    np.save(path, np.zeros((1, 9, 4, 4), np.float32))
    said = command("decode", path, "-o", tmp_path / "out.png", "--url", live.url)
    assert said.code == 1
    first, second = said.err.splitlines()
    assert first == "remote-vae: latent of shape [1, 9, 4, 4] has 9 channels; model 'sd' takes 4"
    assert re.fullmatch(r"request id [0-9a-f]{32}", second)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("marked", [True, False])
def test_a_latent_of_comfyui(live: Any, command: Any, tmp_path: Path, marked: bool) -> None:
    """ComfyUI's .latent is raw, and scaled as SD 1's if it has no mark; the command says so, and --scaling insists."""
    raw = np.random.default_rng(4).standard_normal((1, 4, 8, 12)).astype(np.float32)
    path, output = tmp_path / "ComfyUI_00001_.latent", tmp_path / "out.npy"
    mark = {"latent_format_version_0": np.array([], np.float32)} if marked else {}
    save_file({"latent_tensor": raw if marked else raw * 0.18215, **mark}, path)
    np.save(tmp_path / "raw.npy", raw)
    for options, scale in (([], 1.0), (["--scaling"], SCALE)):
        said = command("decode", path, "-o", output, "--url", live.url, *options)
        assert said.code == 0
        assert ("is raw: it is not scaled" in " ".join(said.err.split())) == (not options)
        expected = decoded(live, tmp_path / "raw.npy", scale=scale).numpy()
        np.testing.assert_allclose(np.load(output), expected, atol=1e-4)


def test_a_pickle_is_refused(command: Any, tmp_path: Path) -> None:
    said = command("decode", tmp_path / "latents.pt", "-o", tmp_path / "out.png")
    assert (said.code, "is a pickle, which can run code" in said.err) == (1, True)


def test_a_picture_of_another_format(live: Any, command: Any, photo: Path, tmp_path: Path) -> None:
    """What Pillow reads is encoded as the same picture as PNG."""
    for name in ("photo.bmp", "photo.tiff"):
        Image.open(photo).save(tmp_path / name)
        for path in (photo, tmp_path / name):
            words = ["-o", tmp_path / f"{path.suffix[1:]}.npy", "--url", live.url, "--posterior", "mode"]
            assert command("encode", path, *words).code == 0
        np.testing.assert_array_equal(np.load(tmp_path / "png.npy"), np.load(tmp_path / f"{Path(name).suffix[1:]}.npy"))
