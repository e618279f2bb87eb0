"""The stages of a local network that change how many frames there are, or what stands beside them."""

from dataclasses import dataclass, replace

import torch

from remote_vae.core.stages import Convolution


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a feature map, and the most frames of it that are computed at a time."""

    frames: int
    channels: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class DoubleFrames:
    """Makes two frames of each frame but the first one, which stays; the others do not see it.

    A causal convolution gives twice the channels: those of the earlier frame, then those of the later one.
    """

    layer: Convolution

    def after(self, size: Size) -> Size:
        return replace(size, frames=2 * size.frames)


@dataclass(frozen=True, slots=True)
class HalveFrames:
    """Makes one frame of each pair after the first frame, which stays. *Shapes*: weight [out,in,3,1,1].

    The three taps are the frame before a pair, and the pair.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def after(self, size: Size) -> Size:
        return replace(size, channels=len(self.weight), frames=size.frames // 2 + 1)


@dataclass(frozen=True, slots=True)
class ThreeFrames:
    """Makes one frame of each pair after the first frame: its channels are three, of the frame before and of the pair.

    The first frame is there three times. The three that a channel becomes are neighbours.
    """

    def after(self, size: Size) -> Size:
        return replace(size, channels=3 * size.channels, frames=size.frames // 2 + 1)


@dataclass(frozen=True, slots=True)
class WithBefore:
    """Beside the channels of each frame come those of the frame before it, which for the first frame are zero."""

    def after(self, size: Size) -> Size:
        return replace(size, channels=2 * size.channels)


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """Leaves out the first `first` frames of every `period` frames."""

    first: int
    period: int

    def after(self, size: Size) -> Size:
        return size


FrameStage = DoubleFrames | HalveFrames | ThreeFrames | WithBefore | LeaveOut
