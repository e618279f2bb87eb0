"""Replies and errors <-> (status, headers, body)."""

import json
import re
from collections.abc import Mapping
from typing import Final

from remote_vae.errors import InvalidReply, RemoteVAEError, from_json, to_json
from remote_vae.protocol.bodies import read_tensor, read_tensor_json, write_tensor_json
from remote_vae.protocol.messages import Provenance, Reply
from remote_vae.values import FORMATS, Buffer, Tensor, clip

Headers = list[tuple[str, str]]

BY_MEDIA_TYPE: Final = {row.media_type: row for row in FORMATS.values()}
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def render_reply(reply: Reply) -> tuple[int, Headers, Buffer]:
    """Status, headers and body; a raw tensor carries its shape and dtype in headers of those names."""
    headers = [("content-type", reply.format.media_type), *provenance_headers(reply.provenance)]
    if not isinstance(reply.payload, Tensor):
        return 200, headers, reply.payload
    headers += [("shape", json.dumps(list(reply.payload.shape))), ("dtype", reply.payload.dtype)]
    body = reply.payload.buffer if reply.format.name == "binary" else write_tensor_json(reply.payload)
    return 200, headers, body


def provenance_headers(provenance: Provenance) -> Headers:
    timing = ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in provenance.timings_ms.items())
    candidates = [
        ("x-request-id", provenance.request_id),
        ("x-model", provenance.model),
        ("x-model-revision", provenance.revision),
        ("x-plan", provenance.plan),
        ("x-dtype", provenance.dtype),
        ("x-note", provenance.note),
        ("server-timing", timing),
    ]
    return [(name, value) for name, value in candidates if value]


def render_error(error: RemoteVAEError) -> tuple[int, Headers, bytes]:
    """The JSON form of an error, for every status from 400 up."""
    headers = [("content-type", "application/json")]
    if error.request_id:
        headers.append(("x-request-id", error.request_id))
    if error.retry_after is not None:
        headers.append(("retry-after", str(error.retry_after)))
    return error.status or 500, headers, json.dumps(to_json(error), ensure_ascii=True).encode()


def request_id_of(headers: Mapping[str, str], name: str = "x-request-id") -> str | None:
    """The caller's own request id when it is harmless."""
    given = headers.get(name, "")
    return given if REQUEST_ID.fullmatch(given) else None


def parse_reply(status: int, headers: Mapping[str, str], body: Buffer) -> Reply:
    """The reply, or the error that the server sent, raised. *Raises* InvalidReply for one that breaks the rules."""
    provenance = Provenance(
        request_id=headers.get("x-request-id", ""),
        model=headers.get("x-model", ""),
        revision=headers.get("x-model-revision", ""),
        plan=headers.get("x-plan", ""),
        dtype=headers.get("x-dtype", ""),
        note=headers.get("x-note", ""),
        timings_ms=_read_timings(headers.get("server-timing", "")),
    )
    if status != 200:
        raise _read_error(status, headers, body)
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in BY_MEDIA_TYPE:
        raise InvalidReply(f"the reply's content-type {clip(media)!r} is not one of a Remote VAE")
    found = BY_MEDIA_TYPE[media]
    if found.is_tensor:
        tensor = read_tensor_json(body) if found.name == "base64" else _read_binary(headers, body)
        return Reply(tensor, found, provenance)
    if not len(body):
        raise InvalidReply("the reply is empty")
    return Reply(bytes(body), found, provenance)


def _read_binary(headers: Mapping[str, str], body: Buffer) -> Tensor:
    try:
        return read_tensor(json.loads(headers.get("shape", "null")), headers.get("dtype"), body)
    except (ValueError, RecursionError) as exc:
        raise InvalidReply("the reply's shape header is not a list") from exc


def _read_timings(text: str) -> dict[str, float]:
    found = re.findall(r"([a-z_]+);dur=([0-9]{1,9}(?:\.[0-9]{1,6})?)", text)
    return {stage: float(ms) for stage, ms in found}


def _read_error(status: int, headers: Mapping[str, str], body: Buffer) -> RemoteVAEError:
    try:
        document = json.loads(bytes(body))
    except (ValueError, RecursionError):
        document = None
    found = from_json(document if isinstance(document, Mapping) else {}, status=status)
    if found.request_id is None:
        found.request_id = headers.get("x-request-id")
    return found
