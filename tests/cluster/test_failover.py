"""Nodes die and come back under load: nothing acknowledged is lost, nothing happens twice."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

pytestmark = pytest.mark.slow

COUNTERS = ("a", "b", "c")
WRITERS_PER_COUNTER = 2
BEFORE_S, AFTER_WRITES, GIVE_UP_S = 0.7, 60, 60.0
REQUEST_S = 3.0


@dataclass
class Attempt:
    """One write: what it would have stored, and what became of it."""

    counter: str
    content: dict[str, object]
    started_s: float
    outcome: str = "unknown"
    version: int = 0
    ended_s: float = 0.0


@dataclass
class Load:
    """Writers that race on counters through all nodes, and everything they tried.

    An attempt is *ok* or *refused* only by an answer that settles it. When an answer is lost or
    says that the outcome is unknown it is asked for again, elsewhere, under its Idempotency-Key;
    a 503 then settles nothing any more, because an earlier try may still be under way.
    """

    urls: list[str]
    place: Any
    versions: dict[str, int]
    attempts: list[Attempt] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    statuses: Counter[str] = field(default_factory=Counter)

    async def run(self, session: aiohttp.ClientSession, counter: str, number: int) -> None:
        urls = itertools.islice(itertools.cycle(self.urls), number, None)
        version = self.versions[counter]
        while not self.stopping.is_set():
            attempt = Attempt(
                counter, {"count": number, "token": secrets.token_hex(8)}, time.monotonic()
            )
            self.attempts.append(attempt)
            version = await self._settle(session, attempt, version, urls)

    async def _settle(
        self, session: aiohttp.ClientSession, attempt: Attempt, version: int, urls: Any
    ) -> int:
        """Ask until the attempt is settled; the version to go on from."""
        body = {"content": attempt.content, "expected_version": version}
        headers = {"Idempotency-Key": str(attempt.content["token"])}
        path = self.place.path(attempt.counter)
        maybe = False
        give_up = time.monotonic() + GIVE_UP_S
        while time.monotonic() < give_up:
            try:
                async with session.put(next(urls) + path, json=body, headers=headers) as answer:
                    status, said = answer.status, await answer.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError):
                # also when nobody listens: aiohttp sends a PUT again by itself when a connection
                # breaks, so its last error says nothing about the first try
                self.statuses["no answer"] += 1
                maybe = True
                await asyncio.sleep(0.01)
                continue
            self.statuses[str(status)] += 1
            attempt.ended_s = time.monotonic()
            if said.get("code") == "idempotency_in_progress":
                maybe = True  # the first try is still under way on that node
                await asyncio.sleep(0.05)
                continue
            if status == 200:
                attempt.outcome, attempt.version = "ok", said["version"]
                return attempt.version
            if status == 409:
                attempt.outcome = "refused"
                return int(said["current_version"])
            if status == 503 and not maybe:
                attempt.outcome = "refused"
                return version
            assert status in (503, 504), said
            maybe = maybe or status == 504
        return version

    def accepted_since(self, moment_s: float) -> list[Attempt]:
        """Accepted attempts that began after ``moment_s``, by the time of their answers."""
        found = [a for a in self.attempts if a.outcome == "ok" and a.started_s > moment_s]
        return sorted(found, key=lambda attempt: attempt.ended_s)

    def outcomes(self) -> Counter[str]:
        return Counter(attempt.outcome for attempt in self.attempts)


async def run_load(cluster: Any, disturb: Callable[[Load], Any]) -> Load:
    """Load on all nodes while ``disturb`` does its work."""
    place = cluster.furnish(
        {"type": "object", "required": ["count"], "properties": {"token": {"type": "string"}}}
    )
    versions = {key: cluster.store(place, key, {"count": 0})["version"] for key in COUNTERS}
    load = Load([node.url for node in cluster.nodes], place, versions)
    async with (
        aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {cluster.token}"},
            timeout=aiohttp.ClientTimeout(total=REQUEST_S),
            connector=aiohttp.TCPConnector(limit=0),
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        for number, counter in enumerate(COUNTERS * WRITERS_PER_COUNTER):
            group.create_task(load.run(session, counter, number))
        await asyncio.sleep(BEFORE_S)
        try:
            await disturb(load)
        finally:
            load.stopping.set()
    return load


async def until_accepted(load: Load, moment_s: float, count: int) -> list[Attempt]:
    async with asyncio.timeout(GIVE_UP_S):
        while len(found := load.accepted_since(moment_s)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return found


def check_history(load: Load, histories: dict[str, list[Any]], contents: Any) -> None:
    """What was stored is what was acknowledged, each once, and nothing that was refused."""
    for counter in COUNTERS:
        history = histories[counter]
        versions = [item["version"] for item in history]
        assert versions == list(range(len(history), 0, -1)), "versions have no gap and no double"
        stored = {version: contents(counter, version).get("token") for version in versions}
        tokens = [token for token in stored.values() if token]
        assert len(set(tokens)) == len(tokens), "a write took effect twice"
        mine = [a for a in load.attempts if a.counter == counter]
        for attempt in mine:
            token = attempt.content["token"]
            if attempt.outcome == "ok":
                assert stored.get(attempt.version) == token, f"lost: {attempt}"
            elif attempt.outcome == "refused":
                assert token not in tokens, f"refused, and stored all the same: {attempt}"
        known = {a.content["token"] for a in mine}
        assert set(tokens) <= known, "something was stored that nobody wrote"


def check_everything(cluster: Any, load: Load) -> None:
    """On every node the same, and right."""
    pictures = [cluster.everything(load.place, node) for node in cluster.nodes]
    assert pictures[0] == pictures[1] == pictures[2]
    _, histories = pictures[0]

    def content(counter: str, version: int) -> Any:
        path = load.place.path(counter, "revisions", str(version))
        return cluster.get("GET", path)["content"]

    check_history(load, histories, content)


async def test_killing_the_leader_under_load_loses_and_doubles_nothing(
    cluster: Any, figure: Callable[[str], None]
) -> None:
    leader = cluster.leader()
    killed_s = 0.0

    async def kill_leader(load: Load) -> None:
        nonlocal killed_s
        killed_s = time.monotonic()
        cluster.kill(leader)
        accepted = await until_accepted(load, killed_s, AFTER_WRITES)
        gap_ms = (accepted[0].ended_s - killed_s) * 1000
        figure(f"kill -9 of the leader to the first accepted write: {gap_ms:.0f} ms")

    load = await run_load(cluster, kill_leader)
    outcomes = load.outcomes()
    figure(f"  outcomes {dict(outcomes)}, answers {dict(load.statuses)}")
    assert outcomes["ok"] > AFTER_WRITES
    assert outcomes["refused"] > 0, "the writers did not race"
    assert outcomes["unknown"] == 0, "every write is settled in the end"
    assert cluster.leader() is not leader
    cluster.start(leader)
    check_everything(cluster, load)


async def test_killing_a_follower_under_load_stops_nobody(cluster: Any) -> None:
    follower = cluster.others(cluster.leader())[0]

    async def kill_follower(load: Load) -> None:
        cluster.kill(follower)
        await until_accepted(load, time.monotonic(), AFTER_WRITES)

    load = await run_load(cluster, kill_follower)
    assert load.outcomes()["unknown"] == 0
    cluster.start(follower)
    check_everything(cluster, load)


async def test_after_killing_all_nodes_under_load_everything_acknowledged_is_there(
    cluster: Any, figure: Callable[[str], None]
) -> None:
    async def kill_all(load: Load) -> None:
        began_s = time.monotonic()
        cluster.kill(*cluster.nodes)
        for node in cluster.nodes:
            node.start()
        accepted = await until_accepted(load, began_s, AFTER_WRITES)
        gap_s = accepted[0].ended_s - began_s
        figure(f"kill -9 of all three, restart, to the first accepted write: {gap_s:.1f} s")

    load = await run_load(cluster, kill_all)
    assert load.outcomes()["unknown"] == 0
    check_everything(cluster, load)
    index = cluster.until_level()
    cluster.kill(*cluster.nodes)
    pictures = [cluster.picture(node) for node in cluster.nodes]
    assert pictures[0] == pictures[1] == pictures[2]
    assert pictures[0].index == index
    assert pictures[0].changes > AFTER_WRITES
    cluster.start()
    check_everything(cluster, load)


async def test_sigterm_hands_leadership_over_and_ends_with_zero(
    cluster: Any, figure: Callable[[str], None]
) -> None:
    leader = cluster.leader()
    term = cluster.view(leader)["term"]

    async def stop_leader(load: Load) -> None:
        began_s = time.monotonic()
        leader._process.terminate()
        code = await asyncio.to_thread(cluster.wait_exit, leader, 10.0)
        ended_s = time.monotonic()
        assert code == 0
        await until_accepted(load, ended_s, AFTER_WRITES)
        times = sorted(a.ended_s for a in load.attempts if a.outcome == "ok")
        gap_ms = max((b - a) * 1000 for a, b in itertools.pairwise(times) if b > began_s)
        figure(f"SIGTERM of the leader: exit after {(ended_s - began_s) * 1000:.0f} ms")
        figure(f"  longest time without an accepted write: {gap_ms:.0f} ms")

    load = await run_load(cluster, stop_leader)
    assert load.outcomes()["unknown"] == 0
    successor = cluster.leader(after_term=term)
    assert successor is not leader
    assert "stopping without a successor" not in leader.log_path.read_text()
    cluster.start(leader)
    check_everything(cluster, load)


def test_without_a_majority_nothing_is_written_and_reads_by_key_go_on(cluster: Any) -> None:
    place = cluster.furnish()
    cluster.store(place, "kept", {"count": 7})
    survivor = cluster.nodes[0]
    cluster.until_level()
    cluster.kill(*cluster.others(survivor))

    body = {"content": {"count": 8}, "expected_version": 1}
    first = cluster.ask(survivor, "PUT", place.path("kept"), body)
    # it may still have led and accepted the write; from then on it knows better
    assert (first.status, first.code) in ((503, "no_leader"), (504, "outcome_unknown"))
    again = cluster.ask(survivor, "PUT", place.path("kept"), body)
    assert (again.status, again.code) == (503, "no_leader")
    assert int(again.headers["Retry-After"]) >= 1

    local = cluster.ask(survivor, "GET", f"/api/v1/read/{place.api_key}/kept")
    assert local.status == 200
    assert local.json["content"] in ({"count": 7}, {"count": 8})
    for path in (f"/api/v1/read/{place.api_key}/kept?consistency=linearizable", place.path("kept")):
        strict = cluster.ask(survivor, "GET", path)
        assert (strict.status, strict.code) == (503, "no_leader")
    assert cluster.ask(survivor, "GET", "/ready").status == 503
    assert cluster.ask(survivor, "GET", "/ready?for=local").status == 200

    cluster.whole()
    assert cluster.get("GET", place.path("kept"))["version"] in (1, 2)
