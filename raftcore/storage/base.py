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
    #: Nothing vouches for ``hard_state`` as it was: this quarantine has no end (D3).
    quarantine_final: bool = False


@dataclass(frozen=True, slots=True)
class ScrubProgress:
    """How far the background check of what is stored has come, in this run.

    ``entries`` and ``snapshots`` were verified so far, ``passes`` is how often everything was;
    ``finished`` says that the step just made was the last of a pass.
    """

    entries: int = 0
    snapshots: int = 0
    passes: int = 0
    finished: bool = False


@dataclass(frozen=True, slots=True)
class StorageStats:
    """Figures of one store since it was opened; sizes as of the last :meth:`LogStorage.maintain`.

    ``commit_seconds`` is the time spent in the commits, their syncs included. ``used_bytes`` of at
    most ``limit_bytes`` hold something, ``free_bytes`` of the file wait to be used again.
    """

    commits: int = 0
    commit_seconds: float = 0.0
    floor_writes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0
    map_bytes: int = 0
    limit_bytes: int = 0
    runs: int = 0
    quarantine: str | None = None
    scrub: ScrubProgress = field(default_factory=ScrubProgress)


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

    def enter_quarantine(self, reason: str, applied: Position | None = None) -> bool:
        """Record durably that this node lacks something it had said was durable (D3).

        ``applied`` is what shows it: what the state machine has applied and the log does not hold.
        True if the quarantine has no end: nothing vouches for term and vote. One that has begun
        keeps its end only if the store knew of this very loss.

        May be called by whoever recovers, before there is a writer. Harmless if there is one.

        Raises:
            LogCorruptError: there is no other voter that could tell what is lost; nothing happened.
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

    # -- watching (any thread, one at a time) ---------------------------------------------------

    def scrub(self, max_entries: int = 1000) -> ScrubProgress:
        """Verify the next part of what is stored: entries, then snapshot files, then anew.

        A step costs about as much as reading ``max_entries`` small entries.

        Raises:
            LogCorruptError: something is damaged; final. The next start goes on in quarantine.
        """
        ...

    def stats(self) -> StorageStats:
        """Figures for metrics; from any thread."""
        ...

    def close(self) -> None: ...
