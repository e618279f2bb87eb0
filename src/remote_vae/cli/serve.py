"""`remote-vae serve`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from remote_vae.cli.terminal import console
from remote_vae.errors import ConfigurationError

LIMITS = "Limits"
ACCESS = "Who may come in"
RAY = "Ray Serve"


def serve(
    ctx: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=SOURCE][,KEY=VALUE...]",
            help="Repeat for more; the first is /. SOURCE is a hub id, a folder or a .safetensors file. Keys are "
            "recipe, dtype, revision, subfolder, device, sha256, lazy and pinned.",
            show_default="demo",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8000")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps; cuda:0,cuda:1 for both.", show_default="auto")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="Of each model on each device.", show_default="1")] = None,
    lazy: Annotated[bool | None, typer.Option("--lazy", help="Load a model when it is first asked for.")] = None,
    weights_budget: Annotated[
        int | None,
        typer.Option(help="Bytes for all models' weights; the least recently used are unloaded.", show_default="none"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16.", show_default="the model's own")
    ] = None,
    random_weights: Annotated[
        bool | None, typer.Option("--random-weights", help="Seeded weights of the true size, for trials.")
    ] = None,
    memory_budget: Annotated[
        int | None,
        typer.Option(help="Bytes for one model, weights and work together.", show_default="what the device has free"),
    ] = None,
    unknown_parameters: Annotated[str | None, typer.Option(help="refuse or ignore.", show_default="refuse")] = None,
    metrics_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="For /metrics alone.", show_default="with the rest")
    ] = None,
    log_requests: Annotated[bool | None, typer.Option("--log-requests", help="A line of JSON for each.")] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="Keys of those who may come in, one a line.", rich_help_panel=ACCESS)
    ] = None,
    allow_anonymous: Annotated[
        bool | None, typer.Option("--allow-anonymous", help="Serve others without keys.", rich_help_panel=ACCESS)
    ] = None,
    client_requests_per_second: Annotated[
        float | None, typer.Option(help="For one key, or one address.", rich_help_panel=ACCESS)
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file.", rich_help_panel=ACCESS)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file.", rich_help_panel=ACCESS)] = None,
    max_body_bytes: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_reply_bytes: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Of one picture or frame.", rich_help_panel=LIMITS)] = None,
    max_side: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_batch: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_frames: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_query_bytes: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_head_bytes: Annotated[int | None, typer.Option(help="URL and headers.", rich_help_panel=LIMITS)] = None,
    max_headers: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    max_waiting: Annotated[int | None, typer.Option(help="Requests per model.", rich_help_panel=LIMITS)] = None,
    max_waiting_pixels: Annotated[int | None, typer.Option(help="Of these requests.", rich_help_panel=LIMITS)] = None,
    max_client_share: Annotated[
        float | None, typer.Option(help="Of both, for one key.", rich_help_panel=LIMITS)
    ] = None,
    max_unsent_bytes: Annotated[int | None, typer.Option(help="Of all replies.", rich_help_panel=LIMITS)] = None,
    head_seconds: Annotated[float | None, typer.Option(rich_help_panel=LIMITS)] = None,
    body_seconds: Annotated[float | None, typer.Option(rich_help_panel=LIMITS)] = None,
    request_seconds: Annotated[float | None, typer.Option(help="For an answer.", rich_help_panel=LIMITS)] = None,
    reply_seconds: Annotated[
        float | None, typer.Option(help="For a client to take a reply.", rich_help_panel=LIMITS)
    ] = None,
    hang_seconds: Annotated[
        float | None, typer.Option(help="For 1024x1024 pixels; then a replica is replaced.", rich_help_panel=LIMITS)
    ] = None,
    shutdown_seconds: Annotated[int | None, typer.Option(rich_help_panel=LIMITS)] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Several replicas on this machine.", envvar="REMOTE_VAE_RAY", rich_help_panel=RAY),
    ] = False,
    ray_replicas: Annotated[
        str,
        typer.Option(
            help="How many; 1-4 lets Ray choose by load.", envvar="REMOTE_VAE_RAY_REPLICAS", rich_help_panel=RAY
        ),
    ] = "1",
    ray_cpus: Annotated[
        float | None,
        typer.Option(
            help="Cores of a replica.",
            envvar="REMOTE_VAE_RAY_CPUS",
            show_default="an even share; 1 with a GPU",
            rich_help_panel=RAY,
        ),
    ] = None,
    ray_gpus: Annotated[
        float | None,
        typer.Option(
            help="GPUs of a replica; 0.5 puts two on one.",
            envvar="REMOTE_VAE_RAY_GPUS",
            show_default="an even share",
            rich_help_panel=RAY,
        ),
    ] = None,
) -> None:
    """Serve one or more VAEs.

    Every option is also an environment variable, like REMOTE_VAE_PORT; models are in REMOTE_VAE_MODELS, with ; between.
    Keys are in a file or in REMOTE_VAE_KEYS, with spaces between.
    """
    given: dict[str, Any] = {
        name: value
        for name, value in ctx.params.items()
        if value is not None and name != "model" and not name.startswith("ray")
    }
    if model:
        given["models"] = tuple(model)
    settings = _settings(given)
    run = _on_ray(ray_replicas, ray_cpus, ray_gpus) if ray else _here()
    names = escape(", ".join(settings.models))
    with console.status(f"loading {names}") as status:

        def ready(address: str) -> None:
            status.stop()
            console.print(f"[green]ready[/] {names} at {address} (description at {address}/docs)")

        run(settings, on_ready=ready)


def _here() -> Callable[..., None]:
    from remote_vae.server.run import serve as run

    return run


def _on_ray(replicas: str, cpus: float | None, gpus: float | None) -> Callable[..., None]:
    from remote_vae.deploy.ray_local import Scale
    from remote_vae.deploy.ray_local import serve as run

    return partial(run, scale=Scale.parse(replicas, cpus=cpus, gpus=gpus))


def _settings(given: dict[str, Any]) -> Any:
    try:
        from remote_vae.server.settings import read_settings
    except ImportError as exc:
        raise ConfigurationError("the server is not installed; run: pip install 'remote-vae[server]'") from exc
    return read_settings(given)
