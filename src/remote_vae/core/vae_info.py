"""What a loaded VAE is, in numbers that travel between processes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from remote_vae.core.recipe import Constants
from remote_vae.values import ANY_NUMBER, RGB, RGBA, Counts, Frames


@dataclass(frozen=True, slots=True)
class VAEInfo:
    """Read from the loaded model, never from a table: a folder may hold other numbers than its name suggests."""

    latent_channels: int
    spatial_compression_ratio: int
    frames: Frames
    constants: Constants
    dtype: str
    deterministic: bool  # the encoder gives a latent, not a distribution
    encodes: bool = True  # it has an encoder
    frames_first: bool = False  # its class, and so its pipeline, has the frames of pixels before their channels
    takes: tuple[str, ...] = ()  # options of a request that are for the decoder itself
    pixel_channels: int = RGB  # 4 if its pictures have transparency
    rows: Counts = ANY_NUMBER  # of latent cells, and the columns of them, that it decodes
    columns: Counts = ANY_NUMBER
    plans: tuple[str, ...] = ("whole",)
    executor: str = "diffusers"  # or "strips": the code that runs the model
    weight_bytes: int = 0
    source: str = ""
    revision: str = ""
    config: Mapping[str, object] = field(default_factory=dict)  # as its class in diffusers was built

    @property
    def transparent(self) -> bool:
        """Whether its pictures have transparency."""
        return self.pixel_channels == RGBA

    @property
    def temporal_compression_ratio(self) -> int:
        """Frames for each latent frame after the first; 1 for pictures."""
        return self.frames.group

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_json(found: dict[str, object]) -> "VAEInfo":
        constants = dict(found["constants"])  # type: ignore[call-overload]  # written by to_json
        for name in ("latents_mean", "latents_std"):
            constants[name] = tuple(constants[name]) if constants[name] is not None else None
        frames = Frames.from_json(found["frames"])  # type: ignore[arg-type]
        sides = {name: Counts(**found[name]) for name in ("rows", "columns")}  # type: ignore[arg-type]
        names: dict[str, object] = {name: tuple(found[name]) for name in ("takes", "plans")}  # type: ignore[arg-type]
        values = {**found, "constants": Constants(**constants), "frames": frames, **sides, **names}
        return VAEInfo(**values)  # type: ignore[arg-type]
