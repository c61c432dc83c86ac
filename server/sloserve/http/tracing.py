"""
Traces, as far as gateway and replica need to know of them: off unless asked for.

Off, a request costs a few empty calls, and nothing of OpenTelemetry is imported here (`otel.py`
is the only door to it). A request begins a few spans and ends them: nothing happens per token.
"""

import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from sloserve.errors import BadInput, Failed

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTER, DISABLED = "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTERS = ("otlp", "console")
PROTOCOL = "http/protobuf"


class Span(Protocol):
    """Something that takes time. Times are on the monotonic clock of this machine, in seconds."""

    @property
    def recording(self) -> bool:
        """False: nothing of it is kept, attributes need not be gathered."""
        ...

    @property
    def trace_id(self) -> str:
        """For logs: 32 hexadecimal digits; empty without a trace."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """What carries the trace on (W3C trace context), for a request to somebody else."""
        ...

    def client(self, name: str, attributes: Attributes) -> "Span":
        """A request to somebody else, beginning now."""
        ...

    def part(self, name: str, *, start_s: float, end_s: float) -> None:
        """A part that is over."""
        ...

    def event(self, name: str, *, at_s: float) -> None:
        """Something that took no time."""
        ...

    def set(self, attributes: Attributes) -> None:
        """What is known of it now; may be called again."""
        ...

    def fail(self, message: str) -> None:
        """It did not do what it was asked for."""
        ...

    def end(self) -> None:
        """It is over, now."""
        ...


class Tracer(Protocol):
    """Begins the spans of one process."""

    def server(self, name: str, headers: Mapping[str, str]) -> Span:
        """A request that came in; `headers` (lower-case names) may carry its trace."""
        ...

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        ...


class _NoSpan:
    """Nothing is kept, nothing is sent."""

    __slots__ = ()
    recording = False
    trace_id = ""
    headers: Mapping[str, str] = MappingProxyType({})

    def client(self, name: str, attributes: Attributes) -> Span:
        return self

    def part(self, name: str, *, start_s: float, end_s: float) -> None:
        """Not kept."""

    def event(self, name: str, *, at_s: float) -> None:
        """Not kept."""

    def set(self, attributes: Attributes) -> None:
        """Not kept."""

    def fail(self, message: str) -> None:
        """Not kept."""

    def end(self) -> None:
        """Not kept."""


class _NoTracer:
    """Traces nothing."""

    def server(self, name: str, headers: Mapping[str, str]) -> Span:
        return NO_SPAN

    def close(self) -> None:
        """Nothing is left."""


NO_SPAN: Span = _NoSpan()
NO_TRACER: Tracer = _NoTracer()


def asked_for(flag: bool | None, environ: Mapping[str, str]) -> bool:
    """
    Whether to trace: what `--tracing` or `--no-tracing` says, else the standard variables.

    Those ask for it by an OTLP endpoint or by an exporter, unless the SDK is disabled. Raises
    BadInput for an exporter or a protocol that is not here.
    """
    exporter = environ.get(EXPORTER, "").strip().lower()
    if flag is None:
        off = environ.get(DISABLED, "").strip().lower() == "true" or exporter == "none"
        flag = not off and bool(exporter or any(map(environ.get, ENDPOINTS)))
    if not flag:
        return False
    if exporter not in ("", "none", *EXPORTERS):
        raise BadInput(
            f"is {exporter!r}; allowed: {', '.join(EXPORTERS)}, none; or turn tracing off with"
            " --no-tracing",
            field=EXPORTER,
        )
    for variable in PROTOCOLS:
        protocol = environ.get(variable, "").strip()
        if protocol:
            if exporter != "console" and protocol != PROTOCOL:
                raise BadInput(
                    f"is {protocol!r}; allowed: {PROTOCOL}, which collectors take on port 4318",
                    field=variable,
                )
            break
    return True


def check(flag: bool | None, environ: Mapping[str, str]) -> bool:
    """Whether to trace. Raises BadInput as `asked_for`, and Failed when it can't be done."""
    if not asked_for(flag, environ):
        return False
    try:
        importlib.import_module("sloserve.http.otel")
    except ModuleNotFoundError as error:
        raise Failed(
            f"tracing was asked for, by --tracing or an OTEL_ variable, and needs {error.name},"
            " which is not installed; run: pip install 'sloserve[tracing]', or say --no-tracing"
        ) from None
    return True


def environment_of(flag: bool | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The flag as variables for child processes; what it overrules is overruled there too."""
    if flag is None:
        return {}
    if not flag:
        return {DISABLED: "true"}
    on = {DISABLED: "false"}
    return on if environ.get(EXPORTER) in EXPORTERS else {EXPORTER: EXPORTERS[0], **on}


def make_tracer(
    part: str,
    *,
    flag: bool | None,
    environ: Mapping[str, str],
    service: str,
    instance: str = "",
) -> Tracer:
    """
    The tracer of this process: `part` is gateway or replica, `service` the SLOService's name.

    Raises as `check` does.
    """
    if not check(flag, environ):
        return NO_TRACER
    from sloserve.http import otel

    exporter = environ.get(EXPORTER, "").strip().lower()
    attributes = {"service.name": f"sloserve-{part}", "sloserve.service": service}
    if instance:
        attributes["service.instance.id"] = instance
    return otel.make_tracer(attributes, console=exporter == "console")
