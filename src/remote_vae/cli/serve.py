"""`remote-vae serve`, which has an option for each of the server's settings."""

import contextlib
import inspect
import platform
import sys
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer
import typer.core
import typer.main

from remote_vae.cli.banner import banner
from remote_vae.cli.terminal import console, working
from remote_vae.errors import ConfigurationError

if TYPE_CHECKING:
    from remote_vae.engine.place import Loaded
    from remote_vae.server.settings import Settings


def _ray(text: str, flag: str, shown: str | None = None) -> Any:
    """An option of Ray Serve; its environment variable is read here, because no setting of the server is behind it."""
    variable = f"REMOTE_VAE_{flag[2:].replace('-', '_').upper()}"
    return typer.Option(flag, help=text, envvar=variable, show_default=shown or True, rich_help_panel="Ray Serve")


def serve(
    ctx: typer.Context,
    ray: Annotated[bool, _ray("Run several replicas on this machine, by Ray Serve.", "--ray")] = False,
    ray_replicas: Annotated[str, _ray("The number of replicas; 1-4 lets Ray choose by load.", "--ray-replicas")] = "1",
    ray_cpus: Annotated[
        float | None, _ray("The cores of a replica.", "--ray-cpus", shown="an even share; 1 with a GPU")
    ] = None,
    ray_gpus: Annotated[
        float | None, _ray("The GPUs of a replica; 0.5 puts two on one.", "--ray-gpus", shown="an even share")
    ] = None,
) -> None:
    """Serve one or more VAEs.

    Every option is also an environment variable, like REMOTE_VAE_PORT; models are in REMOTE_VAE_MODELS, with ; between.
    Keys are in a file or in REMOTE_VAE_KEYS, with spaces between.
    """
    from remote_vae.server.settings import read_settings

    values = {
        name: value for name, value in ctx.params.items() if value not in (None, [], ()) and not name.startswith("ray")
    }
    settings = read_settings(values)
    if ray:
        from remote_vae.deploy import ray_local

        scale = ray_local.Scale.parse(ray_replicas, cpus=ray_cpus, gpus=ray_gpus)
        return _run(partial(ray_local.serve, settings, scale=scale), settings)
    from remote_vae.server.run import serve as here

    return _run(partial(here, settings), settings)


def _run(server: Callable[..., None], settings: "Settings") -> None:
    """Shows what is loading until the server is ready, and then what it is."""
    with contextlib.ExitStack() as shown:
        shown.enter_context(working(f"loading {', '.join(settings.models)}"))

        def ready(address: str, models: "list[Loaded]") -> None:
            shown.close()
            for line in banner(settings, address, models):
                console.print(line)

        server(on_ready=ready)


class ServeCommand(typer.core.TyperCommand):
    """`serve` with an option for each setting. The other commands start sooner because only this one reads these."""

    @property
    def params(self) -> list[Any]:
        params: list[Any] = self._with_settings.params
        return params

    @params.setter
    def params(self, params: list[Any]) -> None:
        """Ignores the parameters that Typer has read from `serve`, because those of the settings are missing."""

    def invoke(self, ctx: Any) -> Any:
        return self._with_settings.invoke(ctx)

    @cached_property
    def _with_settings(self) -> Any:
        own = inspect.signature(serve).parameters

        def run(**values: Any) -> None:
            serve(**{name: values[name] for name in own})

        parameters = [own["ctx"], *_setting_parameters(), *list(own.values())[1:]]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        app = typer.Typer(add_completion=False)
        app.command()(run)
        return typer.main.get_command(app)


def _setting_parameters() -> Iterator[inspect.Parameter]:
    """A parameter for each setting that has a flag; None stands for "not given", so that the environment counts."""
    if sys.version_info < (3, 11):  # noqa: UP036  # the package is for 3.10 too, because of the client
        raise ConfigurationError(f"the server needs Python 3.11 or newer, and this is {platform.python_version()}")
    try:
        from remote_vae.server.settings import Settings
    except ImportError as exc:
        raise ConfigurationError(
            "the server is not installed; run in remote-vae's folder: pip install '.[server]'"
        ) from exc
    for name, field in Settings.model_fields.items():
        flag: Any = field.json_schema_extra
        if flag is None:
            continue
        option_type = str if flag["metavar"] == "SIZE" else _option_type(field.annotation)
        default = "" if option_type is bool or field.default is None else str(field.default)
        option = typer.Option(
            *(flag["flags"] or [f"--{name.replace('_', '-')}"]),
            help=field.description,
            metavar=flag["metavar"],
            show_default=flag["shown"] or default or False,
            rich_help_panel=flag["panel"],
        )
        yield inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[option_type | None, option]
        )


def _option_type(annotation: Any) -> Any:
    """What the command line reads a setting as: a list, a plain type, or text that the settings take apart."""
    if get_origin(annotation) is tuple:
        return list[str]
    members = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return next((member for member in members if member in (bool, int, float, Path)), str)


COMMAND = ServeCommand
