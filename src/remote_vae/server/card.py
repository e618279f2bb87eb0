"""The card of a model, which GET /models shows."""

from collections.abc import Sequence
from dataclasses import asdict

from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine.place import Place
from remote_vae.engine.pool import Served
from remote_vae.protocol.messages import ModelInfo
from remote_vae.server.settings import Settings


def model_info(model: Served, info: VAEInfo, places: Sequence[Place], settings: Settings) -> ModelInfo:
    """The card that GET /models shows."""
    return ModelInfo(
        name=model.name,
        aliases=model.aliases,
        recipe=model.recipe.name,
        kind="video" if model.recipe.has_frames else "image",
        latent_channels=info.latent_channels,
        spatial_compression_ratio=info.spatial_compression_ratio,
        temporal_compression_ratio=info.temporal_compression_ratio,
        frames=asdict(info.frames),
        latent_layouts=tuple(layout.wire for layout in model.recipe.layouts),
        scaling_factor=info.constants.scaling_factor,
        shift_factor=info.constants.shift_factor,
        latents_mean=info.constants.latents_mean,
        latents_std=info.constants.latents_std,
        posterior=model.recipe.posterior,
        dtype=info.dtype,
        plans=info.plans,
        executor=info.executor,
        source=info.source,
        revision=info.revision,
        limits={name: value for name, value in settings.model_dump().items() if name.startswith("max_")},
        config=info.config,
        deterministic=info.deterministic,
        encodes=info.encodes,
        frames_first=info.frames_first,
        takes=info.takes,
        normalised=model.recipe.normalised,
        pixel_range=None if model.recipe.pixel_range is None else asdict(model.recipe.pixel_range),
        pixel_channels=info.pixel_channels,
        devices=tuple({each.device: _device(each) for each in places}.values()),
    )


def _device(place: Place) -> dict[str, object]:
    return {"device": place.device, "title": place.title, "total_bytes": place.total_bytes}
