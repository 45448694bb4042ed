"""Users. They live in PostgreSQL alone, which is always current: ``consistency`` and
``min_revision`` are checked for their form and change nothing."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from guardian.http import bodies, shapes
from guardian.http.exchange import Exchange, Handler, json_response, no_content, page_shape


async def list_users(exchange: Exchange) -> web.Response:
    exchange.consistency()
    page = await exchange.services.accounts.list(exchange.principal, exchange.page())
    return json_response(page_shape(page, shapes.User.of))


async def get_me(exchange: Exchange) -> web.Response:
    exchange.consistency()
    user = await exchange.services.accounts.me(exchange.principal)
    return json_response(shapes.User.of(user))


async def get_user(exchange: Exchange) -> web.Response:
    exchange.consistency()
    user = await exchange.services.accounts.get(exchange.principal, exchange.path("user_id"))
    return json_response(shapes.User.of(user))


async def create_user(exchange: Exchange) -> web.Response:
    body = exchange.body(bodies.CreateUser)
    user = await exchange.services.accounts.create(
        exchange.principal, body.email, body.password, is_admin=body.is_admin
    )
    return json_response(shapes.User.of(user), status=201)


async def delete_user(exchange: Exchange) -> web.Response:
    await exchange.services.accounts.delete(exchange.principal, exchange.path("user_id"))
    return no_content()


HANDLERS: Final[dict[str, Handler]] = {
    "list_users": list_users,
    "get_me": get_me,
    "get_user": get_user,
    "create_user": create_user,
    "delete_user": delete_user,
}
