"""What a replica asks of the device that it computes on."""

from collections import deque
from typing import Final

import torch

from remote_vae.core.executor import is_out_of_memory

LAYERS_AHEAD: Final = 16


class DeviceQueue:
    """Lets the work that is queued on a CUDA device run ahead by a few layers only.

    So progress means that the device has worked, and the last wait of a job is short. CPUs do not queue. Apple's GPUs
    do, and are left alone: nobody has tried their events here.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: deque[torch.cuda.Event] | None = deque() if device.type == "cuda" else None

    def wait(self) -> None:
        if self._events is None:
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._events.append(event)
        if len(self._events) > LAYERS_AHEAD:
            self._events.popleft().synchronize()


def is_broken(device: torch.device) -> bool:
    """Whether the device answers nothing but errors to this process.

    A kernel's fault, such as an access to memory that is not there, comes from every later call too. Which class the
    first error has depends on the library that was called next, so the device is asked.
    """
    try:
        torch.zeros(1, device=device).item()
    except Exception as exc:  # noqa: BLE001  # boundary: each library has its own classes
        return not is_out_of_memory(exc)
    return False
