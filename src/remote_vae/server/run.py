"""Runs the application under uvicorn until a signal stops it."""

import asyncio
import contextlib
import ipaddress
import math
import os
import socket
import ssl
import time
import warnings
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from remote_vae.engine.engine import Engine
from remote_vae.engine.place import Loaded
from remote_vae.errors import ConfigurationError
from remote_vae.server.app import LOADER, build_app
from remote_vae.server.connection import Connection
from remote_vae.server.logs import set_up_logs
from remote_vae.server.settings import Settings

OnReady = Callable[[str, list[Loaded]], None]


def serve(settings: Settings, *, loader: str = LOADER, on_ready: OnReady | None = None) -> None:
    """Blocks until SIGTERM or SIGINT, then lets accepted work finish.

    `on_ready` gets the address and what was loaded once every model is. *Raises* ConfigurationError, the error that
    loading raised, and SystemExit if work was left undone.
    """
    failures: list[BaseException] = []

    def failed(exc: BaseException) -> None:
        failures.append(exc)
        server.should_exit = True

    def ready() -> None:
        if on_ready is not None:
            on_ready(address_of(listener, settings), engine.loaded())

    os.environ.pop("REMOTE_VAE_KEYS", None)  # the settings hold digests of the keys; replicas would inherit the keys
    _check_tls(settings)
    set_up_logs(requests=settings.log_requests)
    app = build_app(settings, loader=loader, on_ready=ready, on_failure=failed)
    engine: Engine = app.state.engine
    server = Server(_config(app, settings), engine, grace_seconds=settings.shutdown_seconds)
    # About a broken picture the imaging library would write warnings that contain bytes of the picture.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with contextlib.ExitStack() as open_sockets:
        listener = open_sockets.enter_context(listen(settings.host, settings.port))
        check_reach(listener, settings)
        listeners = [listener]
        if settings.metrics_address is not None:
            listeners.append(open_sockets.enter_context(listen(*settings.metrics_address)))
        try:
            server.run(sockets=listeners)
        finally:
            engine.kill()  # a hard stop may have left processes
    if failures:
        raise failures[0]
    if server.stopped_hard:
        raise SystemExit(1)


def _config(app: Starlette, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=partial(Connection, settings, app.state.metrics),  # type: ignore[arg-type]  # it is only called
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        ws="none",
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )


class Server(uvicorn.Server):
    """After one signal it takes no new work, finishes accepted work within the grace, and ends; after two it ends."""

    def __init__(self, config: uvicorn.Config, engine: Engine, *, grace_seconds: float) -> None:
        super().__init__(config)
        self.stopped_hard = False
        self._engine, self._grace_seconds = engine, grace_seconds
        self._ends = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGTERM and SIGINT."""
        if self._engine.draining:
            asyncio.get_running_loop().call_soon_threadsafe(self._stop_hard)
        else:
            self._engine.drain()
            self._ends = time.monotonic() + self._grace_seconds

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second. The listener stays open, to answer 503, until all work is done."""
        left = self._ends - time.monotonic()
        if left <= 0:
            self._stop_hard()
        elif self._engine.draining and self._engine.idle:
            self.config.timeout_graceful_shutdown = math.ceil(left)
            self.should_exit = True
        return await super().on_tick(counter)

    def _stop_hard(self) -> None:
        self._engine.kill()
        self.config.timeout_graceful_shutdown = 0
        self.stopped_hard = self.force_exit = self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """*Raises* ConfigurationError for an address that cannot be taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise ConfigurationError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    listener.set_inheritable(True)
    return listener


def check_reach(listener: socket.socket, settings: Settings) -> None:
    """Refuses an address that other machines reach, unless there are keys or the operator allows anonymous clients.

    This is checked before the first connection is accepted, on the address that was taken, since a host name can mean
    any address. *Raises* ConfigurationError.
    """
    host = listener.getsockname()[0]
    guarded = settings.keys or settings.keys_file or settings.allow_anonymous
    if not guarded and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        raise ConfigurationError(
            f"at {host} anyone on the network could use this server; give keys with --keys-file or REMOTE_VAE_KEYS, or "
            "say --allow-anonymous"
        )


def _check_tls(settings: Settings) -> None:
    """*Raises* ConfigurationError if the files are not a certificate and its key."""
    if settings.tls_certificate is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except (OSError, ssl.SSLError) as exc:
        files = f"{str(settings.tls_certificate)!r} and {str(settings.tls_key)!r}"
        raise ConfigurationError(f"{files} are not a PEM certificate and its unencrypted key: {exc.strerror}") from exc


def address_of(listener: socket.socket, settings: Settings) -> str:
    """The URL of the server, to be read by people; the machine's name stands for all of its addresses."""
    scheme = "https" if settings.tls_certificate else "http"
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        host = socket.gethostname()
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
