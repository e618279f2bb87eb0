"""What RemoteVAE asks of the local VAE that takes the server's place, if the server does not answer."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, Final

from remote_vae.errors import InvalidValue

PIXEL_CHANNELS: Final = ("in_channels", "out_channels", "input_channels")  # in a config, by class


def check_fallback(fallback: Any, config: Mapping[str, Any]) -> None:
    """Refuses another class or other channels, which would silently give another picture."""
    if fallback is None:
        return
    ours, theirs = type(fallback).__name__, config.get("_class_name")
    our_channels, their_channels = _channels(fallback.config), _channels(config)
    if ours != theirs or our_channels != their_channels:
        raise InvalidValue(
            f"the fallback, {ours} with {our_channels} latent channels, does not do for the "
            f"server's model, {theirs} with {their_channels}; give the same VAE"
        )
    for name in PIXEL_CHANNELS:
        if name in config and fallback.config.get(name) != config[name]:
            raise InvalidValue(
                f"the fallback has {name}={fallback.config.get(name)}, and the server's model {config[name]}; give "
                "the same VAE"
            )


def ratios_of(local: Any) -> tuple[int, int]:
    """Pixels per latent cell and side, and frames per latent frame, of a local VAE."""
    config = local.config
    space = getattr(local, "spatial_compression_ratio", None) or 2 ** (len(config.block_out_channels) - 1)
    time = getattr(local, "temporal_compression_ratio", None) or config.get("scale_factor_temporal") or 1
    return int(space), int(time)


def decode_here(local: Any, z: Any, how: Mapping[str, Any]) -> Any:
    """Pixels. A decoder that mixes the frames of its batch is told how many there are, as its pipeline tells it."""
    frames = {"num_frames": len(z)} if "num_frames" in signature(local.forward).parameters else {}
    return local.decode(z.to(local.device, local.dtype), **how, **frames).sample


def encode_here(local: Any, x: Any) -> tuple[Any, bool]:
    """A posterior's parameters; or a latent, and True, if the encoder is deterministic."""
    found = local.encode(x.to(local.device, local.dtype))
    if hasattr(found, "latent_dist"):
        return found.latent_dist.parameters, False
    return found["latents" if hasattr(found, "latents") else "latent"], True


def _channels(config: Mapping[str, Any]) -> Any:
    """Latent channels, by the names that the classes of diffusers give them."""
    return next((config[name] for name in ("latent_channels", "z_dim", "z_channels") if name in config), None)
