"""The executors of local networks: `frames` takes a few frames at a time, `rows` a few rows of all frames."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, zip_longest
from math import prod
from typing import ClassVar, Final

import torch

from remote_vae.core.absent import COMPILER, in_place_of
from remote_vae.core.block import Block, Moment, Run
from remote_vae.core.executor import FRAMES, NO_ARGUMENTS, Arguments, Sink
from remote_vae.core.few_blocks import COUNTS, COUNTS_OF_NORMED, extended, first_rows, sides_of_part, widest
from remote_vae.core.kept import Kept
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.local import Attention, Local, Stage, after, parts_of
from remote_vae.core.local_frames import Size
from remote_vae.core.rows import kernels_for
from remote_vae.core.stream import Chain
from remote_vae.core.strip_threads import cores
from remote_vae.core.time_attention import TimeAttention, attend_in_time

ROWS: Final = "rows"
BLOCK_BYTES: Final = {"cpu": 16 * 2**20}
LARGE_BLOCK_BYTES: Final = 64 * 2**20
SMALLER: Final = 8  # of the blocks for a device with little free memory
COPIES: Final = 4  # of the rows that attention along time reads: they, queries, keys and values
TALL: Final = 16  # rows of an input that take many blocks, if it has
MANY: Final = 2**16  # positions
KEPT_CELLS: Final = 4  # sides of the part that tells what is kept
STEADY: Final = 4  # runs of frames after which the memory that is held no longer grows

Span = tuple[int, int]


class Maps:
    """A clip, or a feature map of all its frames, that is `stored` as one tensor or several. *Shapes*: [f,C,H,W]."""

    def __init__(self, parts: list[torch.Tensor], *, stored: bool = False) -> None:
        self._parts, self._dropped, self.stored = parts, 0, stored

    def __len__(self) -> int:
        return self._dropped + sum(map(len, self._parts))

    @property
    def spans(self) -> list[Span]:
        """The frames of each tensor."""
        stops = [*accumulate(map(len, self._parts))]
        return [*zip((0, *stops), stops, strict=False)]

    @property
    def item_bytes(self) -> int:
        return self._parts[0].element_size()

    def frames(self, span: Span) -> torch.Tensor:
        """Some frames of a clip that is stored as one tensor."""
        return self._parts[0][slice(*span)]

    def like(self, size: Size) -> Block:
        """A block that is a whole map of this size, without values."""
        return Block(self._parts[0].new_empty((size.frames, size.channels, size.height, size.width)), True)

    def size(self, frames: int) -> Size:
        return Size(frames, *self._parts[0].shape[1:])

    def drop(self, stop: int) -> None:
        """Frees the tensors whose frames come before this one."""
        while self._parts and self._dropped + len(self._parts[0]) <= stop:
            self._dropped += len(self._parts.pop(0))

    def attend(self, attention: TimeAttention, run: Run) -> None:
        """Changes all frames in place."""
        size = self.size(len(self))
        rows = run.rows(size, COPIES * size.channels, size.frames)
        attend_in_time(self._parts, attention, kernels_for(run.device), rows, run.checkpoint)

    def blocks(self, span: Span, most: int) -> Iterator[Block]:
        """The rows of some frames, channels last."""
        parts, first = [], self._dropped
        for part in self._parts:
            parts.append(part[max(0, span[0] - first) : max(0, span[1] - first)])
            first += len(part)
        parts = [part for part in parts if len(part)]
        height = parts[0].shape[2]
        for start in range(0, height, most):
            rows = [part[:, :, start : start + most] for part in parts]
            block = rows[0] if len(rows) == 1 else torch.cat(rows)
            if block.stride(1) != 1:
                block = block.contiguous(memory_format=torch.channels_last)
            yield Block(block, start + most >= height)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Runs a local network: a few frames at a time, or, with `together`, a few rows of all frames.

    `meta` gives the same network on the meta device. `peaks` keeps predictions. A `lean` one holds no kernels but those
    of the model.
    """

    name: str
    together: bool
    program: Local = field(repr=False, compare=False)
    meta: Callable[[], Local] = field(repr=False, compare=False)
    device: torch.device
    block_bytes: int
    peaks: Kept[int] = field(repr=False, compare=False)
    lean: bool = False
    exact: ClassVar[bool] = True

    def suits(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        return True

    def peak_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, output: int) -> int:
        """Found by a run on meta tensors; the input, which that does not count, is held beside it."""
        key = self.together, self.block_bytes, self.lean, dtype, tuple(shape[1:])
        found = self.peaks.find(key, lambda: self._predict((1, *shape[1:]), dtype))
        return found + prod(shape) * dtype.itemsize + output

    def _predict(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        large = shape[-2] > TALL and prod(shape[2:]) > MANY
        if large and self.together and self.program.only_frames:  # maps that wait grow evenly with the height
            less, more = (self._rehearsed((*shape[:-2], height, shape[-1]), dtype) for height in (TALL // 2, TALL))
            return more + (shape[-2] - TALL) * (more - less) // (TALL // 2)
        group = self.program.group
        steady = 1 + (STEADY - 1) * group
        if self.together or len(shape) < 5 or shape[2] <= steady:
            return self._sized(shape, dtype)
        later = (shape[2] - steady) // group  # groups of frames that take what those before them take
        steady = shape[2] - later * group
        peak = self._sized((*shape[:2], steady, *shape[3:]), dtype)
        if not self.program.remembers:
            return peak
        if self.program.between:  # maps wait as well, so that only the whole tells
            return peak + later * (self._sized((*shape[:2], steady + group, *shape[3:]), dtype) - peak)
        return peak + later * self._kept_by_attention(shape, steady, dtype)

    def _kept_by_attention(self, shape: tuple[int, ...], steady: int, dtype: torch.dtype) -> int:
        """Bytes for each group of frames. They grow evenly with the area, so a small part of the frames tells."""
        stages, size = self.program.stages, Size(1, shape[1], *shape[-2:])
        cell = max(1, size.height // after(stages, size).height)
        part = tuple(min(side, KEPT_CELLS * cell) for side in shape[-2:])
        counts = steady, steady + self.program.group
        less, more = (self._rehearsed((*shape[:2], count, *part), dtype) for count in counts)
        return (more - less) * prod(shape[-2:]) // prod(part)

    def _sized(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """For a large clip, what small ones tell, unless its rows flow through."""
        stages, normed = self.program.stages, self.program.only_frames
        spans = self.program.runs(shape[2] if len(shape) == 5 else 1)
        if self.together or (len(spans) == 1 and not normed):
            return self._rehearsed(shape, dtype)
        counts, sides = COUNTS_OF_NORMED if normed else COUNTS, shape[-2:]
        size = Size(max(stop - start for start, stop in spans), shape[1], *sides)
        blocks = widest(stages, size) * dtype.itemsize / self.block_bytes
        if blocks <= 2 * max(counts):
            return self._rehearsed(shape, dtype)
        step = max(1, size.height // after(stages, size).height)
        parts = [sides_of_part(sides, count / blocks, step) for count in counts]
        few, more = (self._rehearsed((*shape[:-2], *part), dtype) for part in parts)
        return extended(few, more, (prod(parts[0]), prod(parts[1])), prod(sides))

    def _rehearsed(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        described, batch = self.meta(), torch.empty(shape, dtype=dtype, device="meta")
        with in_place_of(COMPILER), torch.inference_mode(), LiveBytes() as live:
            item, program = described.given(batch, NO_ARGUMENTS)
            self._run(program, item, lambda first, row, block: None, lambda: None, predicts=True)
        return live.peak

    def run(
        self, z: torch.Tensor, sink: Sink, checkpoint: Callable[[], None], arguments: Arguments = NO_ARGUMENTS
    ) -> None:
        z, program = self.program.given(z, arguments)
        self._run(program, z, sink, checkpoint)

    def _run(
        self,
        program: Local,
        z: torch.Tensor,
        sink: Sink,
        checkpoint: Callable[[], None],
        *,
        predicts: bool = False,
    ) -> None:
        """Gives the frames of one clip or picture after the other to the sink."""
        done = 0
        for item in torch.split(z, 1):
            for clip in program.clips(item[0].transpose(0, 1) if item.ndim == 5 else item):

                def give(first: int, row: int, block: torch.Tensor, done: int = done) -> None:
                    sink(done + first, row, block)

                done += self._run_clip(program, Maps(clip), give, checkpoint, predicts=predicts)

    def _run_clip(
        self, program: Local, maps: Maps, sink: Sink, checkpoint: Callable[[], None], *, predicts: bool
    ) -> int:
        """Returns how many frames there are."""
        one_frame = len(maps) == 1 and not program.grows
        item_bytes, workers = maps.item_bytes, cores(self.device)
        run = Run(self.device, item_bytes, self.block_bytes, workers, one_frame, self.lean, predicts, checkpoint)
        sections = program.sections if self.together or program.between else (program.stages,)
        for stages, attention in zip_longest(sections[:-1], program.between):
            maps = Maps(list(_stored(self._section(stages, maps, run, stored=True))), stored=True)
            if attention is not None:
                maps.attend(attention, run)
        return _given(self._section(sections[-1], maps, run), sink)

    def _section(
        self, stages: tuple[Stage, ...], maps: Maps, run: Run, *, stored: bool = False
    ) -> Iterator[Iterator[Block]]:
        """The blocks of each run of frames; for a prediction only until the stages hold what they will hold."""
        count, attends = len(maps), any(isinstance(stage, Attention) for stage in parts_of(stages))
        spans, longest = ([(0, count)], count) if self.together and not attends else self._runs(maps)
        size = maps.size(longest)
        chain = Chain(stages, size, run)
        most = run.rows(size, size.channels, size.frames)
        made = after(stages, size)
        for index, span in enumerate(spans):
            blocks = chain.through(maps.blocks(span, most), Moment(span[1] == count, maps.frames(span), run.predicts))
            if run.predicts and len(spans) == 1:
                blocks = first_rows(blocks, max(1, most * made.height // size.height), made.height if stored else 0)
            elif run.predicts and index >= STEADY and stored and not self.program.remembers:
                later = after(stages, replace(size, frames=span[1] - span[0]))
                blocks = iter([maps.like(later)])
            yield blocks
            maps.drop(span[1])

    def _runs(self, maps: Maps) -> tuple[list[Span], int]:
        """The frames that run together, as those do that were stored together, and how many they are at most."""
        if maps.stored and len(maps.spans) > 1:
            return maps.spans, max(stop - start for start, stop in maps.spans)
        spans = self.program.runs(len(maps))
        return spans, max(spans[0][1], self.program.group)


def _stored(section: Iterator[Iterator[Block]]) -> Iterator[torch.Tensor]:
    for blocks in section:
        parts = [block.rows for block in blocks]
        if parts:
            found = parts.pop() if len(parts) == 1 else torch.cat(parts, 2)
            parts.clear()
            yield found


def _given(section: Iterator[Iterator[Block]], sink: Sink) -> int:
    """Gives the blocks of a section to the sink; returns how many frames there are."""
    done = 0
    for blocks in section:
        row, frames = 0, 0
        for block in blocks:
            sink(done, row, block.rows)
            row, frames = row + block.rows.shape[2], len(block.rows)
            del block
        done += frames
    return done


def block_executors(
    program: Local, meta: Callable[[], Local], device: torch.device, peaks: Kept[int]
) -> tuple[Blocks, ...]:
    """Few frames at a time come first, because larger blocks are faster; rows of all frames need the least memory.

    If a norm waits for all rows, the maps before it take the memory, so smaller blocks would save nothing.
    """
    most = BLOCK_BYTES.get(device.type, LARGE_BLOCK_BYTES)
    less = most if program.only_frames else most // SMALLER
    names = (ROWS,) if program.only_rows else (FRAMES,) if program.only_frames else (FRAMES, ROWS)
    return tuple(
        Blocks(name, name == ROWS, program, meta, device, block_bytes, peaks, lean)
        for name in names
        for block_bytes, lean in ((most, False), (less, True))
    )
