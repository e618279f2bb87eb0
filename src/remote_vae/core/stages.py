"""A GroupNorm encoder or decoder as data: the stages that `core.strips` runs, first to last.

Every norm is followed by SiLU, but the attention's. Weights are the loaded module's own tensors where they can be.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True, slots=True)
class Norm:
    """GroupNorm; `weight` and `bias` in float32."""

    groups: int
    eps: float
    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, slots=True)
class Convolution:
    """1x1 or 3x3 with zero padding, after a norm and SiLU if there is a norm. *Shapes*: weight [out,in,k,k]."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    norm: Norm | None = None

    @property
    def halo(self) -> int:
        """Rows above and below that a row of the output depends on."""
        return self.weight.shape[-1] // 2

    @property
    def channels(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, slots=True)
class Residual:
    """x + second(first(x)), or shortcut(x) + second(first(x)) where the width changes; both have their norms."""

    first: Convolution
    second: Convolution
    shortcut: Convolution | None = None

    @property
    def channels(self) -> int:
        return self.second.channels


@dataclass(frozen=True, slots=True)
class Attention:
    """x + out(softmax(q k' / sqrt(c)) v) over all positions, one head. *Shapes*: weights [C,C]."""

    norm: Norm
    query: Convolution
    key: Convolution
    value: Convolution
    out: Convolution

    @property
    def channels(self) -> int:
        return self.out.channels


@dataclass(frozen=True, slots=True)
class Upsample:
    """Nearest 2x and a 3x3 convolution, folded into one transposed convolution or as they are.

    *Shapes*: weight [in,out,4,4] folded, [out,in,3,3] if not.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    folded: bool = True
    halo: ClassVar[int] = 1

    @property
    def channels(self) -> int:
        return self.weight.shape[1 if self.folded else 0]


@dataclass(frozen=True, slots=True)
class Downsample:
    """A 3x3 convolution of stride 2, after a row of zeros below and a column to the right."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    halo: ClassVar[int] = 1

    @property
    def channels(self) -> int:
        return self.weight.shape[0]


Layer = Convolution | Upsample | Downsample
Stage = Layer | Residual | Attention


@dataclass(frozen=True, slots=True)
class Program:
    """What an encoder or decoder does, as a list."""

    stages: tuple[Stage, ...]


def layers_of(stage: Stage) -> tuple[Layer, ...]:
    """What a stage multiplies with."""
    match stage:
        case Residual():
            shortcut = () if stage.shortcut is None else (stage.shortcut,)
            return (stage.first, stage.second, *shortcut)
        case Attention():
            return (stage.query, stage.key, stage.value, stage.out)
        case Convolution() | Upsample() | Downsample():
            return (stage,)


def measured(program: Program, index: int) -> bool:
    """Whether the output of a stage goes into a norm, whose statistics are then gathered as it is written."""
    if index + 1 == len(program.stages):
        return False
    following = program.stages[index + 1]
    return isinstance(following, Residual | Attention) or (
        isinstance(following, Convolution) and following.norm is not None
    )
