"""What the engine reports for metrics: events while it works, and its state on request, both as plain values."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ran:
    """A job that a replica has done. *Units*: output pixels, seconds; `planned_bytes` is None if not predicted."""

    model: str
    op: str
    pixels: int
    queued: float
    seconds: float
    plan: str
    planned_bytes: int | None


class Observer(Protocol):
    """Gets the events. It is called in the event loop, so it must be quick."""

    def ran(self, job: Ran) -> None: ...

    def restarted(self, model: str, cause: str) -> None:
        """A replica died and its successor is ready; `cause` is "hung" or "died"."""
        ...

    def unloaded(self, model: str, cause: str) -> None:
        """A model was unloaded because it was idle, or to make room: `cause` is "idle" or "budget"."""
        ...


class Silent:
    """An observer that ignores every event."""

    def ran(self, job: Ran) -> None:
        pass

    def restarted(self, model: str, cause: str) -> None:
        pass

    def unloaded(self, model: str, cause: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model at this moment. *Units*: bytes, output pixels; `accepted` jobs are waiting or running.

    `memory_bytes` is how much memory its processes hold: the device's if the device has its own, otherwise the
    machine's. `planned_bytes` is the most that the latest job should take.
    """

    name: str
    loaded: bool
    ready: bool
    replicas: int
    alive: int
    accepted_jobs: int
    accepted_pixels: int
    waiting_jobs: int
    waiting_pixels: int
    memory_bytes: int
    planned_bytes: int
    restarts: int
