"""TAEHV: tiny VAEs for the latents of video models.

A video goes through the layers frame by frame, and only a few frames are kept between them, so that memory does not
grow with the length. *Source*: the structure of the weights that are published at github.com/madebyollin/taehv.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, compress, islice
from math import prod

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

Video = Iterable[torch.Tensor]  # of frames, [B,C,H,W] each
BLOCKS = 3  # on each level


class Clamp(nn.Module):
    """Bends values smoothly into (-3, 3)."""

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        return 3 * torch.tanh(frame / 3)


class Memory(nn.Module):
    """A residual block of a frame and the frame before it, which for the first frame is zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width),
            nn.ReLU(inplace=True),
            _conv(width, width),
            nn.ReLU(inplace=True),
            _conv(width, width),
        )

    def forward(self, frame: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.conv(torch.cat((frame, before), 1)) + frame)


class SuperMemory(nn.Module):
    """The block of the weights whose names end in `super`: a wide filter of each channel, then channels are mixed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 7, padding=3, groups=2 * width, bias=False),
            nn.Conv2d(2 * width, 4 * width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * width, width, 1, bias=False),
        )

    def forward(self, frame: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.conv(torch.cat((frame, before), 1))
        return mixed + frame


class Pool(nn.Module):
    """One frame of `stride` frames, whose channels it gets side by side."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(stride * width, width, 1, bias=False)

    def forward(self, frames: tuple[torch.Tensor, ...]) -> torch.Tensor:
        mixed: torch.Tensor = self.conv(torch.cat(frames, 1))
        return mixed


class Grow(nn.Module):
    """`stride` frames of one frame."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, stride * width, 1, bias=False)

    def forward(self, frame: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.conv(frame).chunk(self.stride, 1))


class TAEHV(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers leaves them untyped
    """Gives pixels in [-1, 1] of the latents that a video model's denoiser works with, and the reverse.

    `widths` are the decoder's channels by level. `encoder_strides` say of how many frames a level of the encoder makes
    one, `decoder_strides` how many frames a level of the decoder makes of one. The first frames that the decoder gives
    are left out: those of the video, or those of each clip of `clip` latent frames. They are kept if `even_whole`, and
    the number of latent frames is even. Of a video that is encoded in clips the last `dropped` latent frames are left
    out. `scaling_factor` is for weights that take what the decoder of the previewed VAE takes.

    *Shapes*: latents [B,C,f,h,w], pixels [B,3,F,H,W].
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers leaves it untyped
    def __init__(
        self,
        latent_channels: int = 16,
        patch_size: int = 1,
        widths: tuple[int, ...] = (256, 128, 64, 64),
        encoder_width: int = 64,
        encoder_strides: tuple[int, ...] = (2, 2, 1),
        decoder_strides: tuple[int, ...] = (1, 2, 2),
        clip: int | None = None,
        dropped: int = 0,
        even_whole: bool = False,
        super_decoder: bool = False,
        scaling_factor: float | None = None,
    ) -> None:
        super().__init__()
        layers = _super_decoder if super_decoder else _decoder
        pixels = 3 * patch_size**2
        self.patch, self.clip, self.dropped, self.even_whole = patch_size, clip, dropped, even_whole
        self.encoder = nn.Sequential(*_encoder(pixels, encoder_width, encoder_strides, latent_channels))
        self.decoder = nn.Sequential(*layers(latent_channels, widths, decoder_strides, pixels))
        self.spatial_compression_ratio = patch_size << len(decoder_strides)
        self.temporal_compression_ratio = prod(decoder_strides)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """The frames of a latent."""
        batch, _, count, height, width = latent.shape
        ratio, group = self.spatial_compression_ratio, self.temporal_compression_ratio
        first = 0 if self.even_whole and count % 2 == 0 else group - 1
        kept = [index % ((self.clip or count) * group) >= first for index in range(count * group)]
        video = latent.new_empty((batch, 3, sum(kept), ratio * height, ratio * width))
        frames = compress(_run(self.decoder, (latent[:, :, index] for index in range(count))), kept)
        for index, frame in enumerate(frames):
            video[:, :, index] = 2 * functional.pixel_shuffle(frame, self.patch).clamp(0, 1) - 1
        return video

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """The latent of frames; the last frame is repeated until the last group, or clip, is whole."""
        count, group = video.shape[2], self.temporal_compression_ratio
        step = self.clip * group - group + 1 if self.clip else -(-count // group) * group
        clips = -(-count // step)
        made = clips * self.clip - self.dropped if self.clip and count > 1 else -(-count // group)
        latent = chain.from_iterable(_run(self.encoder, self._clip(video, step * each, step)) for each in range(clips))
        return torch.stack(tuple(islice(latent, made)), 2)

    def _clip(self, video: torch.Tensor, start: int, count: int) -> Video:
        """Frames as the encoder takes them; if there are clips, each begins with black frames."""
        ahead = self.temporal_compression_ratio - 1 if self.clip else 0
        for index in range(start - ahead, start + count):
            unit = video[:, :, min(max(index, start), video.shape[2] - 1)] / 2 + 0.5
            yield functional.pixel_unshuffle(unit if index >= start else torch.zeros_like(unit), self.patch)


def _conv(given: int, made: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(given, made, 3, stride, padding=1, bias=bias)


def _encoder(pixels: int, width: int, strides: tuple[int, ...], channels: int) -> Iterator[nn.Module]:
    yield from (_conv(pixels, width), nn.ReLU(inplace=True))
    for stride in strides:
        yield from (Pool(width, stride), _conv(width, width, stride=2, bias=False))
        yield from (Memory(width) for _ in range(BLOCKS))
    yield _conv(width, channels)


def _decoder(channels: int, widths: tuple[int, ...], strides: tuple[int, ...], pixels: int) -> Iterator[nn.Module]:
    yield from (Clamp(), _conv(channels, widths[0]), nn.ReLU(inplace=True))
    for stride, width, narrower in zip(strides, widths, widths[1:], strict=False):
        yield from (Memory(width) for _ in range(BLOCKS))
        yield from (nn.Upsample(scale_factor=2), Grow(width, stride), _conv(width, narrower, bias=False))
    yield from (nn.ReLU(inplace=True), _conv(widths[-1], pixels))


def _super_decoder(
    channels: int, widths: tuple[int, ...], strides: tuple[int, ...], pixels: int
) -> Iterator[nn.Module]:
    yield nn.Conv2d(channels, widths[0], 1, bias=False)
    for stride, width, narrower in zip(strides, widths, widths[1:], strict=False):
        yield from (SuperMemory(width) for _ in range(BLOCKS))
        yield from (_conv(width, 4 * narrower), nn.ReLU(inplace=True), nn.PixelShuffle(2), Grow(narrower, stride))
    yield _conv(widths[-1], pixels)


def _run(layers: nn.Sequential, frames: Video) -> Video:
    """Frames through all layers; each layer asks the layer before it for the next frame."""
    for layer in layers:
        match layer:
            case Memory() | SuperMemory():
                frames = _remembering(layer, frames)
            case Pool():
                frames = map(layer, zip(*[iter(frames)] * layer.stride, strict=True))
            case Grow():
                frames = chain.from_iterable(map(layer, frames))
            case _:
                frames = map(layer, frames)
    return frames


def _remembering(block: nn.Module, frames: Video) -> Video:
    before: torch.Tensor | None = None
    for frame in frames:
        yield block(frame, torch.zeros_like(frame) if before is None else before)
        before = frame
