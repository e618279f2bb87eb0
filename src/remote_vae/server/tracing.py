"""OpenTelemetry traces, if the operator has named a collector in the variables that OpenTelemetry defines."""

import os
from typing import TYPE_CHECKING, Final

from remote_vae.errors import ConfigurationError
from remote_vae.server.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

VARIABLES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing:
    """Sends a span for each request, with one for each of its stages below it."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("remote_vae")

    def span(self, record: Record, *, began_ns: int, parent: str | None) -> None:
        """Sends what is known of a request; `parent` is the caller's traceparent header."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({"traceparent": parent or ""})
        attributes: dict[str, str | int] = {
            "http.request.method": record.method,
            "http.route": record.route,
            "http.response.status_code": record.status,
            "remote_vae.request_id": record.request_id,
            "remote_vae.model": record.model,
            "remote_vae.plan": record.plan,
            "error.type": record.error,
        }
        span = self._tracer.start_span(
            f"{record.method} {record.route}",
            context,
            SpanKind.SERVER,
            {name: value for name, value in attributes.items() if value != ""},
            start_time=began_ns,
        )
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        stage_ns = began_ns
        for stage, seconds in record.stages.items():
            child = self._tracer.start_span(stage, set_span_in_context(span), start_time=stage_ns)
            stage_ns += int(seconds * 1e9)
            child.end(stage_ns)
        span.end()

    def close(self) -> None:
        """Sends the spans that have not been sent yet."""
        self._provider.shutdown()


def tracing_from_environment() -> Tracing | None:
    """None if no collector is named. *Raises* ConfigurationError if OpenTelemetry is not installed."""
    if not any(os.environ.get(name) for name in VARIABLES):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise ConfigurationError(
            f"{VARIABLES[0]} asks for traces; run in remote-vae's folder: pip install '.[tracing]'"
        ) from exc
    provider = TracerProvider(
        resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "remote-vae")}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
