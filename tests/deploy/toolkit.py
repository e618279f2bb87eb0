"""The contract of Hugging Face's inference toolkit, as its web service keeps it; written for these tests.

*Source*: huggingface-inference-toolkit 0.5.6, webservice_starlette.py, serialization/ and utils.py.
"""

import base64
import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

JSON_TYPES = ("application/json", "application/json; charset=UTF-8")
IMAGE_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/tiff", "image/bmp", "image/gif", "image/webp")


def load_handler(folder: Path) -> Any:
    """`handler.py` of a repository, executed, and its EndpointHandler called with the repository's folder."""
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler.EndpointHandler"] = module
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder))


def build(handler: Any) -> Starlette:
    async def predict(request: Request) -> Response:
        try:
            data = _read(request.headers.get("content-type"), await request.body())
            if "inputs" not in data:
                raise ValueError("the body needs a key inputs")
            if request.query_params and "parameters" not in data:
                data["parameters"] = {name: _typed(value) for name, value in dict(request.query_params).items()}
            found = await run_in_threadpool(handler, data)
            accept = request.headers.get("accept")
            accept = "application/json" if accept in (None, "*/*") else str(accept)
            return Response(_write(accept, found), media_type=accept)
        except Exception as exc:  # noqa: BLE001 - the toolkit makes a 400 of each
            return Response(json.dumps({"error": str(exc)}), 400, media_type="application/json")

    return Starlette(routes=[Route("/", predict, methods=["POST"]), Route("/predict", predict, methods=["POST"])])


def _read(media: str | None, body: bytes) -> dict[str, Any]:
    if media in JSON_TYPES:
        found: dict[str, Any] = json.loads(body)
        return found
    if media in IMAGE_TYPES:
        return {"inputs": Image.open(io.BytesIO(body)).convert("RGB")}
    raise ValueError(f"content type {media!r} is not supported")


def _write(accept: str, found: Any) -> bytes:
    if accept in JSON_TYPES:
        return json.dumps(found, default=_picture).encode()
    if accept in IMAGE_TYPES and isinstance(found, Image.Image):
        out = io.BytesIO()
        found.save(out, accept.rpartition("/")[2].upper())
        return out.getvalue()
    raise ValueError(f"accept type {accept!r} cannot be given")


def _picture(found: Any) -> str:
    out = io.BytesIO()
    found.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def _typed(text: str) -> Any:
    if text.isnumeric():
        return int(text)
    return {"false": False, "true": True}.get(text, text)
