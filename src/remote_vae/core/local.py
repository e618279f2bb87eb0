"""An encoder or decoder whose norms see one position at a time, as data: the stages that `core.stream` runs.

Apart from attention and from norms of whole frames, an output value depends only on input values nearby, so blocks of
frames and rows can go through all stages one after another. Weights are the tensors of the loaded module if possible.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Final

import torch

from remote_vae.core import stages as of_maps
from remote_vae.core.executor import Arguments
from remote_vae.core.local_frames import FrameStage, Size
from remote_vae.core.stages import Convolution, Downsample, Upsample
from remote_vae.core.time_attention import TimeAttention

ONE: Final = Fraction(1)


@dataclass(frozen=True, slots=True)
class Norm:
    """Divides the channels of a position by their root mean square. *Shapes*: weight [C] in float32."""

    weight: torch.Tensor | None
    eps: float = 0.0


@dataclass(frozen=True, slots=True)
class Frames:
    """Which frames a convolution in time reads beside the frame that it computes.

    Frames that do not exist are zero, or, if `repeats` is set, copies of the first or the last frame.
    """

    before: int = 0
    after: int = 0
    repeats: bool = False

    @property
    def reach(self) -> int:
        return self.before + self.after


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution, after the norm and SiLU if it has them. `frames` says what its taps in time read.

    Rows and columns beyond the borders are zero. If the convolution `repeats` edges, they are copies of the border, or,
    if the layer `mirrors`, those next to the border on the inner side.
    """

    layer: Convolution | Upsample | Downsample
    norm: Norm | None = None
    silu: bool = False
    frames: Frames = Frames()
    mirrors: bool = False

    def after(self, size: Size) -> Size:
        match self.layer:
            case Upsample():
                return Size(size.frames, self.layer.channels, 2 * size.height, 2 * size.width)
            case Downsample():
                return Size(size.frames, self.layer.channels, size.height // 2, size.width // 2)
            case Convolution():
                return replace(size, channels=self.layer.channels)


@dataclass(frozen=True, slots=True)
class Plus:
    """Adds a value for each position, times one for each channel, in place. *Shapes*: values [H,W], weight [C,1,1]."""

    values: torch.Tensor
    weight: torch.Tensor

    def after(self, size: Size) -> Size:
        return size


@dataclass(frozen=True, slots=True)
class Each:
    """Any function of a block that treats rows alike. `sides` and `frames` are the factors by which these grow.

    If it looks `ahead`, frames depend on later ones.

    *Shapes*: the function takes [f,C,rows,W] and whether the block begins with the first frame.
    """

    function: Callable[[torch.Tensor, bool], torch.Tensor]
    channels: int
    sides: Fraction = ONE
    frames: Fraction = ONE
    ahead: bool = False

    def after(self, size: Size) -> Size:
        height, width = (int(side * self.sides) for side in (size.height, size.width))
        return Size(ceil(size.frames * self.frames), self.channels, height, width)


@dataclass(frozen=True, slots=True)
class Near:
    """Any function that reads `halo` rows above and below the rows that it makes.

    The function takes a window, and how many rows are missing above and below it, which are zero.
    """

    function: Callable[[torch.Tensor, int, int], torch.Tensor]
    halo: int
    channels: int
    sides: Fraction = ONE

    def after(self, size: Size) -> Size:
        height, width = (int(side * self.sides) for side in (size.height, size.width))
        return Size(size.frames, self.channels, height, width)


@dataclass(frozen=True, slots=True)
class Sums:
    """A function of each position and of sums over all of them: linear attention. Rows are read twice.

    `main` makes what `summed` adds up, a few rows at a time, and then once more what `applied` takes with the sums.
    """

    main: "tuple[Stage, ...]"
    summed: Callable[[torch.Tensor], torch.Tensor]
    applied: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    channels: int

    def after(self, size: Size) -> Size:
        return replace(size, channels=self.channels)


@dataclass(frozen=True, slots=True)
class FrameNorm:
    """GroupNorm over all positions of each frame, or of frames that run `together`, and `silu`. It waits for all rows.

    Before SiLU it is multiplied by what the first of `scaled` makes of the nearest position of the network's input, and
    the second is added. Frames after an odd first one are nearest to those after the first one.
    """

    norm: of_maps.Norm
    together: bool = False
    scaled: tuple[Convolution, Convolution] | None = None
    silu: bool = True

    def after(self, size: Size) -> Size:
        return size


@dataclass(frozen=True, slots=True)
class Scaled:
    """A norm of positions, scaled as a `FrameNorm` is, and SiLU."""

    norm: Norm
    scaled: tuple[Convolution, Convolution]

    def after(self, size: Size) -> Size:
        return size


@dataclass(frozen=True, slots=True)
class Residual:
    """The sum of what `main` and `shortcut` give. Each stage of the shortcut gives a block for a block."""

    main: "tuple[Stage, ...]"
    shortcut: "tuple[Stage, ...]" = ()

    def after(self, size: Size) -> Size:
        return after(self.main, size)


@dataclass(frozen=True, slots=True)
class Attention:
    """x + out(softmax(q k' / sqrt(C)) v) over the positions of each frame, one head. *Shapes*: weights [C,C,1,1].

    The norm may be any function of a frame. If it is `causal`, a frame attends to the frames before it too, so their
    keys and values are kept.
    """

    norm: Norm | of_maps.Norm | Each
    query: Convolution
    key: Convolution
    value: Convolution
    out: Convolution
    causal: bool = False

    def after(self, size: Size) -> Size:
        return size


Stage = Layer | FrameStage | Plus | Each | Near | Sums | FrameNorm | Scaled | Residual | Attention


@dataclass(frozen=True, slots=True)
class Local:
    """What an encoder or decoder does. A section is a part of its stages.

    A section with attention always runs a few frames at a time. Attention along time `between` two sections changes the
    map that the first one made, which is stored. The `first` frames run together, and then `group` frames at a time; if
    it `joins`, a group and the frames beyond whole groups come first. `pictures`: it has no frames. `grows`: it makes
    several frames of the first one. `slow`: the module's own code takes less time, as that of pictures does. `told`
    makes of a batch and of a request's arguments the batch that the stages take, and the stages for them. `cut` makes
    of the frames of a video the clips that go through the stages one after another, each as tensors whose frames follow
    on each other.
    """

    sections: tuple[tuple[Stage, ...], ...]
    group: int = 1
    first: int = 1
    between: tuple[TimeAttention, ...] = ()
    joins: bool = False
    pictures: bool = False
    grows: bool = False
    slow: bool = False
    told: "Callable[[torch.Tensor, Arguments], tuple[torch.Tensor, Local]] | None" = None
    cut: Callable[[torch.Tensor], Iterator[list[torch.Tensor]]] | None = None

    def given(self, batch: torch.Tensor, arguments: Arguments) -> "tuple[torch.Tensor, Local]":
        """What runs for a request. A network that is not `told` anything takes no arguments."""
        return (batch, self) if self.told is None else self.told(batch, arguments)

    def clips(self, frames: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        """What goes through the stages: of one clip whole groups, if those beyond do not run with the first group."""
        if self.cut is not None:
            yield from self.cut(frames)
        else:
            yield [frames if self.joins else frames[: len(frames) - (len(frames) - 1) % self.group]]

    def runs(self, frames: int) -> list[tuple[int, int]]:
        """The frames that are run together."""
        first = min(self.first, frames)
        if self.joins:
            first = self.group + frames % self.group if frames >= self.group else frames
        later = ((start, min(start + self.group, frames)) for start in range(first, frames, self.group))
        return [(0, first), *later]

    @property
    def stages(self) -> tuple[Stage, ...]:
        return sum(self.sections, ())

    @property
    def remembers(self) -> bool:
        """Whether something of every frame is kept until the last one."""
        causal = (isinstance(stage, Attention) and stage.causal for stage in parts_of(self.stages))
        return bool(self.between) or any(causal)

    @property
    def only_frames(self) -> bool:
        """Whether a norm waits for all rows, so that few rows of all frames at a time would save nothing."""
        return not self.pictures and any(isinstance(stage, FrameNorm) for stage in parts_of(self.stages))

    @property
    def only_rows(self) -> bool:
        """Whether all frames are run together: there are none, or frames depend on later ones.

        Each layer would add to the frames that wait, so that few at a time would save nothing.
        """
        return self.pictures or any(map(_looks_ahead, parts_of(self.stages)))


def after(stages: tuple[Stage, ...], size: Size) -> Size:
    """The size of the map after some stages."""
    for stage in stages:
        size = stage.after(size)
    return size


def _looks_ahead(stage: Stage) -> bool:
    return (isinstance(stage, Layer) and stage.frames.after > 0) or (isinstance(stage, Each) and stage.ahead)


def parts_of(stages: tuple[Stage, ...]) -> Iterator[Stage]:
    """All stages, those inside residuals too."""
    for stage in stages:
        yield stage
        if isinstance(stage, Residual):
            yield from parts_of(stage.main)
            yield from parts_of(stage.shortcut)
