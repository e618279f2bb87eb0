"""What a kernel costs on a card: the rules and the figures of the cards. All of it is calculated; nothing is measured.

*Device time* of a kernel is the longest of: its products at the rate of the card's units for that kind of work, its
bytes, and `KERNEL_SECONDS`. Bytes move at the rate of the level-2 cache if `CACHED` of that cache can hold them from
one end of their way to the other, otherwise at the rate of memory: what is read must have been used by a kernel shortly
before, and what is written is near only if it is freed soon. A strip's temporary tensors are near; the maps that strips
are parts of are not. A convolution or product that has fewer tiles of 128x128 results than the card has
multiprocessors uses only as many of them. PyTorch's GroupNorm gathers the statistics of a group in one block, which
takes one value of each of its threads at a time, so its time is that of the values of a group, whatever the card's
bandwidth.

*Layouts*: cuDNN changes layouts by tiles, at `LAYOUT` of the rate of a plain copy. PyTorch's own copies from one layout
to another touch a sector of `SECTOR` bytes for each value of the strided side. That costs nothing if the sectors of one
plane fit into the cache; otherwise every value takes a sector from memory.

*Host time* is what Python and PyTorch need to launch: `HOST_SECONDS` for an operator, `VIEW_SECONDS` for one that
launches nothing.

*Overlap*: the host runs ahead. A kernel starts when it is launched and the kernel before it has ended; a
synchronisation waits for all kernels. Kernels never run side by side: one stream, as in PyTorch and in our code.

*What is left out*: clocks that fall when a card is hot, gaps in the allocator, the first call, and that libraries
choose their kernels by shape.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Final

KERNEL_SECONDS: Final = 3e-6
HOST_SECONDS: Final = 6e-6
VIEW_SECONDS: Final = 1.5e-6
CACHED: Final = 0.6
TILE: Final = 128  # rows and columns of the results that a block of a matrix product computes
SECTOR: Final = 32
LAYOUT: Final = 0.65  # of the bandwidth that plain copies reach is what a change of layout reaches
GROUP_VALUES: Final = 0.75e9  # values a second and gigahertz that a block of PyTorch's GroupNorm takes


@dataclass(slots=True)
class Use:
    """Bytes that a kernel reads or writes, and those that are moved between then and the other end of their way.

    That is the last kernel that used the tensor which is read, or the moment when the tensor that is written is freed.
    """

    size: int
    apart: float


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch. *Units*: bytes that it reads and writes; `groups` of a GroupNorm, `tiles` of a product.

    `kind` is one of `convolution`, `product`, `attention`, `statistics`, `layout` (changed by cuDNN), `relayout`
    (changed by PyTorch), `values`, and `wait`, which is a synchronisation. `name` is the operator that launched it,
    and `shape` that of its result.
    """

    name: str
    kind: str
    dtype: str
    flops: float = 0.0
    read: int = 0
    written: int = 0
    tiles: int = 0
    groups: int = 0
    values: int = 0
    shape: tuple[int, ...] = ()
    uses: tuple[Use, ...] = ()  # of its bytes; without them all bytes are near


@dataclass(frozen=True, slots=True)
class Card:
    """*Units*: products in TFLOP/s (dense, sums in float32), memory in TB/s and GB, cache in MB, clock in GHz.

    `reached` is the part of the products that libraries' convolutions reach in large layers, and `attention` the part
    that PyTorch's memory-efficient attention reaches with heads of 512 channels. The RTX 4090 has the clock at which
    such cards run, 2.7 GHz, and not that of its data sheet, 2.52.
    """

    name: str
    half: float
    tf32: float
    float32: float
    memory: float
    capacity: float
    cache: float
    cache_rate: float
    processors: int
    clock: float
    reached: float
    attention: float
    copies: float = 0.88  # of the bandwidth


CARDS: Final = {
    card.name: card
    for card in (
        Card("H100", 989, 494, 67, 3.35, 80, 50, 7.0, 132, 1.76, 0.42, 0.14),
        Card("H200", 989, 494, 67, 4.8, 141, 50, 7.0, 132, 1.76, 0.42, 0.14),
        Card("A100", 312, 156, 19.5, 2.04, 80, 40, 4.5, 108, 1.41, 0.70, 0.30),
        Card("L4", 121, 60, 30, 0.30, 24, 48, 1.6, 58, 1.6, 0.50, 0.25),
        Card("RTX 4090", 177, 88.5, 88.5, 1.008, 24, 72, 5.0, 128, 2.7, 0.85, 0.35),
        Card("RTX 3060", 25.5, 12.7, 12.7, 0.36, 12, 3, 1.2, 28, 1.78, 0.85, 0.35),
    )
}


def device_seconds(kernel: Kernel, card: Card) -> float:
    """How long a kernel runs."""
    moved = kernel.read + kernel.written
    if kernel.kind == "relayout" and SECTOR * prod(kernel.shape[2:]) > CACHED * card.cache * 1e6:
        moved += SECTOR * prod(kernel.shape)
    cache = CACHED * card.cache * 1e6
    near = moved if not kernel.uses else sum(max(0, min(use.size, cache - use.apart)) for use in kernel.uses)
    near = min(near, cache)
    seconds = (near / card.cache_rate + (moved - near) / card.memory) / 1e12
    seconds /= card.copies * (LAYOUT if kernel.kind.endswith("layout") else 1.0)
    if kernel.flops:
        seconds = max(seconds, kernel.flops / _products(kernel, card))
    if kernel.kind == "statistics":
        rounds = -(-kernel.groups // card.processors)
        seconds = max(seconds, rounds * kernel.values / kernel.groups / (GROUP_VALUES * card.clock))
    return max(seconds, KERNEL_SECONDS)


def _products(kernel: Kernel, card: Card) -> float:
    """Products a second for this kernel."""
    half = kernel.dtype in ("bfloat16", "float16")
    if kernel.kind == "attention":
        return 1e12 * card.attention * (card.half if half else card.float32)
    # PyTorch lets convolutions in float32 use TF32, and matrix products not.
    peak = card.half if half else card.tf32 if kernel.kind == "convolution" else card.float32
    rounds = -(-kernel.tiles // card.processors)
    used = kernel.tiles / (rounds * card.processors) if kernel.tiles else 1.0
    return 1e12 * card.reached * peak * used


@dataclass(frozen=True, slots=True)
class Cost:
    """*Units*: seconds; `device` is what kernels take, `host` what launching takes, and `total` both with overlap."""

    total: float
    device: float
    host: float


def cost(work: Iterable[Kernel | None], card: Card) -> Cost:
    """What a list of operators costs; None is an operator that launches nothing."""
    host = done = device = 0.0
    before = ""
    for kernel in work:
        if kernel is None:
            host += VIEW_SECONDS
            continue
        if kernel.kind == "wait":
            host = max(host, done)
            continue
        host += HOST_SECONDS if kernel.name != before else KERNEL_SECONDS  # later kernels of one operator
        before = kernel.name
        seconds = device_seconds(kernel, card)
        done = max(host, done) + seconds
        device += seconds
    return Cost(max(host, done), device, host)
