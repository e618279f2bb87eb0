"""Runs the application under uvicorn until it is told to stop."""

import signal
import socket
import warnings
from collections.abc import Callable

import uvicorn

from remote_vae.errors import ConfigurationError
from remote_vae.server.app import LOADER, build_app
from remote_vae.server.connection import connection_class
from remote_vae.server.settings import Settings


def serve(settings: Settings, *, loader: str = LOADER, on_ready: Callable[[str], None] | None = None) -> None:
    """Blocks until SIGTERM or SIGINT, then lets accepted work finish.

    `on_ready` gets the address once every model is loaded. *Raises* ConfigurationError, and what loading raised.
    """
    failures: list[BaseException] = []

    def failed(exc: BaseException) -> None:
        failures.append(exc)
        server.should_exit = True

    def ready() -> None:
        if on_ready is not None:
            on_ready(_address(listener))

    app = build_app(settings, loader=loader, on_ready=ready, on_failure=failed)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=connection_class(settings),
            log_level="error",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
    )
    # uvicorn stops gracefully, then raises the signal again; to end well is to have nothing left to do on it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # What a stranger's broken picture makes the imaging library say would fill the log with the picture's own bytes.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with _listen(settings) as listener:
        server.run(sockets=[listener])
    if failures:
        raise failures[0]


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as exc:
        listener.close()
        raise ConfigurationError(f"cannot listen on {settings.host}:{settings.port}: {exc.strerror}") from exc
    listener.set_inheritable(True)
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
