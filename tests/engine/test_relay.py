"""Frames that leave their job before it is done."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from remote_vae.core.relay import Relay, RelayCanvas
from remote_vae.engine import job as jobs
from remote_vae.engine.engine import Engine
from remote_vae.engine.job import DecodeJob, Outcome
from remote_vae.engine.pool import Rules
from remote_vae.engine.relay import Reel
from remote_vae.errors import DeadlineExceeded, InternalError, RemoteVAEError, ReplicaFailed
from remote_vae.values import Tensor

from .running import job as picture
from .running import pids, running, served, until

SIDE = 1024  # a raw frame of 12 MiB, so that one makes a block
LARGE = 16


@asynccontextmanager
async def films(misbehaviour: str = "", **options: Any) -> AsyncIterator[Engine]:
    models = [served("copy", misbehaviour, film=True)]
    async with running(models=models, **options) as engine:
        yield engine


def film(frames: int, *, side: int = SIDE, bad: int | None = None, output: str = "raw") -> DecodeJob:
    """A clip whose frames have their number as their value; at frame `bad` the VAE may misbehave."""
    values = np.empty((1, 3, frames, side, side), np.float32)
    values[:] = np.arange(frames).reshape(-1, 1, 1) / LARGE
    if bad is not None:
        values[0, 0, bad, 0, 0] = 7
    like = picture(output=output)
    names = {"b": 1, "c": 3, "f": frames, "h": side, "w": side}
    fit = replace(like.fit, pattern="b c f h w -> b c f h w", sizes=names, frames=frames, height=side, width=side)
    return replace(like, latent=Tensor("float32", values.shape, values.tobytes()), fit=fit, streamed=True)


def frames_of(block: Outcome) -> NDArray[Any]:
    tensor = block.tensor
    return np.frombuffer(tensor.buffer, tensor.dtype).reshape(tensor.shape)


async def read(engine: Engine, sent: DecodeJob, blocks: list[NDArray[Any]], **who: Any) -> None:
    """Puts the blocks of a job into the list as they come."""
    permit = engine.admit(engine.find(None), sent, **who)
    try:
        async with aclosing(engine.stream(permit)) as stream:
            async for block in stream:
                blocks.append(frames_of(block))
    finally:
        permit.release()


@pytest.mark.parametrize("misbehaviour", ["", "at once"])
@pytest.mark.parametrize("output", ["raw", "unit", "uint8"])
async def test_all_frames_come_in_order(misbehaviour: str, output: str) -> None:
    """The blocks together are the frames of a job that is not streamed, whether the model gives them one by one."""
    sent, blocks = film(6, output=output), list[NDArray[Any]]()
    async with films(misbehaviour) as engine:
        await read(engine, sent, blocks)
        permit = engine.admit(engine.find(None), replace(sent, streamed=False))
        whole = frames_of(await engine.run(permit))
    whole = whole[0].transpose(1, 0, 2, 3) if output == "raw" else whole
    assert np.array_equal(np.concatenate(blocks), whole)
    assert len(blocks) > 1
    assert all(block.nbytes <= jobs.BLOCK_BYTES for block in blocks)


async def test_the_first_frames_do_not_wait_for_the_last() -> None:
    """A block can be read while its job is at work."""
    async with films("hang") as engine:
        permit = engine.admit(engine.find(None), film(4, bad=3))
        async with aclosing(engine.stream(permit)) as stream:
            assert frames_of(await anext(stream)).shape == (1, 3, SIDE, SIDE)
            assert not engine.idle
        permit.release()


async def test_a_reader_that_stops() -> None:
    """A job whose reader stops is held at a few blocks, and goes on if the reader does, before the deadline."""
    async with films() as engine:
        job = film(12)
        permit = engine.admit(engine.find(None), job)
        async with aclosing(engine.stream(permit)) as stream:
            first = frames_of(await anext(stream))
            steps = engine._pools["copy"].replicas[0].signals
            await until(lambda: steps.steps[0] > 0)
            seen = -1
            while seen != steps.steps[0]:
                seen = steps.steps[0]
                await asyncio.sleep(0.5)
            assert seen < 10 * SIDE  # rows, of 12 frames
            beats = steps.beats
            await until(lambda: steps.beats > beats)  # so the process is not taken for one that hangs
            blocks = [first, *[frames_of(block) async for block in stream]]
        permit.release()
        assert np.concatenate(blocks)[:, 0, 0, 0].tolist() == [number / LARGE for number in range(12)]


async def test_a_reader_that_never_comes_back() -> None:
    """The deadline ends a job whose reader has stopped, and the next job runs in the same process."""
    async with films() as engine:
        before = pids(engine)
        permit = engine.admit(engine.find(None), film(12), seconds=3.0)
        async with aclosing(engine.stream(permit)) as stream:
            await anext(stream)
            await until(lambda: permit._working is False)
            with pytest.raises(DeadlineExceeded):
                [block async for block in stream]
        permit.release()
        blocks: list[NDArray[Any]] = []
        await read(engine, film(2), blocks)
        assert len(blocks) == 2
        assert pids(engine) == before


async def test_a_reader_that_goes_away() -> None:
    """A job whose reader has gone is cancelled, and so frees its replica and its permit."""
    async with films() as engine:
        for _ in range(3):
            permit = engine.admit(engine.find(None), film(12))
            async with aclosing(engine.stream(permit)) as stream:
                await anext(stream)
            permit.release()
        blocks: list[NDArray[Any]] = []
        await read(engine, film(2), blocks)
        assert engine.idle


@pytest.mark.parametrize(
    ("misbehaviour", "error"),
    [("die", ReplicaFailed), ("raise", InternalError), ("run out of memory", RemoteVAEError), ("hang", ReplicaFailed)],
)
async def test_a_fault_in_the_middle(misbehaviour: str, error: type[RemoteVAEError]) -> None:
    """A fault ends the stream with its error: frames that were handed over are not computed a second time."""
    async with films(misbehaviour, rules=Rules(hang_seconds=2.0)) as engine:
        blocks: list[NDArray[Any]] = []
        with pytest.raises(error):
            await read(engine, film(6, bad=4), blocks)
        assert len(blocks) == 4
        assert [block[0, 0, 0, 0] * LARGE for block in blocks] == [0, 1, 2, 3]
        await until(lambda: engine.ready)
        await read(engine, film(2), blocks)
        assert len(blocks) == 6


async def test_frames_that_come_again() -> None:
    """A job that restarts is tried once more after its first frame too, and each block says which frames it has."""
    async with films("die") as engine:
        permit = engine.admit(engine.find(None), replace(film(6, bad=4), restarts=True))
        async with aclosing(engine.stream(permit)) as stream:
            came = [await anext(stream) for _ in range(8)]
            with pytest.raises(RemoteVAEError, match="two processes have died"):
                await anext(stream)
        permit.release()
    found = [(block.first, frames_of(block)[0, 0, 0, 0] * LARGE) for block in came]
    assert found == [(0, 0), (1, 1), (2, 2), (3, 3)] * 2


async def test_a_job_that_restarts_does_not_wait() -> None:
    """Its replica is free for others when the last frame is there, however slowly the frames are written."""
    async with films() as engine:
        job = replace(film(12), restarts=True)
        assert job.reply_bytes == replace(job, streamed=False).reply_bytes
        permit = engine.admit(engine.find(None), job)
        async with aclosing(engine.stream(permit)) as stream:
            first = await anext(stream)
            await until(lambda: permit._working is False)
            blocks = [first, *[block async for block in stream]]
        permit.release()
    assert [block.first for block in blocks] == list(range(12))


async def test_a_fault_before_the_first_frame() -> None:
    """A job over which a process has died is tried once more as long as no frame was handed over."""
    async with films("die") as engine:
        with pytest.raises(RemoteVAEError, match="two processes have died"):
            await read(engine, film(2, bad=0), [])


async def test_a_frame_that_is_not_finite() -> None:
    """What would be redone in float32 cannot be, once frames were handed over."""
    async with films("give infinity") as engine:
        blocks: list[NDArray[Any]] = []
        with pytest.raises(RemoteVAEError, match="NaN or infinity"):
            await read(engine, film(6, bad=4), blocks)
        assert len(blocks) == 4


async def test_what_is_held() -> None:
    """A streamed job counts for what is held of it at one time, in memory and in shared memory."""
    job = film(12)
    whole = replace(job, streamed=False)
    assert job.reply_bytes < whole.reply_bytes
    assert film(1000, side=8).block_bytes == film(1000, side=8).reply_bytes == 1000 * 8 * 8 * 3 * 4
    async with films() as engine:
        await read(engine, job, [])
        segments = engine._pools["copy"].replicas[0].segments._segments
        assert segments["out"].size == job.block_bytes < segments["in"].size


@pytest.mark.parametrize("most_bytes", [1, 2 * 4 * 3, 10**6])
def test_frames_by_rows(most_bytes: int) -> None:
    """Rows may come for all frames, for some, or for one; frames go out in order and in blocks of the size."""
    whole = torch.arange(5 * 4 * 3, dtype=torch.uint8).reshape(5, 1, 4, 3)
    given: list[torch.Tensor] = []
    canvas = RelayCanvas(5, 4, lambda block: block, row_axis=2, relay=Relay(given.append, most_bytes))
    for first, stop, row, end in ((0, 2, 0, 4), (3, 5, 0, 1), (2, 3, 2, 4), (3, 4, 1, 4), (2, 3, 0, 2), (4, 9, 1, 4)):
        canvas.put(first, row, whole[first:stop, :, row:end])
    assert canvas.complete
    assert torch.equal(torch.cat([*given, canvas.output]), whole)
    assert {len(block) for block in given} <= {1, 2}
    assert len(given) > 0


async def test_a_reel() -> None:
    """There is room until enough waits; a reel that is closed holds nobody up, and gives what it has."""
    reel, block = Reel(10), Outcome(Tensor("uint8", (6,), bytes(6)), "frames", "float32", "", {})
    await reel.put(block)
    waits = asyncio.ensure_future(reel.put(block))
    await asyncio.sleep(0)
    assert not waits.done()
    read = reel.__aiter__()
    await anext(read)
    await waits
    late = asyncio.ensure_future(reel.put(block))
    await asyncio.sleep(0)
    reel.close()
    await late
    assert len([each async for each in read]) == 2
