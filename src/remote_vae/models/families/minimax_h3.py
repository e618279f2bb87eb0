"""The VAE of MiniMax-H3: a causal encoder, and a decoder of transformer blocks, which works clip by clip.

Its pixels are normalised as ImageNet's are. It has its tiles of 256 pixels switched on from the start, and they are
part of what the model is: without them its videos are worse.
"""

from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Affine, PixelRange, Recipe, Rounded
from remote_vae.models.family import Family, Model, Weights, decode_by_class, encode_by_class
from remote_vae.models.layouts import VIDEO_LAYOUTS
from remote_vae.models.original_names import LATENT_DIFFUSION, renamed
from remote_vae.values import Counts, FrameRule, Frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from remote_vae.core.pieces import Blocks, Each

# Of red, green and blue, in [0, 1].
_PIXEL_MEAN: Final = (0.485, 0.456, 0.406)
_PIXEL_STD: Final = (0.229, 0.224, 0.225)

LEVEL_ERROR: Final = 1e-4  # more than float32's arithmetic moves one of 255 levels
# fmt: off
MEAN: Final = (
    0.858090341091156, -0.9606591463088989, 1.0661640167236328, -0.5090325474739075, -0.2727581858634949,
    -1.3675414323806763, -0.2553254961967468, -0.26907554268836975, -0.5376840829849243, -0.0464097298681736,
    0.6657370328903198, 0.19690127670764923, -0.5460608005523682, -0.4035342037677765, -0.23683024942874908,
    0.25928452610969543, -0.30133944749832153, 0.211341992020607, -1.1206848621368408, 0.3581933379173279,
    -0.04225143790245056, 0.2604829967021942, 0.22864092886447906, 0.7056031823158264,
)
STD: Final = (
    1.2223774194717407, 1.2767263650894165, 1.6831774711608887, 1.7549455165863037, 1.5636216402053833,
    2.194143533706665, 0.9653137922286987, 1.0569885969161987, 0.841948926448822, 0.7729952931404114,
    1.8955937623977661, 0.946841835975647, 0.7996809482574463, 0.4498890042304993, 0.7197399735450745,
    0.6936293244361877, 2.961095094680786, 2.7694199085235596, 3.0496184825897217, 2.1088054180145264,
    3.276226282119751, 3.1627357006073, 2.2816812992095947, 2.6127843856811523,
)
# fmt: on


def decode(module: Any, latent: "torch.Tensor") -> "torch.Tensor":
    return _shown(decode_by_class(module, latent))


def decode_pieces(module: Any, latent: "torch.Tensor", each: "Each") -> "Blocks":
    """The same clip by clip and tile by tile. *Source*: `_decode` of the class, whose clips fade into each other."""

    def net(tile: "torch.Tensor") -> "torch.Tensor":
        pixels: torch.Tensor = module.decoder(module.post_quant_conv(tile))
        return pixels

    latent = latent.to(module.post_quant_conv.weight.dtype)
    clip, frames = module.tokens_chunk_size, _frames(module).of_latent(latent.shape[2])
    own = clip * module.temporal_compression_ratio
    kept: dict[int, torch.Tensor] = {}  # by their first row, frames that fade into the next clip
    for index, start in enumerate(range(0, latent.shape[2] - module.token_overlap, clip)):
        given = _frames_of(latent, start, clip + module.token_overlap)
        first = index * (own - module.frame_pre_padding)
        for row, band in _bands(module, given, lambda tile: each(net, tile), module.spatial_compression_ratio, 1):
            found, after = (part[:, :, module.frame_pre_padding :] for part in (band[:, :, :own], band[:, :, own:]))
            if index:
                found = module._blend(kept[row], found, module.frame_overlap, dim=-3)
            kept[row] = after.clone()
            yield first, row, _pictures(_shown(found[:, :, : frames - first]))
    first += own - module.frame_pre_padding
    for row in kept if frames > first else ():
        yield first, row, _pictures(_shown(kept[row][:, :, : frames - first]))


def _frames_of(video: "torch.Tensor", start: int, count: int) -> "torch.Tensor":
    """Frames from one on; the last one is repeated if there are too few."""
    import torch

    found = video[:, :, start : start + count]
    return torch.cat([found, found[:, :, -1:].repeat(1, 1, count - found.shape[2], 1, 1)], dim=2)


def _bands(
    module: Any, clip: "torch.Tensor", net: "Callable[[torch.Tensor], torch.Tensor]", cell: int, divisor: int
) -> "Iterator[tuple[int, torch.Tensor]]":
    """Rows that are finished, each with the number of the first one. *Source*: `_stitch_tiles` of the class.

    Of the tiles above and to the left only what overlaps is kept. *Units*: a row that comes in is `cell` pixels high,
    and one that goes out is `divisor` pixels high.
    """
    import torch

    (tops, heights, below), (lefts, widths, beside) = (
        module._split_tiles(side * cell, getattr(module, f"tile_sample_min_{name}"), least)
        for side, name, least in (
            (clip.shape[-2], "height", module.tile_sample_min_overlap_height),
            (clip.shape[-1], "width", module.tile_sample_min_overlap_width),
        )
    )
    above: dict[int, torch.Tensor] = {}
    for i, (top, height) in enumerate(zip(tops, heights, strict=True)):
        band, before = [], clip
        for j, (left, width) in enumerate(zip(lefts, widths, strict=True)):
            raw = net(clip[..., top // cell : (top + height) // cell, left // cell : (left + width) // cell])
            tile = raw if i == 0 else module._blend(above[j], raw, below[i - 1] // divisor, dim=-2)
            if j:
                tile = module._blend(before, tile, beside[j - 1] // divisor, dim=-1)
            if i < len(below):
                rows = below[i] // divisor
                above[j], tile = raw[..., -rows:, :].clone(), tile[..., :-rows, :]
            if j < len(beside):
                columns = beside[j] // divisor
                before, tile = raw[..., -columns:].clone(), tile[..., :-columns]
            band.append(tile)
        yield top // divisor, torch.cat(band, dim=-1)


def _pictures(video: "torch.Tensor") -> "torch.Tensor":
    return video[0].transpose(0, 1)


def _shown(pixels: "torch.Tensor") -> "torch.Tensor":
    """The module's pixels in [-1, 1], in float32 as the pipeline has them."""
    pixels = pixels.float()
    unit = (pixels * _by_colour(_PIXEL_STD, pixels) + _by_colour(_PIXEL_MEAN, pixels)).clamp(0, 1)
    return 2 * unit - 1


def encode(module: Any, pixels: "torch.Tensor") -> "torch.Tensor":
    """The parameters of the posterior of pixels in [-1, 1]."""
    return encode_by_class(module, _normalised(pixels, _are_levels(pixels)))


def encode_pieces(module: Any, pixels: "torch.Tensor", each: "Each") -> "Blocks":
    """The same clip by clip and tile by tile. *Source*: `_encode` of the class."""

    def net(tile: "torch.Tensor") -> "torch.Tensor":
        moments: torch.Tensor = module.quant_conv(module.encoder(tile))
        return moments

    levels, given = _are_levels(pixels), pixels.shape[2]
    clip, frames = module.config.clip_length if given > 1 else 1, _frames(module).latent(given)
    for index, start in enumerate(range(0, given, clip)):
        part = _normalised(_frames_of(pixels, start, clip), levels)
        first = index * module.tokens_chunk_size
        for row, band in _bands(module, part, lambda tile: each(net, tile), 1, module.spatial_compression_ratio):
            yield first, row, _pictures(band[:, :, : frames - first])


def _are_levels(pixels: "torch.Tensor") -> "torch.Tensor":
    """Whether all pixels have a value that a picture of 8 bits can have."""
    import torch

    def near(frame: "torch.Tensor") -> "torch.Tensor":
        unit = (frame.float() + 1) / 2 * 255
        return ((unit - unit.round()).abs() < LEVEL_ERROR).all()

    return torch.stack([near(frame) for frame in pixels.unbind(2)]).all()


def _normalised(pixels: "torch.Tensor", levels: "torch.Tensor") -> "torch.Tensor":
    """Pixels as ImageNet's, from those in [-1, 1].

    The pipeline takes pictures of 8 bits. If these are such, their values come back to the last bit, because the latent
    is rounded to float16 later, where the last bit of a pixel would become a thousandth.
    """
    unit = (pixels.float() + 1) / 2
    unit = ((unit * 255).round() / 255).where(levels, unit)
    return (unit - _by_colour(_PIXEL_MEAN, unit)) / _by_colour(_PIXEL_STD, unit)


def _frames(module: Any) -> Frames:
    """A latent frame after the first of a clip gives four frames; the encoder drops the last three latent frames."""
    return Frames(4, rule=FrameRule.CLIPS, span=5, latents=Counts(3), dropped=3)


def _by_colour(values: tuple[float, ...], pixels: "torch.Tensor") -> "torch.Tensor":
    return pixels.new_tensor(values).view(1, -1, 1, 1, 1)


_ORIGINAL: Final = (
    *LATENT_DIFFUSION,
    (r"\bx_embedder\b", "proj_in"),
    (r"\battn\.to_out\.", "attn.to_out.0."),
    (r"\bff\.w1\b", "ff.net.0.proj"),
    (r"\bff\.w2\b", "ff.net.2"),
)
_UNUSED: Final = ("decoder.mask_token", "latents_mean", "latents_std")  # the statistics are those above


def from_original_names(weights: Weights, module: Any) -> Weights:
    """The tensors of a file with the names of MiniMax's own code.

    There query, key and value of each head stand one after the other in one matrix, and the gate of a block is the
    first half of its matrix and not the second one.
    """
    if "decoder.x_embedder.weight" not in weights:
        return weights
    heads = int(module.config.decoder_num_attention_heads)
    found: Weights = {}
    used = {name: tensor for name, tensor in weights.items() if name not in _UNUSED}
    for name, tensor in renamed(used, _ORIGINAL).items():
        if ".to_qkv." in name:
            by_head = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
            found |= {name.replace("to_qkv", f"to_{part}"): by_head[:, i].flatten(0, 1) for i, part in enumerate("qkv")}
        elif ".ff.net.0.proj." in name:
            found[name] = tensor.roll(len(tensor) // 2, 0)  # the halves change places
        else:
            found[name] = tensor
    return found


MINIMAX_H3: Final = Recipe(
    "minimax-h3",
    VIDEO_LAYOUTS,
    (Affine(("latents_mean", "latents_std")), Rounded("float16")),
    channels=(24,),
    needs=("latents_mean", "latents_std"),
    seed=42,
    pixel_range=PixelRange(
        tuple(0.5 / std for std in _PIXEL_STD),
        tuple((0.5 - mean) / std for mean, std in zip(_PIXEL_MEAN, _PIXEL_STD, strict=True)),
    ),
    fps=24,
    ratio=16,
)
_MODELS: Final = (
    Model(
        "minimax-h3",
        MINIMAX_H3,
        "MiniMaxAI/MiniMax-H3",
        "bfloat16",
        config={"latents_mean": MEAN, "latents_std": STD},
        preview="taeh3",
    ),
)

FAMILIES: Final = (
    Family(
        "AutoencoderKLMiniMaxH3",
        _MODELS,
        # What its class keeps so, by the names of its layers, and the frequencies of positions, which it makes so.
        float32=("encoder", "quant_conv", "norm1", "norm2", "norm_out", "scale1", "scale2", "rope"),
        convert=from_original_names,
        decode=decode,
        encode=encode,
        decode_pieces=decode_pieces,
        encode_pieces=encode_pieces,
        frames=_frames,
    ),
)
