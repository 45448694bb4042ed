"""Probes and metrics. Open to all; what is wrong is told to administrators only."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from guardian.domain.problems import Problem
from guardian.http import shapes
from guardian.http.exchange import Exchange, Handler, json_response
from guardian.http.middleware.authenticate import bearer_token
from guardian.http.parameters import invalid_parameter, parameter
from guardian.telemetry import METRICS_CONTENT_TYPE


async def live(_: Exchange) -> web.Response:
    """The event loop turns: that is all that a restart could mend."""
    return json_response(shapes.Word("live"))


#: what a probe's token may cost; PostgreSQL may hang
_TOKEN_TIMEOUT_S: Final = 0.5


async def ready(exchange: Exchange) -> web.Response:
    """200 when the node has recovered, knows a leader and has applied what was committed; with
    ``for=local`` recovery is enough. PostgreSQL away is no reason, only a degradation."""
    wanted = parameter(exchange.request, "for")
    if wanted not in {None, "local"}:
        raise invalid_parameter("for", "must be local")
    return await _answer(exchange, "ready", "not_ready", local=wanted == "local")


async def health(exchange: Exchange) -> web.Response:
    return await _answer(exchange, "healthy", "unhealthy", local=False)


async def _answer(exchange: Exchange, good: str, bad: str, *, local: bool) -> web.Response:
    report = exchange.environment.health.report()
    is_ready = report.ready(local=local)
    shape = shapes.Ready(
        good if is_ready else bad,
        list(report.degraded),
        report.reasons(local=local) if await _is_admin(exchange) else [],
    )
    response = json_response(shape, status=200 if is_ready else 503)
    if not is_ready:
        response.headers["Retry-After"] = "1"
    return response


async def _is_admin(exchange: Exchange) -> bool:
    """A probe without a token, with a bad one, or with one that can not be looked up, is a probe
    all the same."""
    if "Authorization" not in exchange.request.headers:
        return False
    try:
        token = bearer_token(exchange.request)
        async with asyncio.timeout(_TOKEN_TIMEOUT_S):
            return (await exchange.services.accounts.authenticate(token)).is_admin
    except (Problem, TimeoutError):
        return False


async def metrics(exchange: Exchange) -> web.Response:
    body = exchange.environment.metrics.render()
    return web.Response(body=body, headers={"Content-Type": METRICS_CONTENT_TYPE})


HANDLERS: Final[dict[str, Handler]] = {
    "live": live,
    "ready": ready,
    "readyz": ready,
    "health": health,
    "healthz": health,
    "metrics": metrics,
}
