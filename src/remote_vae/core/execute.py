"""A model's encoder or decoder on a batch: by its stages in strips, or by the model's own code, whatever is planned."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final, TypeVar

import torch

from remote_vae.core.filters import arithmetic
from remote_vae.core.plan import WHOLE_BYTES, Plan, PlanName, ProblemSize, choose, is_light, predict
from remote_vae.core.stages import Program
from remote_vae.core.strip_threads import cores, one_core
from remote_vae.core.strips import StripPlan, run
from remote_vae.core.vae import VAE
from remote_vae.errors import Overloaded

T = TypeVar("T")

# Below this, strips would save nothing that anybody misses; the model's own code then gives its very own bits.
SMALL_BYTES: Final = 24 * 2**20


def _carry_on() -> None:
    pass


def _unbounded() -> int | None:
    return None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a job may run. `plan` None leaves it to the planner.

    `budget` says how many bytes there are, None for no bound; it is asked when a plan has to be chosen.
    `checkpoint` is called between strips; what it raises ends the job.
    """

    plan: str | None = None
    budget: Callable[[], int | None] = _unbounded
    checkpoint: Callable[[], None] = _carry_on


RUN_OPTIONS: Final = RunOptions()


def plans(program: Program | None, batch: torch.Tensor, options: RunOptions, *, around_bytes: int) -> tuple[Plan, ...]:
    """What to try, in order; `around_bytes` is what the whole batch's output takes.

    *Raises* TooLarge, InvalidValue.
    """
    if options.plan == PlanName.TILES:
        return (Plan(PlanName.TILES),)
    if program is None:
        return (Plan(PlanName.WHOLE),)
    load = ProblemSize(batch.shape[2], batch.shape[3], batch.shape[1], batch.element_size(), around_bytes)
    count = cores(batch.device)
    own = arithmetic(batch.dtype, batch.device) is batch.dtype  # else the model's own code would crawl
    if own and options.plan is None and predict(program, load, StripPlan(WHOLE_BYTES)) - around_bytes <= SMALL_BYTES:
        light = batch.device.type == "cpu" and is_light(program, load, count)
        return (Plan(PlanName.WHOLE, one_core=light),)
    return choose(
        program,
        load,
        device=batch.device.type,
        budget=options.budget(),
        wanted=options.plan,
        workers=count,
    )


def stream(
    program: Program,
    batch: torch.Tensor,
    plan: StripPlan,
    put: Callable[[int, int, torch.Tensor], None],
    options: RunOptions,
) -> None:
    """Image by image, each strip of the output to `put(index, row, strip)`."""
    for index in range(len(batch)):
        run(
            program,
            batch[index : index + 1],
            plan,
            lambda row, strip, index=index: put(index, row, strip),  # type: ignore[misc]
            checkpoint=options.checkpoint,
        )


def own_code(
    vae: VAE,
    call: Callable[[torch.Tensor], torch.Tensor],
    batch: torch.Tensor,
    plan: Plan,
) -> torch.Tensor:
    """What one of the model's own methods gives, as the plan says."""
    with vae.tiling() if plan.name is PlanName.TILES else nullcontext(), one_core() if plan.one_core else nullcontext():
        return call(batch)


def first_that_fits(found: tuple[Plan, ...], attempt: Callable[[Plan], T]) -> tuple[T, Plan]:
    """The first plan that the device has the memory for: someone else may have taken what was free when planning.

    *Raises* Overloaded when even the smallest does not fit now.
    """
    for plan in found:
        try:
            return attempt(plan), plan
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as exc:
            if not _is_out_of_memory(exc):
                raise
    raise Overloaded("the device ran out of memory with every exact plan; try again later, or send a smaller picture")


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
