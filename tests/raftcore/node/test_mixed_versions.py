"""A cluster of nodes of different releases over TCP, and its upgrade one node after the other.

A node of release 0.1 is one that speaks protocol version 1 and knows feature level 1.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from raftcore import (
    Configuration,
    CoreConfig,
    Facts,
    Member,
    Node,
    RaftcoreError,
    Runtime,
    TransportOptions,
)
from raftcore.storage.base import Identity
from raftcore.storage.memory import MemoryDisk
from raftcore.transport.tcp import TcpTransport

IDS = ("a", "b", "c")
TIMING = {"heartbeat_ms": 30, "election_timeout_ms": 200}


class Fleet:
    """Three nodes with logs in memory and sockets between them."""

    def __init__(self, world: Any) -> None:
        self.world = world
        with ExitStack() as held:
            sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in IDS]
            self.ports = {i: s.getsockname()[1] for i, s in zip(IDS, sockets, strict=True)}
        members = tuple(
            Member(i, f"127.0.0.1:{port}", i.encode() * 16) for i, port in self.ports.items()
        )
        self.configuration = Configuration("c0ffee", members, level=1)
        world.configuration = self.configuration
        world.disks = {i: MemoryDisk.bootstrapped(i, self.configuration) for i in IDS}

    async def start(self, node_id: str, *, old: bool) -> Node:
        level = version = 1 if old else 2
        # What the world makes for the node, but for its transport.
        self.world.build(node_id)
        transport = TcpTransport(
            Identity("c0ffee", node_id, node_id.encode() * 16),
            ("127.0.0.1", self.ports[node_id]),
            self.configuration,
            facts=Facts(feature_level=level),
            options=TransportOptions(max_protocol_version=version),
        )
        node = Node(
            config=CoreConfig(node_id, feature_level=level, **TIMING),
            storage=self.world.logs[node_id],
            transport=transport,
            state_machine=self.world.machines[node_id],
            runtime=Runtime(rng=random.Random(node_id)),
        )
        self.world.nodes[node_id] = node
        await node.start()
        return node

    async def leader(self) -> Node:
        found: Node = await self.world.leader()
        return found

    async def leads(self, node_id: str) -> Node:
        """Bring leadership to that node."""
        node = self.world.nodes[node_id]
        while not node.is_leader:
            leader = await self.leader()
            if leader is not node:
                await self.world.until(
                    "it can take over",
                    lambda: {*IDS} - {leader.config.node_id} <= leader.status().connected,  # noqa: B023
                )
                with contextlib.suppress(RaftcoreError):  # once more, then
                    await leader.transfer_leadership(node_id)
        return await self.leader()

    async def works_under_every_leader(self, tag: bytes) -> None:
        """Each node leads once; a write through it is read everywhere."""
        for node_id in IDS:
            leader = await self.leads(node_id)
            command = tag + node_id.encode()
            await leader.propose(command)
            for node in self.world.nodes.values():
                await node.read_barrier()
                assert self.world.commands(node)[-1] == command


@pytest.fixture
def fleet(make_world: Callable[..., Any]) -> Fleet:
    return Fleet(make_world(*IDS))


@pytest.mark.parametrize("old", ["a", "abc", ""], ids=["one old", "all old", "none old"])
async def test_nodes_of_both_releases_form_one_cluster(fleet: Fleet, old: str) -> None:
    for node_id in IDS:
        await fleet.start(node_id, old=node_id in old)
    await fleet.works_under_every_leader(b"x")
    for node in fleet.world.nodes.values():
        assert node.counters.peer_violations == 0
        assert node._transport.stats.bad_frames == 0
        if old:
            assert node.configuration.level == 1


async def test_a_cluster_is_upgraded_node_by_node_without_losing_anything(fleet: Fleet) -> None:
    for node_id in IDS:
        await fleet.start(node_id, old=True)
    await fleet.works_under_every_leader(b"0")
    for count, node_id in enumerate(IDS, 1):
        assert {node.configuration.level for node in fleet.world.nodes.values()} == {1}
        await fleet.world.nodes[node_id].stop()
        await fleet.start(node_id, old=False)
        await fleet.works_under_every_leader(b"%d" % count)
    expected = [b"%d%b" % (n, i.encode()) for n in range(4) for i in IDS]
    await fleet.world.until_equal(expected)
    await fleet.world.until(
        "the cluster has reached the new feature level",
        lambda: all(node.configuration.level == 2 for node in fleet.world.nodes.values()),
    )
    await fleet.works_under_every_leader(b"after")
    for node in fleet.world.nodes.values():
        said = node._transport.introductions()
        assert {introduction.version for introduction in said.values()} == {2}
        assert {introduction.facts.feature_level for introduction in said.values()} == {2}
