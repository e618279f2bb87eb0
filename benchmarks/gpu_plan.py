"""What `gpu_run.py` measures, in the order of its worth: if the time is over, the last ones are missing."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from decode_cases import OURS

EAGER: Final = "diffusers"
RIVALS: Final = (EAGER, "diffusers-channels-last", "diffusers-tiled")
COMPILED: Final = "compile"  # takes most of a minute for a shape, so it comes last


@dataclass(frozen=True, slots=True)
class Item:
    """One input, and the ways to run it. *Units*: sides in pixels; frames of a video, 0 for a picture.

    `plan` None is the planner's own choice.
    """

    direction: str
    height: int
    width: int
    frames: int = 0
    ways: tuple[str, ...] = (OURS, *RIVALS)


@dataclass(frozen=True, slots=True)
class Job:
    """The items of one model, which one process measures. *Units*: seconds that all of them may take."""

    model: str
    items: tuple[Item, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(found: dict[str, Any]) -> "Job":
        items = (Item(**{**item, "ways": tuple(item["ways"])}) for item in found["items"])
        return Job(found["model"], tuple(items), found["seconds"])


@dataclass(frozen=True, slots=True)
class Service:
    """A load on a server. *Units*: side in pixels; seconds for each number of clients."""

    model: str
    channels: int
    side: int
    seconds: float
    clients: tuple[int, ...] = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Plan:
    """*Units*: seconds that the tests may take."""

    jobs: tuple[Job, ...]
    services: tuple[Service, ...]
    tests: float


def _pictures(*sides: int, directions: tuple[str, ...] = ("decode", "encode")) -> tuple[Item, ...]:
    return tuple(Item(direction, side, side) for side in sides for direction in directions)


_CLIPS = (EAGER, "diffusers-tiled", OURS)
_LATE = tuple(replace(item, ways=(COMPILED,)) for item in _pictures(1024))

FULL: Final = Plan(
    (
        Job("sd1", _pictures(512, 1024, 2048, 4096), 45),
        Job("sdxl", _pictures(1024, 512, 2048, 4096), 40),
        Job("flux1", _pictures(1024, 512, 2048, 4096), 40),
        Job("flux2", _pictures(1024, 512, 2048, 4096), 40),
        Job("qwen-image", _pictures(1024, 512, 2048, 4096), 45),
        Job("wan2.1", (Item("decode", 480, 832, 81, _CLIPS), Item("decode", 720, 1280, 81, _CLIPS)), 50),
        Job("hunyuanvideo", (Item("decode", 320, 512, 61, _CLIPS),), 30),
        Job("sd1", _LATE, 55),
        Job("qwen-image", _LATE[:1], 55),
    ),
    (Service("sd1", 4, 512, 5), Service("sd1", 4, 1024, 5)),
    60,
)
REHEARSAL: Final = Plan(
    (
        Job("demo", _pictures(64), 60),
        Job("taew2.1", (Item("decode", 16, 16, 5, (EAGER, OURS)),), 60),
    ),
    (Service("demo", 16, 64, 0.5, (1, 4)),),
    0,
)
