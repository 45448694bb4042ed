"""The same contract in memory, for tests and simulation. Never for data that matters.

A :class:`MemoryDisk` is what survives; a :class:`MemoryLog` is one run of a process on it. A crash
is opening another log on the same disk, and a disk can be copied, made to fail, or told that a
failing write nevertheless reached it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from raftcore.core.membership import decode_configuration, encode_configuration
from raftcore.core.types import (
    Configuration,
    Entry,
    EntryType,
    HardState,
    Position,
    SnapshotMeta,
)
from raftcore.encoding import decode_entry
from raftcore.errors import GapError, LogCorruptError, StorageError
from raftcore.storage.base import Identity, Recovered, ScrubProgress, StorageStats, Write
from raftcore.storage.floor import count_other_voters
from raftcore.storage.latch import Latch, WriterThread
from raftcore.storage.plan import (
    Batch,
    Link,
    Shape,
    check_value,
    plan_batch,
    shape_after_compaction,
    shape_after_install,
    split_value,
)
from raftcore.storage.snapshot_format import SnapshotDecoder, SnapshotEncoder, SnapshotHeader

KEPT_SNAPSHOTS = 2


@dataclass
class MemoryDisk:
    """What survives a crash of the :class:`MemoryLog` that uses it."""

    identity: Identity
    shape: Shape = field(default_factory=Shape)
    values: list[bytes] = field(default_factory=list)  #: of ``shape.first_index`` and on
    #: Finished snapshot files by (index, term).
    snapshots: dict[tuple[int, int], tuple[SnapshotMeta, bytes]] = field(default_factory=dict)
    #: Why the node is in quarantine, or None.
    quarantine: str | None = None
    #: It has an end. Only a test says so: there is no FLOOR here that could vouch for anything.
    vouched: bool = False
    #: What :meth:`MemoryLog.free_bytes` says.
    free_bytes: int = 1 << 40
    #: The next write fails with this error ...
    failure: StorageError | None = None
    #: ... and is nevertheless found on the disk after a crash.
    failed_write_survives: bool = False

    def copy(self) -> MemoryDisk:
        """The disk as it is now; independent of later writes."""
        return replace(self, values=list(self.values), snapshots=dict(self.snapshots))

    @classmethod
    def bootstrapped(cls, node_id: str, configuration: Configuration) -> MemoryDisk:
        """A disk as a bootstrap leaves it: entry 1 is the configuration, in term 1, committed."""
        member = configuration.member(node_id)
        assert member is not None, "a founder is in the bootstrap configuration"
        disk = cls(Identity(configuration.cluster_id, node_id, member.incarnation))
        entry = Entry(1, 1, EntryType.CONFIGURATION, encode_configuration(configuration))
        disk.apply(plan_batch(disk.shape, [Write(HardState(1), None, (entry,), 1)], disk.link_at))
        return disk

    @classmethod
    def joining(cls, node_id: str, cluster_id: str, incarnation: bytes) -> MemoryDisk:
        """A disk of a node that is to join a cluster: it holds nothing."""
        return cls(Identity(cluster_id, node_id, incarnation))

    def configuration(self) -> Configuration:
        """The configuration in force at the end of the log."""
        shape = self.shape
        for index in range(shape.last_index, shape.snapshot_index, -1):
            entry, _ = self.entry_at(index)
            if entry.type is EntryType.CONFIGURATION:
                return decode_configuration(entry.data)
        if shape.snapshot is not None:
            return shape.snapshot.configuration
        return Configuration(self.identity.cluster_id, ())

    def apply(self, batch: Batch) -> None:
        """Make the net change of some writes."""
        if batch.truncate_from is not None:
            del self.values[batch.truncate_from - self.shape.first_index :]
        self.values.extend(batch.values)
        self.shape = batch.after

    def entry_at(self, index: int) -> tuple[Entry, bytes]:
        """The entry there and the chain after it, verified."""
        value = self.values[index - self.shape.first_index]
        if not check_value(value):
            raise LogCorruptError(f"checksum of entry {index} does not match")
        canonical, chain = split_value(value)
        return decode_entry(canonical), chain

    def link_at(self, index: int) -> Link:
        """The place of an index that is in the log, or just before it."""
        if index == self.shape.before.index:
            return self.shape.before
        entry, chain = self.entry_at(index)
        return Link(index, entry.term, chain)

    def holds(self, index: int) -> bool:
        return self.shape.first_index <= index <= self.shape.last_index


class MemoryLog:
    """A :class:`~raftcore.storage.base.LogStorage` on a :class:`MemoryDisk`."""

    def __init__(self, disk: MemoryDisk) -> None:
        self.disk = disk
        self._latch = Latch()
        self._writer = WriterThread(allow_loop_thread=True)
        self._loaded = False
        self._commits = 0
        self._scrub_next = 1
        self._scrubbed = ScrubProgress()

    # -- reading --------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        return self.disk.identity

    def load(self) -> Recovered:
        """See :meth:`LogStorage.load`."""
        self._latch.check()
        assert not self._loaded, "load() is called once, right after open"
        self._loaded = True
        shape = self.disk.shape
        if shape.first_index > shape.snapshot_index + 1:
            raise self._latch.trip(GapError(f"the log begins at {shape.first_index}"))
        terms: list[tuple[int, int]] = []
        configurations: list[tuple[int, Configuration]] = []
        for index in range(shape.first_index, shape.last_index + 1):
            entry = self._entry_at(index)
            if not terms or terms[-1][1] != entry.term:
                terms.append((index, entry.term))
            if entry.type is EntryType.CONFIGURATION and index > shape.snapshot_index:
                configurations.append((index, decode_configuration(entry.data)))
        return Recovered(
            hard_state=shape.hard_state,
            first_index=shape.first_index,
            last_index=shape.last_index,
            terms=tuple(terms),
            snapshot=shape.snapshot,
            configurations=tuple(configurations),
            commit_hint=shape.commit_hint,
            before_first=shape.before.position,
            quarantine=self.disk.quarantine,
            quarantine_final=self.disk.quarantine is not None and not self.disk.vouched,
        )

    def read(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """See :meth:`LogStorage.read`."""
        self._latch.check()
        entries: list[Entry] = []
        size_bytes = 0
        for index in range(first, last + 1):
            if not self.disk.holds(index):
                break
            entry = self._entry_at(index)
            size_bytes += entry.size_bytes
            if entries and size_bytes > max_bytes:
                break
            entries.append(entry)
        return entries

    def _entry_at(self, index: int) -> Entry:
        try:
            return self.disk.entry_at(index)[0]
        except LogCorruptError as error:
            raise self._latch.trip(error) from None

    def chain_at(self, index: int) -> bytes:
        """See :meth:`LogStorage.chain_at`."""
        self._latch.check()
        shape = self.disk.shape
        if self.disk.holds(index) or index == shape.before.index:
            return self.disk.link_at(index).chain
        if shape.snapshot is not None and shape.snapshot.index == index:
            return shape.snapshot.chain
        raise LookupError(f"the log holds nothing at {index}")

    def free_bytes(self) -> int:
        """See :meth:`LogStorage.free_bytes`."""
        return self.disk.free_bytes

    def newest_snapshot(self) -> SnapshotMeta | None:
        self._latch.check()
        return self.disk.shape.snapshot

    def read_snapshot_chunk(self, meta: SnapshotMeta, offset: int, max_bytes: int) -> bytes:
        """See :meth:`LogStorage.read_snapshot_chunk`."""
        self._latch.check()
        found, raw = self.disk.snapshots.get((meta.index, meta.term), (None, b""))
        if found != meta:
            return b""
        if offset == 0 and hashlib.sha256(raw).digest() != meta.digest:
            raise self._latch.trip(LogCorruptError(f"snapshot {meta.index} is damaged"))
        return raw[offset : offset + max_bytes]

    def snapshot_records(self, meta: SnapshotMeta) -> Iterator[bytes]:
        """See :meth:`LogStorage.snapshot_records`."""
        self._latch.check()
        _, raw = self.disk.snapshots[meta.index, meta.term]
        try:
            yield from SnapshotDecoder(io.BytesIO(raw)).records()
        except LogCorruptError as error:
            raise self._latch.trip(error) from None

    # -- writing --------------------------------------------------------------------------------

    def persist(self, writes: Sequence[Write]) -> None:
        """See :meth:`LogStorage.persist`."""
        self._begin_write()
        batch = plan_batch(self.disk.shape, writes, self.disk.link_at)
        if self.disk.failure is not None:
            failure, self.disk.failure = self.disk.failure, None
            if self.disk.failed_write_survives:
                self.disk.apply(batch)
            raise self._latch.trip(failure)
        self.disk.apply(batch)
        self._commits += 1

    def compact(self, first_index: int, max_entries: int = 1000) -> bool:
        """See :meth:`LogStorage.compact`."""
        self._begin_write()
        disk, shape = self.disk, self.disk.shape
        assert first_index <= shape.snapshot_index + 1, "compaction beyond the snapshot"
        assert max_entries > 0, "compaction of nothing would never end"
        target = min(first_index, shape.first_index + max_entries)
        if target <= shape.first_index:
            return True
        after = shape_after_compaction(shape, disk.link_at(target - 1))
        del disk.values[: target - shape.first_index]
        disk.shape = after
        return target >= first_index

    def begin_snapshot(
        self, index: int, term: int, chain: bytes, configuration: Configuration
    ) -> MemorySnapshotWriter:
        """See :meth:`LogStorage.begin_snapshot`. One overtaken by a newer is not adopted later."""
        self._latch.check()
        return MemorySnapshotWriter(self.disk, SnapshotHeader(index, term, chain, configuration))

    def adopt_snapshot(self, meta: SnapshotMeta) -> int:
        """See :meth:`LogStorage.adopt_snapshot`. A snapshot that is no longer newer is removed."""
        self._begin_write()
        disk = self.disk
        if meta.index > disk.shape.snapshot_index:
            meta, _ = disk.snapshots[meta.index, meta.term]
            assert meta.index <= disk.shape.last_index, "a local snapshot beyond the log"
            link = disk.link_at(meta.index)
            if (link.term, link.chain) != (meta.term, meta.chain):
                raise self._latch.trip(LogCorruptError("a snapshot of another history"))
            disk.shape = replace(disk.shape, snapshot=meta)
        return self._settle_snapshots()

    def receive_snapshot(self, meta: SnapshotMeta) -> MemorySnapshotReceiver:
        """See :meth:`LogStorage.receive_snapshot`. One overtaken by a newer changes nothing."""
        self._latch.check()
        return MemorySnapshotReceiver(self.disk, meta)

    def install_snapshot(self, meta: SnapshotMeta) -> None:
        """See :meth:`LogStorage.install_snapshot`. One that is no longer newer changes nothing."""
        self._begin_write()
        disk, shape = self.disk, self.disk.shape
        if meta.index > shape.snapshot_index:
            finished, _ = disk.snapshots[meta.index, meta.term]
            keep_log = self._log_matches(finished)
            disk.shape = shape_after_install(shape, finished, keep_log=keep_log)
            if not keep_log:
                disk.values.clear()
        self._settle_snapshots()

    def _log_matches(self, meta: SnapshotMeta) -> bool:
        shape = self.disk.shape
        if not shape.before.index <= meta.index <= shape.last_index:
            return False
        link = self.disk.link_at(meta.index)
        if link.term == meta.term and link.chain != meta.chain:
            raise self._latch.trip(LogCorruptError("a snapshot of another history"))
        return link.term == meta.term

    def _settle_snapshots(self) -> int:
        shape, snapshots = self.disk.shape, self.disk.snapshots
        older = sorted((p for p in snapshots if p[0] < shape.snapshot_index), reverse=True)
        kept = older[: KEPT_SNAPSHOTS - 1]
        for position in older[len(kept) :]:
            del snapshots[position]
        return max([shape.first_index, *(index + 1 for index, _ in kept)])

    def _begin_write(self) -> None:
        self._writer.check()
        self._latch.check()

    def enter_quarantine(self, reason: str, applied: Position | None = None) -> bool:
        """See :meth:`LogStorage.enter_quarantine`."""
        del applied  # there is no FLOOR that could have noticed it
        self._latch.check()
        self.disk.vouched = False
        if self.disk.quarantine is not None:
            return True
        if not count_other_voters(self.disk.configuration(), self.identity.node_id):
            raise LogCorruptError(reason)
        self.disk.quarantine = reason
        return True

    def end_quarantine(self) -> None:
        """See :meth:`LogStorage.end_quarantine`."""
        self._begin_write()
        self.disk.quarantine = None

    def maintain(self) -> None:
        """See :meth:`LogStorage.maintain`; memory needs none."""
        self._begin_write()

    def scrub(self, max_entries: int = 1000) -> ScrubProgress:
        """See :meth:`LogStorage.scrub`."""
        self._latch.check()
        disk, progress = self.disk, replace(self._scrubbed, finished=False)
        first = max(self._scrub_next, disk.shape.first_index)
        last = min(disk.shape.last_index, first + max_entries - 1)
        for index in range(first, last + 1):
            self._entry_at(index)
        self._scrub_next = last + 1
        progress = replace(progress, entries=progress.entries + max(0, last + 1 - first))
        if last >= disk.shape.last_index:
            self._scrub_snapshots()
            self._scrub_next = 1
            progress = replace(
                progress,
                snapshots=progress.snapshots + len(disk.snapshots),
                passes=progress.passes + 1,
                finished=True,
            )
        self._scrubbed = progress
        return progress

    def _scrub_snapshots(self) -> None:
        for meta, raw in self.disk.snapshots.values():
            if hashlib.sha256(raw).digest() != meta.digest:
                raise self._latch.trip(LogCorruptError(f"snapshot {meta.index} is damaged"))

    def stats(self) -> StorageStats:
        """See :meth:`LogStorage.stats`."""
        return StorageStats(
            commits=self._commits, quarantine=self.disk.quarantine, scrub=self._scrubbed
        )

    def close(self) -> None:
        """End this run; the disk stays. Harmless when repeated."""
        self._latch.trip(StorageError("the log is closed"))


class MemorySnapshotWriter:
    """A local snapshot being written to a :class:`MemoryDisk`."""

    def __init__(self, disk: MemoryDisk, header: SnapshotHeader) -> None:
        self._disk = disk
        self._header = header
        self._raw = bytearray()
        self._encoder = SnapshotEncoder(header, self._raw.extend)

    def write(self, record: bytes) -> None:
        """Append one record; ValueError when it is too large."""
        self._encoder.write(record)

    def finish(self) -> SnapshotMeta:
        """The finished snapshot; the one already there when a leader's came first."""
        header, digest = self._header, self._encoder.finish()
        meta = SnapshotMeta(
            header.index, header.term, header.chain, header.configuration, len(self._raw), digest
        )
        key = header.index, header.term
        return self._disk.snapshots.setdefault(key, (meta, bytes(self._raw)))[0]

    def abort(self) -> None:
        """Forget what was written."""
        self._raw.clear()


class MemorySnapshotReceiver:
    """A snapshot arriving in chunks at a :class:`MemoryDisk`."""

    def __init__(self, disk: MemoryDisk, meta: SnapshotMeta) -> None:
        self._disk = disk
        self._meta = meta
        self._raw = bytearray()

    def write(self, offset: int, data: bytes) -> int:
        """See :meth:`SnapshotReceiver.write`."""
        skip = len(self._raw) - offset
        if 0 <= skip < len(data) and offset + len(data) <= self._meta.size_bytes:
            self._raw += data[skip:]
        return len(self._raw)

    def finish(self) -> bool:
        """See :meth:`SnapshotReceiver.finish`."""
        try:
            decoder = SnapshotDecoder(io.BytesIO(self._raw))
            for _ in decoder.records():
                pass
        except StorageError:
            return False
        header, meta = decoder.header, self._meta
        said = (meta.index, meta.term, meta.chain, meta.configuration, meta.size_bytes, meta.digest)
        found = (header.index, header.term, header.chain, header.configuration)
        if (*found, decoder.size_bytes, decoder.digest()) != said:
            return False
        self._disk.snapshots.setdefault((meta.index, meta.term), (meta, bytes(self._raw)))
        return True

    def abort(self) -> None:
        """Forget what has arrived."""
        self._raw.clear()
