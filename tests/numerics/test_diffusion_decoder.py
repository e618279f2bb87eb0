"""LTX-2's diffusion decoder, which has no encoder, against its own pipeline."""

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.ltx2 import LTX2VideoDiffusionDecodePipeline
from torch.nn import functional

from remote_vae import Client, RemoteVAE
from remote_vae.core.own_code import OwnCode
from remote_vae.errors import LatentMismatch, UnsupportedOutput
from remote_vae.models.families import family_of, find_model
from remote_vae.models.neighbourhood_attention import NeighbourhoodAttention
from remote_vae.models.vae import DiffusersVAE

from .cases.ltx import with_statistics
from .conftest import Families, serve

NAME = "ltx2-diffusion-decoder"
TINY: dict[str, Any] = {
    "decoder_head_dim": 8,
    "decoder_stage_channels": (32, 16, 8, 8, 8),
    "decoder_stage_depths": (1,) * 5,
    "decoder_stage_kernels": ((3, 3, 3), (3, 3, 2), (3, 5, 5), (3, 5, 5)),
    "decoder_upsample_channel_reductions": (2, 2, 1, 1),
    "decoder_stage5_kernel": (5, 4, 3),
    "decoder_t_emb_dim": 16,
}


def latent(batch: int) -> torch.Tensor:
    return torch.randn((batch, 128, 2, 3, 3), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    torch.manual_seed(23)
    module = with_statistics(diffusers.LTX2VideoDiffusionDecoderModel(**TINY)).eval()
    with serve({"mine": module}, {"mine": NAME}, tmp_path_factory.mktemp("decoder")) as found:
        yield found


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_seed_is_a_generator(served: Families) -> None:
    """A seed gives the video that the pipeline gives with a generator of this seed, in the pipeline's own attention."""
    pipeline = LTX2VideoDiffusionDecodePipeline(served.modules["mine"], diffusers.FlowMatchEulerDiscreteScheduler())
    z = latent(2)
    generator = torch.Generator().manual_seed(5)
    [expected] = pipeline(z, generator=generator, output_type="pt", denormalize=False, return_dict=False)
    with Client(served.url) as client:
        found = client.decode(z, output_type="pt", seed=5, do_scaling=True)
        other = client.decode(z, output_type="pt", seed=6)
    torch.testing.assert_close((found * 0.5 + 0.5).clamp(0, 1), expected.transpose(1, 2), atol=1e-5, rtol=0)
    assert float((found - other).abs().max()) > 0.01


def test_a_remote_decoder_in_its_pipeline(served: Families) -> None:
    """The pipeline's generator is a seed to a RemoteVAE in it: an unused one by its own seed, a used one by a draw."""
    vae = RemoteVAE(served.url)
    assert torch.equal(vae.latents_mean, served.modules["mine"].latents_mean)
    pipeline = LTX2VideoDiffusionDecodePipeline(vae, diffusers.FlowMatchEulerDiscreteScheduler())
    generator = torch.Generator().manual_seed(5)
    first, second, again = (
        pipeline(latent(1), generator=each, output_type="pt", denormalize=False, return_dict=False)[0]
        for each in (generator, generator, torch.Generator().manual_seed(5))
    )
    with Client(served.url) as client:
        found = client.decode(latent(1), output_type="pt", seed=5)
    torch.testing.assert_close(first, (found * 0.5 + 0.5).clamp(0, 1).transpose(1, 2), atol=1e-6, rtol=0)
    assert torch.equal(first, again)
    assert float((first - second).abs().max()) > 0.01
    each = vae.decode(latent(2), generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)]).sample
    torch.testing.assert_close(each[:1], client_pixels(served, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(each[1:], client_pixels(served, 6, latent(2)[1:]), atol=1e-6, rtol=0)


def client_pixels(served: Families, seed: int, z: torch.Tensor | None = None) -> torch.Tensor:
    with Client(served.url) as client:
        return client.decode(latent(2)[:1] if z is None else z, output_type="pt", seed=seed)


def test_it_has_no_encoder(served: Families) -> None:
    """An encode is refused with what to do instead, and the card says that it would be."""
    with Client(served.url) as client:
        [card] = client.models()
        assert (card["encodes"], card["takes"]) == (False, ["seed"])
        with pytest.raises(UnsupportedOutput, match="'mine' is a decoder without an encoder; encode with the model"):
            client.encode(torch.zeros(1, 3, 9, 96, 96))


@pytest.mark.parametrize(("shape", "said"), [((1, 3, 3), "takes 2 or more"), ((2, 2, 3), "takes 3 or more")])
def test_smaller_than_a_window(served: Families, shape: tuple[int, ...], said: str) -> None:
    """A video with fewer frames or rows than the attention's windows have is refused with the fewest possible."""
    with Client(served.url) as client, pytest.raises(LatentMismatch, match=said):
        client.decode(torch.zeros(1, 128, *shape), output_type="pt")


def test_memory_is_predicted() -> None:
    """The same code predicts its memory without the values of any tensor."""
    model = find_model(NAME)
    module = diffusers.LTX2VideoDiffusionDecoderModel(**TINY)
    family = family_of(model)
    family.prepare(module)
    vae = DiffusersVAE(module, source="m", revision="", family=family)
    assert vae.encoders == ()
    assert isinstance(vae.decoders[0], OwnCode)
    small, large = (vae.decoders[0].peak_bytes((1, 128, 2, 3, side), torch.float32, 0) for side in (3, 6))
    assert small > 9 * 96 * 96 * 3 * 4
    assert 1.5 * small < large < 2.5 * small


class Projected(torch.nn.Module):
    """An attention whose queries, keys and values are what it is given."""

    kernel_size = (5, 4, 3)
    to_out = (torch.nn.Identity(),)

    def project_qkv(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(hidden_states.unflatten(-1, (3, 2, 8)).unbind(-3))


@pytest.mark.parametrize("grid", [(5, 4, 3), (9, 17, 8), (6, 9, 19)])
def test_windows(grid: tuple[int, int, int]) -> None:
    """In pieces each query sees the keys of its own window, which has the same size at the borders."""
    attention = Projected()
    states = torch.randn((2, *grid, 48), generator=torch.Generator().manual_seed(2))
    found = NeighbourhoodAttention()(attention, states)
    places = torch.cartesian_prod(*(torch.arange(size) for size in grid))
    starts = torch.stack(
        [
            (places[:, axis] - kernel // 2).clamp(0, size - kernel)
            for axis, (kernel, size) in enumerate(zip(attention.kernel_size, grid, strict=True))
        ],
        dim=1,
    )
    ends = starts + torch.tensor(attention.kernel_size)
    mask = ((places >= starts[:, None]) & (places < ends[:, None])).all(-1)
    assert set(mask.sum(-1).tolist()) == {5 * 4 * 3}
    flat = [part.flatten(1, 3).transpose(1, 2) for part in attention.project_qkv(states)]
    expected = functional.scaled_dot_product_attention(*flat, attn_mask=mask, scale=1.0)
    torch.testing.assert_close(found.flatten(1, 3), expected.transpose(1, 2).flatten(-2), atol=1e-5, rtol=1e-5)
