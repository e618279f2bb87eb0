"""The options of a request as flags of a command, made from their rows."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from remote_vae.protocol.kinds import Boolean, Integer, Kind, Real
from remote_vae.protocol.options import Rows

TYPES: Final[dict[type, type]] = {Boolean: bool, Integer: int, Real: float}


def with_flags(rows: Rows) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for each row that is one, in the place of its `**options`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command)
        named = [item for item in own.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        flags = [_flag(name, row.kind, row.doc) for name, row in rows.items() if row.flag]
        command.__signature__ = own.replace(parameters=[*named, *flags])  # type: ignore[attr-defined]
        command.__annotations__ = {item.name: item.annotation for item in (*named, *flags)} | {"return": None}
        return command

    return decorate


def _flag(name: str, kind: Kind, doc: str) -> inspect.Parameter:
    annotation: Any = Annotated[TYPES.get(type(kind), str) | None, typer.Option(help=doc)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
