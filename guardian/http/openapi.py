"""The OpenAPI 3.1 document, made from the endpoint table and the code table."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from guardian.domain.problems import CODES
from guardian.http import problems, shapes
from guardian.http.bodies import MAX_SAFE_INTEGER
from guardian.http.decoding import needs_nothing
from guardian.http.endpoints import ENDPOINTS, Auth, Endpoint, Query, answer_types, codes_of
from guardian.usecases.paging import DEFAULT_LIMIT, MAX_LIMIT

_REF: Final = "#/components/schemas/{name}"
_PATH_NAME: Final = re.compile(r"\{(\w+)\}")
_INTEGER: Final = {"type": "integer", "minimum": 1, "maximum": MAX_SAFE_INTEGER}

_QUERIES: Final[dict[Query, dict[str, Any]]] = {
    Query.CONSISTENCY: {
        "description": "How fresh the answer must be.",
        "schema": {"type": "string", "enum": ["local", "linearizable"]},
    },
    Query.MIN_REVISION: {
        "description": "Wait until this revision is visible (read your own writes).",
        "schema": {"type": "integer", "minimum": 0, "maximum": MAX_SAFE_INTEGER},
    },
    Query.LIMIT: {
        "description": "Items of a page at most.",
        "schema": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_LIMIT,
            "default": DEFAULT_LIMIT,
        },
    },
    Query.CURSOR: {"description": "next_cursor of the page before.", "schema": {"type": "string"}},
    Query.OWNER: {"description": "Only projects of this user.", "schema": {"type": "string"}},
    Query.EXPECTED_VERSION: {"description": "The version this is based on.", "schema": _INTEGER},
    Query.REDIRECT: {
        "description": "Answer 307 to the leader instead of forwarding the command.",
        "schema": {"type": "boolean", "default": False},
    },
    Query.FOR: {
        "description": "local: ready to serve reads of local state.",
        "schema": {"type": "string", "enum": ["local"]},
    },
}
_HEADERS: Final = {
    "X-Request-ID": {
        "description": "Names this request in logs; the client's own if it is harmless.",
        "schema": {"type": "string"},
    },
    "X-Guardian-Revision": {
        "description": "Revision of the log that was seen, or that decided.",
        "schema": {"type": "integer"},
    },
    "X-Guardian-Staleness-Ms": {
        "description": "How old local state may be, milliseconds.",
        "schema": {"type": "integer"},
    },
    "ETag": {"description": 'The version, as "7".', "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "true when this is the answer of an earlier request.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}},
    "Location": {"description": "The leader.", "schema": {"type": "string"}},
}


def openapi_document(version: str, *, with_metrics: bool = True) -> dict[str, Any]:
    """The document as a tree of plain values.

    Args:
        version: of the running software.
        with_metrics: whether ``/metrics`` is served on the main port.
    """
    references, components = msgspec.json.schema_components(answer_types(), ref_template=_REF)
    by_type = dict(zip(map(repr, answer_types()), references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        if endpoint.operation == "metrics" and not with_metrics:
            continue
        operation = _operation(endpoint, by_type)
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Guardian",
            "version": version,
            "description": "Versioned, schema-checked configuration on a replicated log.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": _HEADERS,
            "securitySchemes": {
                "user": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(endpoint: Endpoint, by_type: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.operation,
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "description": f"Right: {endpoint.right}.",
        "parameters": _parameters(endpoint),
        "responses": _responses(endpoint, by_type),
        "security": _security(endpoint),
    }
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": not needs_nothing(endpoint.body),
            "content": {"application/json": {"schema": by_type[repr(endpoint.body)]}},
        }
    return operation


def _security(endpoint: Endpoint) -> list[dict[str, list[str]]]:
    if endpoint.auth is Auth.USER:
        return [{"user": []}]
    if endpoint.auth is Auth.API_KEY and "{api_key}" not in endpoint.path:
        return [{"api_key": []}]
    return []


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _path_schema(name)}
        for name in _PATH_NAME.findall(endpoint.path)
    ]
    parameters += [
        {"name": str(query), "in": "query", "required": False, **_QUERIES[query]}
        for query in endpoint.queries
    ]
    headers = ["X-Request-ID"]
    if endpoint.locked:
        headers.append("If-Match")
    if endpoint.tagged and not endpoint.is_write:
        headers.append("If-None-Match")
    if endpoint.is_write:
        headers.append("Idempotency-Key")
    parameters += [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
        for name in headers
    ]
    return parameters


def _path_schema(name: str) -> dict[str, Any]:
    if name == "version":
        return _INTEGER
    if name == "key":
        return {"type": "string", "minLength": 1, "maxLength": 256}
    return {"type": "string", "minLength": 1}


def _responses(endpoint: Endpoint, by_type: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {str(endpoint.success): _success(endpoint, by_type)}
    if endpoint.tagged and not endpoint.is_write:
        responses["304"] = {
            "description": "If-None-Match names the current version.",
            "headers": _header_refs("X-Request-ID", "X-Guardian-Revision", "ETag"),
        }
    if Query.REDIRECT in endpoint.queries:
        responses["307"] = {
            "description": "The leader takes this request (with redirect=true).",
            "headers": _header_refs("X-Request-ID", "Location"),
        }
    if endpoint.answer is shapes.Ready:
        responses["503"] = {
            "description": "Not now.",
            "headers": _header_refs("X-Request-ID", "Retry-After"),
            "content": {"application/json": {"schema": by_type[repr(shapes.Ready)]}},
        }
    by_status: dict[int, list[str]] = {}
    for code in codes_of(endpoint):
        by_status.setdefault(CODES[code].status, []).append(code)
    for status, codes in by_status.items():
        responses.setdefault(str(status), _problem(endpoint, codes, by_type))
    return dict(sorted(responses.items()))


def _success(endpoint: Endpoint, by_type: dict[str, Any]) -> dict[str, Any]:
    names = ["X-Request-ID"]
    if endpoint.sees_log:
        names.append("X-Guardian-Revision")
    if Query.CONSISTENCY in endpoint.queries:
        names.append("X-Guardian-Staleness-Ms")
    if endpoint.tagged:
        names.append("ETag")
    if endpoint.logged:
        names.append("Idempotency-Replayed")
    response: dict[str, Any] = {"description": endpoint.summary, "headers": _header_refs(*names)}
    if endpoint.answer is not None:
        response["content"] = {"application/json": {"schema": by_type[repr(endpoint.answer)]}}
    elif endpoint.operation in _OTHER_MEDIA:
        media, schema = _OTHER_MEDIA[endpoint.operation]
        response["content"] = {media: {"schema": schema}}
    return response


_OTHER_MEDIA: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "metrics": ("text/plain", {"type": "string"}),
    "docs": ("text/html", {"type": "string"}),
    "openapi": ("application/json", {"type": "object"}),
}


def _problem(endpoint: Endpoint, codes: list[str], by_type: dict[str, Any]) -> dict[str, Any]:
    names = ["X-Request-ID"]
    if endpoint.sees_log:
        names.append("X-Guardian-Revision")
    if endpoint.logged:
        names.append("Idempotency-Replayed")
    if any(CODES[code].retry == "later" for code in codes):
        names.append("Retry-After")
    schema = {
        "allOf": [by_type[repr(shapes.ProblemDocument)], {"properties": {"code": {"enum": codes}}}]
    }
    return {
        "description": "; ".join(f"{code}: {CODES[code].title}" for code in codes),
        "headers": _header_refs(*names),
        "content": {problems.CONTENT_TYPE: {"schema": schema}},
    }


def _header_refs(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
