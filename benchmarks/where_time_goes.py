"""The operators that a decode spends its time in, most first, and each one's share.

python benchmarks/where_time_goes.py --plan strips --size 512
"""

from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from remote_vae.core.strips import strip_executors
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec


def main(
    plan: Annotated[str, typer.Option(help="whole, strips, strips-recompute, or diffusers.")] = "strips",
    size: Annotated[int, typer.Option(help="Side of the picture in pixels.")] = 512,
    dtype: str = "bfloat16",
    rows: Annotated[int, typer.Option(help="Operators to show.")] = 10,
) -> None:
    """Decode twice on the CPU, the second time with the profiler."""
    vae = load(ModelSpec("sd1", device="cpu", dtype=dtype, random_weights=True))
    side = size // vae.info.spatial_compression_ratio
    z = torch.randn(1, vae.info.latent_channels, side, side).to(vae.dtype)

    def decode() -> None:
        if plan == "diffusers":
            vae.decode(z)
            return
        assert vae.decoder is not None
        found = next(way for way in strip_executors(vae.decoder, "cpu", workers=1) if way.name == plan)
        found.run(z, lambda *block: None, lambda: None)

    with torch.inference_mode():
        decode()
        with profile(activities=[ProfilerActivity.CPU]) as found:
            decode()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    for event in events[:rows]:
        seconds = event.self_cpu_time_total / 1e6
        print(f"{event.key:40} {seconds:8.3f} s {100 * event.self_cpu_time_total / whole:5.1f} % {event.count:6}")


if __name__ == "__main__":
    typer.run(main)
