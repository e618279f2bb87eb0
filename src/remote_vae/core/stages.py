"""A GroupNorm encoder or decoder as data: the stages that `core.strips` runs, first to last.

Every norm is followed by SiLU, except the norm of attention. Weights are the tensors of the loaded module if possible.
"""

from dataclasses import dataclass, field
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
    """A 1x1 or 3x3 convolution with zero padding, after SiLU of the norm if there is one.

    With several taps in time it is causal: a frame depends on itself and on frames before it.
    *Shapes*: weight [out,in,k,k], or [out,in,taps,k,k].
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    norm: Norm | None = None

    @property
    def halo(self) -> int:
        """How many rows above and below a row of the output depends on."""
        return self.weight.shape[-1] // 2

    @property
    def taps(self) -> int:
        """How many frames a frame of the output depends on."""
        return self.weight.shape[2] if self.weight.ndim == 5 else 1

    @property
    def channels(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, slots=True)
class Residual:
    """x + second(first(x)), or shortcut(x) + second(first(x)) if the width changes. Both convolutions have norms."""

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
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution; `folded` if they are one transposed convolution.

    *Shapes*: weight [in,out,4,4] if folded, otherwise [out,in,3,3].
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
    """What an encoder or decoder does, as a list of stages."""

    stages: tuple[Stage, ...]
    peaks: dict[object, int] = field(default_factory=dict, repr=False, compare=False)  # of one picture, by its shape


def layers_of(stage: Stage) -> tuple[Layer, ...]:
    """The layers of a stage that have weights."""
    match stage:
        case Residual():
            shortcut = () if stage.shortcut is None else (stage.shortcut,)
            return (stage.first, stage.second, *shortcut)
        case Attention():
            return (stage.query, stage.key, stage.value, stage.out)
        case Convolution() | Upsample() | Downsample():
            return (stage,)


def measured(program: Program, index: int) -> bool:
    """Whether a norm reads the output of a stage. Its statistics are then gathered when the output is written."""
    if index + 1 == len(program.stages):
        return False
    following = program.stages[index + 1]
    return isinstance(following, Residual | Attention) or (
        isinstance(following, Convolution) and following.norm is not None
    )
