"""Nothing is compiled while somebody waits: what a model's start has not compiled, no request needs."""

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from remote_vae.core import root_mean_square, steps, stream_layer, stream_whole, sweep
from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.engine import child
from remote_vae.models import vae as models_vae
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Posterior, Scaling

from .models import small
from .test_blocks import wan

pytest.importorskip("triton")
from remote_vae.core import attention_triton, norm_triton

if torch.cuda.is_available():
    pytest.skip("the kernels are stood for by the interpreter's", allow_module_level=True)


class Recorded:
    """Stands for a kernel: notes what the compiler would have compiled for a call, and computes nothing."""

    def __init__(self, kernel: Any, compiled: set[object]) -> None:
        self._kernel, self._compiled = kernel, compiled

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*words: object, **flags: object) -> None:
            any_number = self._kernel.kwargs["do_not_specialize"] or ()
            names = zip(self._kernel.arg_names, words, strict=False)
            kinds = tuple(_kind(word, known=name not in any_number) for name, word in names)
            self._compiled.add((self._kernel.fn.__name__, kinds, tuple(flags.items())))

        return launch


def _kind(word: object, *, known: bool) -> object:
    """As Triton tells the arguments of a kernel apart: by type, and a number that it may know by two properties."""
    if isinstance(word, torch.Tensor):
        return word.dtype, word.data_ptr() % 16 == 0
    if isinstance(word, int):
        return word < 2**31, known and word == 1, known and word % 16 == 0
    return type(word)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> set[object]:
    """What would have been compiled; the CPU's tensors go the way of those of a card."""
    found: set[object] = set()
    for room in (norm_triton, attention_triton):
        for name, kernel in list(vars(room).items()):
            if hasattr(kernel, "arg_names") and name != "_place":
                monkeypatch.setattr(room, name, Recorded(kernel, found))
    for module in (sweep, stream_whole):
        monkeypatch.setattr(module, "kernels_for", lambda device: norm_triton.Triton())
    for module in (stream_layer, stream_whole):
        monkeypatch.setattr(module, "normalise", _divide)
    monkeypatch.setattr(steps, "by_products", lambda channels, dtype, device: True)
    monkeypatch.setattr(models_vae, "pays", lambda device: True)
    monkeypatch.setattr(child, "has_triton", lambda device: True)
    for name in ("decode", "encode"):
        monkeypatch.setattr(import_module(f"remote_vae.core.{name}"), "all_finite", lambda tensor: True)
    return found


def _divide(source: torch.Tensor, into: torch.Tensor, norm: Any, *, silu: bool = False) -> None:
    if source.is_meta:
        return
    if norm is None and not silu:
        into.copy_(source)
    else:
        norm_triton.divide(source, into, norm, root_mean_square.LEAST, silu=silu)


CASES = {
    "sd1": (lambda: small((16, 32)), [(1, 4, 9, 11), (1, 4, 16, 12)], [(1, 3, 18, 22)]),
    "wan2.1": (wan, [(1, 16, 2, 3, 5)], [(1, 3, 5, 24, 40)]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_start_compiles_everything(name: str, compiled: set[object]) -> None:
    """Pictures of every size and clips, both ways and by every plan, need no kernel that the start has not compiled."""
    build, latents, pictures = CASES[name]
    model = MODELS[name]
    vae, recipe = DiffusersVAE(build(), source="", revision="", family=family_of(model)), model.recipe
    budget, signals = SimpleNamespace(bytes_now=lambda: None), SimpleNamespace(tell=lambda *told: None)
    child.JobRunner(vae, recipe, budget, signals, None).warm_up()  # type: ignore[arg-type]
    started = set(compiled)
    assert started
    for executor in vae.decoders:
        for shape in latents:
            fit = fit_latent(recipe, vae.info, shape, model="", height=None, width=None)
            how: Any = {"fit": fit, "scaling": Scaling(), "output": Output.UINT8}
            decode(vae, recipe, torch.randn(shape), **how, options=RunOptions(executor.name))
    for executor in vae.encoders:
        for shape in pictures:
            how = {"scaling": Scaling(), "posterior": Posterior.MODE, "options": RunOptions(executor.name)}
            encode(vae, recipe, torch.rand(shape), **how)
    assert compiled == started
