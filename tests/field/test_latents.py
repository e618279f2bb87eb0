"""Latents as people have them: trainers' caches, ComfyUI's files, bfloat16 in numpy's files, and pickles."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from remote_vae.cli.files import read_latents
from remote_vae.client.latents import array_of
from remote_vae.errors import ConfigurationError

LATENT = np.random.default_rng(3).standard_normal((3, 8, 8)).astype(np.float32)
SIZES = {"original_size": np.array([64, 64]), "crop_ltrb": np.array([0, 0, 64, 64])}


def cache(path: Path, key: str = "latents", **more: Any) -> Path:
    """As kohya's scripts write it."""
    np.savez(path, **{key: LATENT}, **SIZES, **more)
    return path


@pytest.mark.parametrize(
    ("name", "key", "raw"),
    [
        ("photo.npz", "latents", True),
        ("photo_0512x0512_sd.npz", "latents", True),
        ("photo_1024x1024_sdxl.npz", "latents", True),
        ("photo_1024x1024_sd3.npz", "latents_8x8", True),
        ("photo_1024x1024_flux.npz", "latents_8x8", False),
        ("photo_1024x1024_lumina.npz", "latents_8x8", False),
    ],
)
def test_caches_of_kohyas_scripts(tmp_path: Path, name: str, key: str, raw: bool) -> None:
    """The latent is found among the cache's arrays, and the end of the name says whether it is raw."""
    found = read_latents(cache(tmp_path / name, key, latents_flipped=LATENT, alpha_mask=LATENT[0]))
    assert (found.raw, found.latent.shape) == (raw, (3, 8, 8))
    np.testing.assert_array_equal(array_of(found.latent), LATENT)


def test_a_cache_of_several_sizes_asks_which(tmp_path: Path) -> None:
    """Of latents of several sizes one is chosen by name."""
    path = cache(tmp_path / "photo_0512x0512_sd3.npz", "latents_8x8", latents_4x16=LATENT.reshape(3, 4, 16))
    with pytest.raises(ConfigurationError, match=r"holds .*latents_4x16, latents_8x8.*--key"):
        read_latents(path)
    assert read_latents(path, key="latents_4x16").latent.shape == (3, 4, 16)


def test_an_npz_that_does_not_say_asks(copy: Any, command: Any, tmp_path: Path) -> None:
    """If neither name nor arrays tell whether a latent is raw, the command line asks, and both answers work."""
    np.savez(tmp_path / "mine.npz", LATENT[None])
    words = ["decode", tmp_path / "mine.npz", "-o", tmp_path / "out.npy", "--url", copy.url]
    said = command(*words)
    assert said.code
    assert "--no-scaling for raw or --scaling for normalised" in said.text
    for flag, factor in (("--no-scaling", 1), ("--scaling", 0.5)):
        assert command(*words, flag).code == 0
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), LATENT[None] / factor, rtol=1e-6)


def test_what_a_file_says_is_done(copy: Any, command: Any, tmp_path: Path) -> None:
    """A raw cache is decoded as it is, with a note; a normalised one is scaled."""
    for name, factor in (("a_sd.npz", 1), ("a_flux.npz", 0.5)):
        path = cache(tmp_path / name)
        said = command("decode", path, "-o", tmp_path / "out.npy", "--url", copy.url)
        assert said.code == 0, said.err
        assert ("is raw: it is not scaled" in said.text) == (factor == 1)
        np.testing.assert_allclose(np.load(tmp_path / "out.npy")[0], LATENT / factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "not a whole .npz file"),
        (lambda data: b"PK\3\4" + bytes(100), "not a whole .npz file"),
        (lambda data: b"", "not a whole .npz file"),
    ],
)
def test_a_broken_npz_is_one_sentence(tmp_path: Path, damage: Any, words: str) -> None:
    """A cache that was cut is named with its path."""
    path = cache(tmp_path / "a_sd.npz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_latents(path)
    assert str(path) in caught.value.message


def test_a_pickle_within_an_npz_is_not_opened(tmp_path: Path) -> None:
    """Arrays of objects are pickles, which an archive can hide."""
    np.savez(tmp_path / "a_sd.npz", latents=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ConfigurationError, match="allow_pickle=False"):
        read_latents(tmp_path / "a_sd.npz")


def test_an_encrypted_or_odd_archive(tmp_path: Path) -> None:
    """Arrays that numpy did not write are named, and no code of theirs runs."""
    with zipfile.ZipFile(tmp_path / "a_sd.npz", "w") as archive:
        archive.writestr("latents.npy", b"not an array")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_latents(tmp_path / "a_sd.npz")


@pytest.mark.parametrize(
    ("architecture", "raw"),
    [
        ("hunyuan_video", True),
        ("hunyuan_video_1_5", True),
        ("z_image", True),
        ("wan", False),
        ("qwen_image", False),
        ("flux_kontext", False),
    ],
)
def test_caches_of_musubi_tuner(tmp_path: Path, architecture: str, raw: bool) -> None:
    """The latent is found by its name beside other tensors, and the architecture says whether it is raw."""
    latent = torch.randn(16, 5, 4, 4).bfloat16()
    tensors = {
        "latents_5x4x4_bfloat16": latent,
        "latents_image_5x4x4_bfloat16": latent.clone(),
        "latents_control_0_5x4x4_bfloat16": latent.clone(),
        "clip_bfloat16": latent[0].clone(),
    }
    path = tmp_path / "clip_00000-005_0512x0512_x.safetensors"
    save_file(tensors, path, metadata={"architecture": architecture, "format_version": "1.0.1"})
    found = read_latents(path)
    assert (found.raw, found.latent.dtype, found.latent.shape) == (raw, "bfloat16", (16, 5, 4, 4))
    np.testing.assert_array_equal(array_of(found.latent), latent.float().numpy())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl"])
def test_pickles_are_refused_with_the_reason(tmp_path: Path, suffix: str) -> None:
    """SimpleTuner's caches and torch.save's files are pickles; the refusal says why and what to do."""
    torch.save({"latents": torch.zeros(4, 8, 8)}, tmp_path / f"cache{suffix}")
    with pytest.raises(ConfigurationError, match=r"pickle, which can run code.*save it with safetensors"):
        read_latents(tmp_path / f"cache{suffix}")


@pytest.mark.parametrize("archive", [False, True])
def test_bfloat16_in_numpys_files(tmp_path: Path, archive: bool) -> None:
    """numpy has no name for bfloat16 and writes two bytes without a type, which nothing else is."""
    values = torch.randn(1, 4, 8, 8).bfloat16()
    array = np.frombuffer(values.view(torch.uint8).numpy().tobytes(), np.dtype("V2")).reshape(values.shape)
    path = tmp_path / ("a_flux.npz" if archive else "a.npy")
    if archive:
        np.savez(path, latents=array)
    else:
        np.save(path, array)
    found = read_latents(path).latent
    assert (found.dtype, found.shape) == ("bfloat16", (1, 4, 8, 8))
    np.testing.assert_array_equal(array_of(found), values.float().numpy())


def test_comfyuis_latents(tmp_path: Path) -> None:
    """A mark tells today's latents, which are raw, from those that are scaled by SD 1's factor."""
    latent = torch.from_numpy(LATENT[None].copy())
    marked = {"latent_tensor": latent, "latent_format_version_0": torch.tensor([])}
    for name, tensors, factor in (("new", marked, 1), ("old", {"latent_tensor": latent}, 0.18215)):
        save_file(tensors, tmp_path / f"{name}.latent", metadata={"prompt": json.dumps({"1": {}})})
        found = read_latents(tmp_path / f"{name}.latent")
        assert found.raw
        np.testing.assert_allclose(array_of(found.latent), LATENT[None] / np.float32(factor), rtol=1e-6)
