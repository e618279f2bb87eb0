"""`remote-vae`: one command, whose subcommands are imported when they are called."""

import importlib
import sys
from typing import Annotated, Any, Final

import typer
import typer.core
import typer.main
from rich.markup import escape

from remote_vae import __version__
from remote_vae.cli.terminal import console
from remote_vae.errors import RemoteVAEError

COMMANDS: Final = {  # the module of each
    "serve": "serve",
    "encode": "encode",
    "decode": "remote",
    "models": "remote",
    "demo": "demo",
    "verify": "remote",
}


class Commands(typer.core.TyperGroup):
    """Imports the module of a command when it is called, so that no command waits for the packages of another."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"remote_vae.cli.{COMMANDS[cmd_name]}")
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name, cls=getattr(module, "COMMAND", None))(getattr(module, cmd_name))
        return typer.main.get_command(alone)


app = typer.Typer(
    name="remote-vae",
    cls=Commands,
    help="A self-hosted Remote VAE: latents to pictures and video, pictures to latents, over HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave the program.", is_eager=True)
    ] = False,
) -> None:
    """A self-hosted Remote VAE: latents to pictures and video, pictures to latents, over HTTP."""
    if version:
        typer.echo(__version__)
        raise typer.Exit()


def main() -> None:
    """The console script: an error of ours is one red sentence, not a traceback."""
    if sys.argv[1:] == ["--version"]:  # Typer imports pydantic before it looks at an option
        print(__version__)
        raise SystemExit
    try:
        app(prog_name="remote-vae" if sys.argv[0].endswith("main.py") else None)
    except RemoteVAEError as exc:
        console.print(f"[bold red]remote-vae:[/] {escape(exc.message)}")
        if exc.request_id:
            console.print(f"request id {exc.request_id}", style="dim", markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
