"""`open_model` for a replica's own process, which needs diffusers' VAEs and nothing else of it.

Importing diffusers also imports transformers and SciPy where they are installed, and torch's compiler: a good part of
the time until a model is served, or served again after its process has died, and of a replica's memory. No VAE uses
them.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final


def _unchanged(function: Any = None, *_: object, **__: object) -> Any:
    """A decorator, with or without arguments, that does nothing."""
    return _unchanged if function is None else function


# Some of diffusers' classes say of a method that the compiler shall leave it alone: without a compiler that is true.
_NO_COMPILER: Final = ModuleType("torch._dynamo")
_NO_COMPILER.disable = _NO_COMPILER.allow_in_graph = _unchanged  # type: ignore[attr-defined]

# None is how Python marks a module that cannot be imported.
UNUSED: Final[Mapping[str, ModuleType | None]] = {"transformers": None, "scipy": None, "torch._dynamo": _NO_COMPILER}


@contextmanager
def _in_place_of(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """In which whoever looks for these finds what is given, unless they have been imported before."""
    placed = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(placed)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in placed:
            del sys.modules[name]


try:
    with _in_place_of(UNUSED):
        from remote_vae.models.loader import open_model
except (ImportError, AttributeError, RuntimeError):  # a diffusers that does need them: slower, and served all the same
    from remote_vae.models.loader import open_model

__all__ = ["open_model"]
