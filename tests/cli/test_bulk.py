"""`remote-vae encode` of folders, patterns and tars: whole, once, in trainers' files, and on from where it stopped."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from remote_vae import Client
from remote_vae.cli.files import read_latents
from remote_vae.client.latents import array_of

SIZES = ((64, 64), (96, 64), (64, 96), (80, 72))


def draw(seed: int, size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight pictures in two folders, and a text that is none."""
    folder = tmp_path / "photos"
    (folder / "more" / "deep").mkdir(parents=True)
    for n in range(8):
        place = folder if n < 4 else folder / "more" / "deep"
        draw(n, SIZES[n % 4]).save(place / f"p{n}.png")
    (folder / "notes.txt").write_text("a caption")
    return folder


def lines(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """Everything in the folder but the manifest, by name."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop("latents.jsonl", None)
    return found


def test_a_folder(live: Any, command: Any, photos: Path, tmp_path: Path) -> None:
    """Each picture gets a file at its place, with what encode alone gives, and a line in the manifest."""
    out = tmp_path / "out"
    said = command("encode", photos, "-o", out, "--url", live.url, "--posterior", "mode")
    assert said.code == 0, said.text
    assert "wrote 8 latents" in said.err
    head, *records = lines(out / "latents.jsonl")
    assert (head["model"], head["posterior"], head["scaling"]) == ("sd", "mode", True)
    assert len({record["file"] for record in records}) == len(records) == 8
    with Client(live.url) as client:
        for record in records:
            picture = photos / record["file"]
            expected = client.encode(picture.read_bytes(), do_scaling=True, posterior="mode")
            np.testing.assert_array_equal(load_file(out / record["latent"])["latents"], expected)
            assert record["size"] == list(Image.open(io.BytesIO(picture.read_bytes())).size)
    assert (out / "more" / "deep" / "p7.safetensors").is_file()
    with safe_open(out / "p0.safetensors", "np") as file:
        assert {"file", "seed", "model", "size"} <= file.metadata().keys()


def test_what_is_done_and_right_is_skipped(live: Any, command: Any, photos: Path, tmp_path: Path) -> None:
    """A second run does nothing; a latent that is missing or damaged, and one of a changed picture, is made again."""
    out = tmp_path / "out"
    words = ("encode", photos, "-o", out, "--url", live.url)
    assert command(*words).code == 0
    first = files(out)
    assert "wrote 0 latents to" in command(*words).text
    (out / "p0.safetensors").unlink()
    damaged = bytearray(first["p1.safetensors"])
    damaged[-1] ^= 1
    (out / "p1.safetensors").write_bytes(damaged)
    os.utime(photos / "p2.png")
    draw(99, SIZES[3]).save(photos / "p3.png")
    said = command(*words)
    assert "wrote 3 latents" in said.text
    assert "5 were there already" in said.text
    again = files(out)
    assert again.keys() == first.keys()
    assert {name for name in first if again[name] != first[name]} == {"p3.safetensors"}


def test_samples_are_repeatable(live: Any, command: Any, photos: Path, tmp_path: Path) -> None:
    """The noise of a sample is that of the picture's content, wherever and whenever it is encoded."""
    (photos / "p1.png").write_bytes((photos / "p0.png").read_bytes())
    draw(3, SIZES[0]).save(photos / "p2.png")
    for name, flight in (("a", 1), ("b", 4)):
        words = ("encode", photos, "-o", tmp_path / name, "--url", live.url, "--posterior", "sample")
        assert command(*words, "--in-flight", flight).code == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    seeds = [record["seed"] for record in lines(tmp_path / "a" / "latents.jsonl")[1:]]
    assert len(set(seeds)) == 7


def test_bad_pictures_do_not_stop_the_others(live: Any, command: Any, photos: Path, tmp_path: Path) -> None:
    """They are told at the end, each with its reason; the exit code says so, and they are tried again next time."""
    whole = (photos / "p0.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[:90])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.webp").write_bytes(b"no picture")
    (photos / "nowhere.png").symlink_to(tmp_path / "missing.png")
    (photos / "p0.jpg").write_bytes(whole)
    for bucket in ((), ("--bucket", 64, "--bucket-step", 8)):
        out = tmp_path / f"out{len(bucket)}"
        said = command("encode", photos, "-o", out, "--url", live.url, *bucket)
        assert said.code == 3, said.text
        assert "5 pictures have no latent" in said.text
        for name in ("cut.png", "empty.jpg", "text.webp", "nowhere.png"):
            assert f"{name}: " in said.text
        assert "would have the name of that of" in said.text
        assert len(lines(out / "latents.jsonl")) == 9
    (photos / "cut.png").write_bytes(whole)
    for name in ("empty.jpg", "text.webp", "nowhere.png", "p0.jpg"):
        (photos / name).unlink()
    assert command("encode", photos, "-o", tmp_path / "out0", "--url", live.url).code == 0


def test_a_pattern_and_single_pictures(live: Any, command: Any, photos: Path, tmp_path: Path) -> None:
    """A pattern finds pictures in folders too; a picture that is named may end in anything."""
    (photos / "p0.png").rename(photos / "odd.picture")
    out = tmp_path / "out"
    pattern = f"{photos}/**/*p[1-5].png"
    assert command("encode", pattern, photos / "odd.picture", "-o", out, "--url", live.url).code == 0
    names = {"p1", "p2", "p3", "more/deep/p4", "more/deep/p5", "odd"}
    assert files(out).keys() == {f"{name}.safetensors" for name in names}


@pytest.fixture
def shard(photos: Path, tmp_path: Path) -> Path:
    """A tar as WebDataset has it: pictures and texts."""
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as archive:
        for picture in sorted(photos.rglob("*.png"), key=lambda path: path.name):
            archive.add(picture, f"set/{picture.name}")
            caption = tarfile.TarInfo(f"set/{picture.stem}.txt")
            caption.size = 3
            archive.addfile(caption, io.BytesIO(b"cat"))
    return path


def test_a_tar_becomes_a_tar(live: Any, command: Any, shard: Path, tmp_path: Path) -> None:
    """Pictures are read where they stand; a run that was cut off gives the same bytes as one that was not."""
    out = tmp_path / "latents.tar"
    words = ("encode", shard, "-o", out, "--url", live.url)
    assert command(*words).code == 0
    with tarfile.open(out) as archive:
        assert archive.getnames() == [f"set/p{n}.safetensors" for n in range(8)]
    whole, manifest = out.read_bytes(), tmp_path / "latents.tar.jsonl"
    kept = manifest.read_bytes().splitlines(keepends=True)
    third = json.loads(kept[3])
    for cut in (third["offset"] + third["bytes"] // 2, third["offset"] - 100, len(whole)):
        out.rename(tmp_path / "latents.tar.part")
        with (tmp_path / "latents.tar.part").open("r+b") as file:
            file.truncate(cut)
        manifest.write_bytes(b"".join(kept[:4]) + kept[4][:20])
        said = command(*words)
        assert said.code == 0, said.text
        assert out.read_bytes() == whole
        assert manifest.read_bytes() == b"".join(kept)
    assert "wrote 0 latents" in command(*words).text
    assert out.read_bytes() == whole


def test_broken_tars(live: Any, command: Any, shard: Path, tmp_path: Path) -> None:
    """Names that lead out of the folder, a tar that ends too early and a compressed one: each its sentence."""
    with tarfile.open(shard, "a") as archive:
        for name in ("../out.png", "/tmp/out.png"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    said = command("encode", shard, "-o", tmp_path / "out", "--url", live.url)
    assert said.code == 3
    assert said.text.count("leads out of the output's folder") == 2
    shard.write_bytes(shard.read_bytes()[:5000])
    said = command("encode", shard, "-o", tmp_path / "cut", "--url", live.url)
    assert said.code == 1
    assert "is not a whole tar file" in said.text
    packed = tmp_path / "photos.tar.gz"
    packed.write_bytes(b"")
    assert "is compressed" in command("encode", packed, "-o", tmp_path / "cut", "--url", live.url).text


REFUSALS = [
    (("missing", "-o", "out"), "there is no file or folder missing"),
    (("empty", "-o", "out"), "there are no pictures in empty"),
    (("photos", "-o", "latent.npy"), "latent.npy holds one latent; give a folder or a .tar"),
    (("photos", "-o", "out", "--form", "kohya"), "--form kohya must be one of safetensors, kohya-sd"),
    (("photos", "-o", "out", "--form", "simpletuner"), "SimpleTuner keeps pickles"),
    (
        ("photos", "-o", "out", "--form", "kohya-flux", "--bucket", "64"),
        "holds latents of 16 channels; model 'sd' has 4",
    ),
    (("photos", "-o", "out", "--form", "kohya-sd"), "needs --bucket"),
    (("photos", "-o", "out", "--bucket-step", "8"), "need --bucket"),
    (("photos", "-o", "out", "--bucket", "wide"), "--bucket wide must be a number"),
    (("photos", "-o", "out", "--bucket", "64", "--bucket-step", "12"), "must be a multiple of 8"),
    (("photos", "-o", "out", "--bucket", "32", "--bucket-step", "64"), "leaves no bucket"),
    (("photos", "-o", "out", "--posterior", "median"), "--posterior median must be one of sample, mode, parameters"),
    (("photos", "-o", "out", "--model", "nobody"), "'nobody' is not served"),
    (("photos", "-o", "out", "--in-flight", "0"), "in_flight=0 must be at least 1"),
    (
        ("photos", "-o", "out", "--form", "kohya-sd", "--bucket", "64", "--posterior", "parameters"),
        "trainers' caches hold latents",
    ),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSALS)
def test_refusals(
    live: Any, command: Any, photos: Path, words: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be done is one sentence, before any picture is sent."""
    monkeypatch.chdir(photos.parent)
    Path("empty").mkdir()
    said = command("encode", *words, "--url", live.url)
    assert said.code == 1
    assert sentence in said.text
    assert not list(Path().rglob("*.safetensors"))


def test_other_settings_are_not_mixed(live: Any, command: Any, photos: Path, tmp_path: Path) -> None:
    """An output has latents of one kind; a manifest that is none, and a tar without one, are left alone."""
    out = tmp_path / "out"
    assert command("encode", photos, "-o", out, "--url", live.url).code == 0
    said = command("encode", photos, "-o", out, "--url", live.url, "--posterior", "mode", "--no-scaling")
    assert said.code == 1
    assert "scaling=True, and not False" in said.text
    (out / "latents.jsonl").write_text("something\n")
    assert "line 1 of" in command("encode", photos, "-o", out, "--url", live.url).text
    (tmp_path / "mine.tar").write_bytes(b"mine")
    assert "is there already" in command("encode", photos, "-o", tmp_path / "mine.tar", "--url", live.url).text
    assert (tmp_path / "mine.tar").read_bytes() == b"mine"


def test_no_server(command: Any, photos: Path, tmp_path: Path) -> None:
    """A wrong address is told soon, and nothing is written."""
    said = command("encode", photos, "-o", tmp_path / "out", "--url", "http://127.0.0.1:9")
    assert said.code == 1
    assert "does the server run" in said.text
    assert not (tmp_path / "out").exists()


def run(*words: object) -> subprocess.Popen[str]:
    """Starts an encode that Ctrl-C ends, also if a shell runs these tests in the background, where it is ignored."""
    command = [sys.executable, "-m", "remote_vae.cli.main", "encode", *map(str, words)]
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        signal.signal(signal.SIGINT, inherited)


def wait_for_lines(manifest: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not manifest.exists() or manifest.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(120):
        draw(n, (160 + 8 * (n % 5), 160)).save(folder / f"p{n:03d}.png")
    return folder


@pytest.fixture(scope="module")
def copy_url(start: Any) -> Iterator[str]:
    with start("copy") as server:
        yield server.url


def check_copies(pictures: Path, out: Path) -> None:
    """Every latent is there once and is its picture, which the server only scales."""
    _, *records = lines(out / "latents.jsonl")
    assert [record["file"] for record in records] == sorted(path.name for path in pictures.iterdir())
    assert len(files(out)) == len(records)
    for record in records:
        with Image.open(pictures / record["file"]) as picture:
            expected = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        np.testing.assert_allclose(load_file(out / record["latent"])["latents"] * 2, expected, atol=1e-5)


@pytest.mark.parametrize(("blow", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_a_run_that_is_stopped_goes_on(
    copy_url: str, command: Any, many: Path, tmp_path: Path, blow: signal.Signals, code: int
) -> None:
    """After kill -9 or Ctrl-C the same command makes what is left, and nothing twice."""
    out = tmp_path / "out"
    process = run(many, "-o", out, "--url", copy_url)
    wait_for_lines(out / "latents.jsonl", 10)
    process.send_signal(blow)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert ("goes on from here" in said) == (blow is signal.SIGINT)
    done = len(lines(out / "latents.jsonl")) - 1
    assert 9 <= done < 120
    said = command("encode", many, "-o", out, "--url", copy_url)
    assert f"wrote {120 - done} latents" in said.text
    check_copies(many, out)


def test_a_server_that_is_killed_is_waited_for(start: Any, many: Path, tmp_path: Path) -> None:
    """Pictures that the server had when it was killed are sent to the next one; the run ends as if nothing was."""
    out, port = tmp_path / "out", None
    for count in (10, 60, None):
        with start("copy", **({"port": port} if port else {})) as server:
            if port is None:
                port = server.url.rpartition(":")[2]
                process = run(many, "-o", out, "--url", server.url)
            if count is None:
                said, _ = process.communicate(timeout=120)
                assert process.returncode == 0, said
                break
            wait_for_lines(out / "latents.jsonl", count)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
    check_copies(many, out)


def test_files_of_kohya(live: Any, command: Any, photos: Path, tmp_path: Path) -> None:
    """The npz has the names, shapes and types that sd-scripts' reader asks for, and the latent is raw."""
    words = ("--form", "kohya-sd", "--bucket", 64, "--bucket-step", 8, "--posterior", "mode", "--url", live.url)
    said = command("encode", photos, "-o", photos, *words)
    assert said.code == 0, said.text
    assert "cut away to fit the buckets" in said.text
    _, *records = lines(photos / "latents.jsonl")
    for record in records:
        (width, height), bucket = record["size"], record["bucket"]
        name = photos / f"{record['file'].removesuffix('.png')}_{width:04d}x{height:04d}_sd.npz"
        with np.load(name) as found:
            assert found["latents"].shape == (4, bucket[1] // 8, bucket[0] // 8)
            assert found["latents"].dtype == np.float32
            assert found["original_size"].tolist() == [width, height]
            assert len(found["crop_ltrb"].tolist()) == 4
        with Image.open(photos / record["file"]) as picture, Client(live.url) as client:
            if record["kept"] == [0, 0, *picture.size] and picture.size == tuple(bucket):
                expected = client.encode(picture, posterior="mode")
                np.testing.assert_array_equal(array_of(read_latents(name).latent)[None], expected)
        assert read_latents(name).raw


def test_what_a_size_becomes(live: Any, command: Any, tmp_path: Path) -> None:
    """A large photograph, turned by its EXIF, of a wide gamut, is turned first, and keeps its profile on the way."""
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x112] = 6
    draw(1, (400, 200)).save(folder / "turned.jpg", exif=exif)
    Image.new("P", (30, 30)).save(folder / "small.gif")
    Image.new("I;16", (130, 64), 40000).save(folder / "deep.png")
    Image.new("CMYK", (70, 64)).save(folder / "print.tif")
    Image.new("LA", (64, 70)).save(folder / "pale.png")
    words = ("--bucket", 64, "--bucket-step", 8, "--bucket-min", 32, "--bucket-max", 128, "--url", live.url)
    said = command("encode", folder, "-o", tmp_path / "out", *words)
    assert said.code == 0, said.text
    assert "1 pictures were smaller than their buckets" in said.text
    found = {record["file"]: record for record in lines(tmp_path / "out" / "latents.jsonl")[1:]}
    assert (found["turned.jpg"]["size"], found["turned.jpg"]["bucket"]) == ([200, 400], [40, 88])
    assert found["turned.jpg"]["shape"] == [1, 4, 11, 5]
    assert found["small.gif"]["bucket"] == [64, 64]
    assert found["deep.png"]["bucket"] == [88, 40]


def test_files_of_musubi_tuner(live: Any, command: Any, photos: Path, tmp_path: Path) -> None:
    """The safetensors has the name, the axes and the metadata that musubi-tuner's reader asks for."""
    words = ("--form", "musubi-hunyuan_video", "--bucket", 64, "--url", live.url, "--model", "video")
    said = command("encode", photos, "-o", tmp_path / "out", *words)
    assert said.code == 0, said.text
    for record in lines(tmp_path / "out" / "latents.jsonl")[1:]:
        width, height = record["size"]
        name = f"{record['file'].removesuffix('.png')}_{width:04d}x{height:04d}_hv.safetensors"
        assert record["latent"] == name
        with safe_open(tmp_path / "out" / name, "np") as file:
            [key] = file.keys()
            latent = file.get_tensor(key)
            cells = "x".join(map(str, latent.shape[1:]))
            assert key == f"latents_{cells}_{latent.dtype.name}"
            assert latent.shape[:2] == (16, 1)
            about = file.metadata()
        assert (about["architecture"], about["format_version"]) == ("hunyuan_video", "1.0.1")
        assert (about["width"], about["height"]) == (str(width), str(height))
        assert read_latents(tmp_path / "out" / name).raw
