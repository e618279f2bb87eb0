"""Where a replica has put its model, in values that travel between processes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from remote_vae.core.vae_info import VAEInfo


@dataclass(frozen=True, slots=True)
class Place:
    """A device as the replica found it when its model was loaded.

    `title` is the name of the card or processor; `free_bytes` is None if the device does not say. `largest` is the side
    of the largest square picture that each of some plans decodes in the free memory; models of videos have none.
    """

    device: str
    title: str
    total_bytes: int
    free_bytes: int | None
    largest: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_json(found: dict[str, object]) -> "Place":
        return Place(**found)  # type: ignore[arg-type]  # written by to_json


@dataclass(frozen=True, slots=True)
class Loaded:
    """What there is to tell of a model when the server is ready; `info` is None if it has not been loaded yet."""

    name: str
    info: VAEInfo | None
    places: tuple[Place, ...]
    seconds: float
