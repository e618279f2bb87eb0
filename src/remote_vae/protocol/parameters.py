"""Text of a query or of JSON <-> typed options. Strict: what is not understood is refused, never guessed."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

from remote_vae.errors import MalformedRequest, UnknownParameter
from remote_vae.protocol.options import Rows
from remote_vae.values import Scaling, ScalingMode, clip

Pairs = list[tuple[str, str]]

ABSENT: Final = ("", "None", "null")
MAX_PAIRS: Final = 64

_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def split_query(query: str | bytes) -> Pairs:
    """Names and values of a query string, percent-decoded; *raises* MalformedRequest."""
    try:
        text = query.decode("ascii") if isinstance(query, bytes) else query
        pieces = [piece for piece in text.split("&") if piece]
        if len(pieces) > MAX_PAIRS:
            raise MalformedRequest(f"the query has {len(pieces)} parameters; at most {MAX_PAIRS} are read")
        return [_split_pair(piece) for piece in pieces]
    except UnicodeError as exc:
        raise MalformedRequest("the query is not percent-encoded UTF-8 text") from exc


def _split_pair(piece: str) -> tuple[str, str]:
    if _BROKEN_PERCENT.search(piece):
        raise MalformedRequest(f"query parameter {clip(piece)!r} has a broken percent escape")
    name, _, value = piece.replace("+", " ").partition("=")
    return unquote_to_bytes(name).decode("utf-8"), unquote_to_bytes(value).decode("utf-8")


def from_json(parameters: object) -> Pairs:
    """The pairs of a JSON object of parameters, so that both spellings are read by the same rules."""
    if not isinstance(parameters, dict):
        raise MalformedRequest("'parameters' must be a JSON object, like {\"shape\": [1, 4, 64, 64]}")
    if len(parameters) > MAX_PAIRS:
        raise MalformedRequest(f"'parameters' has {len(parameters)} entries; at most {MAX_PAIRS} are read")
    return [(str(name), _text(name, value)) for name, value in parameters.items()]


def _text(name: object, value: object) -> str:
    """A value of JSON as a query spells it. Numbers may be texts, in a shape too, as clients in shells have them."""
    if name == "shape" and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def read(pairs: Pairs, rows: Rows, *, ignore_unknown: bool = False) -> dict[str, object]:
    """Typed values by name; absent ones are missing from the result.

    *Raises* UnknownParameter naming the nearest known name, MalformedRequest for a name given twice (only
    `shape` repeats), and what the kinds raise.
    """
    texts: dict[str, str] = {}
    for name, text in pairs:
        if name not in rows:
            if ignore_unknown:
                continue
            raise _unknown(name, rows)
        if name == "shape" and name in texts:
            texts[name] += "," + text
        elif name in texts:
            raise MalformedRequest(f"{name} is given twice; only shape may repeat", name=name)
        else:
            texts[name] = text
    # An empty factor is more likely a bug in the caller than the wish for an unscaled latent, which is a wrong picture.
    for name in ("scaling_factor", "shift_factor"):
        if texts.get(name) == "":
            raise MalformedRequest(f"{name} is empty; give a number, or leave the name out", name=name)
    return {name: rows[name].kind.read(name, text) for name, text in texts.items() if text not in ABSENT}


def _unknown(name: str, known: Iterable[str]) -> UnknownParameter:
    names = list(known)
    if name == "model":
        return UnknownParameter("the model is no parameter but the first part of the path, like /sd1/decode", name=name)
    nearest = difflib.get_close_matches(name[:40], names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else f"; known are {', '.join(names)}"
    return UnknownParameter(f"parameter {clip(name)!r} is not known{hint}", name=clip(name), nearest=nearest[:1])


def scaling(values: Mapping[str, object], *, default: ScalingMode) -> Scaling:
    """The scaling rule: the given factors, otherwise do_scaling, otherwise the dialect's default."""
    factor, shift, wanted = values.get("scaling_factor"), values.get("shift_factor"), values.get("do_scaling")
    if factor is not None or shift is not None:
        return Scaling(ScalingMode.GIVEN, _float(factor), _float(shift))
    if wanted is None:
        return Scaling(default)
    return Scaling(ScalingMode.MODEL if wanted else ScalingMode.NONE)


def _float(value: object) -> float | None:
    return value if isinstance(value, float) else None


def write(scaling: Scaling, options: Mapping[str, object], rows: Rows) -> Pairs:
    """The pairs that say these options in the dialect of diffusers' own client."""
    pairs: Pairs = [("do_scaling", "True")] if scaling.mode is ScalingMode.MODEL else []
    for name, factor in (("scaling_factor", scaling.scaling_factor), ("shift_factor", scaling.shift_factor)):
        if factor is not None:
            pairs.append((name, repr(float(factor))))
    for name, row in rows.items():
        value = options.get(name, row.default)
        if value is not None and (row.always or value != row.default):
            pairs.append((name, str(value)))
    return pairs
