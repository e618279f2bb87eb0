"""How far a job is, for those that watch it. A job's progress holds nothing of the job itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """The states of a job in their order; the last three end it."""

    ARRIVING = "arriving"  # the body is on its way, or is read
    QUEUED = "queued"
    RUNNING = "running"
    WRITING = "writing"  # the reply is written
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        return self in (State.FINISHED, State.FAILED, State.CANCELLED)


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a job at one moment. `position` is 1 for the next job; *units*: seconds."""

    state: State
    position: int | None = None
    done: int | None = None
    total: int | None = None
    seconds_left: float | None = None


@dataclass(slots=True, eq=False)
class JobProgress:
    """The engine fills it in while it has the job, and takes back its own functions afterwards."""

    state: State = State.ARRIVING
    _position: Callable[[], tuple[int, float]] | None = None  # in the queue, and the expected seconds
    _steps: Callable[[], tuple[int, int]] | None = None
    _expected: float = 0.0
    _began: float = 0.0
    _furthest: tuple[int, int] = field(default=(0, 0))

    def wait(self, position: Callable[[], tuple[int, float]]) -> None:
        """The job waits for a replica."""
        self.become(State.QUEUED)
        self._position = position

    def run(self, steps: Callable[[], tuple[int, int]], *, expected: float) -> None:
        """A replica works on it; the progress of an earlier try is kept until this try is further."""
        self.become(State.RUNNING)
        self._position = None
        self._steps, self._expected, self._began = steps, expected, time.monotonic()

    def stop(self) -> None:
        """The replica has ended its work."""
        self._steps = None

    def leave(self) -> None:
        """The engine is done with the job."""
        self._position = self._steps = None
        self.become(State.WRITING)

    def become(self, state: State) -> None:
        """The end is final: the engine notices a cancelled job later than those that watch it."""
        if not self.state.over:
            self.state = state

    def look(self) -> Look:
        if self._position is not None:
            position, seconds = self._position()
            return Look(self.state, position=position, seconds_left=seconds or None)
        if self.state is not State.RUNNING:
            return Look(self.state)
        done, total = self._further()
        passed = time.monotonic() - self._began
        if done:
            left: float | None = passed * (total - done) / done
        else:
            left = max(0.0, self._expected - passed) if self._expected else None
        return Look(self.state, done=done, total=total or None, seconds_left=left)

    def _further(self) -> tuple[int, int]:
        """The steps done of all. They never go back, although a run begins again after a fault or with another plan."""
        done, total = self._steps() if self._steps is not None else (0, 0)
        before, of = self._furthest
        if total and done * of >= before * total:
            self._furthest = done, total
        return self._furthest
