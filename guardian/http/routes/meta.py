"""What this service is, for programs and for people."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from guardian.http import shapes
from guardian.http.exchange import Exchange, Handler, json_response

_LINKS: Final = {
    "docs": "/docs",
    "openapi": "/openapi.json",
    "live": "/livez",
    "ready": "/ready",
    "health": "/health",
    "metrics": "/metrics",
    "api": "/api/v1",
}


async def welcome(exchange: Exchange) -> web.Response:
    shape = shapes.Welcome("guardian", exchange.environment.version, _LINKS)
    return json_response(shape)


async def openapi(exchange: Exchange) -> web.Response:
    body = exchange.environment.openapi
    return web.Response(body=body, content_type="application/json")


async def docs(exchange: Exchange) -> web.Response:
    environment = exchange.environment
    return web.Response(
        body=environment.docs,
        content_type="text/html",
        charset="utf-8",
        headers={"Content-Security-Policy": environment.docs_policy},
    )


HANDLERS: Final[dict[str, Handler]] = {"welcome": welcome, "openapi": openapi, "docs": docs}
