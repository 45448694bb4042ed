"""Lease reads on running nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from raftcore import Lease, NodeOptions
from raftcore.core.messages import Heartbeat, Message

LEASE = Lease(150, 1000)


def name(node: Any) -> str:
    return str(node.config.node_id)


async def leased(make_world: Callable[..., Any], **settings: Any) -> tuple[Any, Any]:
    """Three nodes founded with a lease, and the leader once it holds one."""
    world = make_world("a", "b", "c", lease=LEASE)
    await world.start(**settings)
    leader = await world.leader()
    await leader.propose(b"x")
    await world.until("a lease is held", lambda: leader.status().core.lease_remaining_ms)
    return world, leader


def heartbeats_held_back(world: Any) -> None:
    """No heartbeat arrives from here on: nothing can be confirmed by asking."""

    def passes(_source: str, _target: str, message: Message) -> bool:
        return not isinstance(message, Heartbeat)

    world.network.deliver = passes


async def test_under_a_lease_a_leader_reads_without_asking_anybody(make_world: Any) -> None:
    _, leader = await leased(make_world)
    before = leader.status().core.lease_remaining_ms
    assert 0 < before <= LEASE.election_timeout_ms
    index = await leader.read_barrier(lease=True)
    assert index >= leader.status().core.commit_index
    assert leader.status().counters.reads_by_lease == 1
    found = {sample.figure.name: sample.value for sample in leader.figures()}
    assert found["lease_remaining_seconds"] <= 0.15
    assert "lease: 150 ms" in leader.status().describe()


async def test_without_a_lease_a_lease_read_is_confirmed_as_usual(three: Any) -> None:
    await three.start(options=NodeOptions(lease_reads=True))
    leader = await three.leader()
    proposed = await leader.propose(b"x")
    assert await leader.read_barrier() >= proposed.index
    assert leader.status().core.lease_remaining_ms is None


async def test_a_follower_asks_the_leader_whatever_the_lease(make_world: Any) -> None:
    world, leader = await leased(make_world, options=NodeOptions(lease_reads=True))
    proposed = await leader.propose(b"y")
    follower = world.others(leader)[0]
    assert await follower.read_barrier() >= proposed.index
    assert world.commands(follower)[-1] == b"y"


async def test_a_lease_runs_out_when_nobody_answers(make_world: Any) -> None:
    world, leader = await leased(make_world)
    heartbeats_held_back(world)
    await world.until("it has run out", lambda: not leader.status().core.lease_remaining_ms)
    read = asyncio.create_task(leader.read_barrier(lease=True, timeout_s=0.3))
    await asyncio.wait({read})
    assert read.exception() is not None, "a read that nobody confirmed"


async def test_leases_are_turned_on_and_off_for_all_members_at_once(three: Any) -> None:
    await three.start(options=NodeOptions(lease_reads=True))
    leader = await three.leader()
    await leader.read_barrier()
    assert leader.status().core.lease_remaining_ms is None
    configuration, version = await leader.set_lease(LEASE)
    assert configuration.lease == LEASE
    assert configuration.members == three.configuration.members
    await three.until("it is held", lambda: leader.status().core.lease_remaining_ms)
    await three.until(
        "all go by it", lambda: all(n.configuration.lease == LEASE for n in three.nodes.values())
    )
    await leader.update_address("b", "b:2")
    assert leader.configuration.lease == LEASE, "a change of the members leaves it alone"
    configuration, later = await leader.set_lease(None)
    assert (configuration.lease, later > version) == (None, True)
    assert leader.status().core.lease_remaining_ms is None
    await leader.read_barrier()
