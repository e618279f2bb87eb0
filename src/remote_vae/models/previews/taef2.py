"""TAEF2: the tiny VAE for FLUX.2's latents.

Its layers are those of the tiny VAEs that diffusers has, and the blocks on the level of the latent also take part in a
normalisation over the whole picture. *Source*: the structure of the weights that are published as madebyollin/taef2.
"""

from collections.abc import Iterator

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

LEVELS, BLOCKS, GROUPS = 3, 3, 4


class Block(nn.Module):
    """A residual block; with `pooled` it first adds a branch that is normalised over the whole picture."""

    def __init__(self, width: int, *, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.pool: nn.Module | None = None
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(GROUPS, 4 * width),
                nn.ReLU(inplace=True),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return functional.relu(self.conv(x) + x)


class Layers(nn.Module):
    """Layers in a row, under the name that their tensors have."""

    def __init__(self, layers: Iterator[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return found


class TAEF2(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers leaves them untyped
    """Gives pixels in [-1, 1] of normalised latents, unpatched, and the reverse.

    *Shapes*: latents [B,C,h,w], pixels [B,3,8h,8w].
    """

    spatial_compression_ratio = 2**LEVELS

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers leaves it untyped
    def __init__(self, latent_channels: int = 32, width: int = 64) -> None:
        super().__init__()
        self.encoder = Layers(_encoder(latent_channels, width))
        self.decoder = Layers(_decoder(latent_channels, width))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Pixels of a latent, whose values are bent smoothly into (-3, 3) first."""
        unit: torch.Tensor = self.decoder(3 * torch.tanh(latent / 3))
        return (2 * unit - 1).clamp(-1, 1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The latent of pixels."""
        latent: torch.Tensor = self.encoder(pixels / 2 + 0.5)
        return latent


def _conv(given: int, made: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(given, made, 3, stride, padding=1, bias=bias)


def _encoder(channels: int, width: int) -> Iterator[nn.Module]:
    yield from (_conv(3, width), Block(width, pooled=False))
    for level in range(LEVELS):
        yield _conv(width, width, stride=2, bias=False)
        yield from (Block(width, pooled=level == LEVELS - 1) for _ in range(BLOCKS))
    yield _conv(width, channels)


def _decoder(channels: int, width: int) -> Iterator[nn.Module]:
    yield from (_conv(channels, width), nn.ReLU())
    for level in range(LEVELS):
        yield from (Block(width, pooled=level == 0) for _ in range(BLOCKS))
        yield from (nn.Upsample(scale_factor=2), _conv(width, width, bias=False))
    yield from (Block(width, pooled=False), _conv(width, 3))
