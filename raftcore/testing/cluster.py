"""A cluster in this process: real nodes, a network and logs in memory, faults on demand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from raftcore.core.config import CoreConfig
from raftcore.core.types import Configuration, Member
from raftcore.errors import NotLeaderError, RefusedError
from raftcore.node import Node
from raftcore.runtime.options import NodeOptions, Runtime
from raftcore.runtime.status import Proposed
from raftcore.statemachine import StateMachine
from raftcore.storage.base import LogStorage
from raftcore.storage.memory import MemoryDisk, MemoryLog
from raftcore.transport.memory import MemoryNetwork, MemoryTransport

T = TypeVar("T")

#: Short enough for tests, long enough for a busy machine.
TIMING: Mapping[str, int] = {"heartbeat_ms": 20, "election_timeout_ms": 150}
#: Only a failing test waits this long.
PATIENCE_S = 30.0


async def until(what: str, condition: Callable[[], T | None], patience_s: float = PATIENCE_S) -> T:
    """The first true value of ``condition``.

    Raises:
        AssertionError: it never came.
    """
    try:
        async with asyncio.timeout(patience_s):
            while not (found := condition()):  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"waited in vain until {what}") from None
    return found


class Cluster:
    """Nodes that share a :class:`MemoryNetwork`. Their disks outlive them.

    Args:
        ids: the node ids.
        machine: the state machine of a node at each of its starts.
        storage: wraps a node's log at each of its starts, for instance in a ``FaultyStorage``.
        options: settings of the runtime.
        seed: of elections and of the network.
        timing: settings of the core; see :class:`CoreConfig`.

    Attributes:
        network: cut it, heal it, lose messages.
        disks: what survives of each node.
        nodes, machines, logs: of the nodes' current runs.
    """

    def __init__(
        self,
        *ids: str,
        machine: Callable[[str], StateMachine],
        storage: Callable[[str, LogStorage], LogStorage] = lambda _, log: log,
        options: NodeOptions | None = None,
        seed: int = 7,
        timing: Mapping[str, Any] = TIMING,
    ) -> None:
        members = tuple(Member(i, f"{i}:1", i.encode().ljust(16, b"-")[:16]) for i in sorted(ids))
        self.configuration = Configuration("in-memory", members)
        self.network = MemoryNetwork(random.Random(seed))  # noqa: S311 - to repeat it
        self.disks = {i: MemoryDisk.bootstrapped(i, self.configuration) for i in ids}
        self.nodes: dict[str, Node] = {}
        self.machines: dict[str, StateMachine] = {}
        self.logs: dict[str, LogStorage] = {}
        self._machine = machine
        self._storage = storage
        self._options = options
        self._seed = seed
        self._timing = timing

    async def __aenter__(self) -> Cluster:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node_id in list(self.nodes):
            await self.stop(node_id)

    async def start(self, *ids: str) -> None:
        """Start these nodes, or all, each on its disk."""
        for node_id in ids or tuple(self.disks):
            self.machines[node_id] = self._machine(node_id)
            self.logs[node_id] = self._storage(node_id, MemoryLog(self.disks[node_id]))
            node = Node(
                config=CoreConfig(node_id, **self._timing),
                storage=self.logs[node_id],
                transport=MemoryTransport(self.network, node_id),
                state_machine=self.machines[node_id],
                options=self._options,
                runtime=Runtime(rng=random.Random(f"{self._seed} {node_id}")),  # noqa: S311
            )
            await node.start()
            self.nodes[node_id] = node

    async def stop(self, node_id: str) -> None:
        """End a node as a crash would: nothing is handed over. Its disk stays."""
        await self.nodes.pop(node_id).stop(handover=False)

    async def leader(self) -> Node:
        """The leader, as soon as there is one that every running node follows."""

        def agreed() -> Node | None:
            leaders = {node.leader_id for node in self.nodes.values()}
            leader = self.nodes.get(leaders.pop() or "") if len(leaders) == 1 else None
            return leader if leader is not None and leader.is_leader else None

        return await until("all nodes follow one leader", agreed)

    async def propose(
        self, data: bytes, *, timeout_s: float = 10.0, client_id: bytes = b"", sequence: int = 0
    ) -> Proposed:
        """Propose on whichever node leads; for clients and ``Session``. See ``Node.propose``.

        Raises:
            NotLeaderError: nobody leads now.
        """
        for node in list(self.nodes.values()):
            if node.is_leader:
                return await node.propose(
                    data, timeout_s=timeout_s, client_id=client_id, sequence=sequence
                )
        raise NotLeaderError(None)

    async def barrier(self, node_id: str) -> None:
        """Until that node's machine shows everything acknowledged before the call."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await self.nodes[node_id].read_barrier()
                except RefusedError:
                    await asyncio.sleep(0.01)
                else:
                    return
