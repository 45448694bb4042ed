"""Any node takes any request, and the state machine alone decides who was first."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

pytestmark = pytest.mark.slow

CLIENTS = 50


def test_every_node_takes_writes_and_shows_them_at_once_everywhere(cluster: Any) -> None:
    place = cluster.furnish()
    for number, node in enumerate(cluster.nodes):
        body = {"key": f"by/{node.name}", "schema_id": place.schema, "content": {"count": number}}
        answer = cluster.ask(node, "POST", place.path(), body)
        assert answer.status == 201, answer.raw
        for reader in cluster.nodes:
            seen = cluster.ask(reader, "GET", place.path(f"by/{node.name}"))
            assert (seen.status, seen.json) == (200, answer.json)


def test_a_client_that_asks_for_it_is_redirected_to_the_leader(cluster: Any) -> None:
    place = cluster.furnish()
    leader = cluster.leader()
    body = {"key": "a", "schema_id": place.schema, "content": {"count": 1}}
    for follower in cluster.others(leader):
        answer = cluster.ask(follower, "POST", f"{place.path()}?redirect=true", body)
        assert answer.status == 307, answer.raw
        target = urlsplit(answer.headers["Location"])
        assert f"{target.scheme}://{target.netloc}" == leader.url
    answer = cluster.ask(leader, "POST", f"{target.path}?{target.query}", body)
    assert answer.status == 201, answer.raw


async def test_of_fifty_clients_that_race_on_one_version_exactly_one_wins(cluster: Any) -> None:
    place = cluster.furnish()
    version = cluster.store(place, "raced", {"count": 0})["version"]
    start = asyncio.Event()

    async def write(session: aiohttp.ClientSession, number: int) -> tuple[int, Any]:
        url = cluster.nodes[number % len(cluster.nodes)].url
        body = {"content": {"count": number + 1}, "expected_version": version}
        await start.wait()
        async with session.put(f"{url}{place.path('raced')}", json=body) as answer:
            return answer.status, await answer.json(content_type=None)

    headers = {"Authorization": f"Bearer {cluster.token}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        writers = [asyncio.create_task(write(session, i)) for i in range(CLIENTS)]
        start.set()
        answers = await asyncio.gather(*writers)
    assert Counter(status for status, _ in answers) == {200: 1, 409: CLIENTS - 1}, answers
    winner = next(body for status, body in answers if status == 200)
    assert winner["version"] == version + 1
    for status, body in answers:
        if status == 409:
            assert (body["code"], body["current_version"]) == ("version_conflict", version + 1)
    for node in cluster.nodes:
        assert cluster.ask(node, "GET", place.path("raced")).json == winner
