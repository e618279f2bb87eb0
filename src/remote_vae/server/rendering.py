"""What is known of a request, and the reply that is made of its outcome."""

import time
from dataclasses import dataclass

from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine.job import DecodeJob, EncodeJob, Job, Outcome
from remote_vae.engine.pool import Served
from remote_vae.protocol import wire
from remote_vae.protocol.messages import Provenance, Reply
from remote_vae.protocol.options import DecodeOptions
from remote_vae.protocol.replies import Headers, render_reply
from remote_vae.server.payloads import write_payload
from remote_vae.server.record import Record
from remote_vae.values import Buffer, Format, Tensor


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of a request before its body; `until` is by time.monotonic."""

    model: Served
    info: VAEInfo
    head: wire.Head
    record: Record
    client: str | None
    until: float
    whole_only: bool  # no stream

    @property
    def seconds(self) -> float:
        """The seconds left before the deadline."""
        return max(0.0, self.until - time.monotonic())


def write_and_render(
    call: Call, job: Job, outcome: Outcome, asked: Format, options: DecodeOptions
) -> tuple[int, Headers, Buffer]:
    """Writes the picture if one was asked for, and gives what `render` gives."""
    started = time.perf_counter()
    payload = write_payload(outcome, asked, options)
    return render(call, job, outcome, asked, payload, seconds=time.perf_counter() - started)


def render(
    call: Call, job: Job, outcome: Outcome, asked: Format, payload: Tensor | bytes, *, seconds: float
) -> tuple[int, Headers, Buffer]:
    """The status, headers and body of the reply; it took these seconds after the job to write its payload."""
    stages = {**outcome.seconds, "media": seconds}
    call.record.plan, call.record.stages = outcome.plan, stages
    note = "; ".join(filter(None, (_reading(job), outcome.note, _left_out(job, asked))))
    provenance = Provenance(
        model=call.model.name,
        revision=call.info.revision,
        plan=outcome.plan,
        dtype=outcome.dtype_run,
        note=note,
        timings_ms={stage: seconds * 1000 for stage, seconds in stages.items()},
    )
    return render_reply(Reply(payload, asked, provenance))


def _reading(job: Job) -> str:
    """What reading the picture lost."""
    return job.note if isinstance(job, EncodeJob) else ""


def _left_out(job: Job, asked: Format) -> str:
    """A note for a client that asked for a picture of several, which shows only the first."""
    if not (asked.is_image and isinstance(job, DecodeJob)):
        return ""
    if job.fit.batch > 1:
        return f"the first of {job.fit.batch} pictures; a tensor has them all"
    return f"the first of {job.fit.frames} frames; a video has them all" if job.fit.frames > 1 else ""
