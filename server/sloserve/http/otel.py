"""
OpenTelemetry behind `tracing.Tracer`: the only module that imports it.

The provider is our own, never the process-wide one: other packages that look for that (FastAPI
does) would begin spans of their own beside ours.
"""

import threading
import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sloserve.http import tracing

CLOSE_S = 5.0
"""A collector that is down must not hold up the end of a process for longer."""

_w3c = TraceContextTextMapPropagator()


def make_tracer(attributes: Mapping[str, str], *, console: bool) -> "OtelTracer":
    """
    A tracer that exports by OTLP over HTTP, or to stdout.

    `attributes` describe the process; OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME win over
    them. Sampler, limits, endpoint, headers and the rest come from the standard variables, which
    the SDK reads itself.
    """
    told = OTELResourceDetector().detect().attributes
    own = {name: value for name, value in attributes.items() if name not in told}
    provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    if console:
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    else:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracer(provider)


class OtelTracer:
    """Spans of one provider."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("sloserve")

    def server(self, name: str, headers: Mapping[str, str]) -> tracing.Span:
        """A request that came in, in the trace that its headers carry, or in a new one."""
        span = self._tracer.start_span(
            name, context=_w3c.extract(headers, context=Context()), kind=SpanKind.SERVER
        )
        return _OtelSpan(self._tracer, span, anchor_ns=time.time_ns() - _ns(time.monotonic()))

    def close(self) -> None:
        """Send what is left; given up after 5 s."""
        closing = threading.Thread(target=self._provider.shutdown, name="otel-close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class _OtelSpan:
    """`anchor_ns` is wall time less monotonic time: one for all spans of a request."""

    __slots__ = ("_anchor_ns", "_context", "_span", "_tracer", "recording")

    def __init__(self, tracer: Tracer, span: Span, *, anchor_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._anchor_ns = anchor_ns
        self._context = set_span_in_context(span, Context())
        self.recording = span.is_recording()

    @property
    def trace_id(self) -> str:
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else ""

    @property
    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        _w3c.inject(carrier, context=self._context)
        return carrier

    def client(self, name: str, attributes: tracing.Attributes) -> tracing.Span:
        span = self._tracer.start_span(
            name, context=self._context, kind=SpanKind.CLIENT, attributes=attributes
        )
        return _OtelSpan(self._tracer, span, anchor_ns=self._anchor_ns)

    def part(self, name: str, *, start_s: float, end_s: float) -> None:
        span = self._tracer.start_span(
            name, context=self._context, start_time=self._anchor_ns + _ns(start_s)
        )
        span.end(self._anchor_ns + _ns(max(start_s, end_s)))

    def event(self, name: str, *, at_s: float) -> None:
        self._span.add_event(name, timestamp=self._anchor_ns + _ns(at_s))

    def set(self, attributes: tracing.Attributes) -> None:
        self._span.set_attributes(attributes)

    def fail(self, message: str) -> None:
        self._span.set_status(StatusCode.ERROR, message)

    def end(self) -> None:
        self._span.end()


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
