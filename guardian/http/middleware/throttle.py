"""Request rates, by address and by API key."""

from __future__ import annotations

import hashlib
import time
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from guardian.domain.problems import Problem
from guardian.http.exchange import ENVIRONMENT
from guardian.http.ratelimit import RateLimiter, client_of, remote_address
from guardian.settings import Settings

#: whom limits count the request against
CLIENT: Final = web.RequestKey("client", str)


class Throttle:
    """The limiters of one application."""

    def __init__(self, settings: Settings) -> None:
        self._addresses = RateLimiter(settings.rate_per_address)
        self._keys = RateLimiter(settings.rate_per_key)
        self._proxies = settings.trusted_proxies or ()

    def by_address(self) -> Middleware:
        """The middleware that refuses an address (IPv6: a /64) that asks too often.

        Probes are never refused: a flood of reads must not make an orchestrator restart the node.
        """

        @web.middleware
        async def throttle(request: web.Request, handler: Handler) -> web.StreamResponse:
            address = request.remote or ""
            if self._proxies:
                hops = ",".join(request.headers.getall("X-Forwarded-For", ()))
                address = remote_address(address, hops, self._proxies)
            client = request[CLIENT] = client_of(address)
            endpoint = request.app[ENVIRONMENT].endpoints.get(request.match_info.route)
            if endpoint is None or endpoint.is_api:
                _admit(self._addresses, client)
            return await handler(request)

        return throttle

    def by_key(self, api_key: str) -> None:
        """Refuse an API key that asks too often.

        Raises:
            Problem: ``rate_limited``.
        """
        # by digest: no table of secrets is built up
        _admit(self._keys, hashlib.sha256(api_key.encode("utf-8", "replace")).digest())


THROTTLE: Final = web.AppKey("throttle", Throttle)


def _admit(limiter: RateLimiter, client: str | bytes) -> None:
    wait_s = limiter.admit(client, time.monotonic())
    if wait_s > 0:
        raise Problem("rate_limited", retry_after_s=wait_s)
