"""What a node's disk holds: exactly that which survives a crash."""

from __future__ import annotations

from dataclasses import dataclass, field

from jepsen_like.sim.machine import ChainMachine, link
from raftcore.core.effects import Persist
from raftcore.core.membership import decode_configuration
from raftcore.core.raft import RecoveredState
from raftcore.core.types import (
    Configuration,
    Entry,
    EntryType,
    HardState,
    NodeId,
    Position,
    SnapshotMeta,
)


@dataclass(slots=True)
class StoredSnapshot:
    meta: SnapshotMeta
    data: bytes


@dataclass(slots=True)
class DurableImage:
    """Hard state, log and snapshots as they are on disk. ``entries[0]`` has ``first_index``."""

    base: Configuration
    hard_state: HardState = field(default_factory=HardState)
    before_first: Position = field(default_factory=lambda: Position(0, 0))
    entries: list[Entry] = field(default_factory=list)
    #: chain at every index from ``before_first`` on
    chains: list[bytes] = field(default_factory=lambda: [b""])
    snapshots: list[StoredSnapshot] = field(default_factory=list)
    commit_hint: int = 0
    #: every (term, vote) that was ever durable here
    votes: set[tuple[int, NodeId]] = field(default_factory=set)
    #: it was found to have gone back (D3): its node must not be asked to keep its promises
    quarantined: bool = False
    #: nothing vouches for its term and vote any more: FLOOR went back, too
    quarantine_final: bool = False
    #: what was acknowledged before it went back: its chains by index
    lost: dict[int, bytes] = field(default_factory=dict)

    @property
    def first_index(self) -> int:
        return self.before_first.index + 1

    @property
    def last_index(self) -> int:
        return self.before_first.index + len(self.entries)

    @property
    def snapshot(self) -> StoredSnapshot | None:
        return self.snapshots[-1] if self.snapshots else None

    def chain_at(self, index: int) -> bytes | None:
        """Chain of the log at ``index``; None if it is compacted away or not there."""
        at = index - self.before_first.index
        return self.chains[at] if 0 <= at < len(self.chains) else None

    def holds(self, index: int, chain: bytes) -> bool:
        """Whether the history up to ``index`` is durable here, as entries or in a snapshot."""
        here = self.chain_at(index)
        if here is not None:
            return here == chain
        return index < self.first_index

    def promised(self, index: int, chain: bytes) -> bool:
        """Whether it holds that, or has rightly acknowledged it and is in quarantine now."""
        return self.holds(index, chain) or (self.quarantined and self.lost.get(index) == chain)

    def roll_back(self, last_index: int) -> None:
        """Entries after ``last_index`` are gone. FLOOR notices, and restores term and vote."""
        for index in range(last_index + 1, self.last_index + 1):
            chain = self.chain_at(index)
            assert chain is not None, "what is cut away was there"
            self.lost[index] = chain
        self._truncate(last_index + 1)
        self.commit_hint = min(self.commit_hint, last_index)
        self.quarantined = True

    def end_quarantine(self) -> None:
        """From now on it answers for what it holds, and for nothing else."""
        self.quarantined = False
        self.lost.clear()

    def read(self, first: int, last: int, max_bytes: int) -> tuple[Entry, ...]:
        """A range of entries, at least one if there is any, about ``max_bytes``."""
        if first < self.first_index:
            return ()
        start = first - self.first_index
        found: list[Entry] = []
        size = 0
        for entry in self.entries[start : last - self.first_index + 1]:
            size += entry.size_bytes
            if found and size > max_bytes:
                break
            found.append(entry)
        return tuple(found)

    # -- writing --------------------------------------------------------------------------------

    def persist(self, write: Persist) -> None:
        if write.hard_state is not None:
            assert write.hard_state.term >= self.hard_state.term, "durable term went back (I3)"
            self.hard_state = write.hard_state
            if write.hard_state.vote is not None:
                self.votes.add((write.hard_state.term, write.hard_state.vote))
        if write.truncate_from is not None:
            self._truncate(write.truncate_from)
        for entry in write.entries:
            assert entry.index == self.last_index + 1, "a write that leaves a hole"
            self.entries.append(entry)
            self.chains.append(link(self.chains[-1], entry))
        self.commit_hint = max(self.commit_hint, write.commit_hint)

    def _truncate(self, from_index: int) -> None:
        keep = from_index - self.first_index
        assert keep >= 0, "truncation below the log"
        del self.entries[keep:]
        del self.chains[keep + 1 :]

    def compact(self, first_index: int) -> None:
        """Delete entries below ``first_index``."""
        drop = first_index - self.first_index
        if drop <= 0:
            return
        last = self.entries[drop - 1]
        self.before_first = Position(last.term, last.index)
        del self.entries[:drop], self.chains[:drop]

    def add_snapshot(self, snapshot: StoredSnapshot) -> int:
        """Keep the newest two; returns the first index after the older of them (O5)."""
        if self.snapshot is not None and snapshot.meta.index <= self.snapshot.meta.index:
            return self.snapshots[0].meta.index + 1
        self.snapshots = [*self.snapshots, snapshot][-2:]
        return self.snapshots[0].meta.index + 1

    def install(self, snapshot: StoredSnapshot) -> None:
        """A snapshot from the leader: keep the log if it matches there, else drop it (O6)."""
        meta = snapshot.meta
        at = meta.index - self.before_first.index
        matches = 0 < at <= len(self.entries) and self.entries[at - 1].term == meta.term
        self.snapshots = [*self.snapshots, snapshot][-2:]
        if matches:
            return
        self.snapshots = [snapshot]
        self.before_first = Position(meta.term, meta.index)
        self.entries, self.chains = [], [meta.chain]

    # -- starting -------------------------------------------------------------------------------

    def machine(self) -> ChainMachine:
        """The state machine as rebuilt from the newest snapshot."""
        if self.snapshot is None:
            return ChainMachine()
        return ChainMachine.from_bytes(self.snapshot.data)

    def recover(self, applied: int) -> RecoveredState:
        """What the core is started with, the machine being at ``applied``."""
        runs: list[tuple[int, int]] = []
        for entry in self.entries:
            if not runs or runs[-1][1] != entry.term:
                runs.append((entry.index, entry.term))
        # the configuration at the log's beginning: the older snapshot's, if there is one
        base_index, base = 0, self.base
        for stored in self.snapshots:
            if stored.meta.index <= self.before_first.index or base_index == 0:
                base_index, base = stored.meta.index, stored.meta.configuration
        configurations = tuple(
            (entry.index, decode_configuration(entry.data))
            for entry in self.entries
            if entry.type is EntryType.CONFIGURATION and entry.index > base_index
        )
        return RecoveredState(
            hard_state=self.hard_state,
            first_index=self.first_index,
            last_index=self.last_index,
            terms=tuple(runs),
            before_first=self.before_first,
            snapshot=self.snapshot.meta if self.snapshot else None,
            base_index=base_index,
            base_configuration=base,
            configurations=configurations,
            commit_hint=self.commit_hint,
            applied=applied,
            quarantined=self.quarantined,
            quarantine_final=self.quarantine_final,
        )
