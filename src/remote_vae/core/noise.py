"""Noise from the CPU, so that a seed means the same on every device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seeded(seed: int | None) -> torch.Generator:
    """A generator of the CPU with this seed, or with a random one."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def noise_like(tensor: torch.Tensor, seed: int | None) -> torch.Tensor:
    """Normal noise in the tensor's shape and precision, on its device."""
    return torch.randn(tensor.shape, generator=seeded(seed), dtype=tensor.dtype).to(tensor.device)


@contextmanager
def drawn_from(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seeds what is drawn from torch's own generators; they go on afterwards as if nothing had been drawn."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
