"""The cluster as this node sees it."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from guardian.http import shapes
from guardian.http.exchange import Exchange, Handler


async def get_cluster(exchange: Exchange) -> web.Response:
    """Always this node's own view; ``consistency`` is checked for its form only."""
    consistency = exchange.consistency()
    seen = exchange.services.cluster.view(exchange.principal)
    return exchange.seen(seen, consistency, shapes.Cluster.of(seen.value))


HANDLERS: Final[dict[str, Handler]] = {"get_cluster": get_cluster}
