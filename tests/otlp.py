"""Reading spans as a collector would: by the protobuf schema of OTLP."""

import base64
import json
from collections.abc import Iterable
from typing import Any

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, TracesData


def spans_of(lines: Iterable[str]) -> list[tuple[dict[str, Any], Span]]:
    """(attributes of its process, span) of every span in lines of OTLP JSON.

    OTLP writes ids in hexadecimal where protobuf's JSON has base64; all else must parse as it is.
    """
    found = []
    for line in lines:
        data = json.loads(line)
        for resource in data["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    for key in ("traceId", "spanId", "parentSpanId"):
                        if key in span:
                            span[key] = base64.b64encode(bytes.fromhex(span[key])).decode()
        for resource_spans in ParseDict(data, TracesData()).resource_spans:
            process = _attributes(resource_spans)
            found += [(process, s) for scope in resource_spans.scope_spans for s in scope.spans]
    return found


def _attributes(resource_spans: ResourceSpans) -> dict[str, Any]:
    return {item.key: value_of(item.value) for item in resource_spans.resource.attributes}


def attributes(span: Span) -> dict[str, Any]:
    """Of a span, by name."""
    return {item.key: value_of(item.value) for item in span.attributes}


def value_of(value: Any) -> Any:
    """The one that is set."""
    return getattr(value, value.WhichOneof("value"))
