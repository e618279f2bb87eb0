"""JSON and base64 bodies <-> bytes."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from remote_vae.errors import InvalidReply, MalformedRequest, RequestError
from remote_vae.values import Buffer, Tensor

MAX_JSON_VALUES: Final = 1000
SHORTEST_LINE: Final = 60  # characters of base64 between the line breaks of any tool
URI: Final = re.compile(r"data:[^,]{0,200};base64,")
SLICE: Final = 3 * 2**18  # bytes that are made base64, or taken from it, at once; no other thread runs meanwhile


def read_json_body(body: Buffer) -> tuple[Buffer, object | None]:
    """The parts of `{"inputs": "<base64>", "parameters": {...}}`, decoded; None if there are no parameters.

    *Raises* MalformedRequest for anything but an object with base64 text under "inputs".
    """
    text = bytes(body) if isinstance(body, memoryview) else body
    # A short text can ask for a great many objects; base64 holds none of these characters.
    if sum(text.count(mark) for mark in (b",", b"{", b"[")) > MAX_JSON_VALUES:
        raise MalformedRequest(f"the JSON body has more than {MAX_JSON_VALUES} values; expected inputs and parameters")
    try:
        # Not strict: shells put line breaks into the text as they are.
        document = json.loads(text, strict=False, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twins)
    except (ValueError, RecursionError) as exc:
        raise MalformedRequest('the body is not valid JSON; expected {"inputs": "<base64>"}') from exc
    del text  # perhaps a copy of the body, beside which its values have no room
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), str):
        raise MalformedRequest('the JSON body needs base64 text under "inputs"')
    try:
        inputs = _from_base64(document["inputs"])
    except (ValueError, binascii.Error) as exc:
        raise MalformedRequest(
            '"inputs" is not valid base64: the standard alphabet with padding, or that of URLs, with line breaks after '
            "equal lines or none; it may be a data: URI"
        ) from exc
    return inputs, document.get("parameters")


def _from_base64(text: str) -> bytes:
    """The bytes of base64 as tools write it: in lines, as a data: URI, or in the alphabet that URLs can hold.

    *Raises* ValueError for what is not base64 from end to end, with the padding that its alphabet has.
    """
    uri = URI.match(text)
    text = _joined(text if uri is None else text[uri.end() :])
    altchars = None
    if "-" in text or "_" in text:
        if "+" in text or "/" in text:
            raise ValueError("two alphabets are mixed")
        altchars, text = b"-_", text + "=" * (-len(text) % 4)
    length = len(text.rstrip("="))
    if text.find("=", 0, length) >= 0:
        raise ValueError("there is padding before the end")
    ends = [*range(SLICE // 3 * 4, length, SLICE // 3 * 4), len(text)]  # padding is never alone in a slice
    return b"".join([base64.b64decode(text[a:b], altchars, validate=True) for a, b in pairwise((0, *ends))])


def _joined(text: str) -> str:
    """The text without line breaks, which are at its end or after lines of one length, as tools break them.

    *Raises* ValueError. Nothing is split, because millions of empty lines would take gigabytes.
    """
    text = text.replace("\r\n", "\n").rstrip("\n")
    width = text.find("\n")
    if width < 0:
        return text
    breaks = text[width :: width + 1]
    if width < SHORTEST_LINE or breaks.strip("\n") or len(breaks) != text.count("\n"):
        raise ValueError("there is white space that no tool writes")
    return text.replace("\n", "")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _refuse_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose names differ: of two equal names one would win silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedRequest("a JSON object in the body gives a name twice")
    return found


def write_tensor_json(tensor: Tensor) -> bytes:
    """The reply's JSON form of a tensor."""
    view = memoryview(tensor.buffer).cast("B")
    text = [base64.b64encode(view[start : start + SLICE]) for start in range(0, len(view), SLICE)]
    parameters = json.dumps({"shape": list(tensor.shape), "dtype": tensor.dtype}).encode()
    return b"".join([b'{"inputs": "', *text, b'", "parameters": ', parameters, b"}"])


def read_tensor_json(body: Buffer) -> Tensor:
    """The inverse of `write_tensor_json`, for the client; *raises* InvalidReply."""
    try:
        inputs, parameters = read_json_body(body)
    except MalformedRequest as exc:
        raise InvalidReply(f"the server's JSON tensor cannot be read: {exc.message}") from exc
    if not isinstance(parameters, Mapping):
        raise InvalidReply("the server's JSON tensor has no parameters with shape and dtype")
    return read_tensor(parameters.get("shape"), parameters.get("dtype"), inputs)


def read_tensor(shape: object, dtype: object, buffer: Buffer) -> Tensor:
    """A tensor from a reply's claims; *raises* InvalidReply unless they agree with the bytes."""
    if not isinstance(shape, list) or not all(type(size) is int for size in shape) or not isinstance(dtype, str):
        raise InvalidReply("the reply's tensor has no usable shape and dtype")
    try:
        return Tensor(dtype, tuple(shape), buffer)
    except (RequestError, ValueError) as exc:  # ValueError: a byte count of more digits than Python writes
        raise InvalidReply(f"the reply's tensor does not agree with its shape and dtype: {exc}") from exc
