"""`open_model` for a replica's own process, which needs diffusers' VAEs and nothing else of it.

Importing diffusers also imports transformers and SciPy where they are installed, a good part of the time until a model
is served, or served again after its process has died. No VAE uses them.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

UNUSED: Final = ("transformers", "scipy")


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """In which these are not there for whoever looks, unless they have been imported before."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is how Python marks them
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


with _without(UNUSED):
    from remote_vae.models.loader import open_model

__all__ = ["open_model"]
