"""API keys of a project."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from guardian.http import bodies, shapes
from guardian.http.exchange import Exchange, Handler, page_shape


async def list_keys(exchange: Exchange) -> web.Response:
    consistency = exchange.consistency()
    seen = await exchange.services.api_keys.list(
        exchange.principal, exchange.path("project_id"), exchange.page(), consistency
    )
    return exchange.seen(seen, consistency, page_shape(seen.value, shapes.ApiKey.of))


async def create_key(exchange: Exchange) -> web.Response:
    name = exchange.body(bodies.CreateKey).name
    written = await exchange.services.api_keys.create(
        exchange.principal, exchange.path("project_id"), name, exchange.call()
    )
    shape = shapes.NewApiKey.of(written.value.info, written.value.api_key)
    return exchange.written(written, shape, 201)


async def revoke_key(exchange: Exchange) -> web.Response:
    written = await exchange.services.api_keys.revoke(
        exchange.principal,
        exchange.path("project_id"),
        exchange.path("key_id"),
        exchange.call(),
    )
    return exchange.written(written, None, 204)


HANDLERS: Final[dict[str, Handler]] = {
    "list_keys": list_keys,
    "create_key": create_key,
    "revoke_key": revoke_key,
}
