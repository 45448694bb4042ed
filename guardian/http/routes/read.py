"""The read by API key: no PostgreSQL, no JSON parser. Stored bytes are spliced into the answer.

The key is a secret that stands in the path. It is never put into a log, a metric or a problem.
"""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from guardian.domain.problems import Problem
from guardian.http.exchange import Exchange, Handler, seen_headers
from guardian.http.middleware.throttle import THROTTLE
from guardian.http.parameters import header, none_match
from guardian.usecases.executing import Level

#: caches keep nothing without asking again: a revoked key must stop working
_CACHE_CONTROL: Final = "private, no-cache"


async def read_by_path(exchange: Exchange) -> web.Response:
    return await _read(exchange, exchange.path("api_key"))


async def read_by_header(exchange: Exchange) -> web.Response:
    api_key = header(exchange.request, "X-API-Key", "invalid_api_key")
    if not api_key:
        raise Problem("unauthenticated")
    return await _read(exchange, api_key)


async def _read(exchange: Exchange, api_key: str) -> web.Response:
    exchange.request.app[THROTTLE].by_key(api_key)
    consistency = exchange.consistency(Level.LOCAL)
    seen = await exchange.services.reading.read(api_key, exchange.path("key"), consistency)
    config = seen.value
    assert config.content is not None, "what is not there was refused"
    key = exchange.path("key")
    headers = seen_headers(seen, consistency)
    headers["ETag"] = f'"{config.version}"'
    headers["Cache-Control"] = _CACHE_CONTROL
    if none_match(exchange.request, config.version):
        return web.Response(status=304, headers=headers)
    body = b'{"key":%b,"version":%d,"content":%b}' % (
        msgspec.json.encode(key),
        config.version,
        config.content,
    )
    headers["Content-Type"] = "application/json"
    return web.Response(body=body, headers=headers)


HANDLERS: Final[dict[str, Handler]] = {
    "read_by_path": read_by_path,
    "read_by_header": read_by_header,
}
