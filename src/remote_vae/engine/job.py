"""What a replica is asked and what it answers, in plain values that cross a process boundary."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from remote_vae.core.layout import MatchedLayout
from remote_vae.core.recipe import Constants

Buffer = bytes | bytearray | memoryview
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}


@dataclass(frozen=True, slots=True)
class Block:
    """A tensor's bytes: little-endian, C order."""

    dtype: str
    shape: tuple[int, ...]
    buffer: Buffer


@dataclass(frozen=True, slots=True)
class Work:
    """What both operations share: the scaling, by the model's own constants, the caller's or none, and the plan.

    `plan` None leaves the choice to the replica, which knows what memory is free.
    """

    own_scaling: bool
    given: Constants | None
    plan: str | None


@dataclass(frozen=True, slots=True)
class DecodeJob(Work):
    """`output` is one of core.decode.Output's values."""

    latent: Block
    fit: MatchedLayout
    output: str

    @property
    def pixels(self) -> int:
        return self.fit.pixels

    @property
    def reply_bytes(self) -> int:
        """The most that the pixels can take."""
        return self.fit.pixels * 3 * (1 if self.output in ("uint8", "first") else 4)


@dataclass(frozen=True, slots=True)
class EncodeJob(Work):
    """`take` is one of core.encode.Take's values; `latent_values` counts the values of the latent's mean."""

    image: Block
    take: str
    seed: int | None
    pixels: int
    latent_values: int

    @property
    def reply_bytes(self) -> int:
        return self.latent_values * 4 * (2 if self.take == "parameters" else 1)


Job = DecodeJob | EncodeJob


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back; `dtype_run` is the precision that the VAE ran in, `seconds` are stages by name.

    `planned_bytes` is what the plan should take at most, None if that is not predicted.
    """

    block: Block
    plan: str
    dtype_run: str
    note: str
    seconds: dict[str, float]
    planned_bytes: int | None = None


def block_of(job: Job) -> Block:
    """The tensor that a job brings."""
    return job.latent if isinstance(job, DecodeJob) else job.image


def op_of(job: Job) -> str:
    return "decode" if isinstance(job, DecodeJob) else "encode"


def to_message(job: Job) -> dict[str, Any]:
    """A job as JSON values, its bytes left out: they pass through shared memory."""
    block = block_of(job)
    body: dict[str, Any] = {
        "op": op_of(job),
        "dtype": block.dtype,
        "shape": block.shape,
        "own_scaling": job.own_scaling,
        "given": asdict(job.given) if job.given else None,
        "plan": job.plan,
    }
    if isinstance(job, DecodeJob):
        return {
            **body,
            "fit": {item.name: getattr(job.fit, item.name) for item in fields(job.fit)},
            "output": job.output,
        }
    return {**body, "take": job.take, "seed": job.seed}
