"""The group of the benchmarks' commands."""

import typer

from remote_vae.cli.bench.decode import decode
from remote_vae.cli.bench.serve import serve

bench = typer.Typer(help="What this machine makes of a VAE, beside what one would use instead.", no_args_is_help=True)
bench.command()(decode)
bench.command()(serve)


@bench.callback()
def about() -> None:
    """What this machine makes of a VAE, beside what one would use instead."""
