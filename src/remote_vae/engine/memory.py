"""How many bytes a job may take on a device, as far as that can be known beforehand."""

from typing import Final

import psutil
import torch

from remote_vae.engine.container import container_bytes
from remote_vae.errors import ConfigurationError

SPARE: Final = 0.9  # of what is free: libraries take workspace that nobody announces
SPARE_ON_CPU: Final = 0.7  # the heap has gaps besides (`engine.malloc`): benchmarks/large.py shows how much


class Budget:
    """Of one replica. `limit_bytes` is the operator's, weights and work together; None takes what the device has free.

    *Raises* ConfigurationError when the weights alone exceed the limit.
    """

    def __init__(self, device: torch.device, *, limit_bytes: int | None, weights_bytes: int) -> None:
        if limit_bytes is not None and weights_bytes >= limit_bytes:
            raise ConfigurationError(
                f"the weights take {weights_bytes / 1e6:.0f} MB and the memory budget is {limit_bytes / 1e6:.0f} MB; "
                "raise --memory-budget or take a smaller dtype",
                weights_bytes=weights_bytes,
                budget_bytes=limit_bytes,
            )
        self._device = device
        self._most = None if limit_bytes is None else limit_bytes - weights_bytes

    def bytes_now(self) -> int | None:
        """For the next job; None where the device does not say."""
        free = free_bytes(self._device)
        if free is None or self._most is None:
            return self._most if free is None else free
        return min(free, self._most)


def free_bytes(device: torch.device) -> int | None:
    """What can be had at this moment, less a reserve."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((free + cached) * SPARE)
    if device.type == "mps":
        return int((torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()) * SPARE)
    if device.type == "cpu":
        available, left = psutil.virtual_memory().available, container_bytes()
        return int((available if left is None else min(available, left)) * SPARE_ON_CPU)
    return None


def held_bytes(device: torch.device) -> int | None:
    """What this process holds on a device of its own; None on a CPU, whose memory the system counts."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else None
