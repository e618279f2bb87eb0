"""Names of tensors in files that have those of the authors' code, and what diffusers calls the same tensors."""

import re
from collections.abc import Callable
from functools import reduce
from typing import Final

from remote_vae.models.family import Weights

Names = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

# The code of latent diffusion, which most authors of VAEs have taken over.
LATENT_DIFFUSION: Final[Names] = (
    (r"\bdown\.(\d+)\.block\.", r"down_blocks.\1.resnets."),
    (r"\bdown\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"\bup\.(\d+)\.block\.", r"up_blocks.\1.resnets."),
    (r"\bup\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"\bmid\.block_1\.", "mid_block.resnets.0."),
    (r"\bmid\.block_2\.", "mid_block.resnets.1."),
    (r"\bmid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"\bmid\.attn_1\.", "mid_block.attentions.0."),
    (r"\bnin_shortcut\.", "conv_shortcut."),
)
# What diffusers' oldest classes call otherwise.
_OLDEST: Final[Names] = (
    (r"\bmid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"\bmid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)
_UP: Final = re.compile(r"\bup\.(\d+)\.")


def renamed(weights: Weights, names: Names) -> Weights:
    """The tensors by other names; patterns are applied one after the other."""
    return {
        reduce(lambda text, rule: re.sub(rule[0], rule[1], text), names, name): tensor
        for name, tensor in weights.items()
    }


def from_latent_diffusion(weights: Weights) -> Weights:
    """For diffusers' oldest classes: there the decoder's levels are counted from the latent, not from the picture."""
    top = max((int(match[1]) for name in weights if (match := _UP.search(name))), default=0)
    turned: Names = ((_UP.pattern, lambda match: f"up.{top - int(match[1])}."),)
    return renamed(weights, (*turned, *_OLDEST, *LATENT_DIFFUSION))


def from_latent_diffusion_in_one_row(weights: Weights) -> Weights:
    """For classes in which the blocks of all levels and the layers between the levels have one number each."""
    level = re.compile(r"\b(down|up)\.(\d+)\.(?:block\.(\d+)|(?:down|up)sample)\.")
    steps = {match.groups() for name in weights if (match := level.search(name))}
    last = len(steps)  # a layer between two levels comes after the blocks of its level
    order = sorted(steps, key=lambda step: (step[0], int(step[1]), last if step[2] is None else int(step[2])))
    rows = {way: [step for step in order if step[0] == way] for way in ("down", "up")}
    in_row: Names = ((level.pattern, lambda match: f"{match[1]}_blocks.{rows[match[1]].index(match.groups())}."),)
    return renamed(
        weights, (*in_row, (r"\bmid\.attn_1\.proj_out\.", "mid_block.attentions.0.proj."), *LATENT_DIFFUSION)
    )
