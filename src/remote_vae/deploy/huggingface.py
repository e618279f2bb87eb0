"""A custom handler for Hugging Face Inference Endpoints: a folder with a VAE becomes an endpoint.

The toolkit that runs there reads the request itself, calls the handler with `{"inputs": ..., "parameters": {...}}`, and
writes the handler's result as the Accept header asks, which the handler does not see. The handler sends each request to
the application that `remote-vae serve` runs, in the same process and without a network.

*Source*: huggingface-inference-toolkit 0.5.6, webservice_starlette.py and serialization/.
"""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx2
from PIL import Image

from remote_vae.client.pictures import write_png
from remote_vae.errors import ConfigurationError, MalformedRequest, from_json
from remote_vae.server.app import build_app
from remote_vae.server.settings import Settings, read_settings
from remote_vae.values import FORMATS, VIDEO_FORMATS

HOME: Final = "http://handler"
ANSWERS: Final = {**VIDEO_FORMATS, "pil": FORMATS["png"], "pt": FORMATS["base64"]}  # by output_type
VIDEO_TYPES: Final = {row.media_type for row in VIDEO_FORMATS.values()}


class EndpointHandler:
    """The toolkit looks for this class in `handler.py`. The VAE gets the recipe of `model`.

    *Raises* ConfigurationError for a folder without a VAE, ModelLoadError for a VAE that does not load.
    """

    def __init__(self, path: str = "", *, model: str = "sd1", **settings: Any) -> None:
        found = read_settings({"models": (f"{model}={_vae_folder(path)}",), **settings})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="remote-vae")
        self._thread.start()
        self._life = AsyncExitStack()
        try:
            self._http = self._await(self._start(found))
        except BaseException:
            self.close()
            raise

    def __call__(self, data: Mapping[str, Any]) -> Image.Image | dict[str, Any]:
        """A picture, or `{"inputs": "<base64>", "parameters": {...}}` for a tensor or a video.

        `inputs` is a latent in base64 or bytes, to decode, or a PIL image, to encode; `parameters` are those of the
        query. *Raises* the error that the server would answer; the toolkit answers each with 400.
        """
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise MalformedRequest("'parameters' must be a JSON object, like {\"shape\": [1, 4, 64, 64]}")
        if isinstance(inputs, Image.Image):
            return self._ask("/encode", write_png(inputs), _query(parameters), {"accept": "tensor/base64"})
        if isinstance(inputs, bytes | bytearray):
            inputs = base64.b64encode(inputs).decode()
        output = str(parameters.get("output_type") or "pil")
        accept = ANSWERS[output].media_type if output in ANSWERS else "*/*"
        headers = {"content-type": "application/json", "accept": accept}
        return self._ask(
            "/decode", json.dumps({"inputs": inputs, "parameters": dict(parameters)}).encode(), {}, headers
        )

    def close(self) -> None:
        """Ends the process that holds the model."""
        self._await(self._life.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self, settings: Settings) -> httpx2.AsyncClient:
        loaded: asyncio.Future[None] = self._loop.create_future()
        app = build_app(settings, on_ready=lambda: loaded.set_result(None), on_failure=loaded.set_exception)
        await self._life.enter_async_context(app.router.lifespan_context(app))
        await loaded
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=HOME, timeout=None)
        return await self._life.enter_async_context(client)

    def _ask(
        self, path: str, body: bytes, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> Image.Image | dict[str, Any]:
        reply = self._await(self._http.post(path, content=body, params=query, headers=headers))
        if reply.status_code != 200:
            raise from_json(reply.json(), status=reply.status_code)
        media = reply.headers["content-type"]
        if media == FORMATS["png"].media_type:
            return Image.open(io.BytesIO(reply.content))
        if media in VIDEO_TYPES:
            return {"inputs": base64.b64encode(reply.content).decode(), "parameters": {"content_type": media}}
        answer: dict[str, Any] = reply.json()
        return answer

    def _await(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _vae_folder(path: str) -> Path:
    """The folder of a repository that holds the VAE: itself, or `vae` in a pipeline's."""
    for folder in (Path(path, "vae"), Path(path)):
        config = folder / "config.json"
        if config.is_file() and "Autoencoder" in str(_read(config).get("_class_name")):
            return folder.resolve()
    raise ConfigurationError(
        f"there is no VAE in folder {path!r}; expected config.json of an Autoencoder with its .safetensors there or in "
        "vae/"
    )


def _read(config: Path) -> dict[str, Any]:
    try:
        found = json.loads(config.read_bytes())
    except ValueError as exc:
        raise ConfigurationError(f"{str(config)!r} is not JSON") from exc
    return found if isinstance(found, dict) else {}


def _query(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in parameters.items()}
