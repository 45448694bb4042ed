"""Directives that write tables of the documentation from the tables in the code.

``{from-code} codes`` and the like. Documentation that is made from the code can not fall behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from guardian.domain.problems import CODES
from guardian.http.endpoints import ENDPOINTS, codes_of
from guardian.settings import settings_reference
from raftcore.errors import ExitCode
from raftcore.metrics import FIGURES
from raftcore.trace import COMMON_FIELDS, EVENTS

_RETRY = {
    "no": "no: it will be refused again",
    "later": "yes, after `Retry-After`",
    "fresh": "after reading the current version",
    "with_key": "only with the same `Idempotency-Key`",
}


def codes() -> str:
    """Every problem code, its status and whether to try again."""
    lines = ["| code | status | meaning | retry |", "|---|---|---|---|"]
    for code, info in CODES.items():
        lines.append(f"| `{code}` | {info.status} | {info.title} | {_RETRY[info.retry]} |")
    return "\n".join(lines)


def endpoints() -> str:
    """Every endpoint, who may call it, and the codes that are its own."""
    lines = ["| request | what it does | who may | success |", "|---|---|---|---|"]
    lines += [
        f"| `{endpoint.method} {endpoint.path}` | {endpoint.summary} "
        f"| {endpoint.right.value} | {endpoint.success} |"
        for endpoint in ENDPOINTS
    ]
    return "\n".join(lines)


def endpoint_codes() -> str:
    """Every problem code that each endpoint of the API may answer with."""
    lines = ["| operation | codes |", "|---|---|"]
    for endpoint in ENDPOINTS:
        if endpoint.is_api:
            listed = ", ".join(f"`{code}`" for code in codes_of(endpoint))
            lines.append(f"| `{endpoint.operation}` | {listed} |")
    return "\n".join(lines)


def exit_codes() -> str:
    """Every exit code of the library; the words are in the page."""
    lines = ["| exit code | name |", "|---|---|"]
    lines += [f"| {code.value} | `{code.name}` |" for code in ExitCode]
    return "\n".join(lines)


def figures() -> str:
    """Every figure of a node."""
    lines = ["| figure | kind | unit | label | what it says |", "|---|---|---|---|---|"]
    lines += [
        f"| `{f.name}` | {f.kind.value} | {f.unit} | {f.label} | {f.help} |"
        for f in FIGURES.values()
    ]
    return "\n".join(lines)


def trace_fields() -> str:
    """The fields that every trace event has."""
    lines = ["| field | type | what it says |", "|---|---|---|"]
    lines += [f"| `{name}` | {kind} | {text} |" for name, kind, text in COMMON_FIELDS]
    return "\n".join(lines)


def trace_events() -> str:
    """Every kind of trace event, with its fields."""
    lines = ["| event | fields | what it says |", "|---|---|---|"]
    for kind, schema in EVENTS.items():
        fields = ", ".join(f"`{name}` {_escaped(type_)}" for name, type_ in schema.fields)
        lines.append(f"| `{kind.value}` | {fields} | {schema.help} |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


TABLES: dict[str, Callable[[], str]] = {
    "codes": codes,
    "endpoints": endpoints,
    "endpoint-codes": endpoint_codes,
    "exit-codes": exit_codes,
    "figures": figures,
    "settings": settings_reference,
    "trace-events": trace_events,
    "trace-fields": trace_fields,
}


class FromCode(SphinxDirective):
    """``{from-code} NAME``: the table of that name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(TABLES[self.arguments[0]]())


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("from-code", FromCode)
    return {"version": "1", "parallel_read_safe": True}
