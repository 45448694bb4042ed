"""The cluster as this node sees it, and its members."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from guardian.http import bodies, shapes
from guardian.http.exchange import Exchange, Handler, json_response
from guardian.usecases.ports import WantedMember


async def get_cluster(exchange: Exchange) -> web.Response:
    """Always this node's own view; ``consistency`` is checked for its form only."""
    consistency = exchange.consistency()
    seen = exchange.services.cluster.view(exchange.principal)
    return exchange.seen(seen, consistency, shapes.Cluster.of(seen.value))


async def change_members(exchange: Exchange) -> web.Response:
    body = exchange.body(bodies.ChangeMembers)
    seen = await exchange.services.cluster.change_members(
        exchange.principal,
        [WantedMember(member.id, member.voter) for member in body.members],
        body.expected_version,
        timeout_s=exchange.call().timeout_s,
    )
    cluster = shapes.Cluster.of(seen.value.cluster)
    return json_response(
        shapes.MembersChanged(seen.value.caught_up, cluster),
        headers={"X-Guardian-Revision": str(seen.revision)},
    )


async def transfer_leadership(exchange: Exchange) -> web.Response:
    seen = await exchange.services.cluster.transfer(
        exchange.principal,
        exchange.body(bodies.TransferLeadership).target,
        timeout_s=exchange.call().timeout_s,
    )
    return json_response(
        shapes.Cluster.of(seen.value), headers={"X-Guardian-Revision": str(seen.revision)}
    )


HANDLERS: Final[dict[str, Handler]] = {
    "get_cluster": get_cluster,
    "change_members": change_members,
    "transfer_leadership": transfer_leadership,
}
