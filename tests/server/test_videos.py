"""Videos that are encoded: pixels in eight bits travel as they are, and files are read here."""

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from films import animation, film, moving, picture, pictures
from remote_vae import Client
from remote_vae.client.model import RemoteModel
from remote_vae.errors import RemoteVAEError, UnsupportedMediaType
from remote_vae.server.videos import first_frames
from remote_vae.values import Counts, Frames, Tensor

FRAMES, HEIGHT, WIDTH = 5, 24, 32
LEVELS = np.random.default_rng(11).integers(0, 256, (1, FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)


def mean_of(live: Any, levels: np.ndarray) -> torch.Tensor:
    """The latent by the module itself. *Shapes*: [B,F,H,W,3] -> [B,C,f,h,w]."""
    pixels = torch.from_numpy(levels).permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        mean: torch.Tensor = live.modules["video"].encode(pixels).latent_dist.mean
    return mean


def close(found: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found).float(), expected, atol=2e-3, rtol=1e-3)


LAYOUTS = {
    "channels last": LEVELS,
    "channels first": np.ascontiguousarray(LEVELS.transpose(0, 4, 1, 2, 3)),
    "without a batch": np.ascontiguousarray(LEVELS[0].transpose(3, 0, 1, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["raw", "JSON"])
def test_frames_of_eight_bits(live: Any, layout: str, form: str) -> None:
    """uint8 frames are scaled by the server as a picture's are, in each layout and in both forms of a body."""
    levels = LAYOUTS[layout]
    about: dict[str, Any] = {"shape": list(levels.shape), "dtype": "uint8", "posterior": "mode"}
    if form == "raw":
        reply = live.post("/video/encode", params=about, data=levels.tobytes(), headers={"accept": "tensor/binary"})
    else:
        document = {"inputs": base64.b64encode(levels).decode(), "parameters": {**about, "do_scaling": False}}
        headers = {"content-type": "application/json", "accept": "tensor/binary"}
        reply = live.post("/video/encode", data=json.dumps(document), headers=headers)
    assert reply.status_code == 200, reply.text
    shape = json.loads(reply.headers["shape"])
    close(np.frombuffer(reply.content, reply.headers["dtype"]).reshape(shape).copy(), mean_of(live, LEVELS))


def test_three_frames_are_not_channels(live: Any) -> None:
    """Three frames with their channels last are three frames."""
    with Client(live.url) as client:
        close(client.encode(LEVELS[:, :3], model="video", posterior="mode"), mean_of(live, LEVELS[:, :3]))


def test_frames_that_are_no_video(live: Any) -> None:
    """A shape that is none of the layouts is refused with all of them."""
    reply = live.post("/video/encode?shape=1,5,24,32,4&dtype=uint8", data=bytes(5 * 24 * 32 * 4))
    assert reply.status_code == 422
    assert "of a video [B,3,F,H,W], or uint8 [B,F,H,W,3]" in reply.json()["error"]


def test_the_clients_model_sends_eight_bits(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels in [-1, 1] of a video of eight bits travel as uint8, a quarter of their bytes, to the same latent."""
    sent: list[Any] = []
    real = Client.encode

    def watched(client: Client, image: Any, **options: Any) -> Any:
        sent.append(image)
        return real(client, image, **options)

    monkeypatch.setattr(Client, "encode", watched)
    with RemoteModel(live.url, model="video") as model:
        pixels = torch.from_numpy(LEVELS).permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1
        close(model.encode(pixels, posterior="mode"), mean_of(live, LEVELS))
        model.encode(pixels * 0.999, posterior="mode")
    assert [str(pixels.dtype) for pixels in sent] == ["torch.uint8", "torch.float32"]


def encode(live: Any, data: bytes, query: str = "", model: str = "video", media: str = "video/mp4") -> Any:
    headers = {"content-type": media, "accept": "tensor/binary"}
    return live.post(f"/{model}/encode?posterior=mode{query}", data=data, headers=headers)


def latent_of(reply: Any) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    return np.frombuffer(reply.content, reply.headers["dtype"]).reshape(json.loads(reply.headers["shape"])).copy()


FILES = {
    "MP4": lambda: film(moving(), codec="libx264rgb", pix_fmt="rgb24", qp="0"),
    "Matroska": lambda: film(moving(), "matroska", codec="ffv1", pix_fmt="bgr0"),
    "WebP": lambda: animation(moving(), "WEBP"),
    "GIF": lambda: animation(moving()),
    "ZIP": lambda: pictures(moving()),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("media", ["application/octet-stream", "video/mp4", "image/gif", "application/zip"])
def test_a_file_is_encoded(live: Any, name: str, media: str) -> None:
    """A file's frames give the latent of the same frames as a tensor, whatever the type says."""
    reply = encode(live, FILES[name](), media=media)
    close(latent_of(reply), mean_of(live, moving()[None]))
    assert "x-note" not in reply.headers


def test_a_file_on_a_bare_address(live: Any) -> None:
    """A video on an address of both operations is encoded, also if its rate is named."""
    headers = {"content-type": "video/mp4", "accept": "tensor/binary"}
    reply = live.post("/video?fps=5&posterior=mode", data=FILES["MP4"](), headers=headers)
    close(latent_of(reply), mean_of(live, moving()[None, ::2]))


@pytest.mark.parametrize(
    ("query", "taken", "note"),
    [
        ("&frames=5", slice(5), ""),
        ("&start=0.4", slice(4, 9), ""),
        ("&fps=5", slice(0, 9, 2), ""),
        ("&frames=nearest", slice(9), ""),
        ("&frames=nearest&start=0.1", slice(1, 6), "the first 5 of 8 frames were encoded"),
        ("&start=0.1", slice(1, 9), "the latent holds the first 5 of 8 frames"),
        ("&frames=7", slice(7), "the latent holds the first 5 of 7 frames"),
    ],
)
def test_frames_that_a_model_can_hold(live: Any, query: str, taken: slice, note: str) -> None:
    """The frames that are named are encoded; what is left out of the latent is said."""
    reply = encode(live, FILES["MP4"](), query)
    close(latent_of(reply), mean_of(live, moving()[None, taken]))
    assert note in reply.headers.get("x-note", "")
    assert bool(note) == ("x-note" in reply.headers)


@pytest.mark.parametrize("layout", ["last", "first", "floats"])
def test_frames_of_a_tensor(live: Any, layout: str) -> None:
    """Of a tensor too the first frames are taken, or as many as the model can hold."""
    levels = np.ascontiguousarray(np.concatenate([LEVELS, LEVELS[:, :2]], 1))
    given = levels if layout == "last" else np.ascontiguousarray(levels.transpose(0, 4, 1, 2, 3))
    given = given / np.float32(255) if layout == "floats" else given
    with Client(live.url) as client:
        reply = client.encode_reply(given, model="video", posterior="mode", frames="nearest")
        assert reply.provenance.note == "the first 5 of 7 frames were encoded"
        close(client.encode(given, model="video", posterior="mode", frames="nearest"), mean_of(live, LEVELS))
        found = client.encode(given, model="video", posterior="mode", frames=1)
        close(found, mean_of(live, LEVELS[:, :1]))


REFUSED = {
    "more frames than there are": ("MP4", "&frames=12", "video", 422, "9 frames; frames=12 needs more"),
    "more frames than the limit": ("MP4", "&frames=300", "video", 413, "the limit here is 257"),
    "a beginning after the end": ("MP4", "&start=60", "video", 422, "no frames from 60 s on"),
    "times in a ZIP": ("ZIP", "&fps=5", "video", 422, "have no times"),
    "a word": ("MP4", "&frames=most", "video", 400, "neither an integer nor nearest"),
    "an MP4 for pictures": ("MP4", "", "sd", 415, "an MP4 file; expected PNG, JPEG or WebP"),
    "a GIF for pictures": ("GIF", "", "sd", 415, "a model of videos takes its frames"),
    "frames of pictures": ("WebP", "&frames=2", "sd", 422, "frames is for models of videos"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had(live: Any, name: str) -> None:
    """What a video or a model does not have is refused in a sentence with the numbers."""
    file, query, model, status, why = REFUSED[name]
    reply = encode(live, FILES[file](), query, model)
    assert (reply.status_code, why in reply.json()["error"]) == (status, True), reply.text


def test_an_animation_for_a_model_of_pictures(live: Any) -> None:
    """A model of pictures encodes the first frame of an animated WebP, and says so."""
    reply = encode(live, FILES["WebP"](), model="sd", media="image/webp")
    still = encode(live, picture(moving()[0]), model="sd", media="image/png")
    assert reply.content == still.content
    assert reply.headers["x-note"] == "the first of 9 frames was encoded"


@pytest.mark.parametrize("name", ["MP4", "GIF", "ZIP"])
def test_a_client_sends_a_file(live: Any, name: str, tmp_path: Path) -> None:
    """A client takes a video's bytes or path, and the rows of the wire as keywords."""
    path = tmp_path / "clip"
    path.write_bytes(FILES[name]())
    with Client(live.url) as client:
        for given in (path, str(path), path.read_bytes()):
            found = client.encode(given, model="video", posterior="mode", frames=5)
            close(found, mean_of(live, moving()[None, :5]))
        with pytest.raises(UnsupportedMediaType, match="a model of videos takes its frames"):
            client.encode(path, model="sd")
        with pytest.raises(FileNotFoundError):
            client.encode(tmp_path / "none.mp4", model="video")


def test_the_command_line_encodes_a_file(live: Any, tmp_path: Path) -> None:
    """`remote-vae encode clip.mp4` writes the latent, and says what was left out."""
    path, output = tmp_path / "clip.mp4", tmp_path / "clip.npy"
    path.write_bytes(FILES["MP4"]())
    command = [sys.executable, "-m", "remote_vae.cli.main", "encode", str(path), "-o", str(output), "--no-scaling"]
    flags = ["--url", live.url, "--model", "video", "--posterior", "mode", "--frames", "nearest", "--start", "0.1"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "the first 5 of 8 frames were encoded" in " ".join((done.stdout + done.stderr).split())
    close(np.load(output), mean_of(live, moving()[None, 1:6]))


@pytest.mark.parametrize("form", ["PNG", "uint8", "floats"])
def test_a_still_as_the_first_frame(live: Any, form: str) -> None:
    """A still with frames= gives the latent of the video that goes on in grey, as Wan's pipelines make it."""
    levels = LEVELS[0, 0]
    given: Any = {"PNG": picture(levels), "uint8": levels, "floats": levels.transpose(2, 0, 1) / np.float32(255)}[form]
    video = torch.zeros(1, 3, 5, HEIGHT, WIDTH)
    video[0, :, 0] = torch.from_numpy(levels).permute(2, 0, 1) / 127.5 - 1
    with torch.no_grad():
        expected = live.modules["video"].encode(video).latent_dist.mean
    with Client(live.url) as client:
        reply = client.encode_reply(given, model="video", posterior="mode", frames=5)
        assert reply.provenance.note == "the picture is the first of 5 frames, and the others are grey"
        close(client.encode(given, model="video", posterior="mode", frames=5), expected)
        with pytest.raises(RemoteVAEError, match="the limit here is 257"):
            client.encode(given, model="video", frames=1001)


def test_a_still_does_not_become_more_than_a_body(live: Any) -> None:
    """A small request that would make more pixels than any body could bring is refused before they take memory."""
    side = 1480  # of which 257 frames have more than 2**30 values
    still = np.zeros((1, side, side, 3), np.uint8)
    with Client(live.url) as client, pytest.raises(RemoteVAEError, match=r"would be \d+ bytes; the limit here is"):
        client.encode(still, model="video", frames=257)


def test_a_still_is_a_video_of_one_frame(live: Any) -> None:
    """A still gives the latent of its one frame, as pipelines that begin with a picture take it."""
    reply = encode(live, picture(moving()[3]), media="image/png")
    close(latent_of(reply), mean_of(live, moving()[None, 3:4]))


@dataclass(frozen=True)
class Asked:
    """What `first_frames` looks at."""

    image: Tensor
    options: dict[str, Any]


WHOLE = Frames(4, first=4, whole=True, latents=Counts(1, 1))


@pytest.mark.parametrize(
    ("rule", "frames", "wanted", "kept", "note"),
    [
        (WHOLE, 10, "nearest", 8, "the first 8 of 10 frames were encoded"),
        (WHOLE, 8, "nearest", 8, ""),
        (WHOLE, 3, "nearest", 3, ""),  # too few for the model, which is refused later on
        (WHOLE, 10, 4, 4, ""),
        (Frames(8, latents=Counts(1, 1, 3)), 40, "nearest", 17, "the first 17 of 40 frames were encoded"),
        (Frames(4), 7, None, 7, "the latent holds the first 5 of 7 frames, in whole groups"),
        (Frames(), 7, None, 7, ""),
    ],
)
def test_frames_of_families(rule: Frames, frames: int, wanted: Any, kept: int, note: str) -> None:
    """The nearest number that a family can hold is below that of the video, and no frame is lost without a word."""
    video = Tensor("uint8", (1, frames, 8, 8, 3), bytes(frames * 8 * 8 * 3))
    asked: Any = Asked(video, {"frames": wanted, "start": None, "fps": None})
    model: Any = SimpleNamespace(recipe=SimpleNamespace(has_frames=True))
    info: Any = SimpleNamespace(frames=rule, pixel_channels=3)
    found, number, said = first_frames(model, info, asked, video, frames)
    assert (found.shape[1], number, said) == (kept, kept, note)
