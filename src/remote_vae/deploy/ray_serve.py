"""The application on Ray Serve: several replicas, on one machine or many, at one address.

The whole application, with its engine and its admission, runs inside each replica. A tensor never passes between two
deployments, and the engine, which knows shapes, queues and refuses requests as it does on a single machine.
`application` is what a Serve config file names as `import_path`; `ray_local.serve` runs it on this machine alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remote_vae.deploy.ray_flow import ReplicaSide, as_sent, promised
from remote_vae.engine.engine import Engine
from remote_vae.errors import ConfigurationError, NotReady
from remote_vae.server.app import LOADER, build_app
from remote_vae.server.settings import Settings, read_settings
from remote_vae.server.streams import WHOLE_ONLY

if TYPE_CHECKING:
    from ray.serve import Application

DEPLOYMENT: Final = "RemoteVAE"
PAGES: Final = 32  # requests for probes and descriptions, which a replica takes beside its decodes
QUEUED: Final = 64
HEALTH_SECONDS: Final = 5.0


def application(arguments: Mapping[str, Any]) -> "Application":
    """For `import_path` in a Serve config file, with the server's settings by name as its `args`.

    *Raises* ConfigurationError for an unknown setting or model, and if there are no keys and the settings do not say
    `allow_anonymous`: a cluster is reached by others.
    """
    settings = read_settings(arguments)
    build_app(settings)  # refuses what cannot be served before a replica is started for it
    if not (settings.keys or settings.keys_file or settings.allow_anonymous):
        raise ConfigurationError(
            "anyone who reaches the cluster could use this application; set REMOTE_VAE_KEYS_FILE on every machine, or "
            "say allow_anonymous: true in its args"
        )
    return bind(settings, loader=LOADER)


def bind(settings: Settings, *, loader: str, **options: Any) -> "Application":
    """The application with its bounds; `options` are Ray's own for a deployment and replace ours."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    chosen = {
        # Ray's bounds are wider than the engine's, whose refusals say more and are JSON.
        "max_ongoing_requests": len(settings.models) * (settings.max_waiting + 1) + PAGES,
        "max_queued_requests": QUEUED,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=1),
        "graceful_shutdown_timeout_s": float(settings.shutdown_seconds),
        "health_check_period_s": HEALTH_SECONDS,
        **options,
    }
    deployment: Any = serve.deployment(serve.ingress()(Replica), name=DEPLOYMENT, **chosen)
    bound: Application = deployment.bind(settings.model_dump(), loader)
    return bound


class Replica:
    """One copy of the application in one Ray actor; Ray sends it requests once its models are loaded."""

    def __init__(self, settings: dict[str, Any], loader: str) -> None:
        self._loaded: asyncio.Future[None] = asyncio.get_event_loop().create_future()
        self._settings = Settings(**settings)
        self._app = build_app(
            self._settings,
            loader=loader,
            on_ready=lambda: self._loaded.set_result(None),
            on_failure=self._loaded.set_exception,
        )
        self._life = AsyncExitStack()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray calls this. The application starts here, so that an exception from loading reaches Ray's status."""
        await self._life.enter_async_context(self._app.router.lifespan_context(self._app))
        try:
            await self._loaded
        except BaseException:
            await self._life.aclose()
            raise
        return Hosted(self._app, self._life.aclose, patience=self._settings.reply_seconds)

    async def check_health(self) -> None:
        """Ray's probe. *Raises* NotReady; Ray replaces a replica for which it goes on doing so."""
        engine: Engine = self._app.state.engine
        if engine.draining or not engine.ready:
            raise NotReady("the replica is not ready")


class Hosted:
    """Pure ASGI: an application that runs already, served below any prefix that Ray gives it.

    A reply of unknown length waits for its client, for `patience` seconds; without the proxy's help there are none.
    """

    def __init__(self, app: ASGIApp, end: Callable[[], Awaitable[object]], *, patience: float) -> None:
        self._app = app
        self._end = end
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._end()
            await send({"type": "lifespan.shutdown.complete"})
            return

        scope = as_sent(below_prefix(scope))
        if promised(scope):
            side = ReplicaSide(receive, send, patience=self._patience)
            receive, send = side.receive, side.send
        else:
            scope = {**scope, WHOLE_ONLY: True}
        gone = False

        async def receive_and_notice() -> Message:
            nonlocal gone
            try:
                message = await receive()
            except Exception:  # boundary: Ray raises what its connection to the proxy broke with
                gone = True
                raise
            gone = gone or message["type"] == "http.disconnect"
            return message

        async def send_to_ray(message: Message) -> None:
            if gone:  # perhaps only Ray's proxy is gone, and an answer that says so would be final for the client
                raise OSError("the client of this request is gone")
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]  # Ray adds this header itself
            elif not isinstance(message.get("body"), bytes):
                message = {**message, "body": bytes(message.get("body", b""))}  # Ray pickles it
            await send(message)

        await self._app(scope, receive_and_notice, send_to_ray)


def below_prefix(scope: Scope) -> Scope:
    """The scope without Ray's route_prefix: the application reads the path as if it were alone."""
    prefix = scope.get("root_path", "")
    if not prefix:
        return scope
    path = scope["path"].removeprefix(prefix) or "/"
    raw = scope.get("raw_path", scope["path"].encode()).removeprefix(prefix.encode()) or b"/"
    return {**scope, "root_path": "", "path": path, "raw_path": raw}
