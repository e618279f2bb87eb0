"""`remote-vae`: one command, a file per group of subcommands."""

from typing import Annotated

import typer
from rich.markup import escape

from remote_vae import __version__
from remote_vae.cli.demo import demo
from remote_vae.cli.encode import encode
from remote_vae.cli.remote import decode, models, verify
from remote_vae.cli.serve import ServeCommand, serve
from remote_vae.cli.terminal import console
from remote_vae.errors import RemoteVAEError

app = typer.Typer(
    name="remote-vae",
    help="A self-hosted Remote VAE: latents to pictures and video, pictures to latents, over HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command(cls=ServeCommand)(serve)
app.command()(encode)
app.command()(decode)
app.command()(models)
app.command()(demo)
app.command()(verify)


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    """A self-hosted Remote VAE: latents to pictures and video, pictures to latents, over HTTP."""
    if version:
        typer.echo(__version__)
        raise typer.Exit()


def main() -> None:
    """The console script: an error of ours is one red sentence, not a traceback."""
    try:
        app()
    except RemoteVAEError as exc:
        console.print(f"[bold red]remote-vae:[/] {escape(exc.message)}")
        if exc.request_id:
            console.print(f"request id {exc.request_id}", style="dim", markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
