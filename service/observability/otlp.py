"""Traces to an OpenTelemetry collector over OTLP, as OpenTelemetry's own variables say; off unless they name one."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from models.errors import PomonaError
from service.observability.recording import Tracers
from service.observability.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"


class TracingMisconfigured(PomonaError):
    """A variable of OpenTelemetry asks for what is not here."""


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether traces are exported: where an endpoint of OTLP is named and neither switch says no.

    The switches are `OTEL_SDK_DISABLED=true` and `OTEL_TRACES_EXPORTER=none`; OpenTelemetry's own reading of an absent
    endpoint, that a collector is on this machine, needs `OTEL_TRACES_EXPORTER=otlp`.

    Raises:
        TracingMisconfigured: another exporter or another protocol is asked for.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        raise TracingMisconfigured(f"OTEL_TRACES_EXPORTER is {exporter!r}; otlp or none would be right.")
    if not exporter and not any(environment.get(name) for name in _ENDPOINTS):
        return False
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        raise TracingMisconfigured(
            f"Traces are sent over {_PROTOCOL} (a collector's port 4318), not over {protocol!r}, which "
            "OTEL_EXPORTER_OTLP_PROTOCOL asks for."
        )
    return True


class Traces:
    """What records and sends; `close` sends what is left.

    Args:
        processor: takes the spans.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        # Here, as the SDK is of no use to a process that records nothing.
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        ours = Resource.create({"service.name": "pomona", "service.instance.id": str(uuid.uuid4())})
        resource = ours.merge(OTELResourceDetector().detect())
        self._processor = processor
        tracers = []
        # None is the sampler that the variables name. Of a batch it was asked before: it is told of for its requests.
        for sampler in (None, ALWAYS_ON):
            provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
            provider.add_span_processor(processor)
            tracers.append(provider.get_tracer("pomona"))
        self.tracing = Tracing(Tracers(*tracers))

    def close(self, within: float = 2.0) -> None:
        """Send what is left, for at most `within` seconds: a collector that is not there does not hold up the end."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(within)


def exported(environment: Mapping[str, str]) -> Traces | None:
    """Traces to the collector that the variables name, where they are wanted.

    Raises:
        TracingMisconfigured: see `wanted`.
    """
    if not wanted(environment):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return Traces(BatchSpanProcessor(OTLPSpanExporter()))
