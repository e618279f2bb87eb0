"""Work that is out of proportion to the bytes that ask for it."""

import asyncio
import hashlib
import threading
from typing import Any

import pytest

from remote_vae.protocol import digest
from remote_vae.server.threads import COUNTS, Threads, Work

from . import test_connections


def test_digests_are_calculated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of right digests of one body cost what one of each kind costs, and a wrong one among them is found."""
    calculated: list[str] = []

    def counting(name: str) -> Any:
        def calculate(body: bytes) -> Any:
            calculated.append(name)
            return hashlib.new(name.replace("-", ""), body)

        return calculate

    monkeypatch.setattr(digest, "ALGORITHMS", {name: counting(name) for name in digest.ALGORITHMS})
    body = b"a body"
    right = [test_connections.digest(body), test_connections.digest(body, "sha-512")]
    digest.check_digest(",".join(right * 300), body)
    assert sorted(calculated) == ["sha-256", "sha-512"]
    with pytest.raises(digest.MalformedRequest):
        digest.check_digest(",".join([*right * 300, test_connections.digest(b"another")]), body)


@pytest.mark.parametrize("busy", Work)
async def test_one_kind_of_work_waits_for_no_other(busy: Work) -> None:
    """While every thread of one kind is taken and more of that kind waits, work of the other kinds is done."""
    threads, release = Threads(), threading.Event()
    held = [asyncio.create_task(threads.run(busy, release.wait, 60)) for _ in range(2 * COUNTS[busy])]
    try:
        for kind in set(Work) - {busy}:
            assert await asyncio.wait_for(threads.run(kind, lambda: "done"), 30) == "done"
        assert not any(task.done() for task in held)
    finally:
        release.set()
        await asyncio.gather(*held)
