"""The durable log: entries, hard state and the snapshot pointer in one LMDB environment.

:func:`open_log` follows the open order of D1; :class:`LmdbLog` implements
:class:`~raftcore.storage.base.LogStorage`. One ``persist`` is one synchronous LMDB transaction. The
first storage error is latched and final (rule 46).
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace

import lmdb

from raftcore.core.types import Configuration, Entry, SnapshotMeta
from raftcore.errors import (
    IdentityError,
    LogCorruptError,
)
from raftcore.storage.base import Identity, Recovered, Write
from raftcore.storage.directory import DataDirectory
from raftcore.storage.environment import (
    DEFAULT_MAP_LIMIT_BYTES,
    DEFAULT_MAP_SIZE_BYTES,
    RUNS,
    Environment,
    MetaRecords,
    Pointer,
    checked_entry,
    format_body,
    index_of,
    key_of,
    read_meta,
)
from raftcore.storage.files import storage_error, storage_errors
from raftcore.storage.latch import WriterThread
from raftcore.storage.plan import (
    Link,
    Shape,
    plan_batch,
    shape_after_compaction,
    shape_after_install,
)
from raftcore.storage.recovery import (
    VERIFY_LIMIT_BYTES,
    check_file,
    check_snapshot_fits,
    choose_snapshot,
    leave_clean_mark,
    take_clean_mark,
    verify_entries,
)
from raftcore.storage.snapshot_format import SnapshotHeader
from raftcore.storage.snapshots import (
    KEPT_SNAPSHOTS,
    FileSnapshotReceiver,
    FileSnapshotWriter,
    SnapshotDirectory,
)
from raftcore.storage.transactions import Transactions

_log = logging.getLogger(__name__)

_open_logs: weakref.WeakSet[LmdbLog] = weakref.WeakSet()

_NOT_OUR_LOG = (
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.CorruptedError,
    lmdb.NotFoundError,
)


def open_log(
    directory: DataDirectory,
    *,
    map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES,
    map_limit_bytes: int = DEFAULT_MAP_LIMIT_BYTES,
    expected_cluster_id: str | None = None,
    verify_limit_bytes: int = VERIFY_LIMIT_BYTES,
) -> LmdbLog:
    """Open the log of a bootstrapped directory, believing nothing that has not been verified.

    ``map_size_bytes`` is the memory map to begin with (sparse; it costs address space only) and
    ``map_limit_bytes`` how far it may grow. After an unclean stop a file of up to
    ``verify_limit_bytes`` is verified in this process, a larger one by a child.

    Raises:
        IdentityError: no identity yet, another cluster's, or a log of another directory.
        TruncatedFileError, LogCorruptError, GapError: what is there cannot be used; untouched.
        FormatTooNewError: a newer release wrote it; untouched.
        NoSpaceError, StorageError: the disk failed.
    """
    identity = directory.identity
    if identity is None:
        raise IdentityError(f"{directory.path} has no identity yet")
    if expected_cluster_id is not None and identity.cluster_id != expected_cluster_id:
        raise IdentityError(
            f"{directory.path} belongs to cluster {identity.cluster_id}, not {expected_cluster_id}"
        )
    files, path = directory.files, directory.log_path
    if not path.is_dir():
        raise LogCorruptError(f"{path} is missing")
    with storage_errors(f"opening {path}"):
        clean = take_clean_mark(path, files)
        check_file(path, files, clean=clean, verify_limit_bytes=verify_limit_bytes)
    try:
        environment = Environment.open(path, map_size_bytes)
    except _NOT_OUR_LOG as error:
        raise LogCorruptError(f"{path}: {error}") from error
    except lmdb.Error as error:
        raise storage_error(error, f"opening {path}") from error
    log = LmdbLog(directory, identity, environment, map_limit_bytes)
    try:
        log._recover()
    except BaseException:
        log._abandon()
        raise
    return log


class LmdbLog:
    """A :class:`~raftcore.storage.base.LogStorage` on LMDB. Made by :func:`open_log`."""

    def __init__(
        self,
        directory: DataDirectory,
        identity: Identity,
        environment: Environment,
        map_limit_bytes: int,
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._environment = environment
        self._transactions = Transactions(environment, map_limit_bytes)
        self._files = directory.files
        self._snapshots = SnapshotDirectory(directory.snapshot_path, directory.files)
        self._writer = WriterThread()
        self._shape = Shape()
        self._recovered: Recovered | None = None
        self.runs = 0  #: how often this log has been opened, this time included
        _open_logs.add(self)

    # -- opening --------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Steps 7, 9 and 10 of D1, on the freshly mapped environment."""
        with self._transactions.final("opening the log"):
            self._environment.env.reader_check()
            records = read_meta(self._environment)
            self._check_owner(records)
            self._count_run(records)
            self._snapshots.prepare()
            self._recover_log(records)
        with self._transactions.final("settling the snapshots"):
            self._settle_snapshots()

    def _check_owner(self, records: MetaRecords) -> None:
        body = format_body(self._identity)
        if any(records.format.get(key) != body[key] for key in ("cluster_id", "node_id")):
            raise IdentityError("the log was made for another node or cluster")
        if records.format.get("incarnation") != body["incarnation"]:
            raise IdentityError("the log was made for another incarnation of this node")

    def _count_run(self, records: MetaRecords) -> None:
        """One durable commit before anything is asserted: a disk that cannot write shows here."""
        self.runs = records.runs + 1
        with self._environment.env.begin(write=True) as txn:
            self._environment.put_record(txn, RUNS, {"count": self.runs})

    def _recover_log(self, records: MetaRecords) -> None:
        shape, pointer = records.shape, records.pointer
        snapshot = choose_snapshot(self._snapshots, pointer, shape)
        candidates = {index for index, _ in self._snapshots.positions()}
        verified = verify_entries(self._environment, shape, candidates)
        if snapshot is not None:
            check_snapshot_fits(snapshot, verified.links.get(snapshot.index))
        if pointer is not None and (snapshot is None or snapshot.digest != pointer.digest):
            self._snapshots.set_aside(pointer.index, pointer.term)
        newer = self._orphan(verified.links, 0 if snapshot is None else snapshot.index)
        after = replace(shape, snapshot=newer or snapshot)
        self._repoint(pointer, after.snapshot)
        self._shape = after
        start = 0 if after.snapshot is None else after.snapshot.index
        self._recovered = Recovered(
            hard_state=after.hard_state,
            first_index=after.first_index,
            last_index=after.last_index,
            terms=tuple(verified.terms),
            snapshot=after.snapshot,
            configurations=tuple(c for c in verified.configurations if c[0] > start),
            commit_hint=after.commit_hint,
            before_first=after.before.position,
        )

    def _orphan(self, links: dict[int, Link], above: int) -> SnapshotMeta | None:
        """A finished snapshot that a crash left without a pointer, if it is of this very log."""
        for index, term in self._snapshots.positions():
            if index <= above:
                return None
            meta, link = self._snapshots.verified_or_none(index, term), links.get(index)
            if meta is not None and link == Link(index, term, meta.chain):
                return meta
        return None

    def _repoint(self, pointer: Pointer | None, chosen: SnapshotMeta | None) -> None:
        """Make the pointer name the chosen snapshot, and remove what lies beyond it."""
        if (pointer and pointer.digest) != (chosen and chosen.digest):
            self._transactions.durable(lambda txn: self._environment.put_pointer(txn, chosen))
        start = 0 if chosen is None else chosen.index
        self._snapshots.remove([p for p in self._snapshots.positions() if p[0] > start])

    # -- reading --------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        return self._identity

    def load(self) -> Recovered:
        """See :meth:`LogStorage.load`; what was found when the log was opened."""
        self._transactions.check()
        assert self._recovered is not None, "load() is called once, right after open"
        recovered, self._recovered = self._recovered, None
        return recovered

    def read(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """See :meth:`LogStorage.read`.

        Raises:
            LogCorruptError: an entry does not verify; final.
        """
        entries: list[Entry] = []
        with self._transactions.reading("reading entries") as txn:
            cursor = txn.cursor(self._environment.entries)
            size_bytes, found = 0, cursor.set_key(key_of(first))
            while found and first + len(entries) <= last:
                index = index_of(cursor.key())
                if index != first + len(entries):
                    raise LogCorruptError(f"entry {first + len(entries)} is missing")
                entry, _ = checked_entry(index, cursor.value())
                size_bytes += entry.size_bytes
                if entries and size_bytes > max_bytes:
                    break
                entries.append(entry)
                found = cursor.next()
        return entries

    def chain_at(self, index: int) -> bytes:
        """See :meth:`LogStorage.chain_at`.

        Raises:
            LookupError: that place is not known here (compacted, or beyond the end).
            LogCorruptError: the entry does not verify; final.
        """
        self._transactions.check()
        shape = self._shape
        for link in (shape.tip, shape.before):
            if link.index == index:
                return link.chain
        if shape.snapshot is not None and shape.snapshot.index == index:
            return shape.snapshot.chain
        with self._transactions.reading("reading the chain") as txn:
            found = self._environment.get_link(txn, index)
        if found is None:
            raise LookupError(f"the log holds nothing at {index}")
        return found.chain

    def free_bytes(self) -> int:
        """See :meth:`LogStorage.free_bytes`."""
        with storage_errors("looking at the file system"):
            found = os.statvfs(self._directory.log_path)
        return found.f_bavail * found.f_frsize

    def newest_snapshot(self) -> SnapshotMeta | None:
        """The snapshot in force."""
        self._transactions.check()
        return self._shape.snapshot

    def read_snapshot_chunk(self, meta: SnapshotMeta, offset: int, max_bytes: int) -> bytes:
        """See :meth:`LogStorage.read_snapshot_chunk`."""
        with self._transactions.final("reading a snapshot"):
            if self._snapshots.finished.get((meta.index, meta.term)) != meta:
                return b""
            return self._snapshots.read_chunk(meta, offset, max_bytes)

    def snapshot_records(self, meta: SnapshotMeta) -> Iterator[bytes]:
        """See :meth:`LogStorage.snapshot_records`.

        Where our own snapshot of a place came before the leader's, ours is read: the bytes differ,
        the state does not.

        Raises:
            LogCorruptError: the file does not verify; final.
        """
        with self._transactions.final("reading a snapshot"):
            known = self._snapshots.finished.get((meta.index, meta.term), meta)
            yield from self._snapshots.records(known)

    # -- writing --------------------------------------------------------------------------------

    def persist(self, writes: Sequence[Write]) -> None:
        """See :meth:`LogStorage.persist`: all of ``writes`` in one synchronous transaction.

        Raises:
            NoSpaceError: the disk is full, or the map would outgrow its limit; final.
            StorageError: anything else that failed; final.
        """
        self._writer.check()
        self._transactions.check()
        old = self._shape
        batch = plan_batch(old, writes, self._link_at)
        if batch.after == old:
            return

        def fill(txn: lmdb.Transaction[bytes]) -> None:
            if batch.truncate_from is not None:
                self._environment.delete_from(txn, batch.truncate_from, old.last_index + 1)
            self._environment.put_values(txn, batch.first, batch.values)
            self._environment.put_shape(txn, old, batch.after)

        with self._transactions.final("writing the log"):
            self._transactions.durable(fill)
        self._shape = batch.after

    def compact(self, first_index: int, max_entries: int = 1000) -> bool:
        """See :meth:`LogStorage.compact`.

        Raises:
            StorageError: final.
        """
        self._writer.check()
        self._transactions.check()
        old = self._shape
        assert first_index <= old.snapshot_index + 1, "compaction beyond the snapshot"
        assert max_entries > 0, "compaction of nothing would never end"
        target = min(first_index, old.first_index + max_entries)
        if target <= old.first_index:
            return True
        after = shape_after_compaction(old, self._link_at(target - 1))

        def fill(txn: lmdb.Transaction[bytes]) -> None:
            self._environment.delete_from(txn, old.first_index, target)
            self._environment.put_shape(txn, old, after)

        with self._transactions.final("compacting the log"):
            self._transactions.durable(fill)
        self._shape = after
        return target >= first_index

    def begin_snapshot(
        self, index: int, term: int, chain: bytes, configuration: Configuration
    ) -> FileSnapshotWriter:
        """See :meth:`LogStorage.begin_snapshot`. One overtaken by a newer is not adopted later."""
        self._transactions.check()
        header = SnapshotHeader(index, term, chain, configuration)
        return FileSnapshotWriter(
            self._snapshots, header, self._transactions.guard("writing a snapshot")
        )

    def adopt_snapshot(self, meta: SnapshotMeta) -> int:
        """See :meth:`LogStorage.adopt_snapshot`. A snapshot that is no longer newer is removed.

        Raises:
            LogCorruptError: the log holds another history at that place; final.
            StorageError: final.
        """
        self._writer.check()
        with self._transactions.final("adopting a snapshot"):
            if meta.index > self._shape.snapshot_index:
                finished = self._finished(meta)
                assert meta.index <= self._shape.last_index, "a local snapshot beyond the log"
                check_snapshot_fits(finished, self._link_at(meta.index))
                self._transactions.durable(lambda txn: self._environment.put_pointer(txn, finished))
                self._shape = replace(self._shape, snapshot=finished)
                self._files.reached("adopt:pointed")
            return self._settle_snapshots()

    def receive_snapshot(self, meta: SnapshotMeta) -> FileSnapshotReceiver:
        """See :meth:`LogStorage.receive_snapshot`. One overtaken by a newer changes nothing."""
        self._transactions.check()
        return FileSnapshotReceiver(
            self._snapshots, meta, self._transactions.guard("receiving a snapshot")
        )

    def install_snapshot(self, meta: SnapshotMeta) -> None:
        """See :meth:`LogStorage.install_snapshot`. One that is no longer newer changes nothing.

        Raises:
            LogCorruptError: the log holds another history at that very index and term; final.
            StorageError: final.
        """
        self._writer.check()
        with self._transactions.final("installing a snapshot"):
            old = self._shape
            if meta.index > old.snapshot_index:
                finished = self._finished(meta)
                keep_log = self._log_matches(finished)
                after = shape_after_install(old, finished, keep_log=keep_log)

                def fill(txn: lmdb.Transaction[bytes]) -> None:
                    if not keep_log:
                        txn.drop(self._environment.entries, delete=False)
                    self._environment.put_shape(txn, old, after)

                self._transactions.durable(fill)
                self._shape = after
                self._files.reached("install:pointed")
            self._settle_snapshots()

    def _finished(self, meta: SnapshotMeta) -> SnapshotMeta:
        """What lies finished at that place: ours, when a leader's came second, or the reverse."""
        finished = self._snapshots.finished.get((meta.index, meta.term))
        assert finished is not None, f"snapshot {meta.index}-{meta.term} was never finished"
        return finished

    def _log_matches(self, meta: SnapshotMeta) -> bool:
        """Whether the log holds the snapshot's last entry (rule 44)."""
        if not self._shape.before.index <= meta.index <= self._shape.last_index:
            return False
        link = self._link_at(meta.index)
        if link.term != meta.term:
            return False
        check_snapshot_fits(meta, link)
        return True

    def _settle_snapshots(self) -> int:
        """Unlink all but the newest two files; the first index the older one needs in the log.

        With one file only, the log it follows is its only fallback, so all of that stays.
        """
        shape = self._shape
        older = [p for p in self._snapshots.positions() if p[0] < shape.snapshot_index]
        kept = older[: KEPT_SNAPSHOTS - 1]
        self._snapshots.remove(older[len(kept) :])
        self._files.reached("snapshots:settled")
        return max([shape.first_index, *(index + 1 for index, _ in kept)])

    def _link_at(self, index: int) -> Link:
        """The place of an index that must be in the log."""
        for link in (self._shape.tip, self._shape.before):
            if link.index == index:
                return link
        with self._transactions.reading("reading the chain") as txn:
            found = self._environment.get_link(txn, index)
            if found is None:
                raise LogCorruptError(f"entry {index} is missing")
            return found

    # -- end ------------------------------------------------------------------------------------

    def end_quarantine(self) -> None:
        """See :meth:`LogStorage.end_quarantine`."""

    def maintain(self) -> None:
        """See :meth:`LogStorage.maintain`."""

    def close(self) -> None:
        """Close the environment; after a run without an error, leave the mark of a clean stop.

        The directory's lock is the caller's. Harmless when repeated.

        Raises:
            StorageError: the mark could not be written; the log is safe, the next start verifies.
        """
        if self._transactions.close():
            with storage_errors("leaving the clean mark"):
                leave_clean_mark(self._directory.log_path, self._files)

    def _abandon(self) -> None:
        self._transactions.abandon()

    def _poison(self) -> None:
        self._transactions.poison()


def _poison_all() -> None:
    for log in tuple(_open_logs):
        log._poison()


os.register_at_fork(after_in_child=_poison_all)
