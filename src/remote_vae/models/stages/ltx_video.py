"""The encoder and decoder of LTX-Video 0.9, whose decoder from 0.9.1 on takes a timestep, and in 0.9.1 draws noise.

A timestep shifts and scales what the norms give, so the stages of a decoder are made for each request. *Source*:
diffusers' AutoencoderKLLTXVideo.
"""

from typing import Any

import torch
from torch import nn

from remote_vae.core.executor import Arguments
from remote_vae.core.local import Each, Local, Norm, Plus, Residual, Stage, after
from remote_vae.core.local_frames import Size
from remote_vae.core.noise import drawn_from
from remote_vae.core.root_mean_square import normalise
from remote_vae.models.families.ltx import with_noise
from remote_vae.models.stages.ltx import Parts, decoder_of, encoder_of, layer_of
from remote_vae.models.stages.parts import Unknown, expect


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        expect(module.config.patch_size_t == 1 and not module.use_framewise_decoding)
        encoder = encoder_of(module, module.config.patch_size, module.encoder.conv_in.is_causal)
        return _decoder(module), encoder
    except (Unknown, AttributeError):
        return None


def _decoder(module: Any) -> Local:
    body, patch, causal = module.decoder, module.config.patch_size, module.decoder.conv_in.is_causal
    if not module.config.timestep_conditioning:
        return decoder_of(body, patch, causal)

    def told(
        latent: torch.Tensor,
        *,
        decode_timestep: float = 0.0,
        decode_noise_scale: float | None = None,
        seed: int | None = None,
    ) -> tuple[torch.Tensor, Local]:
        share = decode_timestep if decode_noise_scale is None else decode_noise_scale
        with drawn_from(seed, latent.device):
            stages = decoder_of(body, patch, causal, _AtTimestep(body, latent, decode_timestep))
        return with_noise(latent, share, seed), stages

    def of_request(latent: torch.Tensor, arguments: Arguments) -> tuple[torch.Tensor, Local]:
        return told(latent, **arguments)  # type: ignore[arg-type]

    least = body.conv_in.conv.weight.new_zeros(1, body.conv_in.in_channels, 1, 1, 1)
    return Local(told(least, seed=0)[1].sections, told=of_request)


class _AtTimestep(Parts):
    """The noise that a decoder draws between its layers is one value for each position, in all frames of a batch."""

    def __init__(self, body: Any, latent: torch.Tensor, timestep: float) -> None:
        self._latent = latent
        self._timestep = latent.new_full((1,), timestep) * body.timestep_scale_multiplier

    def residuals(self, block: Any, before: list[Stage], causal: bool) -> None:
        embedding = self._embedded(block)
        size = after(tuple(before), Size(1, *self._latent.shape[1:2], *self._latent.shape[3:]))
        before.extend(self._residual(part, embedding, size, causal) for part in block.resnets)

    def last(self, body: Any, causal: bool) -> tuple[Stage, ...]:
        shift, scale = self._embedded(body).view(2, -1) + body.scale_shift_table
        return _modulated(body.norm_out, shift, scale), layer_of(body.conv_out, causal, silu=True)

    def _embedded(self, part: Any) -> torch.Tensor:
        found: torch.Tensor = part.time_embedder(
            self._timestep, resolution=None, aspect_ratio=None, batch_size=1, hidden_dtype=self._latent.dtype
        )
        return found

    def _residual(self, block: Any, embedding: torch.Tensor, size: Size, causal: bool) -> Residual:
        expect(isinstance(block.nonlinearity, nn.SiLU) and block.conv_shortcut is None)
        shift_1, scale_1, shift_2, scale_2 = embedding.view(4, -1) + block.scale_shift_table
        return Residual(
            (
                _modulated(block.norm1, shift_1, scale_1),
                layer_of(block.conv1, causal, silu=True),
                *self._noise(block.per_channel_scale1, size),
                _modulated(block.norm2, shift_2, scale_2),
                layer_of(block.conv2, causal, silu=True),
                *self._noise(block.per_channel_scale2, size),
            )
        )

    def _noise(self, scale: torch.Tensor | None, size: Size) -> tuple[Stage, ...]:
        if scale is None:
            return ()
        noise = torch.randn(size.height, size.width, device=self._latent.device, dtype=self._latent.dtype)
        return (Plus(noise, scale),)


def _modulated(part: Any, shift: torch.Tensor, scale: torch.Tensor) -> Each:
    expect(part.weight is None)
    norm, shift = Norm((1 + scale).float(), part.eps), shift[:, None, None]

    def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
        normal = torch.empty_like(rows)
        normalise(rows, normal, norm)
        return normal.add_(shift)

    return Each(found, len(shift))
