"""Sessions on real nodes: repeats at any distance, over leader changes, restarts and snapshots."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

import pytest

from raftcore import NodeOptions, OutcomeUnknownError, RefusedError
from raftcore.sessions import Session, SessionRefused, SessionStateMachine, session_command
from raftcore.testing import Cluster, LedgerDisk, MemoryLedger, StoredLedger

IDS = ("a", "b", "c")


def machine(cluster: Cluster, node_id: str) -> SessionStateMachine:
    return cast(SessionStateMachine, cluster.machines[node_id])


def commands(cluster: Cluster, node_id: str) -> list[bytes]:
    return cast(MemoryLedger, machine(cluster, node_id).inner).commands


async def send(cluster: Cluster, client_id: bytes, sequence: int) -> Any:
    """Send a command of a session again and again until somebody answers."""
    async with asyncio.timeout(30):
        while True:
            try:
                proposed = await cluster.propose(
                    session_command(b"%d" % sequence, 1), client_id=client_id, sequence=sequence
                )
            except (RefusedError, OutcomeUnknownError):
                await asyncio.sleep(0.005)
            else:
                return proposed.result


@pytest.mark.parametrize("stored", [False, True])
async def test_every_request_takes_effect_once_over_failovers_restarts_and_snapshots(
    stored: bool,
) -> None:
    """The number of effects equals the number of distinct requests, on every node."""
    rng = random.Random(5)
    disks = {node_id: LedgerDisk() for node_id in IDS}

    def make(node_id: str) -> SessionStateMachine:
        return SessionStateMachine(StoredLedger(disks[node_id]) if stored else MemoryLedger())

    options = NodeOptions(snapshot_entries=10)
    async with Cluster(*IDS, machine=make, options=options) as cluster:
        session = Session(cluster, timeout_s=30)
        await session.propose(b"begin")
        client_id = session.client_id
        assert client_id is not None
        session_command_window = 60
        first: dict[int, Any] = {}
        for round_ in range(4):
            for _ in range(15):
                sequence = rng.randint(2, session_command_window)
                result = await send(cluster, client_id, sequence)
                assert first.setdefault(sequence, result) == result
            stopped = (await cluster.leader()).config.node_id if round_ % 2 else rng.choice(IDS)
            await cluster.stop(stopped)
            for sequence in rng.sample(sorted(first), 3):
                assert await send(cluster, client_id, sequence) == first[sequence]
            await cluster.start(stopped)
        for node_id in IDS:
            await cluster.barrier(node_id)
            assert len(commands(cluster, node_id)) == len(first) + 1
        tables = [list(machine(cluster, node_id).table.records()) for node_id in IDS]
        assert tables[0] == tables[1] == tables[2]
        assert any(node.status().counters.snapshots_taken for node in cluster.nodes.values())


async def test_a_session_carries_its_commands_over_a_change_of_leader() -> None:
    async with Cluster(*IDS, machine=lambda _: SessionStateMachine(MemoryLedger())) as cluster:
        session = Session(cluster, timeout_s=30, try_timeout_s=0.3)
        await session.propose(b"begin")
        leader = await cluster.leader()
        writing = [asyncio.create_task(session.propose(b"%d" % n)) for n in range(40)]
        await asyncio.sleep(0)
        others = [i for i in IDS if i != leader.config.node_id]
        cluster.network.partition([leader.config.node_id], others)
        await asyncio.wait(writing, timeout=0.4)
        cluster.network.heal_all()
        results = await asyncio.gather(*writing)
        assert not any(isinstance(result, SessionRefused) for result in results)
        assert len(set(results)) == 40
        for node_id in IDS:
            await cluster.barrier(node_id)
            assert len(commands(cluster, node_id)) == 41
