"""The composition root: models, engine and HTTP meet here and in no other file."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from remote_vae.engine.admission import Limits
from remote_vae.engine.engine import Engine
from remote_vae.engine.observer import Observer
from remote_vae.engine.pool import Rules, Served
from remote_vae.errors import ConfigurationError, RemoteVAEError
from remote_vae.models.families import find_model
from remote_vae.models.spec import ModelSpec, parse_spec
from remote_vae.protocol.wire import MODEL_NAME, RESERVED_NAMES
from remote_vae.server.access_log import RequestRecorder
from remote_vae.server.auth import Gate, Rates
from remote_vae.server.browser import page_part
from remote_vae.server.endpoints import Endpoints
from remote_vae.server.error_responses import on_error
from remote_vae.server.keys import read_keys
from remote_vae.server.metrics import Metrics
from remote_vae.server.metrics_listener import MetricsListener
from remote_vae.server.pages import named, page_only
from remote_vae.server.readers import Readers
from remote_vae.server.settings import Settings
from remote_vae.server.tracing import tracing_from_environment
from remote_vae.server.web_pages import WebPages, own_names

LOADER: Final = "remote_vae.models.fast_import:open_model"
METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"]


def build_app(
    settings: Settings,
    *,
    loader: str = LOADER,
    on_ready: Callable[[], None] | None = None,
    on_failure: Callable[[BaseException], None] | None = None,
) -> Starlette:
    """The ASGI application; its models load in the background once it starts.

    `loader` is `module:function` and runs in the process of each replica. *Raises* ConfigurationError.
    """
    metrics, tracing = Metrics(), tracing_from_environment()
    engine = _engine(settings, loader, metrics)
    readers = Readers(share=_client_share(settings), most_bytes=settings.max_arriving_bytes)
    metrics.watch(engine.state)
    endpoints = Endpoints(engine, settings, metrics, readers)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(engine.start())
        loading.add_done_callback(lambda task: _report(task, on_ready, on_failure))
        try:
            yield
        finally:
            loading.cancel()
            await engine.stop()
            readers.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    app = Starlette(
        routes=_routes(endpoints, metrics_too=settings.metrics_address is None),
        middleware=[
            Middleware(RequestRecorder, metrics=metrics, tracing=tracing),
            *_middleware(settings, endpoints),
        ],
        exception_handlers={RemoteVAEError: on_error, HTTPException: on_error, Exception: on_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.engine, app.state.metrics = engine, metrics
    return app


def _middleware(settings: Settings, endpoints: Endpoints) -> list[Middleware]:
    """The layers that a request passes before its route is looked for."""
    keys, rate, layers = read_keys(settings.keys, settings.keys_file), settings.client_requests_per_second, []
    # A web site that has pointed its own name here has no key, and no certificate for its name.
    names = None if keys or settings.tls_certificate else own_names(settings.host)
    layers.append(Middleware(WebPages, origins=settings.cors_origins, names=names))
    if settings.cors_origins:  # before the gate, because a preflight brings no key
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["*"],
            )
        )
    if settings.metrics_address is not None:
        layers.append(
            Middleware(MetricsListener, address=settings.metrics_address, path="/metrics", page=endpoints.metrics)
        )
    return [*layers, Middleware(Gate, keys=keys, rates=Rates(rate) if rate else None)]


def _routes(endpoints: Endpoints, *, metrics_too: bool) -> list[Route]:
    """Each page, with and without a trailing slash: a redirect would turn POST into GET in most clients."""
    pages = {
        "health": endpoints.live,
        "live": endpoints.live,
        "ready": endpoints.ready,
        "models": endpoints.models,
        "openapi.json": endpoints.openapi,
        "docs": endpoints.docs,
        **({"metrics": endpoints.metrics} if metrics_too else {}),
    }
    return [
        Route("/", named("home", endpoints.home), methods=["GET"]),
        Route("/page/{name}", named("page", page_only(page_part)), methods=METHODS),
        *(
            Route(path, named(name, page_only(page)), methods=METHODS)
            for name, page in pages.items()
            for path in (f"/{name}", f"/{name}/")
        ),
        Route("/jobs/{id}/events", named("events", endpoints.events), methods=METHODS),
        Route("/jobs/{id}", named("jobs", endpoints.cancel), methods=METHODS),
        Route("/{path:path}", endpoints.post, methods=METHODS),
    ]


def _report(
    task: asyncio.Task[None],
    on_ready: Callable[[], None] | None,
    on_failure: Callable[[BaseException], None] | None,
) -> None:
    failure = None if task.cancelled() else task.exception()
    if failure is not None and on_failure is not None:
        on_failure(failure)
    elif failure is None and not task.cancelled() and on_ready is not None:
        on_ready()


def _engine(settings: Settings, loader: str, observer: Observer) -> Engine:
    return Engine(
        _served(settings),
        loader=loader,
        limits=Limits(
            jobs=settings.max_waiting,
            pixels=settings.max_waiting_pixels,
            reply_bytes=settings.max_unsent_bytes,
            client_share=_client_share(settings),
        ),
        rules=Rules(hang_seconds=settings.hang_seconds),
        weights_budget=settings.weights_budget,
        idle_seconds=settings.idle_seconds,
        observer=observer,
    )


def _client_share(settings: Settings) -> float:
    """Without keys all clients behind a proxy have one address, which may have everything."""
    return settings.max_client_share if settings.keys or settings.keys_file else 1.0


def _served(settings: Settings) -> list[Served]:
    specs = [
        parse_spec(
            text,
            random_weights=settings.random_weights,
            device=settings.device,
            dtype=settings.dtype,
            memory_budget=settings.memory_budget,
            lazy=settings.lazy,
        )
        for text in settings.models
    ]
    names = [spec.name for spec in specs]
    for name in names:
        if not MODEL_NAME.fullmatch(name) or name in RESERVED_NAMES:
            raise ConfigurationError(f"model name {name!r} cannot be a route; use letters, digits, '.', '_' and '-'")
        if names.count(name) > 1:
            raise ConfigurationError(f"model name {name!r} is given twice")
    return [_served_model(spec, names, settings) for spec in specs]


def _served_model(spec: ModelSpec, names: list[str], settings: Settings) -> Served:
    """The model, with `replicas` replicas on each of its devices."""
    copies = [replace(spec, device=device) for device in spec.device.split(",") for _ in range(settings.replicas)]
    return Served(
        spec.name,
        _aliases(spec, names),
        spec.resolve_recipe(),
        tuple(copy.to_json() for copy in copies),
        lazy=spec.lazy,
        pinned=spec.pinned,
    )


def _aliases(spec: ModelSpec, names: list[str]) -> tuple[str, ...]:
    """The registry's other names for a model, without the names of the other models that are served."""
    known = find_model(spec.name)
    return tuple(name for name in (known.name, *known.aliases) if name not in names) if known else ()
