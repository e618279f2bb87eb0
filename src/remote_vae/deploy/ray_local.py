"""`remote-vae serve --ray`: a Ray on this machine that belongs to this process and ends with it.

Ray's dashboard is off, and its control plane asks for a token that is made for this run: its processes listen on every
interface, on ports of Ray's choice, which cannot be changed.
"""

import contextlib
import io
import logging
import os
import re
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import psutil

from remote_vae.deploy import ray_proxy
from remote_vae.deploy.ray_serve import bind
from remote_vae.errors import ConfigurationError, ModelLoadError, ReplicaFailed
from remote_vae.server.app import LOADER, build_app
from remote_vae.server.run import OnReady, address_of, check_reach, listen
from remote_vae.server.settings import Settings

APPLICATION: Final = "remote-vae"
LOOPBACK: Final = "127.0.0.1"
OBJECT_STORE_BYTES: Final = 80 << 20  # the least that Ray accepts
WATCH_SECONDS: Final = 0.5
LEAVE_SECONDS: Final = 10.0
HEAL_SECONDS: Final = 60.0
OUR_ERRORS: Final = "remote_vae.errors."  # how our exceptions begin in a traceback
VITAL: Final = ("gcs_server", "raylet")


@dataclass(frozen=True, slots=True)
class Scale:
    """The number of replicas, and what each takes; None means an even share of what the machine has."""

    least: int = 1
    most: int = 1
    cpus: float | None = None
    gpus: float | None = None

    @classmethod
    def parse(cls, replicas: str, *, cpus: float | None = None, gpus: float | None = None) -> "Scale":
        """`replicas` is a number, or two numbers with a hyphen between them. *Raises* ConfigurationError."""
        found = re.fullmatch(r"([1-9]\d{0,3})(?:-([1-9]\d{0,3}))?", replicas)
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 0 < least <= most:
            raise ConfigurationError(f"--ray-replicas={replicas!r} is not a number of replicas like 2, nor like 1-4")
        for name, value in (("--ray-cpus", cpus), ("--ray-gpus", gpus)):
            if value is not None and not 0 <= value < 1e6:
                raise ConfigurationError(f"{name}={value:g} must be 0 or more")
        return cls(least, most, cpus, gpus)


def serve(settings: Settings, *, scale: Scale, loader: str = LOADER, on_ready: OnReady | None = None) -> None:
    """Blocks until SIGTERM or SIGINT, then lets accepted requests finish and ends Ray.

    `on_ready` gets the address once every replica is loaded; what was loaded, only the replicas know. *Raises*
    ConfigurationError for settings that Ray Serve cannot have, a port that is taken and replicas that do not fit;
    ModelLoadError; ReplicaFailed if Ray ends by itself.
    """
    os.environ.pop("REMOTE_VAE_KEYS", None)  # Ray's processes would inherit the keys, which settings keep as digests
    _refuse_what_ray_cannot(settings)
    build_app(settings)  # refuses what cannot be served before Ray is started
    # Ray's proxy will listen in another process. Until then this socket keeps other processes from taking the port.
    with listen(settings.host, settings.port) as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # the proxy sets it too, and so may bind to the port
        check_reach(kept, settings)
        settings = settings.model_copy(update={"port": kept.getsockname()[1]})
        with _ended_by_signal(), local_ray():
            try:
                deploy(settings, scale, loader)  # replicas answer requests before it returns
                if on_ready is not None:
                    on_ready(address_of(kept, settings), [])
                _watch()
            except KeyboardInterrupt:
                _drain(settings.shutdown_seconds)
                raise


def _refuse_what_ray_cannot(settings: Settings) -> None:
    """*Raises* ConfigurationError for settings that would be ignored."""
    if settings.tls_certificate is not None:
        raise ConfigurationError("--ray speaks no TLS; leave --tls-certificate out and end TLS in a reverse proxy")
    if settings.metrics_address is not None:
        raise ConfigurationError(
            "with --ray every replica has its own /metrics, and nothing would listen at --metrics-address; leave it out"
        )


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM and SIGINT end the block as if it had come to its end; a second signal does not hurry it."""

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
def local_ray() -> Iterator[None]:
    """A Ray of this process, which has ended with all its processes and files when the block ends."""
    # For Ray's sockets and logs; not below TMPDIR, since the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="rvae-", dir="/tmp", ignore_cleanup_errors=True) as folder, _ray(folder):
        yield


@contextlib.contextmanager
def _ray(folder: str) -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    os.environ.update(_environment())  # Ray reads it when it is imported, and its processes inherit it
    try:
        import ray
        from ray import serve as ray_serve
    except ImportError as exc:
        raise ConfigurationError("Ray is not installed; run in remote-vae's folder: pip install '.[ray]'") from exc
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
                _temp_dir=folder,
            )
        except SystemExit:  # Ray's own handler raises it if a signal comes during its start
            raise KeyboardInterrupt from None
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray has replaced them with its own
        yield
    finally:
        children = psutil.Process().children(recursive=True)
        started = ray.is_initialized()  # if Ray is not running, `serve.shutdown` would start it
        # A Ray that is partly gone can raise any exception, and it prints; its processes are ended in any case.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            if started:
                ray_serve.shutdown()
                ray.shutdown()
        _end(children, LEAVE_SECONDS if started else 0.0)


def _environment() -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's default of 15 would give every other process on the machine precedence over the replicas.
        "RAY_worker_niceness": os.environ.get("RAY_worker_niceness", "0"),  # noqa: SIM112  # as Ray spells it
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": str(WATCH_SECONDS),  # a proxy is replaced after three failed checks
        ray_proxy.CALLBACK: f"{ray_proxy.__name__}:{ray_proxy.middlewares.__name__}",
    }


def _end(children: list[psutil.Process], patience: float) -> None:
    """Ends the processes that Ray has left running, and the processes that those have started."""
    _, alive = psutil.wait_procs(children, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=LEAVE_SECONDS)


def deploy(settings: Settings, scale: Scale, loader: str) -> None:
    """Starts the application, or replaces it replica by replica if it runs already.

    *Raises* ConfigurationError for replicas that do not fit, ModelLoadError for one that does not start.
    """
    from ray import serve as ray_serve

    options = _options(settings, scale)
    bound = bind(settings, loader=loader, **options)
    ray_serve.start(http_options={"host": settings.host, "port": settings.port}, proxy_location="HeadOnly")
    try:
        ray_serve.run(bound, name=APPLICATION, route_prefix="/")
    except RuntimeError as exc:
        deployments = ray_serve.status().applications[APPLICATION].deployments.values()
        text = "\n".join([str(exc), *(found.message for found in deployments)])
        # Ray raises this too if a replica that had started dies before all have started; Ray replaces such a replica.
        if OUR_ERRORS in text or not _heals():
            raise ModelLoadError(_reason(text)) from exc


def _heals() -> bool:
    from ray import serve as ray_serve

    ends = time.monotonic() + HEAL_SECONDS
    while time.monotonic() < ends:
        if ray_serve.status().applications[APPLICATION].status == "RUNNING":
            return True
        time.sleep(WATCH_SECONDS)
    return False


def _options(settings: Settings, scale: Scale) -> dict[str, Any]:
    """Ray's options for the deployment. *Raises* ConfigurationError if the replicas need more than there is."""
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
    """The last line of a replica's own traceback, which is what our loader said."""
    lines = [line.strip() for line in text.splitlines() if OUR_ERRORS in line]
    return lines[-1].partition(": ")[2] if lines else text.strip()


def _drain(seconds: float) -> None:
    """Refuses new requests and waits for the answers to accepted ones; `serve.shutdown` would end the proxy at once."""
    from ray import serve as ray_serve

    ends = time.monotonic() + seconds + LEAVE_SECONDS
    with contextlib.suppress(Exception):  # boundary: a Ray that is partly started or gone can raise any exception
        ray_serve.delete(APPLICATION, _blocking=False)
        while APPLICATION in ray_serve.status().applications and time.monotonic() < ends:
            time.sleep(WATCH_SECONDS)


def _watch() -> None:
    """*Raises* ReplicaFailed when one of the processes that Ray cannot do without is gone."""
    children = psutil.Process().children()
    while all(_runs(name, children) for name in VITAL):
        time.sleep(WATCH_SECONDS)
    raise ReplicaFailed("Ray has ended by itself, and every replica with it; start the service again")


def _runs(name: str, processes: list[psutil.Process]) -> bool:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith(name) and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False
