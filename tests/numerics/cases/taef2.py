"""The preview of FLUX.2, against a computation that is led by the names of the tensors alone."""

from typing import Any

import torch
from torch.nn import functional

from remote_vae.models.previews.taef2 import TAEF2

from .case import Case
from .flux2 import cells, patches

Weights = dict[str, torch.Tensor]
DOUBLED = (5, 10, 15)  # the decoder's layers without tensors, but for the first activation
RELU = 1


def taef2() -> Any:
    """A tiny module whose pixels are neither black nor cut off."""
    module = TAEF2(latent_channels=32, width=12)
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.weight.data *= 1.4
        if isinstance(part, torch.nn.GroupNorm):
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.uniform_(-0.5, 0.5)
    module.decoder.layers[-1].bias.data += 0.5
    return module


def block(x: torch.Tensor, own: Weights) -> torch.Tensor:
    """Three convolutions and their input, to which blocks with a pool have added what it gives."""
    if "pool.0.weight" in own:
        wide = functional.conv2d(x, own["pool.0.weight"])
        groups = wide.unflatten(1, (4, -1))
        variance, mean = torch.var_mean(groups, dim=(2, 3, 4), keepdim=True, correction=0)
        wide = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        wide = wide * own["pool.1.weight"].view(1, -1, 1, 1) + own["pool.1.bias"].view(1, -1, 1, 1)
        x = x + functional.conv2d(wide.relu(), own["pool.3.weight"])
    y = x
    for number in (0, 2, 4):
        y = functional.conv2d(y, own[f"conv.{number}.weight"], own[f"conv.{number}.bias"], padding=1)
        y = y.relu() if number < 4 else y
    return (x + y).relu()


def run(x: torch.Tensor, module: Any, side: str) -> torch.Tensor:
    """One layer after the other, by the number that its tensors have."""
    named = {name.split(".", 2)[2]: each for name, each in module.state_dict().items() if name.startswith(side)}
    for number in range(1 + max(int(name.split(".")[0]) for name in named)):
        own = {name.split(".", 1)[1]: each for name, each in named.items() if name.split(".")[0] == str(number)}
        if "conv.0.weight" in own:
            x = block(x, own)
        elif own:
            halves = side == "encoder" and "bias" not in own
            x = functional.conv2d(x, own["weight"], own.get("bias"), stride=2 if halves else 1, padding=1)
        elif number in DOUBLED:
            x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        else:
            assert number == RELU
            x = x.relu()
    return x


def decoded(module: Any, z: torch.Tensor) -> torch.Tensor:
    return (run(torch.tanh(z / 3) * 3, module, "decoder") * 2 - 1).clamp(-1, 1)


def encoded(module: Any, pixels: torch.Tensor) -> torch.Tensor:
    return run((pixels + 1) / 2, module, "encoder")


def unpatched(module: Any, z: torch.Tensor) -> torch.Tensor:
    """The decoder's input of tokens, patches or cells."""
    if z.ndim == 3:
        z = z.view(1, 2, 3, 128).permute(0, 3, 1, 2)
    return cells(z) if z.shape[1] == 128 else z


CASES = {
    "taef2": Case(
        taef2,
        ((1, 128, 2, 3), (2, 32, 4, 6), (1, 6, 128)),
        (32, 48),
        unpatched,
        lambda module, z: patches(z),
        decode=decoded,
        encode=encoded,
    ),
}
