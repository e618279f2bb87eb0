"""Hands over the frames of a video while the rest of it is computed, so that no whole video is held."""

from collections.abc import Callable

import torch

from remote_vae.core.canvas import Canvas


class Relay:
    """Where a job's frames go. `give` takes blocks of finished frames in order, each of at most `most_bytes`.

    A block of one frame may have more. The last block is not given: it is the job's result. Once a block has been
    given the job has `begun`: if it runs again, because memory ran out, it gives the frames that are left. A job that
    `restarts` gives all frames once more.
    """

    def __init__(self, give: Callable[[torch.Tensor], None], most_bytes: int, *, restarts: bool = False) -> None:
        self._give, self.most_bytes, self._restarts = give, most_bytes, restarts
        self.begun = False
        self.given = 0  # frames
        self.plan = ""  # that runs

    def give(self, frames: torch.Tensor) -> None:
        self.begun = not self._restarts
        self._give(frames)
        self.given += len(frames)

    def frames(self, one: torch.Tensor) -> int:
        """How many frames of this size make a block."""
        return max(1, self.most_bytes // one.nbytes)


class RelayCanvas(Canvas):
    """Keeps a frame only until it and all frames before it are finished. `output` is the last block.

    Frames that were given by a run before are dropped.
    """

    def __init__(
        self,
        pictures: int,
        height: int,
        finish: Callable[[torch.Tensor], torch.Tensor],
        *,
        row_axis: int,
        relay: Relay,
    ) -> None:
        super().__init__(pictures, height, finish, row_axis=row_axis)
        self._relay = relay
        self._again = relay.given = relay.given if relay.begun else 0  # frames that a run before has given
        self._next = 0  # the first frame that has not been finished
        self._held: dict[int, torch.Tensor] = {}
        self._missing: dict[int, int] = {}  # rows of the frames that are held

    def _place(self, first: int, row: int, done: torch.Tensor) -> None:
        rows = done.shape[self._row_axis]
        for number, frame in enumerate(done, first):
            if rows == self._height:
                self._held[number], self._missing[number] = frame, 0
                continue
            if number not in self._held:
                shape = [*frame.shape]
                shape[self._row_axis - 1] = self._height
                self._held[number], self._missing[number] = frame.new_empty(shape), self._height
            self._held[number].narrow(self._row_axis - 1, row, rows).copy_(frame)
            self._missing[number] -= rows
        self._hand_over()

    def _hand_over(self) -> None:
        """Gives the frames that are finished now."""
        while self._next < self._again and self._missing.get(self._next) == 0:
            del self._held[self._next], self._missing[self._next]
            self._next += 1
        while self._missing.get(self._next) == 0:
            block: list[torch.Tensor] = []
            most = self._relay.frames(self._held[self._next])
            while self._missing.get(self._next) == 0 and len(block) < most:
                block.append(self._held.pop(self._next))
                del self._missing[self._next]
                self._next += 1
            frames = torch.stack(block)
            if self._next == self._pictures:
                self._output = frames
            else:
                self._relay.give(frames)
