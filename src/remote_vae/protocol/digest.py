"""The Content-Digest header: a body that changed on its way is never decoded. *Source*: RFC 9530."""

import base64
import binascii
import hashlib
import re
from typing import Final

from remote_vae.errors import MalformedRequest
from remote_vae.values import Buffer

ALGORITHMS: Final = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
_MEMBER = re.compile(r"\s*([a-z0-9-]+)=:([A-Za-z0-9+/=]*):\s*")


def check_digest(field: str, body: Buffer) -> None:
    """Every digest that is known here is compared, others are ignored; *raises* MalformedRequest.

    The body is read once for each algorithm, however often the header names it.
    """
    known: dict[str, bytes] = {}
    for member in field.split(",") if field.strip() else []:
        found = _MEMBER.fullmatch(member)
        if found is None:
            raise MalformedRequest("content-digest is not like sha-256=:BASE64:")
        name, text = found.groups()
        if name in ALGORITHMS and name not in known:
            known[name] = ALGORITHMS[name](body).digest()
        if name in known and known[name] != _decoded(text):
            raise MalformedRequest(
                f"the body is not the one whose {name} is in content-digest; send it again", name=name
            )


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise MalformedRequest("content-digest is not like sha-256=:BASE64:") from None
