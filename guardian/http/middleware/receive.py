"""The body: its media type, its size, the time it takes, its shape."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestPayloadError

from guardian.domain.documents import BODY_LIMITS, CONTENT_LIMITS, JsonLimits
from guardian.domain.problems import Problem
from guardian.http.decoding import B, BodyLimits, decode_body, needs_nothing
from guardian.http.endpoints import Query
from guardian.http.exchange import BODY, ENVIRONMENT, Environment
from guardian.http.parameters import flag, idempotency_key

_JSON: Final = re.compile(r'application/json\s*(?:;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)


@web.middleware
async def receive(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Send the caller to the leader if that was asked for; else read and decode the body."""
    environment = request.app[ENVIRONMENT]
    endpoint = environment.endpoints.get(request.match_info.route)
    if endpoint is None:
        return await handler(request)
    if Query.REDIRECT in endpoint.queries and flag(request, Query.REDIRECT):
        location = leader_location(request, environment)
        if location is not None:
            return web.Response(status=307, headers={"Location": location})
    _check_encoding(request)
    if endpoint.is_write:
        idempotency_key(request)  # refused alike where it has no effect
    if endpoint.body is not None:
        request[BODY] = await _body(request, environment, endpoint.body)
    return await handler(request)


async def _body(request: web.Request, environment: Environment, kind: type[B]) -> B:
    """The decoded body; one of which nothing is required may be left out altogether."""
    optional = needs_nothing(kind)
    if not optional:
        _check_media_type(request)
    raw = await _read(request, environment)
    if optional:
        if not raw:
            return kind()
        _check_media_type(request)
    return await decode_body(raw, kind, _limits(environment))


def leader_location(request: web.Request, environment: Environment) -> str | None:
    """Where the leader takes this very request; None when this node is the leader.

    Raises:
        Problem: ``no_leader``.
    """
    if environment.log.is_leader():
        return None
    address = environment.log.leader_http_address()
    if address is None:
        raise Problem("no_leader")
    return f"http://{address}{request.rel_url.raw_path_qs}"


def _limits(environment: Environment) -> BodyLimits:
    settings = environment.settings
    members = settings.content_members
    return BodyLimits(
        body=JsonLimits(BODY_LIMITS.depth, members + 100, BODY_LIMITS.too_deep),
        content=JsonLimits(settings.content_depth, members, CONTENT_LIMITS.too_deep),
    )


def _check_encoding(request: web.Request) -> None:
    codings = request.headers.getall("Content-Encoding", ())
    if any(coding.strip().lower() not in {"", "identity"} for coding in codings):
        raise Problem("unsupported_encoding")


def _check_media_type(request: web.Request) -> None:
    values = request.headers.getall("Content-Type", ())
    if len(values) != 1 or not _JSON.fullmatch(values[0].strip()):
        raise Problem("unsupported_media_type")


async def _read(request: web.Request, environment: Environment) -> bytes:
    """The whole body, within its limits of size and time."""
    limit = environment.settings.body_limit
    if request.content_length is not None and request.content_length > limit:
        raise Problem("payload_too_large", f"At most {limit} bytes")
    if request.headers.get("Expect") and request.can_read_body:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    try:
        async with asyncio.timeout(environment.settings.body_timeout_s):
            return await request.read()
    except TimeoutError:
        raise Problem("request_timeout", "The body did not arrive in time") from None
    except web.HTTPRequestEntityTooLarge:
        raise Problem("payload_too_large", f"At most {limit} bytes") from None
    except (RequestPayloadError, HttpProcessingError):
        raise Problem("malformed_request", "The body is not well-formed HTTP") from None


async def expect_continue(request: web.Request) -> web.StreamResponse | None:
    """Decide on ``Expect`` only when a body is wanted: after authentication, in :func:`receive`.

    Raises:
        web.HTTPExpectationFailed: for any other expectation (RFC 9110, 10.1.1).
    """
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise web.HTTPExpectationFailed()
    return None
