"""The VAE of Allegro, which works in overlapping tiles of frames, rows and columns that must fill a video exactly.

Without tiles its class does nothing, and what lies beyond the last whole tile it leaves black.
"""

from operator import floordiv, sub
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model, decode_by_class
from remote_vae.models.layouts import VIDEO_LAYOUTS
from remote_vae.values import Counts, Frames

if TYPE_CHECKING:
    import torch

    from remote_vae.core.pieces import Blocks, Each, Net


class _Tiles(NamedTuple):
    """Of frames, rows and columns: the sizes of a tile, and the steps from one to the next."""

    sizes: tuple[int, ...]
    steps: tuple[int, ...]

    def counts(self, shape: tuple[int, ...]) -> list[int]:
        return [(side - size) // step + 1 for side, size, step in zip(shape, *self, strict=True)]

    def at(self, place: tuple[int, ...]) -> list[slice]:
        return [slice(index * step, index * step + size) for index, size, step in zip(place, *self, strict=True)]


def _in_tiles(module: Any) -> None:
    """Without slices its class decodes no batch of several videos."""
    module.use_tiling = module.use_slicing = True


def decode(module: Any, latent: "torch.Tensor") -> "torch.Tensor":
    """Its class gives frames before channels."""
    return decode_by_class(module, latent).transpose(1, 2)


def decode_pieces(module: Any, latent: "torch.Tensor", each: "Each") -> "Blocks":
    """The same tile by tile. *Source*: `tiled_decode` of the class."""
    given = module.post_quant_conv(latent[0].transpose(0, 1)).transpose(0, 1)[None]
    small, large = _tiles(module)
    return _sums(given, lambda tile: each(module.decoder, tile), module.config.out_channels, small, large)


def encode_pieces(module: Any, pixels: "torch.Tensor", each: "Each") -> "Blocks":
    """The same tile by tile; the moments are small beside a tile. *Source*: `tiled_encode` of the class."""
    import torch

    small, large = _tiles(module)
    bands: dict[int, list[torch.Tensor]] = {}
    for first, _, band in _sums(
        pixels, lambda tile: each(module.encoder, tile), 2 * module.config.latent_channels, large, small
    ):
        bands.setdefault(first, []).append(band.clone())
    yield 0, 0, module.quant_conv(torch.cat([torch.cat(rows, dim=2) for rows in bands.values()]))


def _tiles(module: Any) -> tuple[_Tiles, _Tiles]:
    """In latent cells and in pixels."""
    ratio = module.spatial_compression_ratio
    cell = int(module.config.temporal_compression_ratio), ratio, ratio
    large = _Tiles(module.kernel, module.stride)
    return _Tiles(*(tuple(map(floordiv, sizes, cell)) for sizes in large)), large


def _sums(given: "torch.Tensor", net: "Net", channels: int, into: _Tiles, out: _Tiles) -> "Blocks":
    """Blocks that are finished. Tiles are faded at their edges and added, in the order in which the class adds them.

    Of what is unfinished, only the rows are kept to which the next row of tiles adds, and the frames to which the next
    tiles in time add.
    """
    from diffusers.models.autoencoders.autoencoder_kl_allegro import _prepare_for_blend

    counts, shared = into.counts(given.shape[2:]), tuple(map(sub, *out))
    _, height, width = (at.stop for at in out.at(tuple(count - 1 for count in counts)))
    after = given.new_zeros(1, channels, shared[0], height, width)
    for i in range(counts[0]):
        below = None
        for j in range(counts[1]):
            _, rows, _ = out.at((i, j, 0))
            band = given.new_zeros(1, channels, *out.sizes[:2], width)
            band[:, :, : shared[0]] = after[:, :, :, rows]
            if below is not None:
                band[:, :, :, : shared[1]] = below
            for k in range(counts[2]):
                tile = net(given[(slice(None), slice(None), *into.at((i, j, k)))].contiguous()).to(given.dtype)
                faded = _prepare_for_blend(*zip((i, j, k), counts, shared, strict=True), tile)
                band[..., out.at((i, j, k))[2]] += faded
            done, high = (
                size if index + 1 == count else step
                for index, count, size, step in zip((i, j), counts[:2], out.sizes[:2], out.steps[:2], strict=True)
            )
            below = band[:, :, :, high:].clone()
            after[:, :, :, rows.start : rows.start + high] = band[:, :, out.steps[0] :, :high]
            yield i * out.steps[0], rows.start, band[0, :, :done, :high].transpose(0, 1)


def _counts(module: Any, axis: int, ratio: int) -> Counts:
    """Latent frames, rows or columns that whole tiles make up."""
    return Counts(module.kernel[axis] // ratio, module.stride[axis] // ratio)


def _frames(module: Any) -> Frames:
    group = int(module.config.temporal_compression_ratio)
    return Frames(group, first=group, whole=True, latents=_counts(module, 0, group))


def _sides(module: Any) -> tuple[Counts, Counts]:
    ratio = module.spatial_compression_ratio
    return _counts(module, 1, ratio), _counts(module, 2, ratio)


_RECIPE: Final = Recipe(
    "allegro", VIDEO_LAYOUTS, (Affine(("scaling_factor",)),), posterior="mode", channels=(4,), fps=15, ratio=8
)
_MODELS: Final = (Model("allegro", _RECIPE, "rhymes-ai/Allegro", "float32"),)

FAMILIES: Final = (
    Family(
        "AutoencoderKLAllegro",
        _MODELS,
        frames_first=True,
        prepare=_in_tiles,
        decode=decode,
        decode_pieces=decode_pieces,
        encode_pieces=encode_pieces,
        frames=_frames,
        sides=_sides,
    ),
)
