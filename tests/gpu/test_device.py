"""What only a card can show of its memory, its faults and its compiler."""

import subprocess
import sys

import pytest
import torch

from remote_vae.core.has_triton import why_no_triton
from remote_vae.engine.device import DeviceQueue, is_broken
from remote_vae.engine.memory import free_bytes, give_back, held_bytes
from remote_vae.models.loader import load, resolve_device
from remote_vae.models.spec import ModelSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ASSERT = """
import torch
from remote_vae.engine.device import is_broken
card = torch.device("cuda", 0)
print(is_broken(card))
try:
    torch.zeros(4, device=card)[torch.tensor([9], device=card)].sum().item()
except RuntimeError as exc:
    print(type(exc).__name__)
print(is_broken(card))
"""


def test_kernels_compile_here() -> None:
    """Triton's kernels run; otherwise the reason is what this says."""
    assert why_no_triton(torch.device("cuda", 0)) is None


def test_a_fault_sticks() -> None:
    """After an assertion in a kernel the device is found to be broken, and the error has the class that means so."""
    ran = subprocess.run([sys.executable, "-c", ASSERT], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "AcceleratorError", "True"]


def test_a_full_device_is_not_broken() -> None:
    """Running out of memory leaves a device that works."""
    card = torch.device("cuda", 0)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**50, dtype=torch.uint8, device=card)
    assert not is_broken(card)


def test_freed_memory() -> None:
    """Memory that the allocator keeps counts as free, and goes back when it is to."""
    card = resolve_device("cuda")
    give_back(card)
    free, held = free_bytes(card), held_bytes(card)
    assert free is not None
    assert held is not None
    torch.empty(2**28, dtype=torch.uint8, device=card)
    assert held_bytes(card) == pytest.approx(held + 2**28, abs=2**22)
    assert free_bytes(card) == pytest.approx(free, abs=2**26)
    give_back(card)
    assert held_bytes(card) == held


def test_the_queue() -> None:
    """Waiting for all but the last layers works for many layers."""
    queue, values = DeviceQueue(torch.device("cuda", 0)), torch.ones(1024, device="cuda")
    for _ in range(100):
        values.mul_(1)
        queue.wait()
    assert values.sum().item() == 1024


@torch.inference_mode()
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_predictions(direction: str) -> None:
    """What each plan holds, as the allocator counts it, is what the planner predicts, within 15 %."""
    vae = load(ModelSpec("sd1", device="cuda", random_weights=True))
    shape, executors = ((1, 4, 128, 128), vae.decoders) if direction == "decode" else ((1, 3, 1024, 1024), vae.encoders)
    given = torch.randn(shape, device=vae.device, dtype=vae.dtype)
    for executor in executors:
        predicted = executor.peak_bytes(shape, vae.dtype, 0)
        if not executor.exact or not executor.suits(shape, vae.dtype) or predicted is None:
            continue
        executor.run(given, lambda *block: None, lambda: None)  # the libraries set up what they keep
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated() - given.nbytes
        torch.cuda.reset_peak_memory_stats()
        executor.run(given, lambda *block: None, lambda: None)
        assert torch.cuda.max_memory_allocated() - before == pytest.approx(predicted, rel=0.15), executor.name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_second_device() -> None:
    """Its kernels run on it."""
    before = torch.cuda.current_device()
    try:
        torch.cuda.set_device(1)
        assert why_no_triton(torch.device("cuda", 1)) is None
    finally:
        torch.cuda.set_device(before)
