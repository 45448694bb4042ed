"""A follower that is too far behind for the log catches up through a snapshot."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

pytestmark = pytest.mark.slow

#: Entries are kept for the older of two snapshots, so it takes two to leave a follower behind.
WRITES, ROUNDS = 160, 6
IN_FLIGHT = 16


async def write_many(cluster: Any, url: str, place: Any, numbers: range) -> None:
    todo = iter(numbers)

    async def worker(session: aiohttp.ClientSession) -> None:
        for number in todo:
            body = {
                "key": f"many/{number}",
                "schema_id": place.schema,
                "content": {"count": number},
            }
            async with session.post(url + place.path(), json=body) as answer:
                assert answer.status == 201, await answer.text()

    headers = {"Authorization": f"Bearer {cluster.token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        await asyncio.gather(*(worker(session) for _ in range(IN_FLIGHT)))


async def test_a_follower_left_far_behind_catches_up_through_a_snapshot(cluster: Any) -> None:
    place = cluster.furnish()
    leader = cluster.leader()
    follower, witness = cluster.others(leader)
    cluster.kill(follower)
    last_index_held = cluster.view(leader)["commit_index"]
    written = 0
    while cluster.metric(leader, "raft_first_index") <= last_index_held + 1:
        assert written < ROUNDS * WRITES, "the leader's log still holds what the follower lacks"
        await write_many(cluster, leader.url, place, range(written, written + WRITES))
        written += WRITES
    cluster.start(follower)
    cluster.until_level()
    assert cluster.metric(follower, "raft_snapshots_installed") >= 1
    assert cluster.metric(witness, "raft_snapshots_installed") == 0
    assert cluster.everything(place, follower) == cluster.everything(place, witness)
    for number in range(0, written, 37):
        path = f"/api/v1/read/{place.api_key}/many%2F{number}"
        assert cluster.ask(follower, "GET", path).json["content"] == {"count": number}
    cluster.kill(*cluster.nodes)
    pictures = [cluster.picture(node) for node in cluster.nodes]
    assert pictures[0] == pictures[1] == pictures[2]
