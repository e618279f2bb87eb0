"""Memory and faults of cards, which are not here: a card is stood for by numbers."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from remote_vae.core.executor import is_out_of_memory
from remote_vae.engine import child
from remote_vae.engine.child import JobRunner
from remote_vae.engine.device import is_broken
from remote_vae.engine.ledger import Entry, Ledger
from remote_vae.engine.memory import SPARE, Budget, place_of
from remote_vae.engine.replica import Replica, _enter_child
from remote_vae.errors import ModelLoadError

from .running import running

CARD = torch.device("cuda", 0)


class Card:
    """A card and the processes on it: what each has taken, and what its tensors use of that."""

    def __init__(self, total: int) -> None:
        self.total, self.taken, self.used, self.asking = total, [0, 0], [0, 0], 0

    @property
    def free(self) -> int:
        return self.total - sum(self.taken)

    def give_back(self) -> None:
        self.taken[self.asking] = self.used[self.asking]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    found = Card(1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (found.free, found.total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: found.taken[found.asking])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: found.used[found.asking])
    monkeypatch.setattr(torch.cuda, "empty_cache", found.give_back)
    return found


@pytest.fixture
def budgets(card: Card) -> Iterator[list[Budget]]:
    """Those of two replicas on one card."""
    ledger = Ledger(2)
    yield [
        Budget(CARD, limit=None, weights_bytes=0, entry=Entry(ledger.name, number, device="cuda:0"))
        for number in (0, 1)
    ]
    ledger.free()


def test_what_a_replica_holds_is_not_claimed_again(card: Card, budgets: list[Budget]) -> None:
    """A job that fits into memory that its process has kept takes nothing from the other replicas."""
    one, two = budgets
    card.taken[0] = 600
    one.begin()
    assert one.reserve(600)
    card.asking = 1
    assert two.bytes_now() == int(400 * SPARE)
    card.asking = 0
    assert one.reserve(800)
    card.asking = 1
    assert two.bytes_now() == int(400 * SPARE) - 200
    card.asking, card.taken[0], one._due = 0, 800, 0.0
    one.update()
    card.asking, two._read_again = 1, 0.0
    assert two.bytes_now() == int(200 * SPARE)


def test_replicas_leave_room_for_each_other(card: Card, budgets: list[Budget]) -> None:
    """After a job a replica keeps freed memory only if the card has as much left, or nobody else is there."""
    for taken, left in ((400, 400), (600, 0)):
        card.taken[0] = taken
        budgets[0].begin()
        budgets[0].end()
        assert card.taken[0] == left
    alone = Ledger(1)
    budget = Budget(CARD, limit=None, weights_bytes=0, entry=Entry(alone.name, 0, device="cuda:0"))
    card.taken[0] = 600
    budget.begin()
    budget.end()
    alone.free()
    assert card.taken[0] == 600


def test_a_replica_that_rests_gives_memory_back(card: Card) -> None:
    """What the allocator keeps goes back to the card, for other programs too."""
    card.taken[0], card.used[0] = 600, 100
    signals: Any = SimpleNamespace(tell=lambda *told: None)
    runner = JobRunner(SimpleNamespace(device=CARD), None, None, signals, None)  # type: ignore[arg-type]
    assert runner.rest() == (600, 100)
    assert card.free == 900


async def test_what_is_held_after_a_rest() -> None:
    """The server learns what a resting replica holds, and takes it for no job's answer."""
    replica = Replica("copy", loader="", spec={}, cores=1, ledger=Ledger(1), entry=0)
    replica._pipe, theirs = multiprocessing.Pipe()
    theirs.send_bytes(json.dumps({"rested": True, "device_bytes": 100}).encode())
    waiting: Any = SimpleNamespace(done=lambda: False)
    replica._answer = waiting
    replica._on_answer()
    assert replica.memory_bytes == 100
    replica._pipe.close()
    replica._pipe = replica._answer = None
    replica.free()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB, max allowed: 9.07 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("could not create a primitive: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every library's words for a full device lead to a smaller plan, and not to a new process."""
    assert is_out_of_memory(error)
    monkeypatch.setattr(torch, "zeros", lambda *words, **more: _raise(error))
    assert not is_broken(CARD)


def test_a_broken_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that answers even a trivial question with an error is broken; one that answers is not."""
    assert not is_broken(torch.device("cpu"))
    monkeypatch.setattr(torch, "zeros", lambda *words, **more: _raise(RuntimeError("device-side assert triggered")))
    assert is_broken(CARD)


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("kind", "title", "total"), [("cuda", "RTX 4090", 1000), ("xpu", "Arc B580", 2000), ("mps", "Apple GPU", 3000)]
)
def test_a_card_has_its_own_name(
    kind: str, title: str, total: int, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The banner and `/models` tell the name and the memory of the card that is there, and not of another kind."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 4090")
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: "Arc B580")
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace(total_memory=2000))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 3000)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 0)
    found = place_of(torch.device(kind, 0))
    assert (found.device, found.title, found.total_bytes) == (f"{kind}:0", title, total)


def test_what_a_process_sets_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations that Apple's GPUs lack go to the CPU, unless the operator says otherwise."""
    seen: list[str | None] = []
    monkeypatch.setattr(child, "main", lambda *words: seen.append(os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK")))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    for before, after in ((None, "1"), ("0", "0")):
        monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", before or "")
        if before is None:
            monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK")
        _enter_child(None, {}, "", {}, 1)  # type: ignore[arg-type]
        assert seen.pop() == after


async def test_weights_that_do_not_fit_on_the_device() -> None:
    """The error of a server that does not start has the words of the device."""
    async with running("find no room", wait=False) as engine:
        with pytest.raises(ModelLoadError, match="OutOfMemoryError: CUDA out of memory"):
            await engine.start()
