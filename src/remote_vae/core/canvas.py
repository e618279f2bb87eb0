"""Puts the output of a job together from the blocks that an executor finishes."""

from collections.abc import Callable

import torch


class Canvas:
    """The finished output. Each block is finished by itself, so the floats of a picture need not exist as a whole.

    `finish` makes of a block [N,C,rows,W] what the job wants. `row_axis` is the axis of rows in the result.
    *Units*: `pictures` counts pictures or frames; `height` is in rows.
    """

    def __init__(
        self, pictures: int, height: int, finish: Callable[[torch.Tensor], torch.Tensor], *, row_axis: int
    ) -> None:
        self._pictures, self._height, self._finish, self._row_axis = pictures, height, finish, row_axis
        self._output: torch.Tensor | None = None
        self._done = 0  # rows of all pictures

    @property
    def rows(self) -> int:
        """The rows of all pictures or frames."""
        return self._pictures * self._height

    @property
    def complete(self) -> bool:
        return self._done == self.rows

    @property
    def output(self) -> torch.Tensor:
        if self._output is None:
            raise RuntimeError("the executor gave no block")
        return self._output

    def put(self, first: int, row: int, block: torch.Tensor) -> None:
        """Takes a block that begins at this picture or frame and at this row."""
        if first >= self._pictures:
            return
        done = self._finish(block[: self._pictures - first])
        self._done += len(done) * block.shape[2]
        self._place(first, row, done)

    def _place(self, first: int, row: int, done: torch.Tensor) -> None:
        rows = done.shape[self._row_axis]
        if len(done) == self._pictures and rows == self._height:
            self._output = done  # one block is all there is, so it is not copied
            return
        if self._output is None:
            shape = [self._pictures, *done.shape[1:]]
            shape[self._row_axis] = self._height
            self._output = done.new_empty(shape)
        self._output[first : first + len(done)].narrow(self._row_axis, row, rows).copy_(done)
