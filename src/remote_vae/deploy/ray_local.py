"""`remote-vae serve --ray`: a Ray of its own on this machine, which ends when the service ends.

Ray's dashboard stays off and its control plane asks for a token that is made for this run: its processes listen on
every interface, on ports that nobody chose, and Ray does not let us change that.
"""

import contextlib
import io
import logging
import math
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from remote_vae.deploy import haproxy
from remote_vae.deploy.ray_serve import bind
from remote_vae.errors import ConfigurationError, ModelLoadError, ReplicaFailed
from remote_vae.server.app import LOADER, build_app
from remote_vae.server.run import address_of, check_reach, listen
from remote_vae.server.settings import Settings

APPLICATION: Final = "remote-vae"
LOOPBACK: Final = "127.0.0.1"
OBJECT_STORE_BYTES: Final = 80 << 20  # the least that Ray takes; nothing of ours passes through it
DRAIN_SECONDS: Final = 2  # for HAProxy to take a replica that ends off its list
WATCH_SECONDS: Final = 0.5
POLL_SECONDS: Final = 0.05
LEAVE_SECONDS: Final = 10.0
HEAL_SECONDS: Final = 60.0
OUR_ERRORS: Final = "remote_vae.errors."  # in a traceback
VITAL: Final = ("gcs_server", "raylet")
CONTROLLER: Final = "ray::ServeController"  # and what it is doing
PORTS: Final = (  # fixed ones, of which a second Ray on the machine would find the first one's
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas, and what each takes; None: its even share of what the machine has."""

    least: int = 1
    most: int = 1
    cpus: float | None = None
    gpus: float | None = None

    @classmethod
    def parse(cls, replicas: str, *, cpus: float | None = None, gpus: float | None = None) -> "Scale":
        """`replicas` is a number or two with a hyphen between. *Raises* ConfigurationError."""
        found = re.fullmatch(r"([1-9]\d{0,3})(?:-([1-9]\d{0,3}))?", replicas)
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 0 < least <= most:
            raise ConfigurationError(f"--ray-replicas={replicas!r} is not a number of replicas like 2, nor like 1-4")
        for name, value in (("--ray-cpus", cpus), ("--ray-gpus", gpus)):
            if value is not None and not 0 <= value < 1e6:
                raise ConfigurationError(f"{name}={value:g} must be 0 or more")
        return cls(least, most, cpus, gpus)


def serve(
    settings: Settings, *, scale: Scale, loader: str = LOADER, on_ready: Callable[[str], None] | None = None
) -> None:
    """Blocks until SIGTERM or SIGINT, then lets accepted work finish and ends Ray.

    `on_ready` gets the address once every replica is loaded. *Raises* ConfigurationError for settings that cannot be,
    a port that is taken and replicas that do not fit; ModelLoadError; ReplicaFailed when Ray ends by itself.
    """
    os.environ.pop("REMOTE_VAE_KEYS", None)  # the settings have them as digests; Ray's processes would inherit the text
    if settings.tls_certificate is not None:
        raise ConfigurationError("Ray Serve's HAProxy speaks no TLS; leave --tls-certificate out and end TLS in front")
    build_app(settings)  # refuses what cannot be served before Ray is started for it
    # HAProxy will listen, in another process. Until then this socket keeps the port from Ray's own processes, and from
    # everyone else who asks for any that is free.
    with listen(settings) as kept:
        check_reach(kept, settings)
        settings = settings.model_copy(update={"port": kept.getsockname()[1]})
        with _ended_by_signal(), local_ray(settings):
            try:
                deploy(settings, scale, loader)  # it returns a while after the first replica has begun to answer
                if on_ready is not None:
                    on_ready(address_of(kept, settings))
                _watch()
            except KeyboardInterrupt:
                _drain(settings.shutdown_seconds)
                raise


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM and SIGINT end the block as if it had come to its end; a second one does not hurry it."""

    def leave(*_: object) -> None:
        _on_signals(signal.SIG_IGN)
        raise KeyboardInterrupt

    _on_signals(leave)
    with contextlib.suppress(KeyboardInterrupt):
        yield


def _on_signals(action: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, action)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Ray's and HAProxy's sockets, settings and logs; not below TMPDIR, since the path of a socket has to be short."""
    folder = Path(tempfile.mkdtemp(prefix="rvae-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def local_ray(settings: Settings) -> Iterator[None]:
    """A Ray of this process, which has ended with all its processes and files when the block ends."""
    with _folder() as folder, _ray(settings, folder):
        yield


@contextlib.contextmanager
def _ray(settings: Settings, folder: Path) -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    os.environ.update(_environment(settings, folder))  # Ray reads it when it is imported, and hands it to its processes
    try:
        import ray
        from ray import serve as ray_serve
    except ImportError as exc:
        raise ConfigurationError("Ray is not installed; run: pip install 'remote-vae[ray]'") from exc
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level="ERROR",
                log_to_driver=False,
                _node_ip_address=LOOPBACK,
                _temp_dir=str(folder),
            )
        except SystemExit:  # of Ray's own handler, to whom a signal came meanwhile
            raise KeyboardInterrupt from None
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray has put its own in the place of ours
        yield
    finally:
        children = psutil.Process().children(recursive=True)
        # A Ray that is half gone raises anything, and one that goes talks of it; the children go in any case.
        told = ray.is_initialized()  # else `serve.shutdown` would start a Ray first, and nobody tells these to end
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            if told:
                ray_serve.shutdown()
                ray.shutdown()
        _end(children, LEAVE_SECONDS if told else 0.0)


def _environment(settings: Settings, folder: Path) -> dict[str, str]:
    proxy = folder / "haproxy"  # HAProxy's own folder below Ray's
    return {
        **dict(zip(PORTS, map(str, _free_ports(len(PORTS))), strict=True)),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's 15 would let everything else on the machine go before the replicas; who wants that says so.
        "RAY_worker_niceness": os.environ.get("RAY_worker_niceness", "0"),  # noqa: SIM112  # as Ray spells it
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": str(WATCH_SECONDS),  # HAProxy is started anew after three that fail
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_SECONDS),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(math.ceil(settings.body_seconds)),
        haproxy.PROGRAM: str(_launcher(folder)),
        haproxy.HEAD_SECONDS: str(math.ceil(settings.head_seconds)),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(2 * settings.max_head_bytes),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
    }


def _launcher(folder: Path) -> Path:
    """Ray wants one executable file."""
    path = folder / "remote-vae-haproxy"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {haproxy.__name__} "$@"\n')
    path.chmod(0o700)
    return path


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]


def _end(children: list[psutil.Process], patience: float) -> None:
    """What Ray has left running, and what those processes have started."""
    _, alive = psutil.wait_procs(children, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=LEAVE_SECONDS)


def deploy(settings: Settings, scale: Scale, loader: str) -> None:
    """Starts the application, or replaces it replica by replica where it runs already.

    *Raises* ConfigurationError for replicas that do not fit, ModelLoadError for one that does not start.
    """
    from ray import serve as ray_serve

    options = _options(settings, scale)
    bound = bind(settings, loader=loader, **options)
    starting = _start({"host": settings.host, "port": settings.port})
    try:
        ray_serve.run(bound, name=APPLICATION, route_prefix="/")
        starting.result()
    except RuntimeError as exc:
        deployments = ray_serve.status().applications[APPLICATION].deployments.values()
        text = "\n".join([str(exc), *(found.message for found in deployments)])
        # Ray calls it a failure too when a replica that had started dies before all have; that one it starts anew.
        if OUR_ERRORS in text or not _heals():
            raise ModelLoadError(_reason(text)) from exc


def _start(http: dict[str, Any]) -> Future[None]:
    """Ray Serve, whose proxy is ready when the future is.

    Replicas can start seconds earlier than that, as soon as Ray knows that there will be a proxy: then this returns.
    """
    from ray import serve as ray_serve

    pool = ThreadPoolExecutor(1, thread_name_prefix="ray-serve-start")
    starting = pool.submit(ray_serve.start, http_options=http, proxy_location="HeadOnly")
    pool.shutdown(wait=False)
    while not (starting.done() or ray_serve.status().proxies):
        time.sleep(POLL_SECONDS)
    if starting.done():
        starting.result()
    return starting


def _heals() -> bool:
    from ray import serve as ray_serve

    ends = time.monotonic() + HEAL_SECONDS
    while time.monotonic() < ends:
        if ray_serve.status().applications[APPLICATION].status == "RUNNING":
            return True
        time.sleep(WATCH_SECONDS)
    return False


def _options(settings: Settings, scale: Scale) -> dict[str, Any]:
    """Ray's options for the deployment. *Raises* ConfigurationError when the replicas need more than there is."""
    import ray

    machine = ray.cluster_resources()
    cpus, gpus = machine.get("CPU", 1.0), machine.get("GPU", 0.0)
    on_gpu = gpus > 0 and settings.device in ("auto", "cuda")
    each_gpu = (min(1.0, gpus / scale.most) if on_gpu else 0.0) if scale.gpus is None else scale.gpus
    each_cpu = (1.0 if on_gpu else max(1.0, cpus // scale.most)) if scale.cpus is None else scale.cpus
    for name, each, there in (("CPU", each_cpu, cpus), ("GPU", each_gpu, gpus)):
        if each * scale.most > there:
            raise ConfigurationError(
                f"{scale.most} replicas of {each:g} {name} each do not fit: this machine has {there:g}; "
                f"lower --ray-replicas or --ray-{name.lower()}s",
                replicas=scale.most,
                each=each,
                there=there,
            )
    many: dict[str, Any] = {"num_replicas": scale.most}
    if scale.least < scale.most:
        many = {"autoscaling_config": {"min_replicas": scale.least, "max_replicas": scale.most}}
    return {"ray_actor_options": {"num_cpus": each_cpu, "num_gpus": each_gpu}, **many}


def _reason(text: str) -> str:
    """The last line of a replica's own traceback: what our loader said."""
    lines = [line.strip() for line in text.splitlines() if OUR_ERRORS in line]
    return lines[-1].partition(": ")[2] if lines else text.strip()


def _drain(seconds: float) -> None:
    """No new connections, and the answers to what is accepted, before Ray is told to end: it does not wait for them.

    Ray's controller rests meanwhile. It takes a HAProxy that no longer listens for a broken one, and would replace it
    with every answer that is on its way.
    """
    ends = time.monotonic() + seconds
    with _resting(_named((CONTROLLER,), psutil.Process().children(recursive=True))):
        # Again and again: another HAProxy may have been starting, for a replica that Ray has just learned of.
        while (proxies := _named(("haproxy",), psutil.Process().children(recursive=True))) and time.monotonic() < ends:
            for proxy in proxies:
                with contextlib.suppress(psutil.NoSuchProcess):
                    proxy.send_signal(signal.SIGUSR1)  # HAProxy's soft stop
            psutil.wait_procs(proxies, timeout=WATCH_SECONDS)


@contextlib.contextmanager
def _resting(processes: Sequence[psutil.Process]) -> Iterator[None]:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def _watch() -> None:
    """*Raises* ReplicaFailed when one of the processes that Ray cannot do without is gone."""
    vital = _named(VITAL, psutil.Process().children())
    while len(_named(VITAL, vital)) == len(VITAL):
        time.sleep(WATCH_SECONDS)
    raise ReplicaFailed("Ray has ended by itself, and every replica with it; start the service again")


def _named(names: tuple[str, ...], processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that run under a name that begins so. Ray's processes come and go while one looks at them."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith(names) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
