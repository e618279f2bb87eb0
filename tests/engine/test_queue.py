"""Which job goes next: by numbers, without a clock or a process."""

import asyncio

from remote_vae.engine.queue import Queue, Ticket

from .running import job


def ticket(side: int = 4, client: str | None = None, first: float = 1.0) -> Ticket:
    return Ticket(job(first, side=side), client, asyncio.get_running_loop().create_future())


async def order(queue: Queue) -> list[tuple[str | None, int]]:
    """Client and side of each ticket as they are taken, until none is left."""
    found = []
    while len(queue):
        taken = await queue.take(lambda: True)
        assert taken is not None
        found.append((taken.client, taken.job.fit.height))
    return found


def queue_of(*tickets: Ticket) -> Queue:
    queue = Queue()
    for one in tickets:
        queue.put(one)
    return queue


async def test_equal_jobs_keep_their_order() -> None:
    """Jobs of one size of one client go in the order in which they came."""
    tickets = [ticket(first=float(number)) for number in range(5)]
    queue = queue_of(*tickets)
    assert [await queue.take(lambda: True) for _ in range(5)] == tickets


async def test_small_passes_large() -> None:
    """A small job of a client passes a large one that came before it."""
    queue = queue_of(ticket(side=100), ticket(side=4))
    assert await order(queue) == [(None, 4), (None, 100)]


async def test_large_is_not_passed_for_ever() -> None:
    """A large job is passed by no more pixels than it has itself, however many small ones keep coming."""
    queue = queue_of(ticket(side=40))
    passed = 0
    while True:
        queue.put(ticket(side=10))
        taken = await queue.take(lambda: True)
        assert taken is not None
        if taken.job.fit.height == 40:
            break
        passed += taken.job.pixels
    assert 40 * 40 - 2 * 10 * 10 <= passed <= 40 * 40


async def test_clients_take_turns() -> None:
    """Clients with jobs of one size take turns, however many each has waiting."""
    queue = queue_of(*(ticket(client="many") for _ in range(6)), ticket(client="few"), ticket(client="few"))
    taken = [client for client, _ in await order(queue)]
    assert taken == ["many", "few", "many", "few", "many", "many", "many", "many"]


async def test_turns_are_by_pixels() -> None:
    """A client with large jobs gets as many pixels as one with small ones, not as many jobs."""
    large = [ticket(side=40, client="large") for _ in range(2)]
    small = [ticket(side=10, client="small") for _ in range(32)]
    taken = [client for client, _ in await order(queue_of(*large, *small))]
    first = taken.index("large")
    assert first <= 1
    assert 15 <= taken.index("large", first + 1) - first <= 17


async def test_absence_earns_nothing() -> None:
    """A client that comes back does not make up for the time that it was away, nor lose what it owes."""
    queue = queue_of(*(ticket(client="stays") for _ in range(20)))
    for _ in range(10):
        await queue.take(lambda: True)
    for _ in range(4):
        queue.put(ticket(client="comes"))
    taken = [client for client, _ in await order(queue)]
    assert taken[:8].count("comes") == 4


async def test_one_at_a_time_does_not_dodge() -> None:
    """A client that sends its next large job when the last is done gets no more pixels than the others."""
    queue = queue_of(ticket(side=40, client="large"), *(ticket(side=10, client="small") for _ in range(40)))
    pixels = {"large": 0, "small": 0}
    while pixels["small"] < 30 * 100:
        taken = await queue.take(lambda: True)
        assert taken is not None
        pixels[taken.client or ""] += taken.job.pixels
        if taken.client == "large":
            queue.put(ticket(side=40, client="large"))
    assert pixels["large"] <= pixels["small"] + 2 * 1600


async def test_nobody_waits_for_it() -> None:
    """A job that nobody waits for any more is not taken."""
    first, second = ticket(), ticket()
    queue = queue_of(first, second)
    first.answer.cancel()
    assert await queue.take(lambda: True) is second
    second.answer.cancel()
    await asyncio.sleep(0)
    assert len(queue) == queue.pixels == 0


async def test_woken_for_nothing() -> None:
    """One who waits for a job and need not any more gets none."""
    queue, wanted = queue_of(), True
    waiting = asyncio.create_task(queue.take(lambda: wanted))
    await asyncio.sleep(0)
    wanted = False
    queue.wake()
    assert await waiting is None
