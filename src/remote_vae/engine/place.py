"""Where a replica has put its model, in values that travel between processes."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A device as the replica found it when its model was loaded.

    `free_bytes` is None if the device does not say. `title` is the name of the card or processor.
    """

    device: str
    title: str
    total_bytes: int
    free_bytes: int | None

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_json(found: dict[str, object]) -> "Place":
        return Place(**found)  # type: ignore[arg-type]  # written by to_json
