"""Work side by side: in order for the one who takes it, each piece on one core, and nothing at work after an error."""

import os
import random
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.strip_threads import Span, Workers, cores, one_core, workers

SPANS = [(index, index + 1) for index in range(20)]


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_order(count: int) -> None:
    """What is made of the spans is given in their order and in the caller's thread, however long each takes."""
    found: list[tuple[Span, int]] = []
    waits = random.Random(0)
    pauses = [waits.random() / 200 for _ in SPANS]

    def work(span: Span) -> int:
        time.sleep(pauses[span[0]])
        return 2 * span[0]

    def take(span: Span, given: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        found.append((span, given))

    Workers(count).each(iter(SPANS), work, take)
    assert found == [(span, 2 * span[0]) for span in SPANS]


def test_side_by_side() -> None:
    """As many are at work as there are workers, never more, and none waits for what is taken."""
    meeting, lock, at_work, most = threading.Barrier(3, timeout=30), threading.Lock(), 0, 0

    def work(span: Span) -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        if span[0] < 3:
            meeting.wait()  # broken unless three are here at one time
        time.sleep(0.002)
        with lock:
            at_work -= 1

    Workers(3).each(SPANS, work, lambda span, found: None)
    assert most == 3


def test_nothing_waits_for_a_busy_helper() -> None:
    """After a call, nothing that the work refers to is held for a helper that was too busy to begin."""
    several, busy = Workers(2), threading.Event()
    assert several._pool is not None
    several._pool.submit(busy.wait, 30)
    given = torch.zeros(1)
    alive = weakref.ref(given)
    several.each(SPANS, lambda span, given=given: given + span[0], lambda span, found: None)
    del given
    assert alive() is None
    busy.set()


def test_one_core_each() -> None:
    """A worker's operations use one core; those of everyone else, threads to come among them, use what they did."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found: list[int] = []
        Workers(2).each(SPANS, lambda span: torch.get_num_threads(), lambda span, count: found.append(count))
        assert found == [1] * len(SPANS)
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
        with one_core():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == cores(torch.device("cpu")) == 3
        assert cores(torch.device("meta")) == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("where", ["work", "take", "spans"])
def test_errors(where: str, count: int) -> None:
    """An error ends it: it is raised when nobody is at work any more, and the workers can be used again."""
    at_work = threading.Semaphore(0)
    crew = Workers(count)

    def spans() -> Iterator[Span]:
        yield from SPANS[:7]
        if where == "spans":
            raise KeyboardInterrupt
        yield from SPANS[7:]

    def work(span: Span) -> None:
        at_work.release()
        time.sleep(0.005)
        at_work.acquire(blocking=False)
        if where == "work" and span[0] == 7:
            raise KeyboardInterrupt

    def take(span: Span, found: None) -> None:
        if where == "take" and span[0] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crew.each(spans(), work, take)
    assert not at_work.acquire(blocking=False)
    found: list[int] = []
    crew.each(SPANS, lambda span: span[0], lambda span, made: found.append(made))
    assert found == [span[0] for span in SPANS]


def test_memory_is_counted() -> None:
    """Tensors that workers make count, from when they are made until whoever took them lets them go."""
    held: list[torch.Tensor] = []
    with LiveBytes() as live:
        workers(3).each(SPANS, lambda span: torch.zeros(1000), lambda span, made: held.append(made))
        assert live.current == live.peak == 4000 * len(SPANS)
        held.clear()
        workers(3).each(SPANS, lambda span: torch.zeros(1000), lambda span, made: None)
        assert live.current == 0
    workers(3).each(SPANS, lambda span: torch.zeros(1000), lambda span, made: held.append(made))
    assert live.current == 0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores there are")
def test_places() -> None:
    """Workers that are as many as the cores stay on one each, and leave the caller as free as it was; fewer roam."""
    everywhere = os.sched_getaffinity(0)
    found: list[frozenset[int]] = []

    def work(span: Span) -> frozenset[int]:
        time.sleep(0.005)
        return frozenset(os.sched_getaffinity(0))

    Workers(len(everywhere)).each(SPANS, work, lambda span, places: found.append(places))
    assert set(found) == (
        {frozenset({core}) for core in everywhere} if len(everywhere) > 1 else {frozenset(everywhere)}
    )
    assert os.sched_getaffinity(0) == everywhere
    found.clear()
    Workers(len(everywhere) + 1).each(SPANS, work, lambda span, places: found.append(places))
    assert set(found) == {frozenset(everywhere)}
