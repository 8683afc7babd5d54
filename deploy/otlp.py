"""Spans in OpenTelemetry's JSON, to a file or to a collector by OTLP/HTTP.

The protobuf exporters of OpenTelemetry need another protobuf than Ray's generated code may have, so
that they cannot be installed everywhere; every collector takes JSON at the same address.
"""

import json
import logging
import os
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)

SECONDS = 3.0
HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"


class FileSpanExporter(SpanExporter):
    """Appends a line of JSON a batch, as the collector's `otlpjsonfile` receiver reads it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes; a disk that cannot be written costs the spans, not the work."""
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(traces(spans)) + "\n")
        except OSError as error:
            logger.warning("%d spans are lost: %s: %s", len(spans), self._path, error.strerror)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS


class HttpSpanExporter(SpanExporter):
    """Posts to `ENDPOINT/v1/traces`, with the headers of OTEL_EXPORTER_OTLP_HEADERS."""

    def __init__(self, endpoint: str) -> None:
        self._url = endpoint.rstrip("/") + "/v1/traces"
        self._headers = {
            "Content-Type": "application/json",
            **_headers(os.environ.get(HEADERS, "")),
        }

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends; a collector that does not answer costs the spans, not the work."""
        body = json.dumps(traces(spans)).encode()
        request = urllib.request.Request(self._url, body, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                answer.read()
        except OSError as error:
            logger.warning("%d spans are lost: %s: %s", len(spans), self._url, error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS


def _headers(text: str) -> dict[str, str]:
    """`name=value,name=value`, values percent-encoded."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    return {name.strip(): urllib.parse.unquote(value.strip()) for name, _, value in pairs}


def traces(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """OTLP's `TracesData` of spans of one process; ids in hexadecimal, 64-bit numbers as text."""
    if not spans:
        return {"resourceSpans": []}
    scope = spans[0].instrumentation_scope
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(spans[0].resource.attributes)},
                "scopeSpans": [
                    {
                        "scope": {"name": scope.name if scope is not None else ""},
                        "spans": [_span(span) for span in spans],
                    }
                ],
            }
        ]
    }


def _span(span: ReadableSpan) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "traceId": f"{span.context.trace_id:032x}",
        "spanId": f"{span.context.span_id:016x}",
        "name": span.name,
        "kind": span.kind.value + 1,  # OTLP counts from 1: 0 is "unspecified"
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "status": {"code": span.status.status_code.value},
    }
    if span.parent is not None:
        encoded["parentSpanId"] = f"{span.parent.span_id:016x}"
    if span.status.description:
        encoded["status"]["message"] = span.status.description
    return encoded


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            "value": {"intValue": str(value)}
            if isinstance(value, int)
            else {"stringValue": str(value)},
        }
        for key, value in values.items()
    ]
