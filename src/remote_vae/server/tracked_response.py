"""A reply on its way out, until the client has taken it."""

from collections.abc import Callable
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from remote_vae.values import Buffer

SLICE_BYTES: Final = 2**20  # what the HTTP server copies or encrypts at once, in which time no other client is served


class TrackedResponse(Response):
    """Sends a body that is never copied, and calls `on_sent` when the client has taken nearly all of it or has gone.

    Servers wait for a connection's buffer at the next `send`, so the end is sent in another message than the body.
    """

    def __init__(self, body: Buffer, status: int, headers: dict[str, str], *, on_sent: Callable[[], None]) -> None:
        super().__init__(memoryview(body).cast("B"), status, headers)
        self._on_sent = on_sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(self.body), SLICE_BYTES):
                part = self.body[start : start + SLICE_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._on_sent()
