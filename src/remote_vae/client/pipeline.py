"""RemoteVAE: what a diffusers pipeline takes for its VAE, decoding and encoding on a server.

The one module of the client that imports torch and diffusers; it is imported when RemoteVAE is first used.
"""

import copy
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, Self, TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from remote_vae.client.endpoint import read_endpoint
from remote_vae.client.model import RemoteModel
from remote_vae.errors import ClientTimeout, ConfigurationError, ConnectionFailed, InvalidValue

T = TypeVar("T")

PREVIEW_KEY: Final = "latent_magnitude"  # that only the configs of tiny VAEs have
NORM_KEY: Final = "batch_norm_eps"  # of a VAE whose pipelines read statistics of the latents from a batch norm


class RemoteVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """`pipe.vae = RemoteVAE("http://host:8000/sdxl")`, or `from_pretrained(..., vae=RemoteVAE(...))`.

    It has the config of the VAE that the server holds, and no weights. Decoded pixels come in the server's precision,
    on the latent's device. A posterior is sampled here, of the server's mean and log-variance, so that seeds give what
    they give with a local VAE. `model` is the server's name for it, where the URL does not end with one. `fallback` is
    a local VAE that takes over, with a warning, when no answer comes from the server. As a context it closes its
    connection at the end. *Units*: timeout in seconds, for a whole call with all its tries.
    *Raises* UnknownModel, LatentMismatch, ConnectionFailed, ClientTimeout, and what the server raises.
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
        fallback: Any = None,
    ) -> None:
        super().__init__()
        # Of no elements: it follows `.to()` and offload hooks as weights would, and so tells device and precision.
        self.place = torch.nn.Parameter(torch.empty(0), requires_grad=False)
        self._connect: Callable[[], RemoteModel] = lambda: RemoteModel(
            endpoint, model=model, token=token, timeout=timeout
        )
        self._remote: RemoteModel | None = None
        # Past the module, which would take it for weights of its own.
        object.__setattr__(self, "_fallback", fallback)
        config, norm, self._is_preview = self._ask(
            _facts, lambda local: (local.config, getattr(local, "bn", None), PREVIEW_KEY in local.config)
        )
        shown = {name: value for name, value in config.items() if not name.startswith("_")}
        if norm is not None:
            self.bn = _without_weights(norm)
        shown["shift_factor"] = shown.get("shift_factor") or 0.0  # some pipelines add it unasked
        self.register_to_config(**shown, endpoint=read_endpoint(endpoint, token=token).url, model=model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; a later call opens another."""
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

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent cell and side."""
        return int(self.config.get("spatial_compression_ratio") or 2 ** (len(self.config.block_out_channels) - 1))

    @property
    def temporal_compression_ratio(self) -> int:
        """Frames per latent frame, but for the first; 1 for pictures."""
        return int(self.config.get("temporal_compression_ratio") or 1)

    @property
    def post_quant_conv(self) -> Self:
        """Pipelines ask its parameters for their precision, and nothing else."""
        return self

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """*Shapes*: as the pipeline's own VAE takes it, [B,C,h,w] -> [B,3,H,W] or [B,C,f,h,w] -> [B,3,F,H,W]."""
        _refuse_gradient(z)
        pixels = self._ask(
            lambda remote: remote.decode(z, do_scaling=self._is_preview),
            lambda local: local.decode(z.to(local.device, local.dtype)).sample,
        ).to(z.device)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | AutoencoderTinyOutput | tuple[Any]:
        """*Shapes*: [B,3,H,W] -> a distribution of [B,C,h,w], or [B,3,F,H,W] -> [B,C,f,h,w]; previews give a latent."""
        _refuse_gradient(x)
        if self._is_preview:
            latent = self._ask(
                lambda remote: remote.encode(x, posterior="mode", do_scaling=True),
                lambda local: local.encode(x.to(local.device, local.dtype)).latents,
            ).to(x)
            return AutoencoderTinyOutput(latents=latent) if return_dict else (latent,)
        moments = self._ask(
            lambda remote: remote.encode(x, posterior="parameters"),
            lambda local: local.encode(x.to(local.device, local.dtype)).latent_dist.parameters,
        )
        # In the layout that the VAE's convolutions leave, because networks add in another order on another one.
        layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
        posterior = DiagonalGaussianDistribution(moments.to(x).contiguous(memory_format=layout))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def _ask(self, remote: Callable[[RemoteModel], T], local: Callable[[Any], T]) -> T:
        """The server's answer, or the fallback's when there is a fallback and no answer."""
        try:
            if self._remote is None:
                self._remote = self._connect()
                _check_fallback(self._fallback, self._remote.card["config"])
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

    def disable_slicing(self) -> None:
        """There is nothing to disable."""

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
        fallback: Any = None,
        **_: Any,
    ) -> Self:
        """The one that `save_pretrained` wrote, its config asked for anew; *raises* ConfigurationError."""
        config = cls.load_config(path, subfolder=subfolder)
        if config.get("_class_name") != cls.__name__:
            raise ConfigurationError(
                f"{str(path)!r} holds a {config.get('_class_name')}; expected the folder of a RemoteVAE. Serve the "
                "weights with remote-vae serve, and give RemoteVAE the server's URL"
            )
        found = cls(config["endpoint"], model=config["model"], token=token, timeout=timeout, fallback=fallback)
        found.to(dtype or torch_dtype or found.dtype)
        return found


def _facts(remote: RemoteModel) -> tuple[Mapping[str, Any], torch.nn.BatchNorm2d | None, bool]:
    """The VAE's config, the batch norm with the card's statistics if its pipelines read one, whether it is a preview.

    A preview gives a latent and not a distribution, and works on normalised latents.
    """
    config = remote.card["config"]
    preview = bool(remote.card.get("normalised", PREVIEW_KEY in config))  # older servers do not say
    if NORM_KEY not in config:
        return config, None, preview
    mean, std = (torch.tensor(remote.card[name], dtype=torch.float64) for name in ("latents_mean", "latents_std"))
    norm = torch.nn.BatchNorm2d(len(mean), eps=config["batch_norm_eps"], affine=False)
    norm.running_mean, norm.running_var = mean.float(), (std.square() - norm.eps).float()
    return config, norm, preview


def _without_weights(norm: torch.nn.BatchNorm2d) -> torch.nn.BatchNorm2d:
    """A copy that follows `.to()`, but whose statistics offloading takes for no weights: nobody calls it, which is when
    they would come back.
    """
    found = copy.deepcopy(norm).eval()
    for name, value in list(found.named_buffers()):
        found.register_buffer(name, value, persistent=False)
    return found


def _check_fallback(fallback: Any, config: Mapping[str, Any]) -> None:
    """Another class or other channels would give another picture without a word."""
    if fallback is None:
        return
    ours, theirs = type(fallback).__name__, config.get("_class_name")
    if ours != theirs or fallback.config.latent_channels != config["latent_channels"]:
        raise InvalidValue(
            f"the fallback, {ours} with {fallback.config.latent_channels} latent channels, does not do for the "
            f"server's model, {theirs} with {config['latent_channels']}; give the same VAE"
        )


def _is_channels_last(x: torch.Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _refuse_gradient(tensor: torch.Tensor) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise InvalidValue("no gradient passes a RemoteVAE; call it under torch.no_grad(), or train with a local VAE")


def _explain(method: str) -> None:
    warnings.warn(
        f"{method} changes nothing: the server plans each decode and encode within its memory, with exact pixels",
        UserWarning,
        stacklevel=3,
    )
