"""Parts of a module of diffusers that many families share, as parts of stages; each part is checked."""

from dataclasses import replace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.attention_processor import SpatialNorm
from diffusers.models.autoencoders.autoencoder_kl_kvae import KVAEDecoderSpatialNorm2D
from torch import nn

from remote_vae.core.filters import laid_for
from remote_vae.core.fold import fold
from remote_vae.core.stages import Attention, Convolution, Norm, Program, Upsample


class Unknown(Exception):
    """A part that the stages cannot describe."""


def convolution_of(conv: Any, normed: Any = None) -> Convolution:
    expect(type(conv) is nn.Conv2d)
    size = conv.kernel_size[0]
    usual = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1
    expect(usual and size in (1, 3) and conv.kernel_size == (size, size) and conv.padding == (size // 2, size // 2))
    expect(conv.padding_mode in ("zeros", "replicate"))
    norm, repeats = None if normed is None else norm_of(normed), size == 3 and conv.padding_mode == "replicate"
    return Convolution(weight_of(conv.weight), bias_of(conv), norm, repeats)


def upsample_of(conv: Any) -> Upsample:
    """Nearest-neighbour upsampling by 2, and the 3x3 convolution that follows it."""
    return upsampled(convolution_of(conv))


def upsampled(after: Convolution) -> Upsample:
    """The same of a convolution that is described."""
    expect(after.halo == 1)
    if after.weight.dtype is torch.float16:  # folded taps round more than float16's own noise
        return Upsample(after.weight, after.bias, folded=False, repeats=after.repeats)
    return Upsample(fold(after.weight), after.bias, repeats=after.repeats)


def attention_of(block: Any) -> Attention:
    expect(type(block) is DiffusersAttention)
    unusual = (block.norm_q, block.norm_k, block.norm_cross)
    expect(block.heads == 1 and block.residual_connection and block.rescale_output_factor == 1)
    expect(all(not part for part in unusual) and (block.spatial_norm is None) != (block.group_norm is None))
    query, key, value, out = map(linear_of, (block.to_q, block.to_k, block.to_v, block.to_out[0]))
    norm = block.group_norm if block.spatial_norm is None else block.spatial_norm
    return Attention(norm_of(norm), query, key, value, out)


def linear_of(part: Any) -> Convolution:
    expect(type(part) is nn.Linear)
    return Convolution(part.weight.data[:, :, None, None], bias_of(part))


def norm_of(norm: Any) -> Norm:
    if type(norm) in (SpatialNorm, KVAEDecoderSpatialNorm2D):
        expect(not getattr(norm, "add_conv", False))
        return replace(norm_of(norm.norm_layer), scaled=(convolution_of(norm.conv_y), convolution_of(norm.conv_b)))
    expect(type(norm) is nn.GroupNorm and norm.affine)
    return Norm(norm.num_groups, norm.eps, norm.weight.data.float(), norm.bias.data.float())


def weight_of(weight: nn.Parameter) -> torch.Tensor:
    """The module's own tensor, so that there is one copy of it, in the layout that the device's libraries want."""
    weight.data = laid_for(weight.data)
    return weight.data


def bias_of(part: nn.Conv2d | nn.Linear) -> torch.Tensor | None:
    return None if part.bias is None else part.bias.data


def beside(weight: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """A kernel in float32, to whose result what some taps make of each channel is added. *Shapes*: [C,C,...], [...]."""
    found = weight.to(torch.float32, copy=True)
    found.diagonal().add_(taps[..., None].to(weight.device))
    return found


def before_product(weight: torch.Tensor, bias: torch.Tensor | None, product: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernel and bias of a convolution and of a product at each position after it, in the precision of the product."""
    expect(set(product.kernel_size) == set(product.stride) == {1} and product.groups == 1 and product.bias is not None)
    mixed, dtype = product.weight.data.float().flatten(1), product.weight.dtype
    kernel = torch.einsum("om,mi...->oi...", mixed, weight.float())
    found = product.bias.data.float()
    if bias is not None:
        found = found + torch.mv(mixed, bias.float())
    return laid_for(kernel.to(dtype)), found.to(dtype)


def both(decoder: Program | None, encoder: Program | None) -> tuple[Program, Program] | None:
    """Both or neither, so that what a model's card says holds in both directions."""
    return None if decoder is None or encoder is None else (decoder, encoder)


def expect(condition: object) -> None:
    if not condition:
        raise Unknown
