"""What a loaded VAE is, in numbers that travel between processes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from remote_vae.core.recipe import Constants


@dataclass(frozen=True, slots=True)
class VAEInfo:
    """Read from the loaded model, never from a table: a folder may hold other numbers than its name suggests."""

    latent_channels: int
    spatial_compression_ratio: int
    temporal_compression_ratio: int
    constants: Constants
    dtype: str
    deterministic: bool  # the encoder gives a latent, not a distribution
    plans: tuple[str, ...] = ("whole",)
    executor: str = "diffusers"  # or "strips": whose code runs the model
    weight_bytes: int = 0
    source: str = ""
    revision: str = ""
    config: Mapping[str, object] = field(default_factory=dict)  # as its class in diffusers was built

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_json(found: dict[str, object]) -> "VAEInfo":
        constants = dict(found["constants"])  # type: ignore[call-overload]  # written by to_json
        for name in ("latents_mean", "latents_std"):
            constants[name] = tuple(constants[name]) if constants[name] is not None else None
        values = {**found, "constants": Constants(**constants), "plans": tuple(found["plans"])}  # type: ignore[arg-type]
        return VAEInfo(**values)  # type: ignore[arg-type]

    def frames_out(self, latent_frames: int) -> int:
        """Pixel frames that a causal video VAE gives for this many latent frames."""
        return (latent_frames - 1) * self.temporal_compression_ratio + 1

    def latent_frames(self, frames: int) -> int:
        """The inverse of `frames_out`; frames beyond the last full group are dropped by the VAE."""
        return 1 + (frames - 1) // self.temporal_compression_ratio
