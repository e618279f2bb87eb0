"""RemoteVAE: a VAE for a diffusers pipeline that decodes and encodes on a server.

No other module of the client imports torch and diffusers; this one is imported when RemoteVAE is first used.
"""

import copy
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from remote_vae.client.decoder_arguments import arguments_of
from remote_vae.client.endpoint import read_endpoint
from remote_vae.client.fallback import check_fallback, decode_here, encode_here, ratios_of
from remote_vae.client.model import RemoteModel
from remote_vae.client.network import PathText
from remote_vae.client.retry import FEW
from remote_vae.client.there import decode_there, encode_there
from remote_vae.client.watching import Tell
from remote_vae.errors import ClientTimeout, ConfigurationError, ConnectionFailed, InvalidValue
from remote_vae.python310 import Self

T = TypeVar("T")

BUFFERS: Final = ("latents_mean", "latents_std")
NORM_KEY: Final = "batch_norm_eps"  # in the config if the pipelines read statistics of the latents from a batch norm


@dataclass
class LatentOutput(BaseOutput):  # type: ignore[misc]  # diffusers has no types
    """The latent of a deterministic encoder, by both names that diffusers' classes give it."""

    latent: torch.Tensor
    latents: torch.Tensor


class RemoteVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """`pipe.vae = RemoteVAE("http://host:8000/sdxl")`, or `from_pretrained(..., vae=RemoteVAE(...))`.

    It has the config of the server's VAE, and no weights. Decoded pixels have the server's precision and are on the
    latent's device. Posteriors are sampled here, from the server's mean and log-variance, so that a seed gives the same
    result as with a local VAE. `model` is the server's name of the model, if the URL does not end with it. `fallback`
    is a local VAE that is used, with a warning, if the server does not answer. As a context it closes its connection at
    the end. `progress` is that of `Client.decode`, for every call. *Units*: timeout in seconds, for a whole call with
    all its tries.
    *Raises* UnknownModel, LatentMismatch, ConnectionFailed, ClientTimeout, and the server's errors.
    """

    config_name = "config.json"
    use_slicing = False
    use_tiling = False

    def __init__(
        self,
        endpoint: str,
        *,
        model: str | None = None,
        token: str | None = None,
        timeout: float = 300.0,
        ca_file: PathText | None = None,
        fallback: Any = None,
        progress: bool | Tell = False,
    ) -> None:
        super().__init__()
        # Without elements: it follows `.to()` and offload hooks as weights do, and so gives device and precision.
        self.place = torch.nn.Parameter(torch.empty(0), requires_grad=False)
        how: Any = {"model": model, "token": token, "timeout": timeout, "ca_file": ca_file}
        # A fallback does not wait for a server that restarts.
        self._connect = partial(RemoteModel, endpoint, retries=None if fallback is None else FEW, **how)
        self._remote: RemoteModel | None = None
        self._progress = progress
        # Not by assignment, because the module would count the fallback's weights among its own.
        object.__setattr__(self, "_fallback", fallback)
        config, norm = self._ask(_config_and_norm, lambda local: (local.config, getattr(local, "bn", None)))
        self._ratios = self._ask(lambda remote: (remote.ratio, remote.frames_ratio), ratios_of)
        shown = {name: value for name, value in config.items() if not name.startswith("_")}
        if norm is not None:
            self.bn = _without_weights(norm)
        for name, values in self._ask(_buffers_of_card, _buffers).items():
            self.register_buffer(name, values, persistent=False)  # which offloading leaves alone
        shown["shift_factor"] = shown.get("shift_factor") or 0.0  # some pipelines add it without a check
        self.register_to_config(**shown, endpoint=read_endpoint(endpoint, token=token).url, model=model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; a later call opens another one."""
        if self._remote is not None:
            self._remote.close()
            self._remote = None

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise pickle.PicklingError(
            "a RemoteVAE holds a connection and cannot be pickled or copied; make another with the same URL, "
            f"RemoteVAE({self.config.endpoint!r}), where it is needed"
        )

    def extra_repr(self) -> str:
        return f"{self.config.endpoint!r}, model={self.config.model!r}"

    def __getattr__(self, name: str) -> Any:
        """Values of the config are attributes too, because some pipelines read them from the VAE itself."""
        config = self.__dict__.get("_internal_dict", {})
        return config[name] if name in config else super().__getattr__(name)

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent cell and side."""
        return self._ratios[0]

    @property
    def temporal_compression_ratio(self) -> int:
        """Frames per latent frame after the first; 1 for images."""
        return self._ratios[1]

    @property
    def post_quant_conv(self) -> Self:
        """Pipelines only read the precision of its parameters."""
        return self

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self,
        z: torch.Tensor,
        temb: torch.Tensor | None = None,
        return_dict: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        force_not_quantize: bool | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """*Shapes*: as the pipeline's own VAE takes it, [B,C,h,w] -> [B,P,H,W] or [B,C,f,h,w] -> [B,P,F,H,W].

        `temb` has a timestep for each latent, for a decoder that is conditioned on it; the pipeline has mixed the noise
        into the latent. `generator` gives a seed to a decoder that takes noise. The server quantizes as the pipelines
        of its recipe do; `force_not_quantize` is for the fallback.
        """
        _refuse_gradient(z)
        given = {"temb": temb, "generator": generator, "force_not_quantize": force_not_quantize}
        how = {name: value for name, value in given.items() if value is not None}
        pixels = self._ask(
            lambda remote: decode_there(remote, z, arguments_of(remote.card, temb, generator), self._progress),
            lambda local: decode_here(local, z, how),
        ).to(z.device)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | LatentOutput | tuple[Any]:
        """*Shapes*: [B,P,H,W] -> a distribution of [B,C,h,w], or [B,P,F,H,W] -> [B,C,f,h,w].

        A deterministic encoder gives the latent itself.
        """
        _refuse_gradient(x)
        found, is_latent = self._ask(
            lambda remote: encode_there(remote, x, self._progress), lambda local: encode_here(local, x)
        )
        if is_latent:
            latent = found.to(x)
            return LatentOutput(latent=latent, latents=latent) if return_dict else (latent,)
        # In the memory layout that the VAE's convolutions give, because another one changes a network's rounding.
        is_last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.contiguous_format
        posterior = DiagonalGaussianDistribution(found.to(x).contiguous(memory_format=layout))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def _ask(self, remote: Callable[[RemoteModel], T], local: Callable[[Any], T]) -> T:
        """The server's answer; the fallback's, if there is a fallback and the server does not answer."""
        try:
            if self._remote is None:
                self._remote = self._connect()
                check_fallback(self._fallback, self._remote.card["config"])
            return remote(self._remote)
        except (ConnectionFailed, ClientTimeout) as error:
            if self._fallback is None:
                raise
            warnings.warn(f"{error.message}; the fallback, a local VAE, is used instead", RuntimeWarning, stacklevel=4)
            with torch.no_grad():
                return local(self._fallback)

    def enable_tiling(self, *args: object, **kwargs: object) -> None:
        _explain("enable_tiling")

    def enable_slicing(self) -> None:
        _explain("enable_slicing")

    def disable_tiling(self) -> None:
        """There is nothing to disable."""

    disable_slicing = disable_tiling

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, push_to_hub: bool = False, **_: Any) -> None:
        """Writes config.json, with the address and without credentials; there are no weights to write."""
        self.save_config(save_directory, push_to_hub=push_to_hub)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        token: str | None = None,
        timeout: float = 300.0,
        ca_file: PathText | None = None,
        fallback: Any = None,
        progress: bool | Tell = False,
        **_: Any,
    ) -> Self:
        """The RemoteVAE that `save_pretrained` wrote, with the server's present config; *raises* ConfigurationError."""
        config = cls.load_config(path, subfolder=subfolder)
        if config.get("_class_name") != cls.__name__:
            raise ConfigurationError(
                f"{str(path)!r} holds a {config.get('_class_name')}; expected the folder of a RemoteVAE. Serve the "
                "weights with remote-vae serve, and give RemoteVAE the server's URL"
            )
        how: Any = {"timeout": timeout, "ca_file": ca_file, "fallback": fallback, "progress": progress}
        found = cls(config["endpoint"], model=config["model"], token=token, **how)
        found.to(dtype or torch_dtype or found.dtype)
        return found


def _config_and_norm(remote: RemoteModel) -> tuple[Mapping[str, Any], torch.nn.BatchNorm2d | None]:
    """The VAE's config, and the batch norm with the card's statistics if the pipelines read one."""
    config = remote.card["config"]
    if NORM_KEY not in config:
        return config, None
    mean, std = (torch.tensor(remote.card[name], dtype=torch.float64) for name in ("latents_mean", "latents_std"))
    norm = torch.nn.BatchNorm2d(len(mean), eps=config[NORM_KEY], affine=False)
    norm.running_mean, norm.running_var = mean.float(), (std.square() - norm.eps).float()
    return config, norm


def _buffers_of_card(remote: RemoteModel) -> dict[str, torch.Tensor]:
    """The statistics of the latents, if pipelines read them from the VAE itself: neither config nor norm has them."""
    known = NORM_KEY in remote.card["config"] or "latents_mean" in remote.card["config"]
    found = {} if known else {name: remote.card.get(name) for name in BUFFERS}
    return {name: torch.tensor(values) for name, values in found.items() if values is not None}


def _buffers(local: Any) -> dict[str, torch.Tensor]:
    return {name: values for name, values in local.named_buffers(recurse=False) if name in BUFFERS}


def _without_weights(norm: torch.nn.BatchNorm2d) -> torch.nn.BatchNorm2d:
    """A copy that follows `.to()`, with statistics that offloading leaves alone.

    Offloading brings a module's weights back when the module is called, and pipelines never call this one.
    """
    found = copy.deepcopy(norm).eval()
    for name, value in list(found.named_buffers()):
        found.register_buffer(name, value, persistent=False)
    return found


def _refuse_gradient(tensor: torch.Tensor) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise InvalidValue("no gradient passes a RemoteVAE; call it under torch.no_grad(), or train with a local VAE")


def _explain(method: str) -> None:
    warnings.warn(
        f"{method} changes nothing: the server plans each decode and encode within its memory, with exact pixels",
        UserWarning,
        stacklevel=3,
    )
