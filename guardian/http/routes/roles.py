"""Roles of users in a project."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from guardian.http import bodies, shapes
from guardian.http.exchange import Exchange, Handler, page_shape


async def list_roles(exchange: Exchange) -> web.Response:
    consistency = exchange.consistency()
    seen = await exchange.services.roles.list(
        exchange.principal, exchange.path("project_id"), exchange.page(), consistency
    )
    return exchange.seen(seen, consistency, page_shape(seen.value, shapes.Grant.of))


async def grant_role(exchange: Exchange) -> web.Response:
    body = exchange.body(bodies.GrantRole)
    written = await exchange.services.roles.grant(
        exchange.principal,
        exchange.path("project_id"),
        body.user_id,
        body.role,
        exchange.call(),
    )
    return exchange.written(written, shapes.Grant.of(written.value), 200)


async def revoke_role(exchange: Exchange) -> web.Response:
    written = await exchange.services.roles.revoke(
        exchange.principal,
        exchange.path("project_id"),
        exchange.path("user_id"),
        exchange.call(),
    )
    return exchange.written(written, None, 204)


HANDLERS: Final[dict[str, Handler]] = {
    "list_roles": list_roles,
    "grant_role": grant_role,
    "revoke_role": revoke_role,
}
