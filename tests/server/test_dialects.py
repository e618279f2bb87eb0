"""What public clients send besides diffusers' own, against a live server and the very modules that it serves."""

import base64
import io
import json
from typing import Any

import av
import numpy as np
import pytest
import requests
import torch
from diffusers import FluxPipeline
from PIL import Image

RAW = {"content-type": "tensor/binary"}


def latent(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(11))


def local(module: Any, z: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module.decode(z, return_dict=False)[0]


def floats(reply: requests.Response) -> torch.Tensor:
    assert reply.status_code == 200, reply.text
    data = np.frombuffer(reply.content, dtype=reply.headers["dtype"])
    return torch.from_numpy(data.reshape(json.loads(reply.headers["shape"])).copy())


def ask(live: Any, path: str, z: torch.Tensor, *, shape: Any = None, **query: Any) -> requests.Response:
    accept = query.pop("accept", "tensor/binary")
    given = {"shape": list(z.shape) if shape is None else shape, "dtype": "float32", "output_type": "pt", **query}
    return live.post(path, params=given, data=z.numpy().tobytes(), headers={**RAW, "accept": accept})


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("scaling", "applied"), [({}, True), ({"do_scaling": False}, False), ({"scaling_factor": 0.31}, True)]
)
def test_parameters_inside_the_body(live: Any, scaling: dict[str, Any], applied: bool) -> None:
    """The oldest dialect has its parameters in the body, and leaves the scaling to the server unless it says so."""
    z = latent(1, 4, 8, 8)
    parameters = {"shape": [1, 4, 8, 8], "dtype": "float32", "output_type": "pt", **scaling}
    body = {"inputs": base64.b64encode(z.numpy().tobytes()).decode(), "parameters": parameters}
    reply = live.post("/", json=body, headers={"accept": "tensor/binary"})
    same(floats(reply), local(live.modules["sd"], z / 0.31 if applied else z))


def test_base64_both_ways(live: Any) -> None:
    """Base64 with its parameters in the query is not scaled, and comes back as base64 when that is asked for."""
    z = latent(1, 4, 8, 8)
    reply = live.post(
        "/sd/",
        params={"shape": [1, 4, 8, 8], "dtype": "float32", "output_type": "pt"},
        data=json.dumps({"inputs": base64.b64encode(z.numpy().tobytes()).decode()}),
        headers={"content-type": "tensor/base64; charset=utf-8", "accept": "tensor/base64"},
    )
    found = reply.json()
    assert found["parameters"] == {"shape": [1, 3, 64, 64], "dtype": "float32"}
    data = np.frombuffer(base64.b64decode(found["inputs"]), np.float32).reshape(1, 3, 64, 64)
    same(torch.from_numpy(data.copy()), local(live.modules["sd"], z))


@pytest.mark.parametrize("layout", ["packed", "extra axis", "un-batched", "batched"])
def test_layouts_of_flux(live: Any, layout: str) -> None:
    """A Flux latent of any layout gives the same picture, whatever size it names where that does not matter."""
    z = latent(1, 16, 8, 12)
    packed = FluxPipeline._pack_latents(z, 1, 16, 8, 12)
    sent = {"packed": packed, "extra axis": packed[None], "un-batched": z[0], "batched": z}[layout]
    height, width = (64, 96) if layout in ("packed", "extra axis") else (512, 77)
    got = floats(ask(live, "/flux", sent.contiguous(), height=height, width=width, do_scaling=True))
    same(got, local(live.modules["flux"], z / 0.41 + 0.17))


def test_packed_latents_of_another_family(live: Any) -> None:
    """A packed latent is unpacked for SD too."""
    z = latent(2, 4, 8, 8)
    packed = FluxPipeline._pack_latents(z, 2, 4, 8, 8)
    same(floats(ask(live, "/sd", packed.contiguous(), height=64, width=64)), local(live.modules["sd"], z))


@pytest.mark.parametrize("spelling", ["[1, 4, 9, 7]", "1,4,9,7", ["1", "4", "9", "7"]])
def test_odd_sizes_and_spellings_of_a_shape(live: Any, spelling: Any) -> None:
    """Latents of odd sizes are decoded, in each spelling of a shape."""
    z = latent(1, 4, 9, 7)
    same(floats(ask(live, "/sd/decode/", z, shape=spelling)), local(live.modules["sd"], z))


def test_a_video_with_a_picture_s_size(live: Any) -> None:
    """The height and width that one client sends with a video mean nothing."""
    z = latent(1, 16, 2, 4, 4)
    got = floats(ask(live, "/video", z, height=8, width=32))
    same(got, local(live.modules["video"], z))


@pytest.mark.parametrize("accept", [None, "*/*", "image/*", "image/png, */*;q=0.1"])
def test_a_picture_by_default(live: Any, accept: str | None) -> None:
    """A latent about which nothing is said becomes a JPEG; the Accept header can make it a PNG."""
    z = latent(2, 4, 8, 8)
    query = {"shape": [2, 4, 8, 8], "dtype": "float32"}
    reply = live.post("/", params=query, data=z.numpy().tobytes(), headers={**RAW, "accept": accept})
    kind = "PNG" if accept and "png" in accept else "JPEG"
    assert reply.headers["content-type"] == f"image/{kind.lower()}"
    with Image.open(io.BytesIO(reply.content)) as picture:
        assert (picture.format, picture.size, picture.mode) == (kind, (64, 64), "RGB")


def test_a_video_s_first_frame(live: Any) -> None:
    """A video model asked for a picture gives its first frame."""
    z = latent(1, 16, 2, 4, 4)
    reply = ask(live, "/video", z, output_type="pil", image_format="png", accept="image/png")
    frame = local(live.modules["video"], z)[0, :, 0]
    expected = ((frame / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    with Image.open(io.BytesIO(reply.content)) as picture:
        assert np.array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_readable(live: Any, dtype: torch.dtype) -> None:
    """A reply is float16 or float32, never bfloat16."""
    z = latent(1, 16, 8, 8).to(dtype)
    reply = live.post(
        "/flux",
        params={"shape": [1, 16, 8, 8], "dtype": str(dtype).removeprefix("torch."), "output_type": "pt"},
        data=z.view(torch.uint8).numpy().tobytes(),
        headers={**RAW, "accept": "tensor/binary"},
    )
    assert reply.headers["dtype"] in ("float16", "float32")
    same(floats(reply).float(), local(live.modules["flux"], z.float()))


@pytest.mark.parametrize("value", ["Bearer hf_secret", "Basic eDpzZWNyZXQ=", "nonsense"])
def test_a_token_that_nobody_asked_for(live: Any, value: str) -> None:
    """A server without keys serves a client that sends one, and does not repeat it."""
    reply = live.post("/nobody", headers={"authorization": value})
    assert reply.status_code == 404
    assert "secret" not in reply.text
    z = latent(1, 4, 8, 8)
    query = {"shape": [1, 4, 8, 8], "dtype": "float32"}
    reply = live.post("/", params=query, data=z.numpy().tobytes(), headers={**RAW, "authorization": value})
    assert reply.status_code == 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("headers", [{}, {"content-type": "application/octet-stream"}])
def test_a_picture_on_a_bare_address_is_encoded(live: Any, kind: str, headers: dict[str, str]) -> None:
    """A picture without a word about decoding is encoded, to a mean that the local VAE agrees with."""
    out = io.BytesIO()
    noise = np.random.default_rng(3).integers(0, 256, (72, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, kind, lossless=True)
    reply = live.post("/?posterior=mode&scaling_factor=0.31", data=out.getvalue(), headers=headers)
    with Image.open(io.BytesIO(out.getvalue())) as picture:
        pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = live.modules["sd"].encode(pixels).latent_dist.mean * 0.31
    got = floats(reply)
    assert got.shape == (1, 4, 9, 8)
    same(got, expected)


@pytest.mark.parametrize(("asked", "played"), [({}, 24), ({"fps": 12}, 12), ({"fps": 29.97}, 29.97)])
def test_a_video_s_rate(live: Any, asked: dict[str, float], played: float) -> None:
    """An MP4 plays at the rate that was asked for, otherwise at that of the family's own examples."""
    reply = ask(live, "/video", latent(1, 16, 2, 2, 2), output_type="mp4", accept="video/mp4", **asked)
    with av.open(io.BytesIO(reply.content)) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(played, abs=1e-3)


@pytest.mark.parametrize(
    ("asked", "media", "codec"),
    [
        ({"output_type": "mp4"}, "video/mp4", "h264"),
        ({"output_type": None, "accept": "video/mp4"}, "video/mp4", "h264"),
        ({"output_type": "pil", "accept": "video/webm"}, "video/webm", "vp9"),
        ({"output_type": "webm"}, "video/webm", "vp9"),
        ({"output_type": "webm", "codec": "av1"}, "video/webm", "libdav1d"),
        ({"output_type": "avif"}, "image/avif", "libdav1d"),
        ({"output_type": "mkv"}, "video/matroska", "ffv1"),
        ({"output_type": "gif"}, "image/gif", "gif"),
    ],
)
def test_a_video_s_format(live: Any, asked: dict[str, Any], media: str, codec: str) -> None:
    """A video has the format that the parameter names, or the Accept header alone."""
    reply = ask(live, "/video", latent(1, 16, 2, 2, 2), **{"accept": "*/*", **asked})
    assert reply.headers["content-type"] == media
    with av.open(io.BytesIO(reply.content)) as container:
        track = container.streams.video[-1]  # of an AVIF the one before it is a still, its first frame
        assert track.codec_context.name == codec
        assert sum(1 for _ in container.decode(track)) == 5


def test_a_codec_that_does_not_go_with_the_size(live: Any) -> None:
    """A codec that cannot hold the video is refused in a sentence, before the decode."""
    query = "shape=1,16,2,2,2&dtype=float32&output_type=mp4&codec=hevc"
    reply = requests.post(f"{live.url}/video?{query}", data=bytes(4 * 128), timeout=30)
    assert (reply.status_code, reply.json()["error_type"]) == (422, "unsupported_output")
    assert "codec=hevc needs at least 64" in reply.json()["error"]


@pytest.mark.parametrize("fps", ["0", "120.5", "-24", "nan", "fast"])
def test_a_rate_that_no_video_has(live: Any, fps: str) -> None:
    """A rate outside 1 to 120 is refused, naming it."""
    query = f"shape=1,16,2,2,2&dtype=float32&output_type=mp4&fps={fps}"
    reply = requests.post(f"{live.url}/video?{query}", data=bytes(4 * 128), timeout=30)
    assert reply.status_code in (400, 422)
    assert reply.json()["error"].startswith(f"fps={fps}" if fps != "fast" else "fps='fast'")


@pytest.mark.parametrize("asked", [{"image_format": "avif"}, {"accept": "image/avif"}])
def test_avif(live: Any, asked: dict[str, str]) -> None:
    """A picture comes as AVIF if the parameter or the Accept header says so."""
    reply = ask(live, "/sd", latent(1, 4, 8, 8), output_type="pil", quality=95, **{"accept": "image/*", **asked})
    assert reply.headers["content-type"] == "image/avif"
    with Image.open(io.BytesIO(reply.content)) as picture:
        assert (picture.format, picture.size) == ("AVIF", (64, 64))
