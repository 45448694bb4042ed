"""Cores stepped by hand: nothing is delivered, written or applied until the caller says so.

For scenarios in which the schedule *is* the test. :class:`ManualNode` executes effects in the
plainest way; by default its disk and state machine are immediate, and can be held back one by one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jepsen_like.sim.disk import DurableImage, StoredSnapshot
from jepsen_like.sim.machine import ChainMachine
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core.config import MS, CoreConfig
from raftcore.core.messages import Message
from raftcore.core.raft import Raft
from raftcore.core.types import (
    Configuration,
    Entry,
    EntryType,
    HardState,
    Lease,
    Member,
    NodeId,
    Position,
    SnapshotMeta,
    WriteMark,
)


def configuration_of(
    voters: Sequence[NodeId], learners: Sequence[NodeId] = (), old_voters: Sequence[NodeId] = ()
) -> Configuration:
    """A configuration of these members; with ``old_voters`` it is joint, and those of them that
    are neither voters nor learners are leaving."""
    leaving = sorted({*old_voters} - {*voters} - {*learners})
    members = members_of(voters, (*learners, *leaving))
    return Configuration("sim", members, tuple(old_voters), tuple(leaving))


def members_of(voters: Sequence[NodeId], learners: Sequence[NodeId] = ()) -> tuple[Member, ...]:
    """Members, sorted; a name always has the same address and incarnation."""
    return tuple(
        Member(name, f"{name}:1", incarnation_of(name), name in voters)
        for name in sorted({*voters, *learners})
    )


def incarnation_of(name: NodeId) -> bytes:
    """The incarnation that :func:`members_of` gives that name."""
    return hashlib.sha256(name.encode()).digest()[:16]


def log_of(*terms: int) -> list[Entry]:
    """Entries from index 1 on with these terms."""
    return [
        Entry(index, term, EntryType.COMMAND, f"{index}@{term}".encode())
        for index, term in enumerate(terms, start=1)
    ]


def snapshot_of(machine: ChainMachine, configuration: Configuration) -> StoredSnapshot:
    """A snapshot of ``machine``."""
    data = machine.to_bytes()
    digest = hashlib.sha256(data).digest()
    meta = SnapshotMeta(
        machine.index, machine.term, machine.chain, configuration, len(data), digest
    )
    return StoredSnapshot(meta, data)


@dataclass
class ManualNode:
    """One core, its disk and its machine. ``log`` of effects is kept in ``effects``."""

    config: CoreConfig
    image: DurableImage
    now_ns: int = 0
    seed: int = 1
    hold_disk: bool = False
    hold_apply: bool = False
    hold_reads: bool = False
    machine: ChainMachine = field(default_factory=ChainMachine)
    outbox: list[tuple[NodeId, Message]] = field(default_factory=list)
    effects: list[ef.Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start, or start again after a crash, from what is durable."""
        self.machine = self.image.machine()
        self.pending: list[ef.Persist] = []
        self.waiting: list[ef.Send] = []
        self.to_apply: list[ef.Apply] = []
        self.to_read: list[ef.ReadEntries] = []
        self.received = b""
        self.durable = 0
        self.outbox.clear()
        rng = random.Random(self.seed)  # noqa: S311 - the same timeouts in every run
        recovered = self.image.recover(self.machine.index)
        self.raft = Raft(self.config, recovered, rng, self.now_ns)

    # -- giving ---------------------------------------------------------------------------------

    def step(self, event: ev.Event) -> list[ef.Effect]:
        """Hand an event to the core, execute what follows; returns that event's own effects."""
        self.now_ns = max(self.now_ns, event.now_ns)
        effects = self.raft.step(event)
        self.effects.extend(effects)
        for effect in effects:
            self._execute(effect)
        return effects

    def receive(self, message: Message) -> list[ef.Effect]:
        return self.step(ev.MessageReceived(self.now_ns, message))

    def tick(self, now_ns: int | None = None) -> list[ef.Effect]:
        return self.step(ev.Tick(self.now_ns if now_ns is None else now_ns))

    def time_out(self) -> list[ef.Effect]:
        """Tick exactly at the core's own deadline."""
        return self.tick(max(self.now_ns, self.raft.next_deadline_ns))

    def propose(self, *data: bytes) -> list[ef.Effect]:
        proposals = tuple(ev.Proposal(token, item) for token, item in enumerate(data))
        return self.step(ev.Propose(self.now_ns, proposals))

    def read(self, read_id: int) -> list[ef.Effect]:
        return self.step(ev.ReadRequested(self.now_ns, read_id))

    def change(
        self,
        voters: Sequence[NodeId],
        learners: Sequence[NodeId] = (),
        *,
        token: int = 1,
        version: int | None = None,
        lease: Lease | None = None,
        members: tuple[Member, ...] | None = None,
    ) -> list[ef.Effect]:
        """Ask this node for a change of membership."""
        if version is None:
            version = self.raft.configuration_index
        wanted = members or members_of(voters, learners)
        return self.step(ev.MembershipRequested(self.now_ns, token, version, wanted, lease))

    def flush(self, count: int | None = None) -> None:
        """Make the oldest ``count`` writes durable (all by default) and let go what waited."""
        writes = self.pending[:count]
        del self.pending[: len(writes)]
        for write in writes:
            self.image.persist(write)
            self._durable(write.mark)

    def _durable(self, mark: WriteMark) -> None:
        self.durable = mark.sequence
        ready = [s for s in self.waiting if s.after is None or s.after.sequence <= mark.sequence]
        self.waiting = [s for s in self.waiting if s not in ready]
        self.outbox.extend((send.to, send.message) for send in ready)
        self.step(ev.WriteDurable(self.now_ns, mark))

    def apply_now(self) -> None:
        """Apply what was handed out."""
        while self.to_apply:
            batch = self.to_apply.pop(0)
            for entry in batch.entries:
                self.machine.apply(entry)
            self.step(ev.Applied(self.now_ns, self.machine.index))

    def read_now(self) -> None:
        """Answer the reads from storage that were asked for."""
        while self.to_read:
            r = self.to_read.pop(0)
            found = self.image.read(r.first, r.last, r.max_bytes)
            self.step(ev.EntriesRead(self.now_ns, r.request_id, found))

    def take_snapshot(self) -> SnapshotMeta:
        """Snapshot the machine as it is now."""
        snapshot = snapshot_of(self.machine, self.raft.configuration_at(self.machine.index))
        keep_from = self.image.add_snapshot(snapshot)
        self.step(ev.SnapshotTaken(self.now_ns, snapshot.meta, keep_from))
        return snapshot.meta

    # -- executing ------------------------------------------------------------------------------

    def _execute(self, effect: ef.Effect) -> None:
        if isinstance(effect, ef.Persist):
            self.pending.append(effect)
            if not self.hold_disk:
                self.flush()
        elif isinstance(effect, ef.Send):
            if effect.after is not None and effect.after.sequence > self.durable:
                self.waiting.append(effect)
            else:
                self.outbox.append((effect.to, effect.message))
        elif isinstance(effect, ef.Apply):
            self.to_apply.append(effect)
            if not self.hold_apply:
                self.apply_now()
        elif isinstance(effect, ef.ReadEntries):
            self.to_read.append(effect)
            if not self.hold_reads:
                self.read_now()
        elif isinstance(effect, ef.Compact):
            self.image.compact(effect.first_index)
        elif isinstance(effect, ef.ReadSnapshotChunk):
            self._read_chunk(effect)
        elif isinstance(effect, ef.StoreSnapshotChunk):
            self._store_chunk(effect)

    def _read_chunk(self, effect: ef.ReadSnapshotChunk) -> None:
        data = b""
        for stored in self.image.snapshots:
            if stored.meta == effect.meta:
                data = stored.data[effect.offset : effect.offset + effect.max_bytes]
        self.step(ev.SnapshotChunkRead(self.now_ns, effect.to, effect.meta, effect.offset, data))

    def _store_chunk(self, effect: ef.StoreSnapshotChunk) -> None:
        self.received = self.received[: effect.offset] + effect.data
        if len(self.received) < effect.meta.size_bytes:
            event = ev.SnapshotChunkStored(self.now_ns, effect.meta, len(self.received))
            self.step(event)
            return
        ok = hashlib.sha256(self.received).digest() == effect.meta.digest
        if ok:
            self.flush()
            self.image.install(StoredSnapshot(effect.meta, self.received))
            self.machine = ChainMachine.from_bytes(self.received)
        self.step(ev.SnapshotInstalled(self.now_ns, effect.meta, ok))


class ManualCluster:
    """Several :class:`ManualNode` and the messages between them."""

    def __init__(
        self,
        voters: Sequence[NodeId] = ("a", "b", "c"),
        *,
        learners: Sequence[NodeId] = (),
        logs: Mapping[NodeId, Sequence[int]] | None = None,
        terms: Mapping[NodeId, int] | None = None,
        **settings: int,
    ) -> None:
        self.configuration = configuration_of(voters, learners)
        self.settings = settings
        self.now_ns = 0
        self.wire: list[tuple[NodeId, Message]] = []
        self.cuts: set[tuple[NodeId, NodeId]] = set()
        #: messages that never arrive
        self.lose: Callable[[NodeId, Message], bool] = lambda _to, _m: False
        self.nodes: dict[NodeId, ManualNode] = {}
        for seed, name in enumerate(sorted({*voters, *learners})):
            entries = log_of(*(logs or {}).get(name, ()))
            image = DurableImage(self.configuration)
            last_term = entries[-1].term if entries else 0
            term = (terms or {}).get(name, last_term)
            image.persist(ef.Persist(WriteMark(0, 0), HardState(term), None, tuple(entries), 0))
            self.nodes[name] = ManualNode(self._config(name), image, seed=seed)

    def _config(self, name: NodeId) -> CoreConfig:
        return CoreConfig(
            node_id=name,
            incarnation=incarnation_of(name),
            **self.settings,
        )

    def join(self, name: NodeId) -> ManualNode:
        """A new node: an empty log, and a configuration of nobody."""
        image = DurableImage(Configuration("sim", ()))
        node = ManualNode(self._config(name), image, self.now_ns, seed=len(self.nodes))
        self.nodes[name] = node
        return node

    def kill(self, name: NodeId) -> ManualNode:
        """A node stops; what is on its way to it is lost."""
        node = self.nodes.pop(name)
        self.drop(lambda to, _m: to == name)
        return node

    def revive(self, node: ManualNode) -> None:
        """It starts again from its disk."""
        node.now_ns = max(node.now_ns, self.now_ns)
        node.start()
        self.nodes[node.config.node_id] = node

    def __getitem__(self, name: NodeId) -> ManualNode:
        return self.nodes[name]

    def collect(self) -> list[tuple[NodeId, Message]]:
        """Move what the nodes have sent onto the wire; cut links lose it."""
        for name, node in self.nodes.items():
            sent, node.outbox = node.outbox, []
            self.wire.extend(
                (to, m) for to, m in sent if (name, to) not in self.cuts and not self.lose(to, m)
            )
        return self.wire

    def deliver(
        self, wanted: Callable[[NodeId, Message], bool] = lambda _to, _m: True, rounds: int = 200
    ) -> None:
        """Deliver what is wanted, and what that leads to, in order, until there is no more."""
        for _ in range(rounds):
            self.collect()
            chosen = [pair for pair in self.wire if wanted(*pair) and pair[0] in self.nodes]
            if not chosen:
                return
            self.wire = [pair for pair in self.wire if pair not in chosen]
            for to, message in chosen:
                if (message.sender, to) not in self.cuts:
                    self.nodes[to].receive(message)
        raise AssertionError("messages go round for ever")

    def drop(self, unwanted: Callable[[NodeId, Message], bool] = lambda _to, _m: True) -> int:
        """Lose messages on the wire; returns how many."""
        before = len(self.collect())
        self.wire = [pair for pair in self.wire if not unwanted(*pair)]
        return before - len(self.wire)

    def cut(self, one: NodeId, other: NodeId, *, both: bool = True) -> None:
        self.cuts.add((one, other))
        if both:
            self.cuts.add((other, one))

    def isolate(self, name: NodeId) -> None:
        for other in self.nodes:
            if other != name:
                self.cut(name, other)

    def heal(self) -> None:
        self.cuts.clear()

    def elect(self, name: NodeId) -> ManualNode:
        """Make ``name`` time out first and let it win."""
        node = self.nodes[name]
        self.set_time(max(self.now_ns, node.raft.next_deadline_ns))
        node.tick()
        self.deliver()
        assert node.raft.is_leader, f"{name} did not win"
        return node

    def set_time(self, now_ns: int) -> None:
        """Move every node's clock, without ticking."""
        self.now_ns = max(now_ns, self.now_ns)
        for node in self.nodes.values():
            node.now_ns = max(node.now_ns, self.now_ns)

    def advance(self, duration_ms: int, step_ms: int = 10) -> None:
        """Let time pass: nodes tick at their deadlines and messages arrive at once."""
        end = self.now_ns + duration_ms * MS
        while self.now_ns < end:
            self.set_time(min(self.now_ns + step_ms * MS, end))
            for node in self.nodes.values():
                if node.raft.next_deadline_ns <= node.now_ns:
                    node.tick()
            self.deliver()

    def run_until(self, reached: Callable[[], bool], limit_ms: int = 10_000) -> None:
        """Message by message, and time passing when there are none, until ``reached``."""
        end = self.now_ns + limit_ms * MS
        while not reached():
            self.collect()
            if self.wire:
                to, message = self.wire.pop(0)
                if to in self.nodes and (message.sender, to) not in self.cuts:
                    self.nodes[to].receive(message)
                continue
            assert self.now_ns < end, "that was never reached"
            self.set_time(self.now_ns + 10 * MS)
            for node in self.nodes.values():
                if node.raft.next_deadline_ns <= node.now_ns:
                    node.tick()

    def leaders(self) -> list[NodeId]:
        return [name for name, node in self.nodes.items() if node.raft.is_leader]


def position_of(node: ManualNode) -> Position:
    """Last position of a node's accepted log."""
    log = node.raft._s.log
    return log.last_position
