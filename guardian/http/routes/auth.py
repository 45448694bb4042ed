"""Accounts and sessions."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from guardian.http import bodies, shapes
from guardian.http.exchange import Exchange, Handler, json_response, no_content
from guardian.http.middleware.throttle import CLIENT
from guardian.usecases.accounts import TokenPair


def _tokens(pair: TokenPair) -> web.Response:
    shape = shapes.TokenPair(pair.access_token, pair.refresh_token, "Bearer", pair.expires_in_s)
    return json_response(shape)


async def register(exchange: Exchange) -> web.Response:
    body = exchange.body(bodies.Register)
    user = await exchange.services.accounts.register(body.email, body.password)
    return json_response(shapes.User.of(user), status=201)


async def login(exchange: Exchange) -> web.Response:
    body = exchange.body(bodies.Login)
    address = exchange.request[CLIENT]
    return _tokens(await exchange.services.accounts.login(body.email, body.password, address))


async def refresh(exchange: Exchange) -> web.Response:
    body = exchange.body(bodies.Refresh)
    return _tokens(await exchange.services.accounts.refresh(body.refresh_token))


async def logout(exchange: Exchange) -> web.Response:
    await exchange.services.accounts.logout(exchange.body(bodies.Logout).refresh_token)
    return no_content()


HANDLERS: Final[dict[str, Handler]] = {
    "register": register,
    "login": login,
    "refresh": refresh,
    "logout": logout,
}
