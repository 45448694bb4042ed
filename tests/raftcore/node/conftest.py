"""Clusters of nodes in this process: real nodes and threads, logs and a network in memory.

What would survive a crash is kept in a ``World``, by node id: the disk, and what the state machine
stored. A log can be held up at a gate, so that a test decides when a write is durable.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from raftcore import (
    AppliedPosition,
    Configuration,
    CoreConfig,
    Entry,
    EntryType,
    JoinPolicy,
    Lease,
    Member,
    Node,
    NodeOptions,
    Runtime,
)
from raftcore.storage.base import Identity, Write
from raftcore.storage.memory import MemoryDisk, MemoryLog
from raftcore.trace import MemoryTracer
from raftcore.transport.memory import MemoryNetwork, MemoryTransport

#: Only a failing test waits this long.
PATIENCE_S = 20.0
TIMING = {"heartbeat_ms": 20, "election_timeout_ms": 150}


async def until(what: str, condition: Callable[[], Any]) -> Any:
    """The first true value of ``condition``."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := condition()):  # noqa: ASYNC110 (nothing signals it)
                await asyncio.sleep(0.002)
    except TimeoutError:
        pytest.fail(f"waited in vain until {what}")
    return found


class Gate:
    """Something that can be held up. Open at first."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.waiting = 0

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        self.waiting += 1
        try:
            assert self._open.wait(PATIENCE_S), "the gate was never opened"
        finally:
            self.waiting -= 1


class GatedLog(MemoryLog):
    """A log whose durable writes pass a gate first."""

    def __init__(self, disk: MemoryDisk, gate: Gate) -> None:
        super().__init__(disk)
        self._gate = gate
        self.batches: list[int] = []  #: entries in each durable write
        self.closed = False

    def persist(self, writes: Sequence[Write]) -> None:
        self._gate.pass_through()
        super().persist(writes)
        self.batches.append(sum(len(write.entries) for write in writes))

    def close(self) -> None:
        self.closed = True
        super().close()


@dataclass
class Stored:
    """What a ledger keeps when its process ends."""

    commands: list[bytes] = field(default_factory=list)
    position: AppliedPosition = field(default_factory=AppliedPosition)


class LedgerView:
    def __init__(self, stored: Stored, gate: Gate) -> None:
        self.position = stored.position
        self.closed = 0
        self._commands = list(stored.commands)
        self._gate = gate

    def records(self) -> Iterator[bytes]:
        for command in self._commands:
            self._gate.pass_through()
            yield command

    def close(self) -> None:
        self.closed += 1


class Ledger:
    """A state machine that keeps all commands in order; a command's result is how many there are
    with it. ``fail_on`` makes it raise at that command."""

    def __init__(self, stored: Stored, snapshot_gate: Gate) -> None:
        self.stored = stored
        self.fail_on: bytes | None = None
        self.discarded = 0
        self.installed = 0
        self.closed = False
        self.views: list[LedgerView] = []
        self._gate = snapshot_gate

    def last_applied(self) -> AppliedPosition:
        return self.stored.position

    def apply(self, entries: Sequence[Entry], position: AppliedPosition) -> list[int | None]:
        assert entries[0].index == self.stored.position.index + 1, "an entry twice, or a gap"
        results: list[int | None] = []
        for entry in entries:
            if entry.type is EntryType.COMMAND:
                if entry.data == self.fail_on:
                    raise RuntimeError("the ledger can not go on")
                self.stored.commands.append(entry.data)
                results.append(len(self.stored.commands))
            else:
                results.append(None)
        self.stored.position = position
        return results

    def open_snapshot(self) -> LedgerView:
        self.views.append(LedgerView(self.stored, self._gate))
        return self.views[-1]

    def install_snapshot(self, records: Iterable[bytes], position: AppliedPosition) -> None:
        self.stored.commands[:] = list(records)
        self.stored.position = position
        self.installed += 1

    def discard(self) -> None:
        self.stored.commands.clear()
        self.stored.position = AppliedPosition()
        self.discarded += 1

    def close(self) -> None:
        self.closed = True


class World:
    """Everything of a cluster that outlives its nodes."""

    until = staticmethod(until)

    def __init__(self, *ids: str, lease: Lease | None = None) -> None:
        members = tuple(
            Member(i, f"{i}:1", i.encode().ljust(16, b"-"), voter=True) for i in sorted(ids)
        )
        self.configuration = Configuration("c0ffee", members, lease=lease)
        self.network = MemoryNetwork(random.Random(7))
        self.disks = {i: MemoryDisk.bootstrapped(i, self.configuration) for i in ids}
        self.stored = {i: Stored() for i in ids}
        self.gates = {i: Gate() for i in ids}
        self.snapshot_gates = {i: Gate() for i in ids}
        self.nodes: dict[str, Node] = {}
        self.logs: dict[str, GatedLog] = {}
        self.machines: dict[str, Ledger] = {}
        self._lives: dict[str, int] = {}
        #: what each node traced in its newest run, each event checked against the schema
        self.traces: dict[str, MemoryTracer] = {}

    def build(
        self,
        node_id: str,
        *,
        options: NodeOptions | None = None,
        on_request: Callable[[str, bytes], Awaitable[bytes]] | None = None,
        on_join: JoinPolicy | None = None,
        **config: int,
    ) -> Node:
        """A node on that disk, not started."""
        self.logs[node_id] = GatedLog(self.disks[node_id], self.gates[node_id])
        self.machines[node_id] = Ledger(self.stored[node_id], self.snapshot_gates[node_id])
        self.traces[node_id] = MemoryTracer()
        self.nodes[node_id] = Node(
            config=CoreConfig(node_id, **(TIMING | config)),
            storage=self.logs[node_id],
            transport=MemoryTransport(self.network, node_id),
            state_machine=self.machines[node_id],
            options=options,
            on_request=on_request,
            on_join=on_join,
            tracer=self.traces[node_id],
            runtime=Runtime(rng=random.Random(node_id)),
        )
        return self.nodes[node_id]

    async def start(self, *ids: str, **settings: Any) -> None:
        for node_id in ids or tuple(self.disks):
            await self.build(node_id, **settings).start()

    def member(self, node_id: str, *, voter: bool = True) -> Member:
        """That node as the configuration has it, or would have it."""
        return Member(node_id, f"{node_id}:1", self.incarnation(node_id), voter)

    def incarnation(self, node_id: str) -> bytes:
        life = self._lives.get(node_id, 0)
        return f"{node_id}{life or ''}".encode().ljust(16, b"-")

    def wipe(self, node_id: str) -> Member:
        """That node's directory is lost; as which member it could come back."""
        self._lives[node_id] = self._lives.get(node_id, 0) + 1
        self.disks.pop(node_id, None)
        return self.member(node_id)

    async def join(self, node_id: str, **settings: Any) -> Node:
        """Start a node with an empty log, as one that joins begins."""
        identity = Identity(self.configuration.cluster_id, node_id, self.incarnation(node_id))
        self.disks[node_id] = MemoryDisk(identity)
        self.stored[node_id] = Stored()
        self.gates[node_id], self.snapshot_gates[node_id] = Gate(), Gate()
        await self.start(node_id, **settings)
        return self.nodes[node_id]

    async def leading(self) -> Node:
        """Whoever leads the highest term, whether all follow it or not; waits for one."""

        def newest() -> Node | None:
            leaders = [node for node in self.nodes.values() if node.is_leader]
            return max(leaders, key=lambda node: node.status().core.term, default=None)

        found: Node = await until("somebody leads", newest)
        return found

    async def members(self) -> tuple[str, ...]:
        """The members that run, as their leader knows them."""
        leader = await self.leading()
        known = {member.node_id for member in leader.configuration.members}
        return tuple(i for i in self.nodes if i in known)

    async def leader(self, *among: str) -> Node:
        """The leader that all those (or all nodes) follow; waits for one."""

        def agreed() -> Node | None:
            nodes = [self.nodes[i] for i in among or tuple(self.nodes)]
            leaders = {node.leader_id for node in nodes}
            if len(leaders) != 1 or (leader := leaders.pop()) is None:
                return None
            node = self.nodes[leader]
            return node if node.is_leader else None

        found: Node = await until("all follow one leader", agreed)
        return found

    async def lone(self, **settings: Any) -> Node:
        """The one node of a cluster of one, leading."""
        await self.start(**settings)
        return await self.leader()

    def others(self, node: Node) -> list[Node]:
        return [n for i, n in self.nodes.items() if i != node.config.node_id]

    def commands(self, node: Node | str) -> list[bytes]:
        return self.stored[node if isinstance(node, str) else node.config.node_id].commands

    async def until_equal(self, commands: Sequence[bytes]) -> None:
        """Until every node has applied exactly those."""
        await until(
            "all nodes have applied the same",
            lambda: all(self.commands(i) == list(commands) for i in self.nodes),
        )

    async def close(self) -> None:
        for gate in (*self.gates.values(), *self.snapshot_gates.values()):
            gate.open()
        for node in self.nodes.values():
            await node.stop(handover=False)


@pytest.fixture
async def make_world() -> AsyncIterator[Callable[..., World]]:
    made: list[World] = []

    def make(*ids: str, lease: Lease | None = None) -> World:
        made.append(World(*ids, lease=lease))
        return made[-1]

    yield make
    for world in made:
        await world.close()


@pytest.fixture
def one(make_world: Callable[..., World]) -> World:
    """A cluster of one, not started."""
    return make_world("a")


@pytest.fixture
def three(make_world: Callable[..., World]) -> World:
    """A cluster of three, not started."""
    return make_world("a", "b", "c")
