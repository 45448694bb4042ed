"""Problem documents (RFC 9457): the only shape in which anything is refused."""

from __future__ import annotations

import math
import re
import secrets
from typing import Final

import msgspec
from aiohttp import web

from guardian.domain.problems import CODES, Problem

CONTENT_TYPE: Final = "application/problem+json"
DEFAULT_RETRY_AFTER_S: Final = 1

#: where a code is explained, relative to the service (RFC 9457, 3.1.1)
TYPE_PREFIX: Final = "/docs#"

_CHALLENGES: Final = {
    "unauthenticated": "Bearer",
    "invalid_token": 'Bearer error="invalid_token"',
    "token_expired": 'Bearer error="invalid_token", error_description="expired"',
    "invalid_credentials": "Bearer",
    "refresh_reused": 'Bearer error="invalid_token"',
    "invalid_api_key": 'ApiKey header="X-API-Key"',
}
#: the connection is of no use after these: unread bytes may follow
_CLOSING: Final = frozenset({"payload_too_large", "request_timeout"})

_SAFE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def new_request_id() -> str:
    return secrets.token_hex(16)


def request_id_of(given: str | None) -> str:
    """The client's X-Request-ID if it is harmless in headers and logs, else a new one."""
    if given is not None and _SAFE_REQUEST_ID.fullmatch(given):
        return given
    return new_request_id()


def problem_body(problem: Problem, request_id: str) -> bytes:
    """The document of ``problem`` as JSON."""
    document: dict[str, object] = {
        "type": TYPE_PREFIX + problem.code,
        "title": problem.info.title,
        "status": problem.info.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
    }
    if problem.errors:
        document["errors"] = [
            {"pointer": fault.pointer, "message": fault.message} for fault in problem.errors
        ]
    if problem.current_version is not None:
        document["current_version"] = problem.current_version
    for name, value in problem.extra.items():
        document.setdefault(name, value)
    return msgspec.json.encode(document)


def problem_response(problem: Problem, request_id: str) -> web.Response:
    """The answer for ``problem``, with the headers that its code asks for."""
    response = ServerlessResponse(
        body=problem_body(problem, request_id),
        status=problem.info.status,
        content_type=CONTENT_TYPE,
        headers={"X-Request-ID": request_id, **SECURITY_HEADERS},
    )
    if problem.revision is not None:
        response.headers["X-Guardian-Revision"] = str(problem.revision)
    if problem.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    if problem.info.retry == "later":
        wait_s = problem.retry_after_s
        seconds = DEFAULT_RETRY_AFTER_S if wait_s is None else max(1, math.ceil(wait_s))
        response.headers["Retry-After"] = str(seconds)
    challenge = _CHALLENGES.get(problem.code)
    if challenge is not None:
        response.headers["WWW-Authenticate"] = challenge
    if problem.code in _CLOSING:
        response.force_close()
    return response


def problem_of_http_error(error: web.HTTPException) -> Problem:
    """What aiohttp's own refusals mean in our table."""
    code = _BY_STATUS.get(error.status)
    if code is None:
        code = "malformed_request" if 400 <= error.status < 500 else "internal_error"
    if error.status == 417:
        return Problem("malformed_request", "The expectation in Expect can not be met")
    return Problem(code)


_BY_STATUS: Final = {
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
}
assert set(_BY_STATUS.values()) <= set(CODES)

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class ServerlessResponse(web.Response):
    """A response without ``Server``, also where aiohttp sends it before any application sees it
    (errors of the parser have no application, hence no ``on_response_prepare``)."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)
