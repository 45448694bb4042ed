"""Identity, metrics and the access log of every request that reaches the application."""

from __future__ import annotations

import logging
import time
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from guardian.http.exchange import ENVIRONMENT, PRINCIPAL, REQUEST_ID
from guardian.http.problems import request_id_of
from guardian.telemetry import request_id

log = logging.getLogger("guardian.access")

UNMATCHED: Final = "unmatched"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"})


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, count it, time it, and log it by its route's template.

    Paths and queries are never logged: the read route has an API key in its path.
    """
    environment = request.app[ENVIRONMENT]
    identity = request_id_of(request.headers.get("X-Request-ID"))
    request[REQUEST_ID] = identity
    token = request_id.set(identity)
    metrics = environment.metrics
    endpoint = environment.endpoints.get(request.match_info.route)
    route = UNMATCHED if endpoint is None else endpoint.path
    method = request.method if request.method in _METHODS else "OTHER"
    started_s = time.perf_counter()
    status = 499  # the client went away before there was an answer
    metrics.in_flight.inc()
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        elapsed_s = time.perf_counter() - started_s
        metrics.in_flight.dec()
        metrics.requests.labels(method, route, str(status)).inc()
        metrics.latency.labels(method, route).observe(elapsed_s)
        level = _level(method, status)
        if log.isEnabledFor(level):
            log.log(
                level,
                "%s %s %d",
                method,
                route,
                status,
                extra={
                    "method": method,
                    "route": route,
                    "status": status,
                    "duration_ms": round(elapsed_s * 1000, 3),
                    "remote": request.remote or "",
                    "user_id": request[PRINCIPAL].user_id if PRINCIPAL in request else "",
                },
            )
        request_id.reset(token)


def _level(method: str, status: int) -> int:
    """Defects and outages stand out; reads that went well are for debugging."""
    if status >= 500:
        return logging.WARNING
    return logging.DEBUG if method in {"GET", "HEAD", "OPTIONS"} else logging.INFO
