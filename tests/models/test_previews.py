"""The previews that are modules of this package: names of tensors, files, and memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from remote_vae.core.executor import WHOLE, Executor
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.errors import ModelLoadError
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.loader import load
from remote_vae.models.previews.taehv import TAEHV
from remote_vae.models.spec import ModelSpec
from remote_vae.models.vae import DiffusersVAE

TINY: dict[str, Any] = {"widths": (16, 12, 8, 8), "encoder_width": 8}


def block(place: str, width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a block that remembers a frame."""
    convolutions = {f"{place}.conv.{each}.weight": (width, width, 3, 3) for each in (2, 4)}
    biases = {f"{place}.conv.{each}.bias": (width,) for each in (0, 2, 4)}
    return {f"{place}.conv.0.weight": (width, 2 * width, 3, 3), **convolutions, **biases}


def published(channels: int, pixels: int, pooled: tuple[int, ...], grown: tuple[int, ...]) -> dict[str, Any]:
    """Names and shapes in the published files."""
    found: dict[str, Any] = {
        "encoder.0.weight": (64, pixels, 3, 3),
        "encoder.0.bias": (64,),
        "encoder.17.weight": (channels, 64, 3, 3),
        "encoder.17.bias": (channels,),
        "decoder.1.weight": (256, channels, 3, 3),
        "decoder.1.bias": (256,),
        "decoder.22.weight": (pixels, 64, 3, 3),
        "decoder.22.bias": (pixels,),
    }
    for start, frames in zip((2, 7, 12), pooled, strict=True):
        found |= {f"encoder.{start}.conv.weight": (64, frames * 64, 1, 1)}
        found |= {f"encoder.{start + 1}.weight": (64, 64, 3, 3)}
        for place in range(start + 2, start + 5):
            found |= block(f"encoder.{place}", 64)
    for start, frames, width, narrower in zip((3, 9, 15), grown, (256, 128, 64), (128, 64, 64), strict=True):
        for place in range(start, start + 3):
            found |= block(f"decoder.{place}", width)
        found |= {f"decoder.{start + 4}.conv.weight": (frames * width, width, 1, 1)}
        found |= {f"decoder.{start + 5}.weight": (narrower, width, 3, 3)}
    return found


def published_super(channels: int) -> dict[str, Any]:
    """Names and shapes of the larger decoder, with patches of 2 by 2."""
    found: dict[str, Any] = {
        "decoder.0.weight": (512, channels, 1, 1),
        "decoder.22.weight": (12, 64, 3, 3),
        "decoder.22.bias": (12,),
    }
    for start, frames, width, narrower in zip((1, 8, 15), (1, 2, 2), (512, 256, 128), (256, 128, 64), strict=True):
        for place in range(start, start + 3):
            found |= {
                f"decoder.{place}.conv.0.weight": (2 * width, 1, 7, 7),
                f"decoder.{place}.conv.1.weight": (4 * width, 2 * width, 1, 1),
                f"decoder.{place}.conv.1.bias": (4 * width,),
                f"decoder.{place}.conv.3.weight": (width, 4 * width, 1, 1),
            }
        found |= {f"decoder.{start + 3}.weight": (4 * narrower, width, 3, 3)}
        found |= {f"decoder.{start + 3}.bias": (4 * narrower,)}
        found |= {f"decoder.{start + 6}.conv.weight": (frames * narrower, narrower, 1, 1)}
    return found


def published_taef2() -> dict[str, Any]:
    """Names and shapes in the published file of FLUX.2's preview."""
    found: dict[str, Any] = {}
    for side, first, last, halves, blocks, pooled in (
        ("encoder", (64, 3), (32, 64), (2, 6, 10), (1, 3, 4, 5, 7, 8, 9, 11, 12, 13), (11, 12, 13)),
        ("decoder", (64, 32), (3, 64), (6, 11, 16), (2, 3, 4, 7, 8, 9, 12, 13, 14, 17), (2, 3, 4)),
    ):
        for place, shape in ((0, first), (14 if side == "encoder" else 18, last)):
            found[f"{side}.layers.{place}.weight"] = (*shape, 3, 3)
            found[f"{side}.layers.{place}.bias"] = shape[:1]
        for place in halves:
            found[f"{side}.layers.{place}.weight"] = (64, 64, 3, 3)
        for place in blocks:
            name = f"{side}.layers.{place}"
            found |= {f"{name}.conv.{each}.weight": (64, 64, 3, 3) for each in (0, 2, 4)}
            found |= {f"{name}.conv.{each}.bias": (64,) for each in (0, 2, 4)}
        for place in pooled:
            name = f"{side}.layers.{place}.pool"
            found |= {f"{name}.0.weight": (256, 64, 1, 1), f"{name}.3.weight": (64, 256, 1, 1)}
            found |= {f"{name}.1.weight": (256,), f"{name}.1.bias": (256,)}
    return found


PUBLISHED = {
    "taef2": published_taef2(),
    "taew2.1": published(16, 3, (2, 2, 1), (1, 2, 2)),
    "taehv": published(16, 3, (2, 2, 1), (1, 2, 2)),
    "taew2.2": published(48, 12, (2, 2, 1), (1, 2, 2)),
    "taehv1.5": published(32, 12, (2, 2, 1), (1, 2, 2)),
    "taecvx": published(16, 3, (2, 2, 1), (1, 2, 2)),
    "taeh3": published(24, 12, (2, 2, 1), (1, 2, 2)),
    "taeltx2": published(128, 48, (2, 2, 2), (2, 2, 2)),
    "taeltx2.3": published(128, 48, (2, 2, 2), (2, 2, 2)),
}
SUPER = {"taew2.2-super": 48, "taehv1.5-super": 32}


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    row = MODELS[name]
    with torch.device("meta"):
        module = family_of(row).load_class()(**row.config)
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names(name: str) -> None:
    """The tensors have the names and shapes of the published file."""
    assert shapes_of(name) == PUBLISHED[name]


@pytest.mark.parametrize("name", SUPER)
def test_names_of_the_larger_decoder(name: str) -> None:
    """The larger decoder's tensors have the names and shapes of the published file; the encoder is the small one's."""
    encoder = {key: shape for key, shape in PUBLISHED[name.removesuffix("-super")].items() if key.startswith("encoder")}
    assert shapes_of(name) == {**encoder, **published_super(SUPER[name])}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the published names and true shapes."""
    torch.manual_seed(5)
    weights = {name: torch.randn(shape) / 30 for name, shape in PUBLISHED["taew2.1"].items()}
    path = tmp_path_factory.mktemp("file") / "taew2_1.safetensors"
    save_file(weights, path)
    return path


def test_a_published_file(file: Path) -> None:
    """A file as it is published is loaded under each name that has its architecture."""
    for name in ("taew2.1", "taew2_1", "taew2.1-image", "taehv"):
        vae = load(ModelSpec(name, str(file), device="cpu"))
        assert (vae.info.latent_channels, vae.info.spatial_compression_ratio, vae.info.frames.group) == (16, 8, 4)
        assert vae.info.deterministic
    mine = load(ModelSpec("mine", str(file), recipe="taew2.1", device="cpu"))
    z = torch.randn(1, 16, 2, 3, 2)
    with torch.inference_mode():
        assert torch.equal(mine.decode(z), vae.decode(z))


def test_the_published_file_of_flux2(tmp_path: Path) -> None:
    """FLUX.2's preview is loaded from its file as it is published."""
    torch.manual_seed(6)
    save_file({name: torch.randn(shape) / 30 for name, shape in published_taef2().items()}, tmp_path / "a.safetensors")
    vae = load(ModelSpec("taef2", str(tmp_path / "a.safetensors"), device="cpu"))
    assert (vae.info.latent_channels, vae.info.spatial_compression_ratio, vae.info.frames.group) == (32, 8, 1)
    assert vae.info.deterministic


def test_a_file_of_another_preview(file: Path) -> None:
    """A file with other shapes is refused, and the message says which names it has the shapes of."""
    with pytest.raises(
        ModelLoadError, match=r"recipes for them: taew2\.1, taew2\.1-image, taehv, taehv-kandinsky5, taecvx, taecvx-2b"
    ):
        load(ModelSpec("taew2.2", str(file), device="cpu"))


def test_without_a_file() -> None:
    """Without a file the message names the address at which it is published."""
    with pytest.raises(ModelLoadError, match=r"taehv/raw/main/safetensors/taew2_1\.safetensors; .* taew2.1=FILE"):
        load(ModelSpec("taew2.1"))


def build(**config: Any) -> DiffusersVAE:
    torch.manual_seed(1)
    module = TAEHV(**{**TINY, **config}).eval()
    return DiffusersVAE(module, source="seeded", revision="", family=family_of(MODELS["taew2.1"]))


def own(executors: tuple[Executor, ...]) -> Executor:
    return next(executor for executor in executors if executor.name == WHOLE)


@pytest.mark.parametrize("config", [{}, {"patch_size": 2}, {"super_decoder": True}], ids=["plain", "patch", "super"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prediction(config: dict[str, Any], dtype: torch.dtype) -> None:
    """The peak of own code that is counted on meta tensors is within 5 % of what real tensors hold, both ways."""
    vae = build(**config)
    torch.nn.Module.to(vae.module, dtype)
    side = 8 * vae.info.spatial_compression_ratio
    for executor, shape in ((own(vae.decoders), (1, 16, 5, 8, 8)), (own(vae.encoders), (1, 3, 9, side, side))):
        with torch.inference_mode(), LiveBytes() as live:
            executor.run(torch.randn(shape, dtype=dtype), lambda *block: None, lambda: None)
        predicted = executor.peak_bytes(shape, dtype, 0)
        assert predicted is not None
        assert abs(predicted / live.peak - 1) < 0.05


def test_memory_does_not_grow_with_the_length() -> None:
    """Beside the latent and the frames, own code holds as much of a long video as of a short one, both ways."""
    vae = build()
    for executor, shape, frames in (
        (own(vae.decoders), (16, 8, 8), (4, 40)),
        (own(vae.encoders), (3, 64, 64), (16, 160)),
    ):
        beside = []
        for count in frames:
            latent_frames = count if shape[0] == 16 else count // 4
            both = 4 * (latent_frames * 16 * 8 * 8 + 4 * latent_frames * 3 * 64 * 64)
            peak = executor.peak_bytes((1, shape[0], count, *shape[1:]), torch.float32, 0)
            assert peak is not None
            beside.append(peak - both)
        assert beside[1] < 1.1 * beside[0]
