"""Amounts of memory as people write them: 12GB, 12GiB, 80%, or a number of bytes."""

import re
from typing import Annotated, Final

from pydantic import BeforeValidator

from remote_vae.engine.container import machine_bytes

UNITS: Final = {
    **{"": 1, "b": 1},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
TEXT: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([a-z]*|%)", re.IGNORECASE)


def read_size(value: object) -> object:
    """Bytes as an int, or a share of the memory as a float up to 1; *raises* ValueError. What is no text stays."""
    if isinstance(value, str):
        value = _from_text(value)
    too_small = isinstance(value, int | float) and value <= 0
    if too_small or (isinstance(value, float) and value > 1):
        raise ValueError("it must be at least 1 byte, and at most 100%")
    return value


def _from_text(text: str) -> int | float:
    found = TEXT.fullmatch(text.strip())
    number, unit = found.groups() if found else ("", "?")
    if unit == "%":
        return float(number) / 100
    if unit.lower() not in UNITS:
        raise ValueError(f"{text!r} is not an amount of memory; expected one such as 12GB, 12GiB, 80% or 12000000000")
    return int(float(number) * UNITS[unit.lower()]) if "." in number else int(number) * UNITS[unit.lower()]


def read_bytes(value: object) -> object:
    """Like `read_size`, with a share taken of this machine's memory."""
    size = read_size(value)
    return int(size * machine_bytes()) if isinstance(size, float) else size


Size = Annotated[int | float, BeforeValidator(read_size)]
"""Bytes, or a share of the memory of the device that the models run on."""

Bytes = Annotated[int, BeforeValidator(read_bytes)]
