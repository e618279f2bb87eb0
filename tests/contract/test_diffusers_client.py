"""diffusers' own remote_decode and remote_encode, unmodified, against a live server."""

from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.remote_utils import remote_decode, remote_encode
from diffusers.video_processor import VideoProcessor
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:.*do_scaling.*is deprecated")
SIZE = 64
IMAGE = VaeImageProcessor(vae_scale_factor=8)
VIDEO = VideoProcessor(vae_scale_factor=8)


def latents(channels: int, *, frames: int | None = None, batch: int = 1, seed: int = 0) -> torch.Tensor:
    shape = (batch, channels, SIZE // 8, SIZE // 8) if frames is None else (batch, channels, frames, 4, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def local(module: Any, z: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module.decode(z, return_dict=False)[0]


SCALINGS: list[dict[str, Any]] = [
    {"do_scaling": True},
    {"do_scaling": False},
    {"scaling_factor": 0.9},
    {"scaling_factor": 0.9, "shift_factor": -0.2},
    {"shift_factor": 0.3},
]


def scaled(module: Any, z: torch.Tensor, scaling: dict[str, Any]) -> torch.Tensor:
    """What the client's arguments mean, by the words of diffusers' documentation."""
    if scaling.get("scaling_factor") is None and scaling.get("do_scaling", True) and "shift_factor" not in scaling:
        return z / module.config.scaling_factor + (getattr(module.config, "shift_factor", None) or 0)
    return z / scaling.get("scaling_factor", 1) + scaling.get("shift_factor", 0)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_raw_output_for_every_scaling(live: Any, name: str, scaling: dict[str, Any], packed: bool) -> None:
    """Raw output equals the local VAE's for every way to say the scaling, packed or not."""
    module = live.modules[name]
    z = latents(module.config.latent_channels)
    sent, sizes = z, {}
    if packed:
        sent = FluxPipeline._pack_latents(z, 1, z.shape[1], z.shape[2], z.shape[3])
        sizes = {"height": SIZE, "width": SIZE}
    got = remote_decode(f"{live.url}/{name}", sent, output_type="pt", return_type="pt", **scaling, **sizes)
    torch.testing.assert_close(got, local(module, scaled(module, z, scaling)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("output_type", "return_type", "partial", "processor", "image_format"),
    list(product(["pil", "pt"], ["pil", "pt"], [False, True], [None, IMAGE], ["jpg", "png"])),
)
def test_every_combination_of_an_image_model(
    live: Any, output_type: str, return_type: str, partial: bool, processor: Any, image_format: str
) -> None:
    """Every combination of the client's arguments that it allows gives the local VAE's picture."""
    module, z = live.modules["sd"], latents(4)
    arguments: dict[str, Any] = {
        "output_type": output_type,
        "return_type": return_type,
        "partial_postprocess": partial,
        "processor": processor,
        "image_format": image_format,
    }
    raw = local(module, z / 0.31)
    expected = IMAGE.postprocess(raw, output_type="pil")[0]
    if output_type == "pt" and return_type == "pil" and not partial and processor is None:
        with pytest.raises(ValueError, match="processor"):
            remote_decode(f"{live.url}/sd", z, scaling_factor=0.31, **arguments)
        return
    if output_type == "pil" and return_type == "pt" and processor is None:
        with pytest.raises(UnboundLocalError):  # a hole in diffusers' client, after a reply that is right
            remote_decode(f"{live.url}/sd", z, scaling_factor=0.31, **arguments)
        return
    got = remote_decode(f"{live.url}/sd", z, scaling_factor=0.31, **arguments)
    if isinstance(got, torch.Tensor):
        if got.dtype is torch.uint8:
            assert np.array_equal(got[0].numpy(), np.asarray(expected))
        elif output_type == "pil":
            torch.testing.assert_close(got, (raw / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)
        else:
            torch.testing.assert_close(got, raw, atol=1e-5, rtol=0)
        return
    picture = got[0] if isinstance(got, list) else got
    if output_type == "pil" and processor is None and image_format == "jpg":
        assert picture.size == expected.size
        assert psnr(picture, expected) > 30
    else:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(("output_type", "return_type"), [("pil", "pil"), ("pil", "pt"), ("pt", "pil"), ("pt", "pt")])
def test_every_combination_of_a_video_model(live: Any, output_type: str, return_type: str, partial: bool) -> None:
    """A video model gives frames in every form that the client can ask for."""
    module, z = live.modules["video"], latents(16, frames=3)
    raw = local(module, z / 0.47)
    frames = VIDEO.postprocess_video(raw, output_type="pil")[0]
    got = remote_decode(
        f"{live.url}/video",
        z,
        scaling_factor=0.47,
        processor=VIDEO,
        output_type=output_type,
        return_type=return_type,
        partial_postprocess=partial,
    )
    if isinstance(got, list):
        assert [np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(got, frames, strict=True)] == [True] * 9
    elif got.dtype is torch.uint8:
        assert np.array_equal(got.numpy(), np.stack([np.asarray(frame) for frame in frames]))
    elif output_type == "pil":
        torch.testing.assert_close(got, (raw / 2 + 0.5).clamp(0, 1)[0].transpose(0, 1), atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(got, raw, atol=1e-5, rtol=0)


def test_mp4(live: Any) -> None:
    """A video model gives an MP4 with as many frames as the local VAE, close to its pictures."""
    import av

    z = latents(16, frames=3)
    data = remote_decode(f"{live.url}/video", z, output_type="mp4", return_type="mp4")
    with av.open(BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 9
    assert frames[0].shape == (32, 32, 3)


def test_a_batch_of_pictures(live: Any) -> None:
    """A batch comes back as a batch of tensors, and as a list of pictures."""
    module, z = live.modules["sd"], latents(4, batch=3)
    got = remote_decode(f"{live.url}/sd", z, scaling_factor=0.31, output_type="pt", partial_postprocess=True)
    expected = IMAGE.postprocess(local(module, z / 0.31), output_type="pil")
    assert [np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(got, expected, strict=True)] == [True] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["sd", "flux", "video"])
def test_latents_of_every_dtype(live: Any, name: str, dtype: torch.dtype) -> None:
    """Latents of any float type are decoded by any model; a float32 model answers in float32."""
    module = live.modules[name]
    z = latents(module.config.latent_channels, frames=2 if name == "video" else None).to(dtype)
    got = remote_decode(f"{live.url}/{name}", z, output_type="pt", return_type="pt", scaling_factor=0.5)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got, local(module, z.float() / 0.5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("factors", [{}, {"scaling_factor": 0.31}, {"scaling_factor": 0.41, "shift_factor": 0.17}])
@pytest.mark.parametrize("kind", ["pil", "signed", "unit"])
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_encode(live: Any, name: str, kind: str, factors: dict[str, float]) -> None:
    """What diffusers' client encodes has the mean that the local VAE gives, within the sample's own spread."""
    module = live.modules[name]
    pixels = torch.rand((1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(3))
    eight = (pixels * 255).round() / 255
    image: Any = Image.fromarray((eight[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    image = image if kind == "pil" else eight if kind == "unit" else eight * 2 - 1
    got = remote_encode(f"{live.url}/{name}", image, **factors)
    with torch.no_grad():
        posterior = module.encode(eight * 2 - 1).latent_dist
    assert got.shape == posterior.mean.shape
    raw = got / factors.get("scaling_factor", 1) + factors.get("shift_factor", 0)
    spread = (raw - posterior.mean) / posterior.std
    assert float(spread.abs().max()) < 6
    assert 0.5 < float(spread.std()) < 1.5


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = float(np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
