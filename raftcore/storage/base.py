"""The durability contract: what raftcore asks of a store.

Two kinds of calls. *Writer calls* (``persist``, ``compact``, ``save_snapshot_pointer`` ...) are
made from one writer thread only, in order; each returns only when its effect is durable. *Reader
calls* (``read``, ``chain_at``, snapshot reads) may come from other threads and see the last
returned write.

Any exception that is not listed is final: the node latches, stops asserting durability and exits
(rule 46). A store must never retry a failed sync.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from raftcore.core.types import Configuration, Entry, HardState, Position, SnapshotMeta


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a data directory belongs to. Written once, never changed."""

    cluster_id: str
    node_id: str
    incarnation: bytes


@dataclass(frozen=True, slots=True)
class Write:
    """One atomic write, as a :class:`~raftcore.core.effects.Persist` asks for it."""

    hard_state: HardState | None
    truncate_from: int | None
    entries: tuple[Entry, ...]
    commit_hint: int = 0


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a store holds when it is opened.

    ``terms`` are runs ``(first_index, term)`` covering ``first_index..last_index``, ascending.
    ``configurations`` are the configuration entries in the log *after* the snapshot, in order, with
    their indexes. ``snapshot`` None means that the log begins at index 1. When there is a snapshot,
    the log holds ``first_index..last_index`` with ``first_index <= snapshot.index + 1``; an empty
    log is ``first_index == last_index + 1``.
    """

    hard_state: HardState
    first_index: int
    last_index: int
    terms: tuple[tuple[int, int], ...]
    snapshot: SnapshotMeta | None
    configurations: tuple[tuple[int, Configuration], ...]
    commit_hint: int
    #: Position just before ``first_index`` (compacted), for consistency checks there.
    before_first: Position = field(default_factory=lambda: Position(0, 0))
    #: Why this node is in quarantine (D3), or None. ``hard_state`` is then at least the FLOOR's.
    quarantine: str | None = None


class SnapshotWriter(Protocol):
    """A snapshot file being written (``.snap.tmp``); used by one thread at a time."""

    def write(self, record: bytes) -> None: ...

    def finish(self) -> SnapshotMeta:
        """Footer, flush, fsync, rename, fsync of the directory, re-read and verify (O5)."""
        ...

    def abort(self) -> None: ...


class SnapshotReceiver(Protocol):
    """A snapshot file arriving in chunks from a leader; used by one thread at a time."""

    def write(self, offset: int, data: bytes) -> int:
        """Store bytes at ``offset``; returns the next offset wanted. Repeats are harmless."""
        ...

    def finish(self) -> bool:
        """Make it durable and verify size, digest and every record; False if it does not verify."""
        ...

    def abort(self) -> None: ...


class LogStorage(Protocol):
    """Log, hard state and snapshots of one node."""

    @property
    def identity(self) -> Identity: ...

    # -- reading ------------------------------------------------------------------------------

    def load(self) -> Recovered:
        """Everything the core needs to start; called once, after open and verification."""
        ...

    def read(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """Entries ``first..last`` in order, stopping after about ``max_bytes`` (at least one).

        Empty if ``first`` has been compacted or is not there. Each entry's checksum is verified.
        """
        ...

    def chain_at(self, index: int) -> bytes:
        """The log's chain hash at ``index``: of an entry present, or of the newest snapshot."""
        ...

    def newest_snapshot(self) -> SnapshotMeta | None: ...

    def read_snapshot_chunk(self, meta: SnapshotMeta, offset: int, max_bytes: int) -> bytes:
        """File bytes of that snapshot, empty if it is no longer there.

        A read at offset 0 begins a transfer and verifies the whole file against ``meta.digest``:
        LogCorruptError, final, if it is damaged. At the next start the older snapshot is used.
        """
        ...

    def snapshot_records(self, meta: SnapshotMeta) -> Iterator[bytes]:
        """The records of that snapshot, each verified against its checksum."""
        ...

    def free_bytes(self) -> int:
        """Space left for this store, so that writes can be refused before the disk is full."""
        ...

    # -- writing (writer thread) ---------------------------------------------------------------

    def persist(self, writes: Sequence[Write]) -> None:
        """Commit all ``writes``, in order, in one durable transaction."""
        ...

    def compact(self, first_index: int, max_entries: int = 1000) -> bool:
        """Delete entries below ``first_index``, at most ``max_entries``; True when all are gone."""
        ...

    def begin_snapshot(
        self, index: int, term: int, chain: bytes, configuration: Configuration
    ) -> SnapshotWriter: ...

    def adopt_snapshot(self, meta: SnapshotMeta) -> int:
        """Point to a finished local snapshot, drop all but the last two files.

        Returns the first index that must stay in the log for the older kept snapshot.
        """
        ...

    def receive_snapshot(self, meta: SnapshotMeta) -> SnapshotReceiver: ...

    def install_snapshot(self, meta: SnapshotMeta) -> None:
        """Point to a finished received snapshot and settle the log with it, in one transaction.

        If the log holds an entry at (``meta.index``, ``meta.term``) the suffix stays, otherwise the
        whole log is dropped (rule 44).
        """
        ...

    def end_quarantine(self) -> None:
        """Record durably that the quarantine is over (D3); harmless if there is none."""
        ...

    def maintain(self) -> None:
        """What is due beside the writes: called about once a second, also when nothing is written.

        Brings FLOOR up to date, clears stale readers each minute.
        """
        ...

    def close(self) -> None: ...
