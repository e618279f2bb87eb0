"""`remote-vae serve`."""

from typing import Annotated, Any

import typer
from rich.console import Console

from remote_vae.errors import ConfigurationError

LIMITS = "Limits"


def serve(
    ctx: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[=SOURCE][,recipe=R][,dtype=D][,revision=V][,subfolder=S]; repeat for more, the first is /. "
            "SOURCE is a hub id, a folder or a .safetensors file. [default: demo]"
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [default: 8000]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps. [default: auto]")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. [default: the model's own]")] = None,
    random_weights: Annotated[
        bool | None, typer.Option("--random-weights", help="Seeded weights of the true size, for trials.")
    ] = None,
    unknown_parameters: Annotated[str | None, typer.Option(help="refuse or ignore. [default: refuse]")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_reply_bytes: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Of one picture or frame.", rich_help_panel=LIMITS)] = None,
    max_side: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_batch: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_frames: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_waiting: Annotated[int | None, typer.Option(help="Requests per model.", rich_help_panel=LIMITS)] = None,
    body_seconds: Annotated[float | None, typer.Option(rich_help_panel=LIMITS)] = None,
    shutdown_seconds: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
) -> None:
    """Serve one or more VAEs. Every option is also an environment variable, REMOTE_VAE_<OPTION>."""
    given: dict[str, Any] = {name: value for name, value in ctx.params.items() if value is not None and name != "model"}
    if model:
        given["models"] = tuple(model)
    settings = _settings(given)
    from remote_vae.server.run import serve as run

    console = Console(stderr=True)
    with console.status(f"loading {', '.join(settings.models)}") as status:

        def ready(address: str) -> None:
            status.stop()
            console.print(f"[green]ready[/] {', '.join(settings.models)} at {address} (description at {address}/docs)")

        run(settings, on_ready=ready)


def _settings(given: dict[str, Any]) -> Any:
    try:
        from pydantic import ValidationError

        from remote_vae.server.settings import Settings
    except ImportError as exc:
        raise ConfigurationError("the server is not installed; run: pip install 'remote-vae[server]'") from exc
    try:
        return Settings(**given)
    except ValidationError as exc:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in exc.errors()]
        raise ConfigurationError("; ".join(lines)) from exc
