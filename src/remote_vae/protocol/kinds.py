"""The kinds of values that an option can have: each reads the text of the wire, and checks a value of a program.

All *raise* MalformedRequest (400) for what is not of the kind, InvalidValue (422) for a value out of range.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from typing import Final, Protocol

from remote_vae.errors import InvalidValue, MalformedRequest
from remote_vae.values import clip

BOOLEANS: Final = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
MAX_RANK: Final = 8
MAX_DIGITS: Final = 19  # more digits cannot be a size, a seed or a side
LARGEST_SEED: Final = 2**63 - 1
LARGEST_REAL: Final = 1e6
SMALLEST_FACTOR: Final = 1e-6  # 1 / scaling_factor must stay far from overflow in every dtype

_INTEGER = re.compile(r"-?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(inf|infinity|nan)", re.IGNORECASE)

Schema = Mapping[str, object]


class Kind(Protocol):
    """What an option's value may be."""

    @property
    def schema(self) -> Schema:
        """The kind in JSON Schema."""
        ...

    def read(self, name: str, text: str) -> object:
        """The value that a text of the wire stands for."""
        ...

    def check(self, name: str, value: object) -> object:
        """A program's value in Python's own type, if it is of this kind and in range."""
        ...


@dataclass(frozen=True, slots=True)
class Boolean:
    @property
    def schema(self) -> Schema:
        return {"type": "boolean"}

    def read(self, name: str, text: str) -> bool:
        if text not in BOOLEANS:
            raise _not_boolean(name, text)
        return BOOLEANS[text]

    def check(self, name: str, value: object) -> bool:
        if value not in (True, False):
            raise _not_boolean(name, str(value))
        return bool(value)


def _not_boolean(name: str, text: str) -> MalformedRequest:
    return MalformedRequest(f"{name}={clip(text)!r} is not a boolean; expected True or False", name=name)


@dataclass(frozen=True, slots=True)
class Integer:
    """A plain decimal integer in ASCII. `least` and `most` are allowed too; None sets no bound."""

    least: int | None = None
    most: int | None = None

    @property
    def schema(self) -> Schema:
        bounds = {"minimum": self.least, "maximum": None if self.most == LARGEST_SEED else self.most}
        return {"type": "integer", **{name: bound for name, bound in bounds.items() if bound is not None}}

    def read(self, name: str, text: str) -> int:
        if not _INTEGER.fullmatch(text) or len(text) > MAX_DIGITS:
            raise _not_integer(name, text)
        return self._within(name, int(text))

    def check(self, name: str, value: object) -> int:
        try:
            number = index(value)  # type: ignore[arg-type]  # it raises TypeError for what is not an integer
        except TypeError:
            raise _not_integer(name, str(value)) from None
        return self.read(name, str(number))

    def _within(self, name: str, value: int) -> int:
        if (self.least is None or value >= self.least) and (self.most is None or value <= self.most):
            return value
        most = "2**63 - 1" if self.most == LARGEST_SEED else self.most
        bounds = f"at least {self.least}" if self.most is None else f"from {self.least} to {most}"
        raise InvalidValue(f"{name}={value} must be {bounds}", name=name, value=value)


def _not_integer(name: str, text: str) -> MalformedRequest:
    return MalformedRequest(f"{name}={clip(text)!r} is not an integer of at most {MAX_DIGITS} digits", name=name)


@dataclass(frozen=True, slots=True)
class Real:
    """A finite decimal number in ASCII, from `least` to `most`. `divides` keeps it away from zero."""

    least: float = -LARGEST_REAL
    most: float = LARGEST_REAL
    divides: bool = False

    @property
    def schema(self) -> Schema:
        return {"type": "number"}

    def read(self, name: str, text: str) -> float:
        if _NOT_FINITE.fullmatch(text):
            raise InvalidValue(f"{name}={text} must be a finite number", name=name)
        if not _REAL.fullmatch(text):
            raise _not_real(name, text)
        return self._within(name, float(text), text)

    def check(self, name: str, value: object) -> float:
        try:
            number = float(value)  # type: ignore[arg-type]  # numbers of numpy and torch convert as well
        except (TypeError, ValueError):
            raise _not_real(name, str(value)) from None
        return self.read(name, repr(number))

    def _within(self, name: str, value: float, text: str) -> float:
        if not math.isfinite(value) or not self.least <= value <= self.most:
            bounds = f"between {self.least:g} and {self.most:g}".replace("e+0", "e")
            raise InvalidValue(f"{name}={clip(text)} must lie {bounds}", name=name)
        if self.divides and abs(value) < SMALLEST_FACTOR:
            raise InvalidValue(f"{name}={clip(text)} must be at least {SMALLEST_FACTOR} in size: it divides", name=name)
        return value


def _not_real(name: str, text: str) -> MalformedRequest:
    return MalformedRequest(f"{name}={clip(text)!r} is not a number, like 0.18215", name=name)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    allowed: tuple[str, ...]

    @property
    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self.allowed)}

    def read(self, name: str, text: str) -> str:
        if text not in self.allowed:
            raise InvalidValue(
                f"{name}={clip(text)!r} is not known; expected one of {', '.join(self.allowed)}",
                name=name,
                allowed=list(self.allowed),
            )
        return str(text)

    def check(self, name: str, value: object) -> str:
        return self.read(name, str(value))


@dataclass(frozen=True, slots=True)
class IntegerOr:
    """An integer, or one word."""

    integer: Integer
    word: str

    @property
    def schema(self) -> Schema:
        return {**self.integer.schema, "type": ["integer", "string"], "pattern": f"^{self.word}$"}

    def read(self, name: str, text: str) -> int | str:
        if text == self.word:
            return self.word
        if not _INTEGER.fullmatch(text):
            raise MalformedRequest(f"{name}={clip(text)!r} is neither an integer nor {self.word}", name=name)
        return self.integer.read(name, text)

    def check(self, name: str, value: object) -> int | str:
        return self.read(name, value) if isinstance(value, str) else self.integer.check(name, value)


@dataclass(frozen=True, slots=True)
class Shape:
    """`1,4,64,64`, bare or as Python writes lists, tuples and torch.Size; every size is 1 or more."""

    @property
    def schema(self) -> Schema:
        return {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": MAX_RANK}

    def read(self, name: str, text: str) -> tuple[int, ...]:
        inner = text.strip(" ")
        for opening, closing in (("torch.Size([", "])"), ("[", "]"), ("(", ")")):
            if inner.startswith(opening) and inner.endswith(closing):
                inner = inner[len(opening) : -len(closing)]
                break
        sizes = Integer()
        shape = tuple(sizes.read(name, item.strip(" ")) for item in inner.split(","))
        if len(shape) > MAX_RANK:
            raise MalformedRequest(f"{name} has {len(shape)} axes; at most {MAX_RANK} are read", name=name)
        for size in shape:
            if size < 1:
                raise InvalidValue(f"{name}={list(shape)} has a size below 1", name=name, shape=list(shape))
        return shape

    def check(self, name: str, value: object) -> tuple[int, ...]:
        return self.read(name, str(value))


@dataclass(frozen=True, slots=True)
class Text:
    """Any text; what is not printable, and all beyond 40 characters, is left out."""

    @property
    def schema(self) -> Schema:
        return {"type": "string"}

    def read(self, name: str, text: str) -> str:
        return clip(text)

    def check(self, name: str, value: object) -> str:
        return clip(str(value))
