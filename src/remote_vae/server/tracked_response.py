"""A reply on its way out, until the client has taken it."""

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class TrackedResponse(Response):
    """Calls `on_sent` when the client has taken all but the last few KiB, or has gone.

    Servers wait for a connection's buffer at the next `send`, so the end is sent by itself.
    """

    def __init__(self, body: bytes, status: int, headers: dict[str, str], *, on_sent: Callable[[], None]) -> None:
        super().__init__(body, status, headers)
        self._on_sent = on_sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._on_sent()
