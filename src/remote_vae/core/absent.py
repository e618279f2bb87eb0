"""Modules that libraries import and that no VAE needs are left out while something runs: they take time and memory."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final


def _unchanged(function: Any = None, *_: object, **__: object) -> Any:
    """A decorator, with or without arguments, that does nothing."""
    return _unchanged if function is None else function


# With these names code excludes a function from compilation; without a compiler nothing is compiled. Importing torch's
# compiler takes 1 s and 150 MB.
_NO_COMPILER: Final = ModuleType("torch._dynamo")
_NO_COMPILER.disable = _NO_COMPILER.allow_in_graph = _unchanged  # type: ignore[attr-defined]
COMPILER: Final[Mapping[str, ModuleType | None]] = {"torch._dynamo": _NO_COMPILER}


@contextmanager
def in_place_of(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Imports inside find these modules in the place of the real ones, unless the real ones were imported before.

    None is how Python marks a module that cannot be imported.
    """
    placed = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(placed)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in placed:
            del sys.modules[name]
