"""The one normalisation of the field, both ways, in float32."""

import torch

from remote_vae.core.recipe import Affine, Constants
from remote_vae.values import Scaling, ScalingMode


def denormalise(z: torch.Tensor, op: Affine, scaling: Scaling, constants: Constants) -> torch.Tensor:
    """z * (std or 1) / (scaling_factor or 1) + (mean or shift_factor or 0)."""
    chosen = choose(op, scaling, constants)
    return z if chosen is None else (_apply if op.literal is None else _forget)(z, chosen)


def normalise(z: torch.Tensor, op: Affine, scaling: Scaling, constants: Constants) -> torch.Tensor:
    """The inverse of `denormalise`: (z - (mean or shift_factor or 0)) * (scaling_factor or 1) / (std or 1)."""
    chosen = choose(op, scaling, constants)
    return z if chosen is None else (_forget if op.literal is None and not op.both_ways else _apply)(z, chosen)


def choose(op: Affine, scaling: Scaling, constants: Constants) -> Constants | None:
    """The constants that take part, or None when nothing is to be done."""
    if op.literal is not None:
        return op.literal if scaling.mode is ScalingMode.NONE else None
    if scaling.mode is ScalingMode.GIVEN:
        return Constants(scaling.scaling_factor, scaling.shift_factor)
    if scaling.mode is ScalingMode.NONE:
        return None
    both = constants.latents_mean is not None and constants.latents_std is not None
    return Constants(
        scaling_factor=constants.scaling_factor if "scaling_factor" in op.uses else None,
        shift_factor=constants.shift_factor if "shift_factor" in op.uses else None,
        latents_mean=constants.latents_mean if both and "latents_mean" in op.uses else None,
        latents_std=constants.latents_std if both and "latents_std" in op.uses else None,
    )


def _apply(z: torch.Tensor, constants: Constants) -> torch.Tensor:
    z = z.float()
    if constants.latents_std is not None:
        z = z * _per_channel(constants.latents_std, z)
    if constants.scaling_factor is not None:
        z = z / constants.scaling_factor
    if constants.latents_mean is not None:
        return z + _per_channel(constants.latents_mean, z)
    return z + constants.shift_factor if constants.shift_factor is not None else z


def _forget(z: torch.Tensor, constants: Constants) -> torch.Tensor:
    z = z.float()
    if constants.latents_mean is not None:
        z = z - _per_channel(constants.latents_mean, z)
    elif constants.shift_factor is not None:
        z = z - constants.shift_factor
    if constants.scaling_factor is not None:
        z = z * constants.scaling_factor
    return z / _per_channel(constants.latents_std, z) if constants.latents_std is not None else z


def _per_channel(values: tuple[float, ...], z: torch.Tensor) -> torch.Tensor:
    """*Shapes*: C values to [1,C,1,1] or [1,C,1,1,1]; C values for each of several frames to [1,C,f,1,1]."""
    found = torch.tensor(values, dtype=z.dtype, device=z.device)
    if len(values) == z.shape[1]:
        return found.view(1, -1, *[1] * (z.ndim - 2))
    return found.view(1, z.shape[1], -1, 1, 1)[:, :, : z.shape[2]]
