"""What a job gives, and the one rule for outputs that are not finite."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from remote_vae.core.executor import RunOptions
from remote_vae.core.vae import VAE
from remote_vae.errors import NonFiniteOutput


@dataclass(frozen=True, slots=True)
class Result:
    """Pixels or a latent on the CPU; the precision and the plan that ran; the peak if it was predicted.

    `note` is what the caller should know. `first` counts the frames that were handed over before.
    """

    tensor: torch.Tensor
    dtype: torch.dtype
    plan: str
    note: str = ""
    peak_bytes: int | None = None
    first: int = 0


def or_in_float32(vae: VAE, run: Callable[[], Result], options: RunOptions) -> Result:
    """What `run` gives, or gives in float32 if its output in the model's own precision is not finite.

    *Raises* NonFiniteOutput if the output is not finite in float32 either, or frames have been handed over before.
    """
    try:
        return run()
    except NonFiniteOutput:
        if vae.dtype is torch.float32 or options.begun:
            raise
    with vae.upcast():
        return replace(run(), note="redone in float32, because the output was not finite")
