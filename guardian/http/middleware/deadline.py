"""No request is worked on for ever."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler

from guardian.domain.problems import Problem
from guardian.http.exchange import ENVIRONMENT


@web.middleware
async def deadline(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Stop a request that its use case did not stop itself.

    Use cases get a little less time and say more exactly what happened. A write that is cut off
    here may have been sent, so its outcome is unknown; a read changed nothing.
    """
    environment = request.app[ENVIRONMENT]
    endpoint = environment.endpoints.get(request.match_info.route)
    scope = asyncio.timeout(environment.settings.request_deadline_s)
    try:
        async with scope:
            return await handler(request)
    except TimeoutError:
        if not scope.expired():
            raise
        if endpoint is not None and endpoint.is_write:
            raise Problem("outcome_unknown") from None
        raise Problem("unavailable", "The request took too long") from None
