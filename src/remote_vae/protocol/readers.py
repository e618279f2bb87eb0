"""One parameter's text -> its value: the readers of single names, each (name, text) -> value.

All *raise* MalformedRequest (400) for text that is not of the kind, InvalidValue (422) for a value out of range.
"""

import math
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Final, TypeVar

from remote_vae.errors import InvalidValue, MalformedRequest
from remote_vae.protocol.dtype import clip

E = TypeVar("E", bound=StrEnum)

BOOLEANS: Final = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
MAX_RANK: Final = 8
MAX_DIGITS: Final = 19  # of any integer: more cannot be a size, a seed or a side
SMALLEST_FACTOR: Final = 1e-6  # 1 / scaling_factor must stay far from overflow in every dtype

_INTEGER = re.compile(r"-?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(inf|infinity|nan)", re.IGNORECASE)


def read_boolean(name: str, text: str) -> bool:
    if text not in BOOLEANS:
        raise MalformedRequest(f"{name}={clip(text)!r} is not a boolean; expected True or False", name=name)
    return BOOLEANS[text]


def read_integer(name: str, text: str) -> int:
    """A plain decimal integer in ASCII; its range is judged by who knows the limits."""
    if not _INTEGER.fullmatch(text) or len(text) > MAX_DIGITS:
        raise MalformedRequest(f"{name}={clip(text)!r} is not an integer of at most {MAX_DIGITS} digits", name=name)
    return int(text)


def read_size(name: str, text: str) -> int:
    value = read_integer(name, text)
    if value < 1:
        raise InvalidValue(f"{name}={value} must be at least 1", name=name, value=value)
    return value


def read_quality(name: str, text: str) -> int:
    value = read_integer(name, text)
    if not 1 <= value <= 100:
        raise InvalidValue(f"{name}={value} must be from 1 to 100", name=name, value=value)
    return value


def read_seed(name: str, text: str) -> int:
    value = read_integer(name, text)
    if not 0 <= value < 2**63:
        raise InvalidValue(f"{name}={value} must be from 0 to 2**63 - 1", name=name, value=value)
    return value


def read_real(name: str, text: str) -> float:
    """A finite decimal number in ASCII."""
    if _NOT_FINITE.fullmatch(text):
        raise InvalidValue(f"{name}={text} must be a finite number", name=name)
    if not _REAL.fullmatch(text):
        raise MalformedRequest(f"{name}={clip(text)!r} is not a number, like 0.18215", name=name)
    value = float(text)
    if not math.isfinite(value) or abs(value) > 1e6:
        raise InvalidValue(f"{name}={clip(text)} must lie between -1e6 and 1e6", name=name)
    return value


def read_factor(name: str, text: str) -> float:
    value = read_real(name, text)
    if abs(value) < SMALLEST_FACTOR:
        raise InvalidValue(f"{name}={clip(text)} must be at least {SMALLEST_FACTOR} in size: it divides", name=name)
    return value


def read_shape(name: str, text: str) -> tuple[int, ...]:
    """`1,4,64,64` with or without brackets; *raises* InvalidValue for a size below 1."""
    inner = text.strip(" ")
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    shape = tuple(read_integer(name, item.strip(" ")) for item in inner.split(","))
    if len(shape) > MAX_RANK:
        raise MalformedRequest(f"{name} has {len(shape)} axes; at most {MAX_RANK} are read", name=name)
    for size in shape:
        if size < 1:
            raise InvalidValue(f"{name}={list(shape)} has a size below 1", name=name, shape=list(shape))
    return shape


def choice(kind: type[E]) -> Callable[[str, str], E]:
    """A reader for one of an enumeration's values."""

    def read(name: str, text: str) -> E:
        try:
            return kind(text)
        except ValueError:
            allowed = [member.value for member in kind]
            raise InvalidValue(
                f"{name}={clip(text)!r} is not known; expected one of {', '.join(allowed)}", name=name, allowed=allowed
            ) from None

    return read


def read_text(name: str, text: str) -> str:
    return clip(text)
