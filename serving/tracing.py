"""Traces for OpenTelemetry: where a request's time went, in which process. No text, no key, no shopper."""

from collections.abc import Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACER: Final = trace.get_tracer("handbill.serving")  # records nothing until start_tracing
_W3C: Final = TraceContextTextMapPropagator()
_DELAY_MS: Final = 1000


def start_tracing(url: str, process: str) -> None:
    """Send what this process records from now on.

    Args:
        url: An OTLP/HTTP receiver's for traces, such as ``http://127.0.0.1:4318/v1/traces``;
            nothing is recorded if it is empty. Sampling and headers are the SDK's own variables,
            ``OTEL_TRACES_SAMPLER`` and ``OTEL_EXPORTER_OTLP_HEADERS``.
        process: What this process is.
    """
    if not url:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"handbill-{process}"}))
    exporter = OTLPSpanExporter(endpoint=url)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_DELAY_MS))
    trace.set_tracer_provider(provider)


def carried() -> str:
    """The current span as a W3C ``traceparent``; empty where nothing is traced."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent", "")


def continued(traceparent: str) -> Context:
    """The context of a span in another process; an empty one starts anew."""
    return _W3C.extract({"traceparent": traceparent} if traceparent else {}, Context())


def noted(name: str, facts: Mapping[str, str | int] | None = None) -> None:
    """Add an event to the current span."""
    trace.get_current_span().add_event(name, facts)
