"""Counts what a run on meta tensors would launch on a CUDA device: kernels, products, and bytes read and written.

A dispatch mode sees the operators below autograd and says for each one which kernels PyTorch's CUDA build launches:

- a convolution launches one kernel, one more for its bias, and, if neither its input nor its weight is channels last,
  one each that brings both to that layout and the output back (cuDNN's tensor cores know no other). If only one of
  them is not channels last, PyTorch copies that one at every call;
- GroupNorm takes a contiguous map, so a channels-last one is copied first; then come the statistics, one block for
  each group, a kernel for the parameters, and one that applies them;
- attention is one fused kernel that keeps no scores;
- whatever else writes values is one kernel that reads and writes each tensor once; views launch nothing;
- `.item()`, and a copy to the CPU, wait for the device.

The kernels of `core.norm_triton` are counted by stand-ins for the compiled functions: a launch each, which reads and
writes its tensors once.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import signature
from math import prod
from typing import Any, Final
from unittest.mock import patch

import torch
from roofline_cards import TILE, Kernel, Use
from torch._prims_common import suggest_memory_format
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from remote_vae.core import (
    attention,
    attention_triton,
    norm_triton,
    root_mean_square,
    steps,
    stream_layer,
    stream_whole,
    sweep,
)
from remote_vae.core.live_bytes import tensors_in

LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}
LEAST_IN, LEAST_OUT = 16, 64  # channels that a kernel of tensor cores computes at least
aten = torch.ops.aten
COMPOSITE: Final = torch._C.DispatchKey.CompositeImplicitAutograd
EMPTY: Final = {
    aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default,
    aten.new_empty_strided.default, aten.resize_.default,
}  # fmt: skip
COPIES: Final = (aten.clone.default, aten.copy_.default, aten._to_copy.default)
NORMS: Final = (aten.native_group_norm.default,)
PRODUCTS: Final = {
    aten.mm.default: 0, aten.mm.dtype: 0, aten.bmm.default: 0,
    aten.addmm.default: 1, aten.baddbmm.default: 1, aten.baddbmm_.default: 1,
}  # fmt: skip


class Account(TorchDispatchMode):
    """`work` is what was launched, in order; None stands for an operator that launches nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Kernel | None] = []
        self._moved = 0
        self._last: dict[int, int] = {}  # bytes that had been moved when a storage was last used
        self._written: dict[int, list[tuple[int, Use]]] = {}

    @property
    def kernels(self) -> list[Kernel]:
        return [kernel for kernel in self.work if kernel is not None and kernel.kind != "wait"]

    @property
    def waits(self) -> int:
        return sum(kernel is not None and kernel.kind == "wait" for kernel in self.work)

    def add(self, name: str, kind: str, read: Any, written: Any, **more: Any) -> None:
        """One kernel, in the precision of what it reads. Tensors that hold nothing launch nothing."""
        outputs = [tensor for tensor in tensors_in(written) if tensor.numel()]
        if not outputs:
            return
        inputs = list(tensors_in(read))
        given, found = sum(map(_bytes, inputs)), sum(map(_bytes, outputs))
        uses = [Use(_bytes(one), self._moved - self._last.get(_key(one), -1e18)) for one in inputs]
        self._moved += given + found
        uses += [self._write(one) for one in outputs]
        more["uses"] = tuple(uses)
        for one in (*inputs, *outputs):
            self._last[_key(one)] = self._moved
        shape, dtype = tuple(outputs[0].shape), next(tensors_in(read), outputs[0]).dtype
        self.work.append(Kernel(name, kind, _name(dtype), read=given, written=found, shape=shape, **more))

    def _write(self, tensor: torch.Tensor) -> Use:
        """What is freed while the cache still holds it need not go to memory."""
        use, key = Use(_bytes(tensor), float("inf")), _key(tensor)
        if key not in self._written:
            self._written[key] = []
            weakref.finalize(tensor.untyped_storage(), self._freed, key)
        self._written[key].append((self._moved, use))
        return use

    def _freed(self, key: int) -> None:
        for moved, use in self._written.pop(key, ()):
            use.apart = self._moved - moved
        self._last.pop(key, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            self.work.append(Kernel("item", "wait", ""))
            return True if args[0].dtype is torch.bool else 1.0
        if func is aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            self.add("copy to the CPU", "layout", args[0], args[0])
            self.work.append(Kernel("copy to the CPU", "wait", ""))
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
            with self:  # an operator that is made of others does not come to the device itself
                return func._op_dk(COMPOSITE, *args, **kwargs)
        found = func(*args, **kwargs)
        self._account(func, args, kwargs, found)
        if func in NORMS:
            return (_as(found[0], torch.contiguous_format), *found[1:])
        return _laid(found, args) if func is aten.convolution.default else found

    def _account(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: Any) -> None:
        name, given = func.__name__.split(".")[0], (args, tuple(kwargs.values()))
        if not any(tensor.is_meta for tensor in tensors_in((given, found))):
            return  # the host computes it
        changes = func._schema.is_mutable
        known = {_key(tensor) for tensor in tensors_in(given)}
        if func in EMPTY or (not changes and all(_key(tensor) in known for tensor in tensors_in(found))):
            self.work.append(None)
        elif func is aten.convolution.default:
            self._convolution(args, found)
        elif func in NORMS:
            self._group_norm(args, *found)
        elif func in PRODUCTS:
            first, second = args[PRODUCTS[func] : PRODUCTS[func] + 2]
            tiles = prod(found.shape[:-2]) * _tiles(found.shape[-2], found.shape[-1])
            flops = 2.0 * found.numel() * first.shape[-1]
            self.add(name, "product", (first, second), found, flops=flops, tiles=tiles)
        else:
            self.add(name, _kind_of(func, args, found), _read(func, args), args[0] if changes else found)

    def _convolution(self, args: tuple[Any, ...], found: torch.Tensor) -> None:
        given, weight, bias, _, _, _, transposed, _, _ = args
        last, taps = LAST.get(given.ndim), prod(weight.shape[2:])
        fast = last is not None and last in (suggest_memory_format(given), suggest_memory_format(weight))
        for tensor in (given, weight):
            if last is not None and not tensor.is_contiguous(memory_format=last):
                self.add("to channels last", "relayout" if fast else "layout", tensor, tensor)
        many = given if transposed else found
        into, out = max(LEAST_IN, weight.shape[0 if transposed else 1]), max(LEAST_OUT, found.shape[1])
        flops = 2.0 * taps * many.numel() // many.shape[1] * into * out
        tiles = _tiles(found.numel() // found.shape[1], out)
        self.add("convolution", "convolution", (given, weight), found, flops=flops, tiles=tiles)
        if last is not None and not fast:
            self.add("from channels last", "layout", found, found)
        if bias is not None:
            self.add("bias of a convolution", "values", (found, bias), found)

    def _group_norm(self, args: tuple[Any, ...], found: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> None:
        given, _, _, count, _, _, groups, _ = args
        if not given.is_contiguous():
            self.add("contiguous", "relayout", given, given)
        self.add("group_norm", "statistics", given, (mean, scale), groups=count * groups, values=given.numel())
        self.add("group_norm", "values", (mean, scale), (mean, scale))
        self.add("group_norm", "values", given, found)


def _tiles(rows: int, columns: int) -> int:
    return -(-rows // TILE) * -(-columns // TILE)


def _laid(found: torch.Tensor, args: tuple[Any, ...]) -> torch.Tensor:
    """The output of a convolution in the layout that CUDA gives it: channels last if the input or the weight is."""
    last = LAST.get(found.ndim)
    fast = last is not None and last in map(suggest_memory_format, args[:2])
    return _as(found, last if fast else torch.contiguous_format)


def _as(found: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """The same tensor in another layout; it has no values to move."""
    with torch.utils._python_dispatch._disable_current_modes():
        strides = torch.empty(found.shape, device="meta").contiguous(memory_format=layout).stride()
    return found.as_strided(found.shape, strides)


def _kind_of(func: Any, args: tuple[Any, ...], found: Any) -> str:
    """Copies between layouts are slower than other kernels."""
    source = args[1] if func is aten.copy_.default else args[0]
    if func not in COPIES or source.ndim < 4:
        return "values"
    return "values" if suggest_memory_format(source) == suggest_memory_format(found) else "relayout"


def _read(func: Any, args: tuple[Any, ...]) -> Any:
    """What is read: not the target of a copy or a fill."""
    return args[1:] if func.__name__.split(".")[0] in ("copy_", "fill_", "zero_") else args


def _bytes(tensor: torch.Tensor) -> int:
    """Of the values that exist: those of a broadcast axis once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 1)
    return int(prod(sizes)) * tensor.element_size()


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Fused(TorchFunctionMode):
    """Attention as one kernel; on meta tensors PyTorch would take it apart."""

    def __init__(self, account: Account) -> None:
        super().__init__()
        self._account = account

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[:3]
        flops = 2.0 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        found = query.new_empty(*query.shape[:-1], value.shape[-1])
        self._account.add("attention", "attention", (query, key, value), found, flops=flops)
        return found


WRITTEN: Final = ("into", "means", "variances", "totals")  # parameters of kernels in Triton; the others are read


class _Launcher:
    """Stands for a function that Triton compiles."""

    def __init__(self, name: str, function: Any, account: Account) -> None:
        self._name, self._account = name, account
        self._names = list(signature(function.fn).parameters)

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*args: Any, **flags: Any) -> None:
            tensors = {name: one for name, one in zip(self._names, args, strict=False) if isinstance(one, torch.Tensor)}
            written = [one for name, one in tensors.items() if name in WRITTEN]
            read = {_key(one): one for name, one in tensors.items() if name not in WRITTEN}  # one may stand for another
            if flags.get("added"):
                written.append(tensors["source"])
            self._account.add(self._name, "values", tuple(read.values()), tuple(written))

        return launch


def _divide(source: torch.Tensor, into: torch.Tensor, norm: Any, *, silu: bool = False) -> None:
    """What `core.root_mean_square` does on a CUDA device."""
    if norm is None and not silu:
        into.copy_(source)
    else:
        norm_triton.divide(source, into, norm, root_mean_square.LEAST, silu=silu)


def _by_products(channels: int, dtype: torch.dtype, device: torch.device) -> bool:
    return dtype.itemsize == 2 and channels > attention.WIDEST_FUSED


@contextmanager
def counted() -> Iterator[Account]:
    """Counts what runs inside the block as if the meta device were a CUDA device with Triton."""
    account = Account()
    with ExitStack() as entered:
        for room in (norm_triton, attention_triton):
            for name, found in vars(room).items():
                if hasattr(found, "arg_names") or hasattr(found, "run"):
                    entered.enter_context(patch.object(room, name, _Launcher(name.strip("_"), found, account)))
        triton = norm_triton.Triton()
        for room in (sweep, stream_whole):
            entered.enter_context(patch.object(room, "kernels_for", lambda device: triton))
        for room in (stream_layer, stream_whole):
            entered.enter_context(patch.object(room, "normalise", _divide))
        entered.enter_context(patch.object(attention, "_is_fused", lambda key, value: True))
        entered.enter_context(patch.object(steps, "by_products", _by_products))
        entered.enter_context(_Fused(account))
        entered.enter_context(account)
        yield account


def by_operator(kernels: list[Kernel]) -> Counter[str]:
    """How often each operator was launched."""
    return Counter(kernel.name for kernel in kernels)
