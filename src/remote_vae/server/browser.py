"""What browsers get: the page, static files that fetch nothing from any other host, and headers on every reply."""

import functools
import gzip
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

FILES: Final = StaticFiles(directory=Path(__file__).parent / "page")
POLICY: Final = "default-src 'none'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
# On every reply, so that no browser takes what it gets for anything else, runs it or shows it in another site's frame.
HARMLESS: Final = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
HEADERS: Final = {
    "content-security-policy": f"{POLICY}; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src blob:; connect-src 'self'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
    "vary": "accept, accept-encoding",
}


def wants_page(request: Request) -> bool:
    """Whether the client is a browser, which names text/html; programs that accept anything get JSON."""
    ranges = request.headers.get("accept", "").lower().split(",")
    return any(item.partition(";")[0].strip() == "text/html" for item in ranges)


async def page_part(request: Request) -> Response:
    """A file of the page, which GET /page/NAME names; the page itself for GET /. *Raises* HTTPException, 404.

    A file comes whole: a server may ignore a range, and the answer to an impossible one would be plain text.
    """
    request.scope["headers"] = [item for item in request.scope["headers"] if item[0] != b"range"]
    response = await FILES.get_response(request.path_params.get("name", "index.html"), request.scope)
    if isinstance(response, FileResponse) and "gzip" in request.headers.get("accept-encoding", ""):
        body = _compressed(str(response.path))
        more = {"content-encoding": "gzip", "content-length": str(len(body))}
        response = Response(body, headers={**response.headers, **more})
    response.headers.update(HEADERS)
    return response


@functools.cache
def _compressed(path: str) -> bytes:
    return gzip.compress(Path(path).read_bytes(), mtime=0)
