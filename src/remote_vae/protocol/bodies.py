"""JSON and base64 bodies <-> bytes."""

import base64
import codecs
import json
import uuid
from collections.abc import Mapping
from typing import Final

from remote_vae.errors import InvalidReply, MalformedRequest, RequestError
from remote_vae.protocol.base64_text import SLICE, Text, read_base64
from remote_vae.values import Buffer, Tensor

MAX_JSON_VALUES: Final = 1000
MAX_JSON_BYTES: Final = 65_536  # of all but the base64
LONGEST_TEXT: Final = 1024  # bytes of a text that is not base64
ESCAPE: Final = 6  # characters of the longest, which is like \u0041
BACKSLASHES: Final = 64  # looked at before a quote; base64 holds none
WRITTEN: Final = 3 * 2**18  # bytes that are made base64 at once; no other thread runs meanwhile

Place = tuple[int, int]  # in a text: the first character, and the first behind


def read_json_body(body: Buffer) -> tuple[Buffer, object | None]:
    """The parts of `{"inputs": "<base64>", "parameters": {...}}`, decoded; None if there are no parameters.

    Long base64 is read where it stands, because the JSON library would copy it, and hold up every other thread. So the
    library gets the document with another text in its place. *Raises* MalformedRequest for anything but an object with
    base64 text under "inputs".
    """
    mark = uuid.uuid4().hex  # which no sender can have guessed
    try:
        text = _utf8(bytes(body) if isinstance(body, memoryview) else body)
        outline, place = _outline(text, mark.encode())
        # Not strict: shells put line breaks into the text as they are.
        document = json.loads(outline, strict=False, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twins)
    except (ValueError, RecursionError) as exc:
        raise MalformedRequest('the body is not valid JSON; expected {"inputs": "<base64>"}') from exc
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), str):
        raise MalformedRequest('the JSON body needs base64 text under "inputs"')
    if place is not None and document["inputs"] != mark:
        raise MalformedRequest(f'a text of over {LONGEST_TEXT} bytes is in the JSON body; expected one under "inputs"')
    try:
        if place is None:
            text = document["inputs"].encode("ascii")
            return read_base64(text, 0, len(text)), document.get("parameters")
        return _read_in_place(text, *place), document.get("parameters")
    except ValueError as exc:
        raise MalformedRequest(
            '"inputs" is not valid base64: the standard alphabet with padding, or that of URLs, with line breaks after '
            "equal lines or none; it may be a data: URI"
        ) from exc


def _utf8(body: Text) -> Text:
    """The body in UTF-8, which it nearly always is. *Raises* UnicodeDecodeError, UnicodeEncodeError."""
    encoding = json.detect_encoding(body)
    if encoding.startswith("utf-8"):
        return body
    decoder, found = codecs.getincrementaldecoder(encoding)(), bytearray()
    for at in range(0, len(body), SLICE):
        found += decoder.decode(bytes(body[at : at + SLICE])).encode()
    return found + decoder.decode(b"", final=True).encode()


def _outline(text: Text, mark: bytes) -> tuple[Text, Place | None]:
    """The document with `mark` instead of its one long text, and the place of that text; None if there is none.

    *Raises* MalformedRequest if the rest is large too, and ValueError for a text without an end.
    """
    at, hidden, place = 0, 0, None
    while (quote := text.find(b'"', at)) >= 0 and quote - hidden <= MAX_JSON_BYTES:
        start, end = quote + 1, _text_end(text, quote + 1)
        if end - start > LONGEST_TEXT:
            if place is not None:
                raise MalformedRequest(f'the JSON body has two texts of over {LONGEST_TEXT} bytes; expected "inputs"')
            place, hidden = (start, end), end - start
        at = end + 1
    if len(text) - hidden > MAX_JSON_BYTES:
        raise _too_much()
    outline = text if place is None else text[: place[0]] + mark + text[place[1] :]
    if sum(outline.count(sign) for sign in (b",", b"{", b"[")) > MAX_JSON_VALUES:  # few bytes ask for many objects
        raise _too_much()
    return outline, place


def _too_much() -> MalformedRequest:
    return MalformedRequest(
        f"the JSON body has more than {MAX_JSON_VALUES} values, or over {MAX_JSON_BYTES} bytes beside its base64; "
        "expected inputs and parameters"
    )


def _text_end(text: Text, start: int) -> int:
    """The position of the quote that ends a text. *Raises* ValueError without one, or for too many other quotes."""
    end = start
    for _ in range(MAX_JSON_VALUES):
        end = text.index(b'"', end)
        before = bytes(text[max(start, end - BACKSLASHES) : end])
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return end
        end += 1
    raise ValueError("base64 and parameters hold no quotes")


def _read_in_place(text: Text, start: int, end: int) -> bytearray:
    """The bytes of base64 between two quotes. *Raises* ValueError."""
    if text.find(b"\\", start, end) < 0:
        return read_base64(text, start, end)
    plain, filled = bytearray(end - start), 0  # PHP escapes each slash, .NET each plus
    while start < end:
        stop = min(start + SLICE, end)
        escape = text.rfind(b"\\", start + 1, stop) if stop < end else -1
        if escape > stop - ESCAPE:
            stop = escape  # which the slice would cut
        piece = json.loads(b'"%b"' % bytes(text[start:stop]), strict=False).encode("ascii")
        plain[filled : filled + len(piece)] = piece
        start, filled = stop, filled + len(piece)
    return read_base64(plain, 0, filled, into=plain)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _refuse_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of different names: of two equal names one would win silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedRequest("a JSON object in the body gives a name twice")
    return found


def write_tensor_json(tensor: Tensor) -> bytes:
    """The reply's JSON form of a tensor."""
    view = memoryview(tensor.buffer).cast("B")
    text = [base64.b64encode(view[start : start + WRITTEN]) for start in range(0, len(view), WRITTEN)]
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
