"""The page at ``/docs``: the endpoint table and the code table for people. No script, nothing from
elsewhere; its one style sheet is allowed by hash."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final

from guardian.domain.problems import CODES
from guardian.http.endpoints import ENDPOINTS, Endpoint, codes_of

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;"
    "color:#1c2530;background:#fff}"
    "code{font:14px ui-monospace,monospace}h2{margin-top:2.5rem}"
    "table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;vertical-align:top;padding:.35rem .6rem;border-top:1px solid #d5dbe3}"
    "tr:target{background:#fff3c4}"
    "@media(prefers-color-scheme:dark){body{color:#d5dbe3;background:#12181f}"
    "td,th{border-color:#35414f}a{color:#7db7ff}tr:target{background:#4a3f10}}"
)

_RETRY: Final = {
    "no": "no",
    "later": "after Retry-After",
    "with_key": "with the same Idempotency-Key",
    "fresh": "after reading again",
}


def docs_policy() -> str:
    """The Content-Security-Policy of the page."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def docs_page(version: str) -> bytes:
    """The page as HTML."""
    tags = list(dict.fromkeys(endpoint.tag for endpoint in ENDPOINTS))
    sections = "".join(_section(tag) for tag in tags)
    codes = "".join(
        f'<tr id="{code}"><td><code>{code}</code></td><td>{info.status}</td>'
        f"<td>{escape(info.title)}</td><td>{_RETRY[info.retry]}</td></tr>"
        for code, info in CODES.items()
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Guardian</title><style>{_STYLE}</style></head><body>"
        f"<h1>Guardian {escape(version)}</h1>"
        '<p>The same for programs: <a href="/openapi.json">OpenAPI 3.1</a>.</p>'
        f"{sections}<h2>Problems</h2>"
        "<p>Refusals are problem documents (RFC 9457). 4xx and 503 changed nothing and never will;"
        " 504 may still take effect.</p>"
        "<table><tr><th>code</th><th>status</th><th>meaning</th><th>retry</th></tr>"
        f"{codes}</table></body></html>"
    )
    return page.encode()


def _section(tag: str) -> str:
    rows = "".join(_row(endpoint) for endpoint in ENDPOINTS if endpoint.tag == tag)
    return (
        f"<h2>{escape(tag)}</h2><table>"
        "<tr><th>request</th><th>what</th><th>right</th><th>answer</th></tr>"
        f"{rows}</table>"
    )


def _row(endpoint: Endpoint) -> str:
    own = [code for code in codes_of(endpoint) if code in endpoint.codes]
    links = " ".join(f'<a href="#{code}">{code}</a>' for code in own)
    return (
        f"<tr><td><code>{endpoint.method} {escape(endpoint.path)}</code></td>"
        f"<td>{escape(endpoint.summary)}</td><td>{escape(endpoint.right)}</td>"
        f"<td>{endpoint.success} {links}</td></tr>"
    )
