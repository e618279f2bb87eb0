"""Executors: the ways in which an encoder or decoder can run; and the planner, which takes the first one that fits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import Final, Protocol

import torch

from remote_vae.core.canvas import Canvas
from remote_vae.core.progress import Progress
from remote_vae.core.relay import Relay
from remote_vae.errors import InvalidValue, Overloaded, TooLarge

WHOLE: Final = "whole"  # every layer at once
STRIPS: Final = "strips"  # two maps of the widest layer
RECOMPUTE: Final = "strips-recompute"  # one such map, for about a quarter more arithmetic
PIECES: Final = "pieces"  # one after the other of the pieces into which the model itself divides its input
FRAMES: Final = "frames"  # a few frames at a time
TILES: Final = "tiles"  # overlapping tiles that are blended: approximate

# What oneDNN says; CUDA itself, Triton and MPS; cuBLAS and cuDNN.
OUT_OF_MEMORY: Final = ("can't allocate memory", "out of memory", "_ALLOC_FAILED", "_ALLOCATION_FAILED")
RESERVATIONS: Final = 5  # attempts to reserve memory before a job gives way to the others

Sink = Callable[[int, int, torch.Tensor], None]
"""Takes a finished block: the number of its first picture or frame, its first row, and [N,C,rows,W]."""

Arguments = Mapping[str, object]
"""What a model takes besides its input, by the names of the request's options."""
NO_ARGUMENTS: Final[Arguments] = MappingProxyType({})


class Executor(Protocol):
    """One way to run an encoder or decoder. Caches belong to a run, never to the executor or the module."""

    @property
    def name(self) -> str:
        """What a request's `plan` calls it."""
        ...

    @property
    def exact(self) -> bool:
        """The output is that of the undivided model, apart from rounding."""
        ...

    def suits(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        """Whether the planner may choose this way for such an input if the request names no plan."""
        ...

    def peak_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, output: int) -> int | None:
        """The most bytes that are alive at one time, weights not counted; None if that cannot be predicted.

        `output` is the number of bytes that the finished output takes.
        """
        ...

    def run(
        self, z: torch.Tensor, sink: Sink, checkpoint: Callable[[], None], arguments: Arguments = NO_ARGUMENTS
    ) -> None:
        """Gives every finished block to `sink`. An exception from `checkpoint`, which is called often, ends the run."""
        ...


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a job may run.

    `plan` names the executor; None leaves the choice to the planner. `budget` returns the bytes that are free, or None
    for no limit. `checkpoint` is called between strips and between layers; an exception from it ends the job. `reserve`
    gets the predicted peak of the choice; if it returns False, the memory is taken by now, and a new choice is made.
    `arguments` are for the model itself. `progress` is told of finished rows. With a `relay` the frames of a video are
    handed over as they are finished.
    """

    plan: str | None = None
    budget: Callable[[], int | None] = lambda: None
    checkpoint: Callable[[], None] = lambda: None
    reserve: Callable[[int | None], bool] = lambda peak: True
    arguments: Arguments = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    relay: Relay | None = None

    @property
    def begun(self) -> bool:
        """Frames have been handed over, so the others must come in the same precision."""
        return self.relay is not None and self.relay.begun


RUN_OPTIONS: Final = RunOptions()


@dataclass(frozen=True, slots=True)
class Choice:
    """An executor and its predicted peak, if there is one."""

    executor: Executor
    peak_bytes: int | None

    def fits(self, budget: int | None) -> bool:
        return budget is None or self.peak_bytes is None or self.peak_bytes <= budget


def choose(
    executors: Sequence[Executor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    output: int = 0,
    relayed: int | None = None,
    budget: int | None = None,
    wanted: str | None = None,
) -> Iterator[Choice]:
    """The first executor that fits the budget, then the smaller ones, in case the device has less memory than it said.

    Executors come in the order of their speed. A wanted plan has no fall-backs, which are predicted when they are asked
    for. `relayed` is how much of the output is held at a time if finished frames are handed over, by the executor that
    finishes a few frames at a time.
    *Raises* TooLarge with the numbers if nothing fits, InvalidValue for a plan that is not offered.
    """
    if wanted is None:
        offered = [executor for executor in executors if executor.exact and executor.suits(shape, dtype)]
    else:
        offered = [executor for executor in executors if executor.name == wanted]
    if not offered:
        names = list(dict.fromkeys(executor.name for executor in executors))
        raise InvalidValue(f"plan={wanted!r} is not one of {', '.join(names)}", name="plan", allowed=names)
    if budget is None and len(offered) == 1:
        return iter((Choice(offered[0], None),))  # nothing depends on a prediction

    def held(executor: Executor) -> int:
        return output if relayed is None or executor.name != FRAMES else relayed

    choices = (Choice(executor, executor.peak_bytes(shape, dtype, held(executor))) for executor in offered)
    first = _first_that_fits(choices, shape, budget, wanted)
    return chain((first,), () if wanted is not None else _smaller(first, choices))


def _smaller(first: Choice, others: Iterator[Choice]) -> Iterator[Choice]:
    """Those that need less memory than the first one, largest first."""
    if first.peak_bytes is not None:
        found = [choice for choice in others if choice.peak_bytes is not None and choice.peak_bytes < first.peak_bytes]
        yield from sorted(found, key=lambda choice: -(choice.peak_bytes or 0))


def _first_that_fits(
    choices: Iterator[Choice], shape: tuple[int, ...], budget: int | None, wanted: str | None
) -> Choice:
    tried: list[Choice] = []
    for choice in choices:
        if choice.fits(budget):
            return choice
        tried.append(choice)
    least = min(tried, key=lambda choice: choice.peak_bytes or 0)
    raise TooLarge(
        f"this needs {_mega(least.peak_bytes)} MB of memory with plan {least.executor.name}; "
        f"{_mega(budget)} MB are free; send {_less_than(shape)}"
        + ("" if wanted is None else ", or leave the plan to the server"),
        peak_bytes=least.peak_bytes,
        budget_bytes=budget,
        plan=least.executor.name,
    )


def _less_than(shape: tuple[int, ...]) -> str:
    """What takes less memory than an input of this shape."""
    return "a smaller or shorter video" if len(shape) == 5 and shape[2] > 1 else "a smaller picture"


def _mega(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.0f}"


def execute(
    executors: Sequence[Executor],
    z: torch.Tensor,
    options: RunOptions,
    canvas: Callable[[], Canvas],
    *,
    output: int,
    relayed: int | None = None,
) -> tuple[torch.Tensor, Choice]:
    """The output as the canvas has put it together, and the executor that ran; `output` is the bytes of the output.

    `relayed` is as for `choose`. If the device runs out of memory, the next smaller executor is tried; frames that were
    handed over are not given again. *Raises* Overloaded if the smallest one does not fit now, TooLarge, InvalidValue.
    """
    for choice in _reserved(executors, z, options, output, relayed):
        try:
            found, progress = canvas(), options.progress
            if options.relay is not None:
                options.relay.plan = choice.executor.name
            progress.begin((choice.executor.name, tuple(z.shape), z.dtype, found.rows), found.rows)
            with suppress(_Complete):
                choice.executor.run(z, _telling(found, progress), options.checkpoint, options.arguments)
            progress.end()
            return found.output, choice
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as exc:
            if not is_out_of_memory(exc):
                raise
    less = _less_than(tuple(z.shape))
    raise Overloaded(f"the device ran out of memory with every exact plan; try again later, or send {less}")


class _Complete(Exception):
    """Nothing more is wanted: the first frame of a video is there."""


def _telling(canvas: Canvas, progress: Progress) -> Sink:
    def put(first: int, row: int, block: torch.Tensor) -> None:
        if canvas.complete:
            raise _Complete
        canvas.put(first, row, block)
        progress.finish(len(block) * block.shape[2])

    return put


def _reserved(
    executors: Sequence[Executor], z: torch.Tensor, options: RunOptions, output: int, relayed: int | None
) -> Iterator[Choice]:
    """The choices, once the memory for the first one is reserved."""
    for _ in range(RESERVATIONS):
        budget, wanted, shape = options.budget(), options.plan, tuple(z.shape)
        choices = choose(executors, shape, z.dtype, output=output, relayed=relayed, budget=budget, wanted=wanted)
        first = next(choices)
        if options.reserve(first.peak_bytes):
            return chain((first,), choices)
    raise Overloaded("other work takes the memory of the device; try again later")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has no memory left. Only PyTorch's own allocator for CUDA has a class for that."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in OUT_OF_MEMORY)
