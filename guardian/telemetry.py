"""Logs and metrics.

One line per event on standard error, as JSON or as text, each with the id of the request it
belongs to. Whatever looks like a secret is redacted on the way out, wherever it came from: that is
the second line of defence, the first is not to log it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final, TextIO

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

#: id of the request that the current task works on; empty outside of requests
request_id: ContextVar[str] = ContextVar("guardian_request_id", default="")

MAX_TEXT: Final = 8192  #: longest message or traceback in one line, characters

_SECRETS: Final = (
    (re.compile(r"cfg_[0-9A-Za-z]{8,}"), "cfg_***"),
    (re.compile(r"eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]+\.[0-9A-Za-z_-]*"), "***"),
    (re.compile(r"(?i)\b(bearer)\s+[^\s\"',;]+"), r"\1 ***"),
    (re.compile(r"(?i)\b(postgres(?:ql)?://[^\s:/@]*):[^\s@]*@"), r"\1:***@"),
    (
        re.compile(r"(?i)([\"']?(?:password|secret|refresh_token|access_token)[\"']?\s*[:=]\s*)"
                   r"(\"[^\"]*\"|'[^']*'|[^\s,;}\"']+)"),
        r"\1***",
    ),
)  # fmt: skip
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

#: attributes that every LogRecord has; the others came in as ``extra``
_RECORD_ATTRIBUTES: Final = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}


def redact(text: str) -> str:
    """``text`` without anything that looks like a credential, cut to a bearable length."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def one_line(text: str) -> str:
    """``text`` with control characters escaped, so that no input can forge a log line."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = {}
    identity = getattr(record, "request_id", "") or request_id.get()
    if identity:
        fields["request_id"] = identity
    for name, value in record.__dict__.items():
        if name in _RECORD_ATTRIBUTES or name == "request_id":
            continue
        fields[name] = value if isinstance(value, int | float | None) else redact(str(value))
    return fields


def _traceback_of(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    return redact("".join(traceback.format_exception(*record.exc_info)).rstrip())


def _timestamp(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, request_id, extras, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        line.update(_fields(record))
        trace = _traceback_of(record)
        if trace:
            line["traceback"] = trace
        return json.dumps(line, separators=(",", ":"))


class TextFormatter(logging.Formatter):
    """One line for people: ``time LEVEL logger: message name=value ...``."""

    def format(self, record: logging.LogRecord) -> str:
        extras = "".join(f" {name}={value}" for name, value in _fields(record).items())
        message = one_line(redact(record.getMessage()) + extras)
        line = f"{_timestamp(record)} {record.levelname:<7} {record.name}: {message}"
        trace = _traceback_of(record)
        return f"{line}\n{trace}" if trace else line


class ServerNoiseFilter(logging.Filter):
    """Keeps ``aiohttp.server`` from being an amplifier.

    aiohttp logs each unparsable request at ERROR with a traceback that quotes what was sent. Such
    records lose their traceback and arguments, and no more than ``per_second`` pass.
    """

    def __init__(self, per_second: int = 5) -> None:
        super().__init__()
        self._per_second = per_second
        self._window = 0
        self._passed = 0
        self.suppressed = 0  #: records swallowed so far

    def filter(self, record: logging.LogRecord) -> bool:
        window = int(record.created)
        if window != self._window:
            self._window, self._passed = window, 0
        if self._passed >= self._per_second:
            self.suppressed += 1
            return False
        self._passed += 1
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        if kind in {"BadHttpMessage", "BadHttpMethod", "BadStatusLine", "LineTooLong",
                    "InvalidHeader", "InvalidURLError", "TransferEncodingError",
                    "ContentLengthError"}:  # fmt: skip
            record.msg, record.args = f"unparsable request: {kind}", None
            record.exc_info, record.exc_text = None, None
        return True


def configure_logging(level: str, log_format: str, stream: TextIO | None = None) -> None:
    """Send all logs to ``stream`` (standard error) in the wanted shape.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``json`` or ``text``.
        stream: for tests.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    server = logging.getLogger("aiohttp.server")
    for old_filter in [f for f in server.filters if isinstance(f, ServerNoiseFilter)]:
        server.removeFilter(old_filter)
    server.addFilter(ServerNoiseFilter())
    # the access log is Guardian's own: aiohttp's would name keys in paths, and costs more
    logging.getLogger("aiohttp.access").disabled = True


LATENCY_BUCKETS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


class Metrics:
    """The node's metrics, in a registry of their own.

    Labels are route templates, methods and statuses, never anything a client chooses. Other parts
    register collectors with :attr:`registry`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.requests = Counter(
            "guardian_http_requests",
            "Answered requests.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.latency = Histogram(
            "guardian_http_request_seconds",
            "Time from a request's head to its answer.",
            ("method", "route"),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "guardian_http_requests_in_flight", "Requests under way.", registry=self.registry
        )
        self.problems = Counter(
            "guardian_http_problems", "Refusals by code.", ("code",), registry=self.registry
        )
        self.connections = Gauge(
            "guardian_http_connections", "Open connections.", registry=self.registry
        )
        self.refused_connections = Counter(
            "guardian_http_refused_connections",
            "Connections closed at once, by the limit they met.",
            ("limit",),
            registry=self.registry,
        )
        self.protocol_errors = Counter(
            "guardian_http_protocol_errors",
            "Requests that were not HTTP, and heads that did not arrive in time.",
            registry=self.registry,
        )

    def info(self, name: str, help_: str, labels: Mapping[str, str]) -> None:
        """A constant 1 with labels, such as the version."""
        gauge = Gauge(name, help_, tuple(labels), registry=self.registry)
        gauge.labels(**labels).set(1)

    def render(self) -> bytes:
        """The registry in the Prometheus text format."""
        return generate_latest(self.registry)


METRICS_CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
