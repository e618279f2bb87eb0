"""What the server counts, for Prometheus. No label names a client or holds anything that a client sent."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from remote_vae.engine.observer import ModelState, Ran
from remote_vae.server.record import Record

LOG: Final = logging.getLogger("remote_vae.server")
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@dataclass(frozen=True, slots=True)
class Gauges:
    """A figure of each model, read when Prometheus asks for it."""

    name: str
    text: str
    read: Callable[[ModelState], float]


OF_MODELS: Final = (
    Gauges("remote_vae_model_ready", "1 if the model is loaded and all its processes live.", lambda s: s.ready),
    Gauges(
        "remote_vae_model_loaded", "1 if the model is loaded, 0 if it is unloaded until asked for.", lambda s: s.loaded
    ),
    Gauges("remote_vae_replicas_alive", "Processes that can work for the model.", lambda s: s.alive),
    Gauges("remote_vae_accepted_jobs", "Requests that wait or run.", lambda s: s.accepted_jobs),
    Gauges("remote_vae_accepted_pixels", "Output pixels of requests that wait or run.", lambda s: s.accepted_pixels),
    Gauges("remote_vae_queue_jobs", "Requests that wait.", lambda s: s.waiting_jobs),
    Gauges("remote_vae_queue_pixels", "Output pixels of requests that wait.", lambda s: s.waiting_pixels),
    Gauges(
        "remote_vae_memory_bytes",
        "What the model's processes hold, of the device if it has its own memory.",
        lambda s: s.memory_bytes,
    ),
    Gauges("remote_vae_memory_planned_bytes", "What the plan of the last job counts on.", lambda s: s.planned_bytes),
)


class Metrics:
    """The figures of one server, which observes its engine."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the times at which figures were first counted are of no use
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "remote_vae_requests", "Answers.", ("model", "route", "status"), registry=self._registry
        )
        self._request_seconds = Histogram(
            "remote_vae_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._stage_seconds = Histogram(
            "remote_vae_stage_seconds",
            "Of one request: in the queue, in the VAE (decode, encode), writing a picture or video (media).",
            ("model", "stage"),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._received = Counter("remote_vae_received_bytes", "Of requests' bodies.", registry=self._registry)
        self._sent = Counter("remote_vae_sent_bytes", "Of answers' bodies.", registry=self._registry)
        self._running = Gauge("remote_vae_requests_in_flight", "Not answered yet.", registry=self._registry)
        self._refused = Counter(
            "remote_vae_refused_connections",
            "Connections refused because what came was not HTTP, too long or too slow.",
            ("status",),
            registry=self._registry,
        )
        self._pixels = Counter(
            "remote_vae_pixels", "Output pixels, or of pictures encoded.", ("model", "op"), registry=self._registry
        )
        self._plans = Counter("remote_vae_plans", "Plans that ran.", ("model", "op", "plan"), registry=self._registry)
        self._restarts = Counter(
            "remote_vae_replica_restarts", "Replaced processes.", ("model", "cause"), registry=self._registry
        )
        self._unloads = Counter("remote_vae_unloads", "Unloaded models.", ("model", "cause"), registry=self._registry)

    def watch(self, states: Callable[[], list[ModelState]]) -> None:
        """Adds the figures of the models; `states` is called whenever Prometheus asks."""
        self._registry.register(_Models(states))

    def text(self, accept: str) -> tuple[bytes, str]:
        """All figures and their media type, in the format that the Accept header asks for, otherwise as plain text."""
        try:
            write, media = choose_encoder(accept)
            return write(self._registry), media
        except (ValueError, TypeError):  # the version of a format is no version
            return self.text("")

    def begin(self) -> None:
        self._running.inc()

    def end(self, record: Record) -> None:
        """Counts a request that is over; `status` 0 means that its client did not wait for the answer."""
        self._running.dec()
        self._requests.labels(record.model, record.route, str(record.status)).inc()
        self._request_seconds.labels(record.route).observe(record.seconds)
        self._received.inc(record.received)
        self._sent.inc(record.sent)
        if "media" in record.stages:
            self.stage(record.model, "media", record.stages["media"])

    def stage(self, model: str, stage: str, seconds: float) -> None:
        self._stage_seconds.labels(model, stage).observe(seconds)

    def refused(self, status: int) -> None:
        """Counts a connection that was refused before there was a request."""
        self._refused.labels(str(status)).inc()

    def ran(self, job: Ran) -> None:
        self.stage(job.model, "queue", job.queued)
        self.stage(job.model, job.op, job.seconds)
        self._pixels.labels(job.model, job.op).inc(job.pixels)
        self._plans.labels(job.model, job.op, job.plan).inc()

    def restarted(self, model: str, cause: str) -> None:
        LOG.warning("replica replaced", extra={"model": model, "cause": cause})
        self._restarts.labels(model, cause).inc()

    def unloaded(self, model: str, cause: str) -> None:
        self._unloads.labels(model, cause).inc()


class _Models(Collector):
    """The state of the engine's models, as gauges."""

    def __init__(self, states: Callable[[], list[ModelState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        states = self._states()
        for gauge in OF_MODELS:
            family = GaugeMetricFamily(gauge.name, gauge.text, labels=("model",))
            for state in states:
                family.add_metric((state.name,), float(gauge.read(state)))
            yield family

    def describe(self) -> Iterator[Metric]:
        return iter(GaugeMetricFamily(gauge.name, gauge.text) for gauge in OF_MODELS)
