"""Clusters in one process, and what they keep when one node's store fails at any operation."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from raftcore import NodeOptions, NotLeaderError, OutcomeUnknownError, RefusedError, StorageError
from raftcore.storage.base import LogStorage
from raftcore.testing import (
    Cluster,
    Fault,
    FaultyStorage,
    MemoryLedger,
    SimulatedCrash,
    at,
    never,
    on,
    until,
)

IDS = ("a", "b", "c")
COMMANDS = 12
#: A node takes a snapshot every few entries, so that its store is asked for everything.
OPTIONS = NodeOptions(snapshot_entries=4)
AT_ONCE = 10


def ledger(_: str) -> MemoryLedger:
    return MemoryLedger()


def commands(cluster: Cluster, node_id: str) -> list[bytes]:
    return cast(MemoryLedger, cluster.machines[node_id]).commands


async def say(cluster: Cluster, data: bytes) -> bool:
    """Whether ``data`` was acknowledged; repeated only when that is safe."""
    async with asyncio.timeout(30):
        while True:
            try:
                await cluster.propose(data)
            except OutcomeUnknownError:
                return False
            except RefusedError:
                await asyncio.sleep(0.005)
            else:
                return True


async def test_a_cluster_applies_the_same_on_every_node() -> None:
    async with Cluster(*IDS, machine=ledger) as cluster:
        leader = await cluster.leader()
        said = [b"%d" % n for n in range(5)]
        for data in said:
            assert await say(cluster, data)
        for node_id in IDS:
            await cluster.barrier(node_id)
            assert commands(cluster, node_id) == said
        assert leader.is_leader


async def test_a_stopped_node_comes_back_on_its_disk() -> None:
    async with Cluster(*IDS, machine=ledger) as cluster:
        stopped = (await cluster.leader()).config.node_id
        assert await say(cluster, b"before")
        await cluster.stop(stopped)
        assert await say(cluster, b"between")
        await cluster.start(stopped)
        await cluster.barrier(stopped)
        assert commands(cluster, stopped) == [b"before", b"between"]


async def test_without_a_leader_a_proposal_is_refused() -> None:
    cluster = Cluster(*IDS, machine=ledger)
    with pytest.raises(NotLeaderError):
        await cluster.propose(b"x")


async def test_a_condition_that_never_comes_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="in vain until pigs fly"):
        await until("pigs fly", lambda: False, patience_s=0.01)


async def test_a_start_that_dies_in_recovery_ends_and_does_not_hang() -> None:
    """Whatever a worker raises reaches who awaits it, also what is no ordinary exception."""
    cluster = Cluster(
        "a", machine=ledger, storage=lambda _, log: FaultyStorage(log, at(0, Fault.CRASH_BEFORE))
    )
    async with asyncio.timeout(20):
        with pytest.raises(SimulatedCrash):
            await cluster.start()


async def run_with_a_fault(number: int, fault: Fault) -> bool:
    """Node ``a`` fails at its operation of that number; False if it never got that far."""

    def storage(node_id: str, log: LogStorage) -> LogStorage:
        return FaultyStorage(log, plans.pop(node_id, never))

    plans = {"a": at(number, fault)}
    cluster = Cluster(*IDS, machine=ledger, storage=storage, options=OPTIONS, seed=number)
    try:
        await cluster.start("b", "c")
        failed = False
        try:
            await cluster.start("a")
        except (SimulatedCrash, StorageError):
            failed = True  # it never came up
        said = [b"%d" % n for n in range(COMMANDS)]
        acknowledged = [data for data in said if await say(cluster, data)]
        log = cast(FaultyStorage, cluster.logs["a"])
        if not failed and log.failed is not None:
            failed = True
            with pytest.raises((SimulatedCrash, StorageError)) as stopped:
                async with asyncio.timeout(30):
                    await cluster.nodes["a"].wait_stopped()
            assert stopped.value is log.failed, "the node stops with the storage error"
        if "a" in cluster.nodes:
            await cluster.stop("a")
        await cluster.start("a")
        for node_id in IDS:
            await cluster.barrier(node_id)
            kept = commands(cluster, node_id)
            assert [c for c in kept if c in acknowledged] == acknowledged
            assert len(kept) == len(set(kept))
            assert commands(cluster, "a") == commands(cluster, "b")
        return failed
    finally:
        for node_id in list(cluster.nodes):
            await cluster.stop(node_id)


@pytest.mark.parametrize("fault", [Fault.ERROR_BEFORE, Fault.ERROR_AFTER, Fault.CRASH_BEFORE])
async def test_a_store_that_fails_at_any_operation_costs_no_acknowledged_write(
    fault: Fault,
) -> None:
    failures: list[bool] = []
    while all(failures):  # until a run ends before the fault: then no operation is left
        first = len(failures)
        runs = (run_with_a_fault(n, fault) for n in range(first, first + AT_ONCE))
        failures += await asyncio.gather(*runs)
    assert failures.index(False) > 2 * AT_ONCE, "many operations were reached"


async def test_a_leader_whose_store_hangs_acknowledges_nothing_until_it_goes_on() -> None:
    logs: dict[str, FaultyStorage] = {}

    def storage(node_id: str, log: LogStorage) -> LogStorage:
        logs[node_id] = FaultyStorage(log)
        return logs[node_id]

    async with Cluster("a", machine=ledger, storage=storage) as cluster:
        await cluster.leader()
        await cluster.barrier("a")
        logs["a"].plan = on("persist", Fault.HUNG)
        waiting = asyncio.create_task(cluster.propose(b"x"))
        assert await asyncio.to_thread(logs["a"].hanging.wait, 20)
        assert not waiting.done()
        assert commands(cluster, "a") == []
        logs["a"].release()
        assert (await waiting).result == 1
