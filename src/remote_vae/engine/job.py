"""Jobs for a replica and their outcomes, as plain values that cross a process boundary."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from remote_vae.core.layout import MatchedLayout
from remote_vae.values import RGB, Output, Posterior, Scaling, Tensor

BLOCK_BYTES: Final = 16 << 20  # of the frames that are handed over together
WAITING_BYTES: Final = 32 << 20  # of the frames that wait for a reader, before the job waits too


@dataclass(frozen=True, slots=True)
class Work:
    """The fields of both operations. If `plan` is None, the replica chooses one by its free memory."""

    scaling: Scaling
    plan: str | None

    @property
    def block_bytes(self) -> int:
        """The most bytes that are handed over at a time before the job is done; 0 if it gives all at its end."""
        return 0

    @property
    def waiting_bytes(self) -> int:
        """The bytes of handed over frames that wait for their reader, before the job waits too."""
        return WAITING_BYTES


@dataclass(frozen=True, slots=True)
class DecodeJob(Work):
    """A latent to be decoded, how its axes were matched, what the decoder takes besides, and the channels of pixels.

    If it is `streamed`, the frames of its video are handed over as they are finished. If it also `restarts`, it can run
    again from the first frame, and never waits for its reader, who wants all frames before anything is sent.
    """

    latent: Tensor
    fit: MatchedLayout
    output: Output
    arguments: Mapping[str, object] = field(default_factory=dict)
    pixel_channels: int = RGB
    streamed: bool = False
    restarts: bool = False

    @property
    def pixels(self) -> int:
        return self.fit.pixels

    @property
    def block_bytes(self) -> int:
        one_frame = self._all_bytes // self.fit.frames
        return min(self._all_bytes, max(one_frame, BLOCK_BYTES)) if self.streamed else 0

    @property
    def reply_bytes(self) -> int:
        """The most bytes of the pixels that are held at one time."""
        held = self.waiting_bytes + self.block_bytes if self.streamed else self._all_bytes
        return min(self._all_bytes, held)

    @property
    def waiting_bytes(self) -> int:
        return self._all_bytes if self.restarts else WAITING_BYTES

    @property
    def _all_bytes(self) -> int:
        return self.fit.pixels * self.pixel_channels * (1 if self.output in (Output.UINT8, Output.FIRST) else 4)


@dataclass(frozen=True, slots=True)
class EncodeJob(Work):
    """A picture or video to be encoded; `latent_values` counts the values of the latent's mean.

    So many `empty` frames, which are grey, follow a picture that is the first frame of a video.
    `note` is what the caller should know of how the picture was read.
    """

    image: Tensor
    posterior: Posterior
    seed: int | None
    pixels: int
    latent_values: int
    note: str = ""
    empty: int = 0

    @property
    def reply_bytes(self) -> int:
        return self.latent_values * 4 * (2 if self.posterior is Posterior.PARAMETERS else 1)


Job = DecodeJob | EncodeJob


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a job. `dtype_run` is the precision that the VAE ran in; `seconds` has the time of each stage.

    `planned_bytes` is the most memory that the plan should take, None if that is not predicted. `first` counts the
    frames that were handed over before.
    """

    tensor: Tensor
    plan: str
    dtype_run: str
    note: str
    seconds: dict[str, float]
    planned_bytes: int | None = None
    first: int = 0


def tensor_of(job: Job) -> Tensor:
    """The tensor that a job brings."""
    return job.latent if isinstance(job, DecodeJob) else job.image


def op_of(job: Job) -> str:
    return "decode" if isinstance(job, DecodeJob) else "encode"


def to_message(job: Job) -> dict[str, Any]:
    """A job as JSON values, its bytes left out: they pass through shared memory."""
    tensor = tensor_of(job)
    body: dict[str, Any] = {
        "op": op_of(job),
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "scaling": asdict(job.scaling),
        "plan": job.plan,
    }
    if isinstance(job, DecodeJob):
        return {
            **body,
            "fit": {item.name: getattr(job.fit, item.name) for item in fields(job.fit)},
            "output": job.output,
            "arguments": job.arguments,
            "block_bytes": job.block_bytes,
            "restarts": job.restarts,
        }
    return {**body, "posterior": job.posterior, "seed": job.seed, "empty": job.empty}
