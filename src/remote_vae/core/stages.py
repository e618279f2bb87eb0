"""A GroupNorm encoder or decoder as data: the stages that `core.strips` runs, first to last.

Every norm is followed by SiLU, except the norm of attention. Weights are the tensors of the loaded module if possible.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from remote_vae.core.kept import Kept


@dataclass(frozen=True, slots=True)
class Norm:
    """GroupNorm; `weight` and `bias` in float32.

    `offset`, in float32, is what every value of a channel lacks in the map that the norm reads. The norm is multiplied
    by what the first of `scaled` makes of the nearest position of the program's input, and the second is added.
    """

    groups: int
    eps: float
    weight: torch.Tensor
    bias: torch.Tensor
    offset: torch.Tensor | None = None
    scaled: "tuple[Convolution, Convolution] | None" = None


class _Kernel:
    """What all layers know of their weights.

    `reads` is how many pixels of the input the size of a strip counts for each pixel of the output.
    """

    __slots__ = ()
    weight: torch.Tensor
    reads: ClassVar[int] = 0

    @property
    def taps(self) -> int:
        """How many frames a frame of the output depends on."""
        return self.weight.shape[2] if self.weight.ndim == 5 else 1


@dataclass(frozen=True, slots=True)
class Convolution(_Kernel):
    """A 1x1 or 3x3 convolution, after SiLU of the norm if there is one.

    With several taps in time it is causal: a frame depends on itself and on frames before it. Outside the map are
    zeros, or the values at its edges if it `repeats` them: rows, columns and the first frame.
    *Shapes*: weight [out,in,k,k], or [out,in,taps,k,k].
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    norm: Norm | None = None
    repeats: bool = False
    reads: ClassVar[int] = 1

    @property
    def halo(self) -> int:
        """How many rows above and below a row of the output depends on."""
        return self.weight.shape[-1] // 2

    @property
    def channels(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, slots=True)
class Residual:
    """x + second(first(x)), or shortcut(x) + second(first(x)) if the width changes. Both convolutions have norms.

    `bias`, in float32, is added to the channels of the sum.
    """

    first: Convolution
    second: Convolution
    shortcut: Convolution | None = None
    bias: torch.Tensor | None = None

    @property
    def channels(self) -> int:
        return self.second.channels


@dataclass(frozen=True, slots=True)
class Attention:
    """x + out(softmax(q k' / sqrt(c)) v) over all positions, one head. *Shapes*: weights [C,C].

    If it is `causal`, a frame attends to itself and to the frames before it.
    """

    norm: Norm
    query: Convolution
    key: Convolution
    value: Convolution
    out: Convolution
    causal: bool = False

    @property
    def channels(self) -> int:
        return self.out.channels


@dataclass(frozen=True, slots=True)
class Upsample(_Kernel):
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution; `folded` if they are one transposed convolution.

    If it works `in_time`, every frame after the first becomes two frames.
    *Shapes*: weight [in,out,4,4] if folded, otherwise [out,in,3,3] or [out,in,taps,3,3].
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    folded: bool = True
    repeats: bool = False
    in_time: bool = False
    halo: ClassVar[int] = 1

    @property
    def channels(self) -> int:
        return self.weight.shape[1 if self.folded else 0]


@dataclass(frozen=True, slots=True)
class Downsample(_Kernel):
    """A 3x3 convolution of stride 2, after a row of zeros below and a column to the right.

    If it `repeats` the edges, it does so on every side; if it `mirrors` them too, the row above is the second one, and
    the column to the left likewise, of a map with even sides. If it works `in_time`, it keeps every second frame.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    repeats: bool = False
    in_time: bool = False
    mirrors: bool = False
    halo: ClassVar[int] = 1

    @property
    def channels(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, slots=True)
class Shuffle:
    """A convolution and, beside it, a shortcut of its input; then channels become pixels, or pixels become channels.

    `up` and `down` are factors for both sides. Of 2x2 pixels that become channels, or came from them, the channels of
    the first one come first. Where the input has fewer channels than the output, each is repeated; where it has more,
    neighbours are averaged.
    """

    convolution: Convolution
    up: int = 1
    down: int = 1

    @property
    def channels(self) -> int:
        return self.convolution.channels * self.down**2 // self.up**2

    @property
    def reads(self) -> int:
        return self.down**2

    @property
    def halo(self) -> int:
        return self.convolution.halo

    @property
    def norm(self) -> Norm | None:
        return self.convolution.norm


Layer = Convolution | Upsample | Downsample
Stage = Layer | Shuffle | Residual | Attention


@dataclass(frozen=True, slots=True)
class Windows:
    """How a clip of more than `length` frames is cut: each window has `length` frames and one more, if there are any.

    A window begins `stride` frames after the one before. The first frame of its output is dropped, except for the first
    window. Its next `blended` frames are blended with the last ones of the window before, and `kept` frames are its
    share of the output.
    """

    length: int
    stride: int
    kept: int
    blended: int


@dataclass(frozen=True, slots=True)
class Program:
    """What an encoder or decoder does, as a list of stages, and how clips are cut if they are.

    What comes `before` the stages changes the values of an input and not its shape, and holds little beside it.
    """

    stages: tuple[Stage, ...]
    windows: Windows | None = None
    before: Callable[[torch.Tensor], torch.Tensor] | None = None
    peaks: Kept[int] = field(default_factory=Kept, repr=False, compare=False)  # of one picture, by its shape

    @property
    def scaled(self) -> bool:
        """Whether norms are scaled by the input."""
        layers = (layer for stage in self.stages for layer in layers_of(stage))
        norms = (layer.norm for layer in layers if isinstance(layer, Convolution))
        return any(norm is not None and norm.scaled is not None for norm in norms)


def frames_after(stage: Stage, frames: int) -> int:
    """How many frames a stage makes of this many."""
    match stage:
        case Upsample(in_time=True):
            return 2 * frames - 1
        case Downsample(in_time=True):
            return -(-frames // 2)
    return frames


def sides_after(stage: Stage, height: int, width: int) -> tuple[int, int]:
    """Height and width of a stage's output."""
    match stage:
        case Upsample():
            return 2 * height, 2 * width
        case Downsample(repeats=True):
            return -(-height // 2), -(-width // 2)
        case Downsample():
            return height // 2, width // 2
        case Shuffle():
            return height * stage.up // stage.down, width * stage.up // stage.down
    return height, width


def layers_of(stage: Stage) -> tuple[Layer, ...]:
    """The layers of a stage that have weights."""
    match stage:
        case Residual():
            shortcut = () if stage.shortcut is None else (stage.shortcut,)
            return (stage.first, stage.second, *shortcut)
        case Attention():
            return (stage.query, stage.key, stage.value, stage.out)
        case Shuffle():
            return (stage.convolution,)
        case Convolution() | Upsample() | Downsample():
            return (stage,)


def measured(program: Program, index: int) -> bool:
    """Whether a norm reads the output of a stage. Its statistics are then gathered when the output is written."""
    if index + 1 == len(program.stages):
        return False
    following = program.stages[index + 1]
    return isinstance(following, Residual | Attention) or (
        isinstance(following, Convolution | Shuffle) and following.norm is not None
    )
