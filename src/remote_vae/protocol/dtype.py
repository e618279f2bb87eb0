"""The tensor types that travel, by torch's names, and their item sizes in bytes."""

from remote_vae.errors import InvalidValue

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}
FLOAT_DTYPES = ("float16", "float32", "bfloat16")


def check_dtype(name: str, *, allowed: tuple[str, ...] = tuple(ITEM_BYTES)) -> str:
    """`name` if it is allowed; a table look-up, so that no text ever selects an attribute of a library."""
    if name not in allowed:
        raise InvalidValue(
            f"dtype {clip(name)!r} is not one that travels here; expected one of {', '.join(allowed)}",
            name="dtype",
            allowed=list(allowed),
        )
    return name


def clip(text: str, limit: int = 40) -> str:
    """At most `limit` printable characters of what a stranger sent, fit to stand in an error message."""
    safe = "".join(c if c.isprintable() and c not in "<>&" else "?" for c in text[:limit])
    return safe + ("..." if len(text) > limit else "")
