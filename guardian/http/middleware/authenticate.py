"""Who is asking, from the head of the request alone."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from guardian.domain.problems import Problem
from guardian.http.endpoints import Auth
from guardian.http.exchange import ENVIRONMENT, PRINCIPAL
from guardian.http.parameters import accepts_json, check_query

_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] ([A-Za-z0-9._~+/-]+=*)")
MAX_TOKEN_CHARS: Final = 4096


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Verify the access token where the endpoint table asks for one.

    API keys are verified by the read itself, against the same state that is read.
    """
    environment = request.app[ENVIRONMENT]
    endpoint = environment.endpoints.get(request.match_info.route)
    if endpoint is None or not endpoint.is_api:
        return await handler(request)
    if endpoint.auth is Auth.USER:
        token = bearer_token(request)
        accounts = environment.services.accounts
        if endpoint.by_signature:
            request[PRINCIPAL] = accounts.signed_in(token)
        else:
            request[PRINCIPAL] = await accounts.authenticate(token)
    if not accepts_json(request.headers.get("Accept")):
        raise Problem("not_acceptable")
    check_query(request)
    return await handler(request)


def bearer_token(request: web.Request) -> str:
    """The access token of the Authorization header (RFC 6750).

    Raises:
        Problem: ``unauthenticated`` when there is none, ``invalid_token`` when it is malformed.
    """
    values = request.headers.getall("Authorization", ())
    if not values:
        raise Problem("unauthenticated")
    match = _BEARER.fullmatch(values[0]) if len(values) == 1 else None
    if match is None or len(match[1]) > MAX_TOKEN_CHARS:
        raise Problem("invalid_token")
    return match[1]
