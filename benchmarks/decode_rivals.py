"""Each way to run a loaded VAE, as a function from nothing to its output. What each needs is imported when it runs."""

import warnings
from collections.abc import Callable
from typing import Final

import torch
from decode_cases import OURS

from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.core.pixels import signed
from remote_vae.core.recipe import Recipe
from remote_vae.engine import malloc
from remote_vae.engine.memory import free_bytes
from remote_vae.errors import SetupError
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Posterior, Scaling

Run = Callable[[], tuple[torch.Tensor, str | None]]  # the output on the CPU, and the plan
Call = Callable[[torch.Tensor], torch.Tensor]
OPAQUE: Final = ("compile", "openvino", "openvino-bf16")  # their tensors are not torch's to count


def prepare(
    name: str, vae: DiffusersVAE, recipe: Recipe, given: torch.Tensor, *, decoding: bool, plan: str | None
) -> Run:
    """The run of a variant on one latent [1,C,h,w], or on one picture [1,3,H,W] in [0, 1].

    *Raises* SetupError when the variant cannot run here.
    """
    if name == OURS:
        return _ours(vae, recipe, given, plan, decoding=decoding)
    own: Call = vae.decode if decoding else vae.encode
    values = (given if decoding else signed(given)).to(vae.dtype)
    call = _RIVALS[name](vae, own, values)

    def run() -> tuple[torch.Tensor, str | None]:
        return call(values.to(vae.device)).float().cpu(), None

    return run


def _ours(vae: DiffusersVAE, recipe: Recipe, given: torch.Tensor, plan: str | None, *, decoding: bool) -> Run:
    """As the server's replica runs it, with what the device has free."""
    malloc.keep_freed()

    def run() -> tuple[torch.Tensor, str | None]:
        options = RunOptions(plan, lambda: free_bytes(vae.device))
        if not decoding:
            found = encode(vae, recipe, given, scaling=Scaling(), posterior=Posterior.PARAMETERS, options=options)
            return found.tensor.float(), found.plan
        fit = fit_latent(recipe, vae.info, tuple(given.shape), model="", height=None, width=None)
        done = decode(vae, recipe, given, fit=fit, scaling=Scaling(), output=Output.RAW, options=options)
        return done.tensor.float(), done.plan

    return run


def _eager(vae: DiffusersVAE, call: Call, values: torch.Tensor) -> Call:
    return call


def _channels_last(vae: DiffusersVAE, call: Call, values: torch.Tensor) -> Call:
    torch.nn.Module.to(vae.module, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda given: call(given.contiguous(memory_format=torch.channels_last))


def _tiled(vae: DiffusersVAE, call: Call, values: torch.Tensor) -> Call:
    vae.module.enable_tiling()  # type: ignore[operator]
    return call


def _sliced(vae: DiffusersVAE, call: Call, values: torch.Tensor) -> Call:
    vae.module.enable_slicing()  # type: ignore[operator]
    return call


def _offloaded(vae: DiffusersVAE, call: Call, values: torch.Tensor) -> Call:
    """The weights come to the device for a call and leave it afterwards, as pipelines with model offload do."""
    device = vae.device

    def run(given: torch.Tensor) -> torch.Tensor:
        vae.module.to(device)
        found = call(given.to(device))
        vae.module.to("cpu")
        return found

    vae.module.to("cpu")
    return run


def _compiled(vae: DiffusersVAE, call: Call, values: torch.Tensor) -> Call:
    from torch._inductor import config

    config.freezing = True  # what a user would set for inference; it folds the weights into the graph
    compiled: Call = torch.compile(_channels_last(vae, call, values), dynamic=False)
    return compiled


def _openvino(vae: DiffusersVAE, call: Call, values: torch.Tensor) -> Call:
    """A static shape, in the module's precision, on as many threads as torch has."""
    try:
        import openvino
    except ImportError as exc:
        raise SetupError("openvino is not installed; run in remote-vae's folder: pip install '.[bench]'") from exc
    hint = "bf16" if vae.dtype is torch.bfloat16 else "f32"
    vae.module.float()
    side = 8 if call == vae.decode else 8 * vae.info.spatial_compression_ratio  # small, as tracing runs it often
    example = values[..., :side, :side].float()
    with warnings.catch_warnings(action="ignore"):  # tracing is deprecated, and what OpenVINO does
        model = openvino.convert_model(_Callable(vae, call), example_input=example, input=list(values.shape))
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    return lambda given: torch.from_numpy(compiled(given.float().numpy())[0])


class _Callable(torch.nn.Module):
    """A method of a VAE as a module, which is what converters take."""

    def __init__(self, vae: DiffusersVAE, call: Call) -> None:
        super().__init__()
        self.module, self._call = vae.module, call

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self._call(values)


_RIVALS: Final[dict[str, Callable[[DiffusersVAE, Call, torch.Tensor], Call]]] = {
    "diffusers": _eager,
    "diffusers-channels-last": _channels_last,
    "diffusers-bf16": _eager,
    "diffusers-bf16-channels-last": _channels_last,
    "diffusers-tiled": _tiled,
    "diffusers-sliced": _sliced,
    "diffusers-cpu-offload": _offloaded,
    "compile": _compiled,
    "openvino": _openvino,
    "openvino-bf16": _openvino,
}
