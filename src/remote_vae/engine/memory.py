"""How much memory a job may take on its device, as far as that can be known in advance."""

import platform
import time
from typing import Final

import psutil
import torch

from remote_vae.engine.container import container_bytes, machine_bytes
from remote_vae.engine.ledger import Entry
from remote_vae.engine.place import Place
from remote_vae.errors import ConfigurationError, Overloaded, RemoteVAEError, TooLarge

SPARE: Final = 0.9  # of what is free: libraries take workspace that nobody announces
SPARE_ON_CPU: Final = 0.7  # the heap has gaps besides (`engine.malloc`): benchmarks/large.py shows how much
MOSTLY_FREE: Final = 0.8  # of the most that was ever free: with less, something else holds the device's memory
UPDATE_SECONDS: Final = 0.1
FRESH_SECONDS: Final = 0.005  # so long the free memory counts as just read: the system takes a tenth of a millisecond


class Budget:
    """The memory budget of one replica, which shares its device with others through the ledger.

    `limit` is the operator's for weights and work: bytes, or as a float a share of the device's memory. None allows
    what the device has free.
    *Raises* ConfigurationError if the weights alone exceed the limit.
    """

    def __init__(
        self, device: torch.device, *, limit: float | None, weights_bytes: int, entry: Entry | None = None
    ) -> None:
        limit_bytes = int(limit * total_bytes(device)) if isinstance(limit, float) else limit
        if limit_bytes is not None and weights_bytes >= limit_bytes:
            raise ConfigurationError(
                f"the weights take {weights_bytes / 1e6:.0f} MB and the memory budget is {limit_bytes / 1e6:.0f} MB; "
                "raise --memory-budget or take a smaller dtype",
                weights_bytes=weights_bytes,
                budget_bytes=limit_bytes,
            )
        self._device, self._entry = device, entry
        self._limit = None if limit_bytes is None else limit_bytes - weights_bytes
        self._most_free = free_bytes(device) or 0
        self._claimed = self._used_before = 0
        self._others_before = False
        self._due = self._read_again = 0.0
        self._free: int | None = None
        self._process = psutil.Process()

    def begin(self) -> None:
        """A job begins: the other replicas of the device can see that this one is at work."""
        if self._entry is not None:
            self._entry.begin()
        self._claimed = 0
        self._others_before = self._others_hold_memory()

    def end(self) -> None:
        if self._entry is None:
            return
        self._entry.end()
        if self._entry.has_neighbours and _cached(self._device) > _unclaimed(self._device):
            give_back(self._device)

    def bytes_now(self) -> int | None:
        """What this job may take; None if the device does not say."""
        free = self._free_now()
        if free is None or self._limit is None:
            return self._limit if free is None else max(0, free - sum(self._others()))
        return min(max(0, free - sum(self._others())), self._limit)

    def reserve(self, peak_bytes: int | None) -> bool:
        """Claims what the plan takes. False if another replica has claimed the same memory since `bytes_now`.

        Both write their claim before they read the other's, so that at least one of them sees both.
        """
        self._claimed = peak_bytes or 0
        if self._entry is None:
            return True
        self._used_before = self._used()
        self._entry.claim(self._missing())
        free = self.bytes_now()
        if free is None or self._claimed <= free:
            return True
        self._entry.claim(0)
        return False

    def update(self) -> None:
        """Called often during a job: what the job has taken by now is no longer free, and need not be claimed."""
        if self._entry is None or not self._claimed or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + UPDATE_SECONDS
        self._entry.claim(self._missing())

    def judge(self, error: RemoteVAEError) -> RemoteVAEError:
        """The error to answer with: TooLarge if the job can never fit, Overloaded if it does not fit only now."""
        shared = self._others_before or self._others_hold_memory()
        peak, budget = error.detail.get("peak_bytes"), error.detail.get("budget_bytes")
        if isinstance(error, TooLarge) and isinstance(peak, int) and isinstance(budget, int):
            if shared and peak <= min(self._most_free, self._limit or self._most_free):
                return Overloaded(
                    f"this needs {peak / 1e6:.0f} MB of memory and {budget / 1e6:.0f} MB are free now, because other "
                    "work holds the rest; try again later",
                    peak_bytes=peak,
                    budget_bytes=budget,
                )
        elif isinstance(error, Overloaded) and not shared:
            free = free_bytes(self._device)
            return TooLarge(
                f"the device ran out of memory over this, although nothing else was at work on it and "
                f"{(free or 0) / 1e6:.0f} MB are free; send a smaller picture or a shorter video",
                budget_bytes=free,
            )
        return error

    def _others(self) -> list[int]:
        return [] if self._entry is None else self._entry.others()

    def _others_hold_memory(self) -> bool:
        """Whether another replica is at work, or much less is free than once was."""
        self._read_again = 0.0
        free = self._free_now() or 0
        self._most_free = max(self._most_free, free)
        return bool(self._others()) or free < MOSTLY_FREE * self._most_free

    def _missing(self) -> int:
        """The bytes that the job may take beyond what this process holds and had not used when the job began."""
        return max(0, self._claimed - max(0, self._held() - self._used_before))

    def _held(self) -> int:
        """The bytes of the device's memory that this process holds."""
        held = held_bytes(self._device)
        return int(self._process.memory_info().rss) if held is None else held

    def _used(self) -> int:
        """The part of them that tensors take; for a CPU all of them, since the heap does not say."""
        return self._held() - _cached(self._device)

    def _free_now(self) -> int | None:
        """The free bytes, which are read again only if they may have changed since."""
        now = time.monotonic()
        if now >= self._read_again:
            self._free, self._read_again = free_bytes(self._device), now + FRESH_SECONDS
        return self._free


def free_bytes(device: torch.device) -> int | None:
    """The bytes that can be allocated now, less a reserve; None if the device does not say."""
    if device.type == "cuda":
        return int((_unclaimed(device) + _cached(device)) * SPARE)
    if device.type == "mps":
        return int((torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()) * SPARE)
    if device.type == "cpu":
        available, left = psutil.virtual_memory().available, container_bytes()
        return int((available if left is None else min(available, left)) * SPARE_ON_CPU)
    return None


def _unclaimed(device: torch.device) -> int:
    """The bytes that no process has taken of a CUDA device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _cached(device: torch.device) -> int:
    """The bytes that torch's allocator keeps for later tensors; no other process can take them."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() - torch.mps.current_allocated_memory()
    return 0


def give_back(device: torch.device) -> None:
    """Returns to the device what the allocator keeps for later tensors."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def total_bytes(device: torch.device) -> int:
    """The bytes that the device has; for a CPU, those of the machine or of its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).total_memory
    return torch.mps.recommended_max_memory() if device.type == "mps" else machine_bytes()


def place_of(device: torch.device) -> Place:
    """The device with what it has free now, before the reserve that a budget keeps."""
    free = free_bytes(device)
    spare = SPARE_ON_CPU if device.type == "cpu" else SPARE
    return Place(str(device), _title(device), total_bytes(device), None if free is None else int(free / spare))


def _title(device: torch.device) -> str:
    match device.type:
        case "cuda":
            return torch.cuda.get_device_name(device)
        case "xpu":
            return torch.xpu.get_device_name(device)
        case "cpu":
            return f"{platform.machine()}, {torch.get_num_threads()} threads"
    return "Apple GPU" if device.type == "mps" else device.type


def held_bytes(device: torch.device) -> int | None:
    """The bytes that this process holds of a device's own memory; None for a CPU, which has the machine's."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else None
