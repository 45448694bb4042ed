"""One simulated node: runs a core, executes its effects, crashes and starts again.

Disk and state machine are a :class:`~jepsen_like.sim.scheduler.Worker` each, as the real node has a
thread for each. A message that names a write leaves in the same instant in which that write becomes
durable, and the ghost compares it with the disk at that moment.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jepsen_like.sim.configurations import Trail
from jepsen_like.sim.disk import DurableImage, StoredSnapshot
from jepsen_like.sim.ghost import BrokenInvariantError, require
from jepsen_like.sim.machine import ChainMachine, link
from jepsen_like.sim.scheduler import MS, Worker
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import CoreConfig
from raftcore.core.errors import PeerViolationError
from raftcore.core.membership import decode_configuration
from raftcore.core.raft import Raft
from raftcore.core.types import (
    Entry,
    EntryType,
    Member,
    NodeId,
    Position,
    SnapshotMeta,
    WriteMark,
)

if TYPE_CHECKING:
    from jepsen_like.sim.cluster import CoreCluster

#: Durable writes that one transaction may join (group commit).
GROUP_COMMIT = 8
#: Configurations are appended however much is uncommitted; a few of them at most.
CONFIGURATION_BYTES = 16 << 10
#: A reader goes away after this.
READ_PATIENCE_NS = 1000 * MS


@dataclass(frozen=True, slots=True)
class AcceptedWrite:
    """A proposal that the core took: where, and what it was."""

    index: int
    term: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Before:
    """What a core was before a step."""

    term: int
    leads: bool


@dataclass(slots=True)
class Clock:
    """A node's monotonic clock: rate times true time, plus an offset of this run."""

    rate: float
    offset_ns: int = 0

    def local(self, true_ns: int) -> int:
        return self.offset_ns + int(true_ns * self.rate)

    def true(self, local_ns: int) -> int:
        """The first true time at which the clock shows at least ``local_ns``."""
        true_ns = int((local_ns - self.offset_ns) / self.rate)
        while self.local(true_ns) < local_ns:
            true_ns += 1
        return true_ns


class SimNode:
    """A member of a :class:`~jepsen_like.sim.cluster.CoreCluster`."""

    def __init__(
        self, cluster: CoreCluster, config: CoreConfig, image: DurableImage, clock: Clock
    ) -> None:
        self.cluster = cluster
        self.config = config
        self.image = image
        self.clock = clock
        self.up = False
        self.paused = False
        self.run = 0
        self.reads_served = 0
        #: chain at every index of the accepted log, from 0 on, never compacted
        self.chains: list[bytes] = [b""]
        #: the configurations of the accepted log
        self.trail: Trail = []
        self.machine = ChainMachine()
        self.hung_until_ns = 0
        self._disk = Worker(cluster.scheduler, self._disk_time_ns, GROUP_COMMIT)
        self._apply = Worker(cluster.scheduler, cluster.apply_time_ns, 1)
        self._inbox: list[Callable[[int], ev.Event]] = []
        self._tick_at_ns = -1
        self.start()

    @property
    def name(self) -> NodeId:
        return self.config.node_id

    # -- life -----------------------------------------------------------------------------------

    def start(self, machine: ChainMachine | None = None) -> None:
        """Start from the disk; ``machine`` is what survived of the state machine's own store."""
        cluster, image = self.cluster, self.image
        cluster.ghost.restarted(self.name, image)
        self.run += 1
        self.up, self.paused = True, False
        rebuilt = image.machine()
        if machine is not None and rebuilt.index <= machine.index <= image.last_index:
            self.machine = machine.copy()
        else:
            self.machine = rebuilt
        known = [c.chain for c in cluster.ghost.committed[: image.before_first.index]]
        self.chains = known + list(image.chains)
        self._released = 0
        self._waiting: list[ef.Send] = []
        self._accepted: dict[int, AcceptedWrite] = {}
        self._proposed: dict[int, bytes] = {}
        self._reads: dict[int, int] = {}
        # As the real driver does: a late answer to a read of an earlier run must not find a read
        # of this run under its number.
        self._next_read = cluster.node_rng.getrandbits(62)
        self._received = b""
        self._last_snapshot = self.machine.index
        self._snapshotting = False
        self._inbox.clear()
        rng = random.Random(cluster.node_rng.getrandbits(64))  # noqa: S311 - reproducible
        self.clock.offset_ns = cluster.node_rng.randrange(10**12)
        self._changes: dict[int, tuple[Member, ...]] = {}
        recovered = image.recover(self.machine.index)
        self.trail = [
            (recovered.base_index, recovered.base_configuration), *recovered.configurations
        ]  # fmt: skip
        now = self.clock.local(cluster.scheduler.now_ns)
        self.raft = Raft(self.config, recovered, rng, now)
        self._commit = self.raft.commit_index
        self.peers = {m.node_id for m in self.raft.peers}
        self._schedule_tick()

    def _crash_if(self, run: int) -> None:
        if run == self.run and self.up and not self.cluster.healed:
            self.crash()

    def crash(self) -> None:
        """Lose everything that is not durable. A transaction in progress is cut anywhere."""
        self.up = False
        self.cluster.trace(f"crash {self.name}")
        rng = self.cluster.crash_rng
        jobs = self._disk.abandon()
        self._apply.abandon()
        # All of a transaction or nothing: effects of its completion are gone with the process.
        if jobs and rng.random() < 0.5:
            for job in jobs:
                job()
        survivor = self.machine.copy() if rng.random() < 0.5 else None
        delay = int(rng.expovariate(1 / 400) * MS)
        run = self.run
        self.cluster.scheduler.after(delay, lambda: self._restart(run, survivor))

    def _restart(self, run: int, survivor: ChainMachine | None) -> None:
        if run == self.run and not self.up:
            self.cluster.trace(f"start {self.name}")
            self.start(survivor)

    def _disk_time_ns(self) -> int:
        """A job that begins while the disk hangs waits for it."""
        hangs_ns = self.hung_until_ns - self.cluster.scheduler.now_ns
        return max(hangs_ns, 0) + self.cluster.disk_time_ns()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        """Continue with all that arrived meanwhile, late, before any timer."""
        if not self.paused:
            return
        self.paused = False
        inbox, self._inbox = self._inbox, []
        for make in inbox:
            self.give(make)
        if self.up:
            self._schedule_tick()

    # -- events ---------------------------------------------------------------------------------

    def give(self, make: Callable[[int], ev.Event]) -> None:
        """Hand an event to the core; ``make`` gets the node's own time."""
        if not self.up:
            return
        if self.paused:
            if len(self._inbox) < 10_000:
                self._inbox.append(make)
            return
        event = make(self.clock.local(self.cluster.scheduler.now_ns))
        self.cluster.trace(f"{self.name} {event!r}")
        before = Before(self.raft.term, self.raft.is_leader)
        try:
            effects = self.raft.step(event)
        except PeerViolationError as error:
            raise BrokenInvariantError("protocol", f"{self.name}: {error}") from error
        self._execute(effects, before)

    def _execute(self, effects: list[ef.Effect], before: Before) -> None:
        run = self.run
        self._latest = self.trail[-1][1]
        # What the step did to the accepted log and the commit index is a fact at once, whatever
        # becomes of its effects.
        for effect in effects:
            if isinstance(effect, ef.Persist):
                self._accept(effect, before)
        self._check_step(before)
        for effect in effects:
            if self.cluster.crashes_here():
                self.crash()
                return
            _EFFECTS[type(effect)](self, effect)
            if self.run != run or not self.up:
                return
        self._schedule_tick()

    def _schedule_tick(self) -> None:
        true_ns = self.clock.true(self.raft.next_deadline_ns)
        if true_ns == self._tick_at_ns and true_ns > self.cluster.scheduler.now_ns:
            return
        self._tick_at_ns = true_ns
        run = self.run

        def tick() -> None:
            if run == self.run and self.up and true_ns == self._tick_at_ns and not self.paused:
                self._tick_at_ns = -1
                self.give(ev.Tick)

        self.cluster.scheduler.at(true_ns, tick)

    # -- what a step changed --------------------------------------------------------------------

    def _accept(self, write: ef.Persist, before: Before) -> None:
        if write.truncate_from is not None:
            still = before.leads and self.raft.is_leader
            require(not still, "I5", f"{self.name} truncates its log while it leads")
            del self.chains[write.truncate_from :]
            self.trail = [item for item in self.trail if item[0] < write.truncate_from]
        for entry in write.entries:
            self.chains.append(link(self.chains[-1], entry))
            self.cluster.ghost.appended(self.name, entry.index, entry.term, self.chains[-1])
            if entry.type is EntryType.CONFIGURATION:
                self._accept_configuration(entry)

    def _accept_configuration(self, entry: Entry) -> None:
        ghost, configuration = self.cluster.ghost, decode_configuration(entry.data)
        configurations = ghost.configurations
        if self.raft.is_leader and entry.term == self.raft.term:
            committed = self.raft.commit_index
            own = ghost.prefixes.get((committed, entry.term)) == self.chains[committed]
            configurations.leader_appends(self.name, self.trail, committed, own, entry.index)
            self.cluster.count("configurations appended")
        chain = self.chains[-1]
        configurations.appended(self.name, self.trail, entry.index, configuration, chain)
        self.trail.append((entry.index, configuration))

    @property
    def accepted_position(self) -> Position:
        return self.raft.last_position

    @property
    def durable_position(self) -> Position:
        entries = self.image.entries
        return Position(entries[-1].term, entries[-1].index) if entries else self.image.before_first

    def lacks(self, index: int, chain: bytes) -> bool:
        return self.chain_of(index) != chain

    def chain_of(self, index: int) -> bytes | None:
        return self.chains[index] if index < len(self.chains) else None

    def _check_step(self, before: Before) -> None:
        ghost, name, raft = self.cluster.ghost, self.name, self.raft
        require(raft.term >= before.term, "I3", f"{name} goes back to term {raft.term}")
        if raft.is_leader and (not before.leads or before.term != raft.term):
            ghost.became_leader(name, raft.term, self.chain_of)
            self.cluster.check_elected(self, raft.term)
            self.cluster.count("elections")
            if self.cluster.crashes_soon():
                run = self.run
                delay = int(self.cluster.crash_rng.expovariate(1 / 80) * MS)
                self.cluster.scheduler.after(delay, lambda: self._crash_if(run))
        if raft.commit_index != self._commit:
            self._check_commit(before)
        require(raft.applied_index <= raft.durable_index, "I10", f"{name} applied too far")
        self._check_bounds()

    def _check_commit(self, before: Before) -> None:
        ghost, name, index = self.cluster.ghost, self.name, self.raft.commit_index
        term, last_index = self.raft.term, self.raft.last_position.index
        require(index > self._commit, "I8", f"{name} goes back to commit {index}")
        require(index <= last_index, "I8", f"{name} commits {index} beyond its log")
        require(len(self.chains) == last_index + 1, "harness", f"{name}: the ghost lost its log")
        # A leader that its own commit removes steps down in the same step.
        led = self.raft.is_leader or (before.leads and before.term == term)
        if not led:
            ghost.follower_committed(name, index, self.chain_of(index))
        elif index > ghost.commit_index:
            self.cluster.check_commit_quorum(self, self._latest, index, term)
            for at in range(ghost.commit_index + 1, index + 1):
                ghost.leader_committed(at, term, self.chains[at])
        else:
            ghost.leader_committed(index, term, self.chains[index])
        self._commit = index

    def _check_bounds(self) -> None:
        c, name, raft = self.config, self.name, self.raft
        inflight, uncommitted = raft.inflight_messages, raft.uncommitted_bytes
        # one question more than the window holds
        within = inflight <= c.max_inflight_messages + 1
        require(within, "I20", f"{name} has {inflight} messages in flight")
        largest = self.cluster.options.entry_bytes + 64 + CONFIGURATION_BYTES
        within = uncommitted <= c.max_uncommitted_bytes + largest
        require(within, "I20", f"{name} holds {uncommitted} uncommitted bytes")
        require(raft.pending_reads <= 2 * c.max_pending_reads, "I20", "reads pile up")

    # -- effects --------------------------------------------------------------------------------

    def _persist(self, effect: ef.Persist) -> None:
        run = self.run

        def commit() -> None:
            self.image.persist(effect)
            if self.up and self.run == run:
                self._made_durable(effect.mark)

        self._disk.submit(commit)

    def _made_durable(self, mark: WriteMark) -> None:
        self._released = mark.sequence
        ready = [s for s in self._waiting if s.after and s.after.sequence <= mark.sequence]
        self._waiting = [s for s in self._waiting if s.after and s.after.sequence > mark.sequence]
        for send in ready:
            self._leave(send)
        self.give(lambda now: ev.WriteDurable(now, mark))

    def _send(self, effect: ef.Send) -> None:
        known = effect.to in self.peers or isinstance(effect.message, _TO_GUESTS)
        require(known, "protocol", f"{self.name} speaks to {effect.to}, which is no peer")
        if effect.after is not None and effect.after.sequence > self._released:
            self._waiting.append(effect)
        else:
            self._leave(effect)

    def _leave(self, send: ef.Send) -> None:
        cluster = self.cluster
        cluster.ghost.message_sent(self.name, send.to, send.message, self.image, cluster)
        cluster.network.send(send.to, send.message)

    def _hand_over(self, effect: ef.Apply) -> None:
        run = self.run

        def apply() -> None:
            if self.run != run or not self.up:
                return
            for entry in effect.entries:
                require(entry.index == self.machine.index + 1, "I10", f"{self.name} skips entries")
                require(
                    self.image.last_index >= entry.index,
                    "I10",
                    f"{self.name} applies {entry.index} before it is durable",
                )
                self.machine.apply(entry)
                self.cluster.ghost.applied(self.name, entry.index, self.machine.chain)
                accepted = self._accepted.pop(entry.index, None)
                if accepted is not None and accepted.term == entry.term:
                    require(accepted.data == entry.data, "I7", "another command under one name")
                    self.cluster.ghost.acknowledge(entry.index, self.machine.chain)
                    self.cluster.count("writes acknowledged")
            index = self.machine.index
            self.give(lambda now: ev.Applied(now, index))
            self._maybe_snapshot()

        self._apply.submit(apply)

    def _read_entries(self, effect: ef.ReadEntries) -> None:
        run = self.run

        def read() -> None:
            if self.run == run and self.up:
                found = self.image.read(effect.first, effect.last, effect.max_bytes)
                self.give(lambda now: ev.EntriesRead(now, effect.request_id, found))

        self._disk.submit(read)

    # -- snapshots ------------------------------------------------------------------------------

    def _maybe_snapshot(self) -> None:
        every = self.cluster.options.snapshot_every
        if not every or self._snapshotting or self.machine.index - self._last_snapshot < every:
            return
        self.cluster.count("snapshots taken")
        self._snapshotting = True
        self._last_snapshot = self.machine.index
        data = self.machine.to_bytes()
        meta = SnapshotMeta(
            index=self.machine.index,
            term=self.machine.term,
            chain=self.machine.chain,
            configuration=self.raft.configuration_at(self.machine.index),
            size_bytes=len(data),
            digest=hashlib.sha256(data).digest(),
        )
        run = self.run

        def store() -> None:
            self.cluster.ghost.snapshot(self.name, meta.index, meta.chain)
            self.cluster.ghost.configurations.snapshot(self.name, meta.index, meta.configuration)
            keep_from = self.image.add_snapshot(StoredSnapshot(meta, data))
            if self.run == run and self.up:
                self._snapshotting = False
                self.give(lambda now: ev.SnapshotTaken(now, meta, keep_from))

        self._disk.submit(store)

    def _compact(self, effect: ef.Compact) -> None:
        self._disk.submit(lambda: self.image.compact(effect.first_index))

    def _read_chunk(self, effect: ef.ReadSnapshotChunk) -> None:
        run = self.run

        def read() -> None:
            if self.run != run or not self.up:
                return
            data = b""
            for stored in self.image.snapshots:
                if stored.meta == effect.meta:
                    data = stored.data[effect.offset : effect.offset + effect.max_bytes]
            self.give(
                lambda now: ev.SnapshotChunkRead(now, effect.to, effect.meta, effect.offset, data)
            )

        self._disk.submit(read)

    def _store_chunk(self, effect: ef.StoreSnapshotChunk) -> None:
        run = self.run

        def store() -> None:
            if self.run != run or not self.up:
                return  # a part of a file does not survive
            require(len(self._received) >= effect.offset, "I16", "a received snapshot with a hole")
            self._received = self._received[: effect.offset] + effect.data
            if len(self._received) < effect.meta.size_bytes:
                stored = len(self._received)
                self.give(lambda now: ev.SnapshotChunkStored(now, effect.meta, stored))
            else:
                self._install(effect.meta)

        self._disk.submit(store)

    def _install(self, meta: SnapshotMeta) -> None:
        data, run = self._received, self.run
        if hashlib.sha256(data).digest() != meta.digest:
            self.give(lambda now: ev.SnapshotInstalled(now, meta, ok=False))
            return
        self.cluster.ghost.snapshot(self.name, meta.index, meta.chain)
        self.image.install(StoredSnapshot(meta, data))

        def rebuild() -> None:
            if self.run != run or not self.up:
                return
            require(meta.index > self.machine.index, "I16", f"{self.name} goes back to a snapshot")
            self.machine = ChainMachine.from_bytes(data)
            self._last_snapshot = meta.index
            if self.chain_of(meta.index) != meta.chain:
                committed = self.cluster.ghost.committed
                self.chains = [c.chain for c in committed[: meta.index + 1]]
                self.trail = [(meta.index, meta.configuration)]
            self.cluster.count("snapshots installed")
            self.give(lambda now: ev.SnapshotInstalled(now, meta))

        self._apply.submit(rebuild)

    # -- clients --------------------------------------------------------------------------------

    def propose(self, token: int, data: bytes) -> None:
        self._proposed[token] = data
        proposal = ev.Proposal(token, data)
        self.give(lambda now: ev.Propose(now, (proposal,)))

    def _accepted_proposal(self, effect: ef.ProposalAccepted) -> None:
        data = self._proposed.pop(effect.token)
        self._accepted[effect.index] = AcceptedWrite(effect.index, effect.term, data)

    def _refused_proposal(self, effect: ef.ProposalRefused) -> None:
        self._proposed.pop(effect.token)
        self.cluster.count("writes refused")

    @property
    def reads_pending(self) -> int:
        return len(self._reads)

    def read(self, *, by_lease: bool = False) -> None:
        """Ask for a linearizable read; it must see all that is committed at this moment."""
        if self.up:
            read_id = self._next_read
            self._next_read += 1
            self._reads[read_id] = self.cluster.ghost.commit_index
            if by_lease and self.raft.lease_valid_until_ns is not None:
                self.cluster.count("reads asked for by lease")
            self.give(lambda now: ev.ReadRequested(now, read_id, by_lease))
            run = self.run
            self.cluster.scheduler.after(READ_PATIENCE_NS, lambda: self._abandon(run, read_id))

    def _abandon(self, run: int, read_id: int) -> None:
        if self.run == run and self._reads.pop(read_id, None) is not None:
            self.give(lambda now: ev.ReadAbandoned(now, read_id))

    def _released_read(self, effect: ef.ReadReleased) -> None:
        floor = self._reads.pop(effect.read_id, 0)  # 0: its reader has gone meanwhile
        self.cluster.ghost.read_served(self.name, self.machine.index, floor)
        self.cluster.count("reads served")
        self.reads_served += 1

    def _refused_read(self, effect: ef.ReadRefused) -> None:
        self._reads.pop(effect.read_id, None)
        self.cluster.count("reads refused")

    def _end_quarantine(self, _effect: ef.EndQuarantine) -> None:
        run = self.run

        def end() -> None:
            if self.run == run and self.up:
                self.image.end_quarantine()
                self.cluster.count("quarantines ended")
                self.give(ev.QuarantineEnded)

        self._disk.submit(end)

    def _regressed(self, effect: ef.FollowerRegressed) -> None:
        """In a run in which every disk that goes back is found out, the alarm is a false one."""
        raise BrokenInvariantError("alarm", f"{self.name} says that {effect.peer} went back")

    # -- members --------------------------------------------------------------------------------

    def change(self, token: int, version: int, members: tuple[Member, ...]) -> None:
        self._changes[token] = members
        lease = self.raft.configuration.lease
        self.give(lambda now: ev.MembershipRequested(now, token, version, members, lease))

    def _finished_change(self, effect: ef.MembershipFinished) -> None:
        self.cluster.count(f"change {effect.outcome.value}")
        members = self._changes.pop(effect.token)
        if effect.outcome is ef.MembershipOutcome.DONE:
            done = any(c.members == members for _, c in self.cluster.ghost.configurations.committed)
            require(done, "I14", f"{self.name} says that {members} are members")

    def _changed_peers(self, effect: ef.PeersChanged) -> None:
        self.peers = {m.node_id for m in effect.peers}

    def _removed(self, effect: ef.Removed) -> None:
        self.cluster.count("removals learned")
        now = self.cluster.ghost.configurations.at(self.cluster.ghost.commit_index)
        require(now.member(self.name) is None, "I14", f"{self.name} believes to be removed")
        require(effect.index <= self.raft.commit_index, "I14", f"{self.name} was not removed yet")

    def _note(self, effect: ef.Effect) -> None:
        self.cluster.count(type(effect).__name__)


#: What goes back over the other's own connection, or to a leader that is not known as a peer yet.
_TO_GUESTS = (
    msg.VoteReply, msg.AppendReply, msg.HeartbeatReply, msg.SnapshotReply,
    msg.ReadIndexReply, msg.ReadIndexRequest,
)  # fmt: skip

_EFFECTS: dict[type[ef.Effect], Callable[[SimNode, Any], None]] = {
    ef.Persist: SimNode._persist,
    ef.Send: SimNode._send,
    ef.Apply: SimNode._hand_over,
    ef.ReadEntries: SimNode._read_entries,
    ef.ReadReleased: SimNode._released_read,
    ef.ReadRefused: SimNode._refused_read,
    ef.ProposalAccepted: SimNode._accepted_proposal,
    ef.ProposalRefused: SimNode._refused_proposal,
    ef.LeadershipChanged: SimNode._note,
    ef.ConfigurationChanged: SimNode._note,
    ef.Compact: SimNode._compact,
    ef.StoreSnapshotChunk: SimNode._store_chunk,
    ef.ReadSnapshotChunk: SimNode._read_chunk,
    ef.TransferFinished: SimNode._note,
    ef.GaveWay: SimNode._note,
    ef.FollowerRegressed: SimNode._regressed,
    ef.EndQuarantine: SimNode._end_quarantine,
    ef.MembershipFinished: SimNode._finished_change,
    ef.PeersChanged: SimNode._changed_peers,
    ef.Removed: SimNode._removed,
}
