"""The browser page: static files of the package, which fetch nothing from any other host."""

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

FOLDER: Final = Path(__file__).parent / "page"
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
    "vary": "accept",
}


def wants_page(request: Request) -> bool:
    """Whether the client is a browser, which names text/html; programs that accept anything get JSON."""
    ranges = request.headers.get("accept", "").lower().split(",")
    return any(item.partition(";")[0].strip() == "text/html" for item in ranges)


class BrowserPage:
    """GET / for browsers, and the parts of that page below /page."""

    def __init__(self) -> None:
        self._files = StaticFiles(directory=FOLDER)

    async def page(self, request: Request) -> Response:
        return await self._file("index.html", request)

    async def part(self, request: Request) -> Response:
        """A file of the page. *Raises* HTTPException, 404 for a file that is not there."""
        return await self._file(request.path_params["name"], request)

    async def _file(self, name: str, request: Request) -> Response:
        response = await self._files.get_response(name, request.scope)
        response.headers.update(HEADERS)
        return response
