"""Frames in parts: a reply of tensors that is written while it is made, and read while it comes.

Each part is a tensor of frames with `shape` and `dtype` among its headers. The delimiter of the end follows the last
one only if all went well. Otherwise the last part is an error in JSON, or the reply just breaks off.
"""

import json
import re
from collections.abc import Iterator
from typing import Final
from uuid import uuid4

from remote_vae.errors import InvalidReply, RemoteVAEError, from_json
from remote_vae.protocol.bodies import read_tensor
from remote_vae.protocol.replies import Headers, render_error
from remote_vae.values import Buffer, Tensor, clip

BOUNDARY: Final = re.compile(r'multipart/mixed\s*;\s*boundary="?([A-Za-z0-9_-]{1,70})"?\s*', re.IGNORECASE)
END_OF_HEAD: Final = b"\r\n\r\n"
MOST_HEAD_BYTES: Final = 16384
FRAMES_HEADER: Final = "x-frames"  # of a streamed reply: how many frames it has in the end


class PartsWriter:
    """The bytes around the tensors of one reply."""

    def __init__(self) -> None:
        self._boundary = uuid4().hex

    @property
    def content_type(self) -> str:
        return f"multipart/mixed; boundary={self._boundary}"

    def tensor(self, tensor: Tensor, headers: Headers) -> Iterator[Buffer]:
        """A part, with more headers than those of the tensor itself."""
        head: Headers = [("shape", json.dumps(list(tensor.shape))), ("dtype", tensor.dtype), *headers]
        yield from self._part("tensor/binary", head, tensor.buffer)

    def error(self, error: RemoteVAEError) -> Iterator[Buffer]:
        """A part after which nothing comes."""
        _, _, body = render_error(error)
        yield from self._part("application/json", [("status", str(error.status))], body)

    def end(self) -> bytes:
        return f"--{self._boundary}--\r\n".encode()

    def _part(self, media: str, headers: Headers, body: Buffer) -> Iterator[Buffer]:
        rows: Headers = [("content-type", media), ("content-length", str(memoryview(body).nbytes)), *headers]
        text = "".join(f"{name}: {value}\r\n" for name, value in rows)
        yield f"--{self._boundary}\r\n{text}\r\n".encode()
        yield body
        yield b"\r\n"


class PartsReader:
    """Takes a reply's bytes as they come. *Raises* InvalidReply for a part of more than `most_bytes`."""

    def __init__(self, content_type: str, *, most_bytes: int) -> None:
        found = BOUNDARY.fullmatch(content_type.strip())
        if found is None:
            raise InvalidReply(f"the reply's content-type {clip(content_type)!r} is not that of frames in parts")
        self._boundary, self._most_bytes = b"--" + found.group(1).encode(), most_bytes
        self._came = bytearray()
        self._head: dict[str, str] | None = None  # of the part whose body comes
        self.whole = False

    def take(self, chunk: Buffer) -> Iterator[Tensor]:
        """The tensors that are complete now. *Raises* InvalidReply, and the error that the server sent in a part."""
        self._came += chunk
        while not self.whole:
            if self._head is None and not self._begin():
                return
            if self.whole or self._head is None or (body := self._body(self._head)) is None:
                return
            head, self._head = self._head, None
            yield _tensor(head, body)

    def end(self) -> None:
        """*Raises* InvalidReply if the reply is not whole."""
        if not self.whole:
            raise InvalidReply("the stream of frames broke off before its end; what came is only a part of the video")

    def _begin(self) -> bool:
        """Reads the head of a part, or the end, if it is there."""
        last = self._boundary + b"--"
        if self._came.startswith(last):
            self.whole = True
            return True
        end = self._came.find(END_OF_HEAD)
        if (end if end >= 0 else len(self._came)) > MOST_HEAD_BYTES:
            raise InvalidReply(f"the head of a part has more than {MOST_HEAD_BYTES} bytes")
        if end < 0:
            return False
        lines = bytes(self._came[:end]).split(b"\r\n")
        if lines[0] != self._boundary:
            raise InvalidReply("the reply's parts are not separated by its boundary")
        rows = (line.decode("latin-1").partition(":") for line in lines[1:])
        self._head = {name.strip().lower(): value.strip() for name, _, value in rows}
        del self._came[: end + len(END_OF_HEAD)]
        return True

    def _body(self, head: dict[str, str]) -> bytearray | None:
        """The part's body once it is there."""
        length = head.get("content-length", "")
        if not re.fullmatch("[0-9]{1,15}", length, re.ASCII) or int(length) > self._most_bytes:
            raise InvalidReply(
                f"a part of the reply has {clip(length)!r} bytes; expected up to {self._most_bytes}",
                limit=self._most_bytes,
            )
        size = int(length)
        if len(self._came) < size + 2:
            return None
        body = self._came[:size]
        del self._came[: size + 2]
        return body


def _tensor(head: dict[str, str], body: bytearray) -> Tensor:
    """The tensor of a part; *raises* InvalidReply, or the error that the part is."""
    if head.get("content-type") == "application/json":
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        status = head.get("status", "")
        raise from_json(document if isinstance(document, dict) else {}, status=int(status) if status.isdecimal() else 0)
    try:
        return read_tensor(json.loads(head.get("shape", "null")), head.get("dtype"), body)
    except (ValueError, RecursionError) as exc:
        raise InvalidReply("the shape of a part is not a list") from exc
