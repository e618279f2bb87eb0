"""A case to be measured and the row that comes of it: what travels between the command and its measuring processes."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

OURS: Final = "ours"
REFERENCE: Final = "diffusers"  # float32, whole: what every output is compared with
PLANS: Final = ("whole", "strips", "strips-recompute", "chosen")  # the last leaves the plan to the planner
DIRECTIONS: Final = ("decode", "encode")


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run a VAE. `dtype` None is the one that was asked for; `only` names the devices it makes sense on."""

    name: str
    dtype: str | None
    only: str | None = None


VARIANTS: Final = {
    variant.name: variant
    for variant in (
        Variant(OURS, None),
        Variant(REFERENCE, "float32"),
        Variant("diffusers-channels-last", "float32"),
        Variant("diffusers-bf16", "bfloat16"),
        Variant("diffusers-bf16-channels-last", "bfloat16"),
        Variant("diffusers-tiled", "bfloat16"),
        Variant("diffusers-sliced", "bfloat16"),
        Variant("diffusers-cpu-offload", "bfloat16", only="cuda"),
        Variant("compile", "bfloat16"),
        Variant("openvino", "float32", only="cpu"),
        Variant("openvino-bf16", "bfloat16", only="cpu"),
    )
}
RIVALS: Final = tuple(name for name in VARIANTS if name != OURS)


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement, in a process of its own. `spec` is a ModelSpec as JSON values, its dtype and device set.

    `threads` None leaves their number to torch.
    """

    variant: str
    direction: str
    size: int
    plan: str | None
    repeats: int
    reference: str  # path of the reference's output as .npy; the reference writes it
    spec: dict[str, Any]
    threads: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Case":
        return Case(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured; None is what could not be, and `error` says why nothing was.

    `plan` is the plan that ran, for `ours`; `chosen` says that the planner picked it. `seconds` is the median after a
    first call; `first_seconds` that call, with whatever conversion or compilation went before it. `peak_bytes` is what
    the call's tensors held at most, weights not counted: live tensors on a CPU, allocated memory on a GPU. `rss_bytes`
    is how much the process grew, on Linux. `max_abs` is the largest difference to the reference, `psnr_db` the ratio
    of the range of values (2 for pixels, for encodings what the reference spans) to it; where nothing differs,
    `max_abs` is 0 and `psnr_db` None, which JSON has no infinity for.
    """

    variant: str
    model: str
    direction: str
    size: int
    dtype: str
    plan: str | None = None
    device: str = ""
    seconds: float | None = None
    peak_bytes: int | None = None
    psnr_db: float | None = None
    max_abs: float | None = None
    chosen: bool = False
    first_seconds: float | None = None
    rss_bytes: int | None = None
    device_name: str = ""
    device_bytes: int | None = None
    threads: int | None = None
    error: str | None = None
