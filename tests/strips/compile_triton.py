"""Compiles the kernels in Triton for cards that are not here, and prints each kernel with its card.

NVIDIA's are of the generations from Turing on, AMD's are one for data centres and one for desktops. The calls are those
of the program, on small tensors on a CPU; each launch is compiled instead.
"""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from remote_vae.core import attention_triton, local, norm_triton, triton_trial
from remote_vae.core.stages import Norm

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
CARDS = (
    *(GPUTarget("cuda", number, 32) for number in (75, 90, 120)),
    *(GPUTarget("hip", name, width) for name, width in (("gfx942", 64), ("gfx1100", 32))),
)


class Compiled:
    """Stands for a kernel."""

    def __init__(self, function: triton.JITFunction) -> None:
        self._function = function

    def __getitem__(self, grid: object) -> "Compiled":
        return self

    def __call__(self, *args: object, **flags: object) -> None:
        names = self._function.arg_names[: len(args)]
        signature = {name: _type(value) for name, value in zip(names, args, strict=True)}
        signature |= dict.fromkeys(flags, "constexpr")
        for card in CARDS:
            source = ASTSource(
                self._function, signature, {(self._function.arg_names.index(n),): v for n, v in flags.items()}
            )
            triton.compile(source, target=card)
            print(self._function.fn.__name__, card.arch)


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def main() -> None:
    attention_triton._product = lambda one, other: torch.zeros(len(one), other.shape[1])
    for room in (norm_triton, attention_triton, triton_trial):
        for name, found in list(vars(room).items()):
            if isinstance(found, triton.JITFunction) and name != "_place":
                setattr(room, name, Compiled(found))
    kernels, norm = norm_triton.Triton(), Norm(8, 1e-6, torch.ones(64), torch.ones(64))
    one, other = (
        torch.zeros(1, 64, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last) for _ in range(2)
    )
    groups = kernels.moments(one).of_groups(8)
    kernels.moments(one).of_groups(8, torch.ones(64))
    kernels.add(one, other, torch.ones(64), measured=True)
    kernels.add(one, other, None, measured=False)
    kernels.normalise(one, other, norm, groups, silu=True)
    triton_trial.works(torch.device("cpu"))
    attention_triton.attend_by_products(*(torch.zeros(3, 8, 16, dtype=torch.bfloat16)))
    norm_triton.divide(one, other, local.Norm(torch.ones(64)), 1e-12, silu=True)


if __name__ == "__main__":
    main()
