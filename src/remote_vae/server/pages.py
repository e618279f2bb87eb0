"""Pages that are only read: which methods they take, and by which name their requests are counted."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from remote_vae.errors import MethodNotAllowed
from remote_vae.server.record import record_of
from remote_vae.values import clip

Page = Callable[[Request], Awaitable[Response]]


def page_only(page: Page) -> Page:
    """The page for GET and HEAD, MethodNotAllowed for every other method."""

    async def answer(request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise wrong_method(request, ["GET", "HEAD"])
        return await page(request)

    return answer


def named(name: str, page: Page) -> Page:
    """The page; its requests are counted under this name."""

    async def answer(request: Request) -> Response:
        record_of(request.scope).route = name
        return await page(request)

    return answer


def wrong_method(request: Request, allowed: list[str]) -> MethodNotAllowed:
    """The error for a method that the route does not have."""
    text = f"{clip(request.method)} does nothing here; expected {' or '.join(allowed)}"
    return MethodNotAllowed(text, method=clip(request.method), allowed=allowed)
