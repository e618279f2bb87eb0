"""Runs a function as a command with options."""

from collections.abc import Callable

import typer
from rich.markup import escape

from remote_vae.cli.terminal import console
from remote_vae.errors import RemoteVAEError


def run(function: Callable[..., None]) -> None:
    """The function's parameters become options; an error of this project is printed as one sentence, with exit code 1.

    *Raises* SystemExit.
    """
    try:
        typer.run(function)
    except RemoteVAEError as exc:
        console.print(f"[bold red]error:[/] {escape(exc.message)}")
        raise SystemExit(1) from None
