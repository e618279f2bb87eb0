"""The server's address, and the credential that is sent to it."""

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx2

from remote_vae.client.exchange import HttpRequest
from remote_vae.errors import ConfigurationError, InvalidValue

TOKEN_VARIABLE: Final = "REMOTE_VAE_API_KEY"
ROUTES: Final = re.compile(r"/(decode|encode|predict)$")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address without credentials, and the header that carries them."""

    url: str
    authorization: Mapping[str, str] = field(repr=False)

    def request(
        self, method: str, path: str, *, query: str = "", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> HttpRequest:
        """A request to `path` below the endpoint; a query of the endpoint itself is kept."""
        parts = urlsplit(self.url)
        whole = parts.path.rstrip("/") + path if path else parts.path
        queries = "&".join(text for text in (parts.query, query) if text)
        url = urlunsplit((parts.scheme, parts.netloc, whole, queries, ""))
        return HttpRequest(method, url, {**(headers or {}), **self.authorization}, body)


def read_endpoint(endpoint: str, *, token: str | None = None) -> Endpoint:
    """The endpoint of a URL like http://host:8000.

    The credential is `token`, otherwise the part of the URL before the @, otherwise the variable REMOTE_VAE_API_KEY;
    tokens of other services are never read. *Raises* InvalidValue, ConfigurationError.
    """
    try:
        parts = urlsplit(endpoint)
        httpx2.URL(endpoint).raw_host.decode("ascii").encode("idna")
        host = parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except (ValueError, httpx2.InvalidURL):
        host = None
    if not host:
        raise InvalidValue("the endpoint is not an http or https URL; expected one like http://host:8000")
    netloc = parts.netloc.rpartition("@")[2]
    url = urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))
    if token is None and parts.netloc != netloc:
        return Endpoint(url, {"authorization": _basic(parts.username or "", parts.password or "")})
    token = os.environ.get(TOKEN_VARIABLE) if token is None else token
    return Endpoint(url, {"authorization": f"Bearer {_checked(token)}"} if token else {})


def split_endpoint(endpoint: str, model: str | None) -> tuple[str, str | None]:
    """The server's address, and the model that the path names unless `model` does."""
    if model is not None:
        return endpoint, model
    parts = urlsplit(endpoint)
    path = ROUTES.sub("", parts.path.rstrip("/"))
    before, _, name = path.rpartition("/")
    return urlunsplit((parts.scheme, parts.netloc, before, parts.query, "")), name or None


def _basic(username: str, password: str) -> str:
    pair = f"{unquote(username)}:{unquote(password)}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _checked(token: str) -> str:
    if not token.isascii() or any(not 33 <= ord(c) <= 126 for c in token):
        raise ConfigurationError("the token has a space or a character that a header cannot carry; check for a newline")
    return token
