"""The durable log: entries, hard state and the snapshot pointer in one LMDB environment.

:func:`open_log` follows the open order of D1; :class:`LmdbLog` implements
:class:`~raftcore.storage.base.LogStorage`. One ``persist`` is one synchronous LMDB transaction, and
FLOOR is written after it when its rule says so (D3). The first storage error is latched and final
(rule 46).
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import lmdb

from raftcore.core.membership import ConfigurationStack, decode_configuration
from raftcore.core.types import Configuration, EntryType, Position, SnapshotMeta
from raftcore.errors import IdentityError, LogCorruptError
from raftcore.storage.base import Identity, Recovered, ScrubProgress, StorageStats, Write
from raftcore.storage.directory import DataDirectory
from raftcore.storage.environment import (
    DEFAULT_MAP_LIMIT_BYTES,
    DEFAULT_MAP_SIZE_BYTES,
    FORMAT,
    LOG_FORMAT,
    reader_of,
)
from raftcore.storage.files import storage_errors
from raftcore.storage.floor import Floor, count_other_voters
from raftcore.storage.latch import WriterThread
from raftcore.storage.log_reader import LogReader
from raftcore.storage.maintenance import Maintenance
from raftcore.storage.opening import Opened, Opener, OpenOptions, floor_of_shape
from raftcore.storage.plan import (
    Batch,
    plan_batch,
    shape_after_compaction,
    shape_after_install,
)
from raftcore.storage.quarantine import QuarantineFile
from raftcore.storage.records import FIRST_FORMAT_VERSION
from raftcore.storage.recovery import VERIFY_LIMIT_BYTES, check_snapshot_fits, leave_clean_mark
from raftcore.storage.scrub import Scrubber
from raftcore.storage.snapshot_format import SnapshotHeader
from raftcore.storage.snapshots import KEPT_SNAPSHOTS, FileSnapshotReceiver, FileSnapshotWriter

_log = logging.getLogger(__name__)

_open_logs: weakref.WeakSet[LmdbLog] = weakref.WeakSet()


def open_log(
    directory: DataDirectory,
    *,
    map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES,
    map_limit_bytes: int = DEFAULT_MAP_LIMIT_BYTES,
    expected_cluster_id: str | None = None,
    verify_limit_bytes: int = VERIFY_LIMIT_BYTES,
    accept_loss: bool = False,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> LmdbLog:
    """Open the log of a bootstrapped directory, believing nothing that has not been verified.

    A log that has lost something is opened in quarantine (:attr:`Recovered.quarantine`) if there
    are other voters, and refused otherwise.

    Args:
        directory: where it is; with an identity.
        map_size_bytes: the memory map to begin with (sparse; it costs address space only).
        map_limit_bytes: how far the map may grow.
        expected_cluster_id: refuse any other cluster.
        verify_limit_bytes: after an unclean stop a file of up to this size is verified in this
            process, a larger one by a child.
        accept_loss: the operator's word, for a voter that is alone: go on although FLOOR is lost or
            says that the log went back.
        clock_ns: monotonic clock.

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
    options = OpenOptions(
        map_size_bytes, map_limit_bytes, verify_limit_bytes, accept_loss, clock_ns
    )
    opened = Opener(directory, identity, options).open()
    log = LmdbLog(directory, identity, opened, clock_ns)
    try:
        log._settle_after_open()
    except BaseException:
        log._abandon()
        raise
    return log


class LmdbLog(LogReader):
    """A :class:`~raftcore.storage.base.LogStorage` on LMDB. Made by :func:`open_log`."""

    def __init__(
        self,
        directory: DataDirectory,
        identity: Identity,
        opened: Opened,
        clock_ns: Callable[[], int],
    ) -> None:
        super().__init__(opened.transactions, opened.snapshots, opened.shape)
        self._directory = directory
        self._identity = identity
        self._files = directory.files
        self._writer = WriterThread()
        self._configurations = opened.configurations
        self._recovered: Recovered | None = opened.recovered
        self._floor = opened.floor
        self._floor_file = opened.floor_file
        self._quarantine = opened.quarantine
        self._quarantine_file = QuarantineFile(directory.path, directory.files)
        self._format = opened.format
        self._maintenance = Maintenance(opened.transactions, clock_ns)
        self._scrubber = Scrubber(
            opened.transactions, opened.snapshots, lambda: self._shape.snapshot_position
        )
        self.runs = opened.runs  #: how often this log has been opened, this time included
        _open_logs.add(self)

    def _settle_after_open(self) -> None:
        with self._transactions.final("settling the snapshots"):
            self._settle_snapshots()

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def configuration(self) -> Configuration:
        """The newest configuration in the log or its snapshot; without members if it has none."""
        return self._configurations.current

    def load(self) -> Recovered:
        """See :meth:`LogStorage.load`; what was found when the log was opened."""
        self._transactions.check()
        assert self._recovered is not None, "load() is called once, right after open"
        recovered, self._recovered = self._recovered, None
        return recovered

    def free_bytes(self) -> int:
        """See :meth:`LogStorage.free_bytes`."""
        with storage_errors("looking at the file system"):
            found = os.statvfs(self._directory.log_path)
        return found.f_bavail * found.f_frsize

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
        body = self._format_with(_reader_of_writes(writes))

        def fill(txn: lmdb.Transaction[bytes]) -> None:
            if batch.truncate_from is not None:
                self._environment.delete_from(txn, batch.truncate_from, old.last_index + 1)
            self._environment.put_values(txn, batch.first, batch.values)
            self._environment.put_shape(txn, old, batch.after)
            if body != self._format:
                self._environment.put_record(txn, FORMAT, body)

        with self._transactions.final("writing the log"):
            self._lower_floor(batch)
            self._transactions.durable(fill)
            self._shape, self._format = batch.after, body
            for write in writes:
                _follow(self._configurations, write)
            self._floor.committed(self._floor_now())

    def _lower_floor(self, batch: Batch) -> None:
        """FLOOR never says more than the log holds, not even between two steps of a write."""
        if batch.truncate_from is not None:
            link = self._link_at(batch.truncate_from - 1)
            self._floor.before_truncation(link.index, link.term)

    def _floor_now(self) -> Floor:
        return floor_of_shape(self._shape, self._configurations, self._identity.node_id, self.runs)

    def _format_with(self, reader: int) -> dict[str, Any]:
        """The format record, with at least that reader."""
        return self._format | {
            "min_reader_version": max(reader, self._format["min_reader_version"])
        }

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
                self._configurations.compact(finished.index)
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

                body = self._format_with(reader_of(finished.configuration))

                def fill(txn: lmdb.Transaction[bytes]) -> None:
                    if not keep_log:
                        txn.drop(self._environment.entries, delete=False)
                    self._environment.put_shape(txn, old, after)
                    if body != self._format:
                        self._environment.put_record(txn, FORMAT, body)

                if not keep_log:
                    self._floor.before_truncation(finished.index, finished.term)
                self._transactions.durable(fill)
                self._shape, self._format = after, body
                self._rebase_configurations(finished, keep_log=keep_log)
                self._files.reached("install:pointed")
                self._floor.flush(self._floor_now())
            self._settle_snapshots()

    def _rebase_configurations(self, meta: SnapshotMeta, *, keep_log: bool) -> None:
        if keep_log:
            self._configurations.compact(meta.index)
        else:
            self._configurations = ConfigurationStack(meta.index, meta.configuration)

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

    # -- quarantine and upkeep ------------------------------------------------------------------

    def enter_quarantine(self, reason: str, applied: Position | None = None) -> bool:
        """See :meth:`LogStorage.enter_quarantine`.

        Raises:
            LogCorruptError: this voter is alone; nothing happened.
            StorageError: final.
        """
        self._transactions.check()
        if self._quarantine is not None and self._quarantine.explains(applied):
            return False
        if self._quarantine is not None and not self._quarantine.vouched:
            return True
        if not count_other_voters(self._configurations.current, self._identity.node_id):
            raise LogCorruptError(reason)
        body = self._format_with(LOG_FORMAT)
        with self._transactions.final("beginning the quarantine"):
            self._quarantine = self._quarantine_file.begin(
                reason, self._floor.recorded, vouched=False
            )
            self._transactions.durable(lambda txn: self._environment.put_record(txn, FORMAT, body))
            self._format = body
        return True

    def end_quarantine(self) -> None:
        """See :meth:`LogStorage.end_quarantine`.

        Raises:
            StorageError: final.
        """
        self._writer.check()
        if self._quarantine is None:
            return
        with self._transactions.final("ending the quarantine"):
            self._floor.flush(self._floor_now())
            self._quarantine_file.end()
        _log.warning("the quarantine is over; it was because %s", self._quarantine.reason)
        self._quarantine = None

    def maintain(self) -> None:
        """See :meth:`LogStorage.maintain`.

        Raises:
            StorageError: final.
        """
        self._writer.check()
        with self._transactions.final("looking after the log"):
            self._floor.committed(self._floor_now())
            self._maintenance.run()

    def scrub(self, max_entries: int = 1000) -> ScrubProgress:
        """See :meth:`LogStorage.scrub`.

        Raises:
            LogCorruptError: something is damaged; final.
        """
        with self._transactions.final("scrubbing"):
            return self._scrubber.step(max_entries)

    def stats(self) -> StorageStats:
        """See :meth:`LogStorage.stats`."""
        sizes, quarantine = self._maintenance.sizes, self._quarantine
        return StorageStats(
            commits=self._transactions.commits,
            commit_seconds=self._transactions.commit_ns / 1e9,
            floor_writes=self._floor.writes,
            used_bytes=sizes.used_bytes,
            free_bytes=sizes.free_bytes,
            map_bytes=sizes.map_bytes,
            limit_bytes=self._transactions.map_limit_bytes,
            runs=self.runs,
            quarantine=None if quarantine is None else quarantine.reason,
            scrub=self._scrubber.progress,
        )

    # -- end ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Bring FLOOR up to date and close; after a run without an error, leave the clean mark.

        The directory's lock is the caller's. Harmless when repeated.

        Raises:
            StorageError: FLOOR or the mark could not be written; the log is safe, the next start
                verifies.
        """
        try:
            if self._transactions.usable:
                with self._transactions.final("recording the end"):
                    self._floor.flush(self._floor_now())
        finally:
            sound = self._transactions.close()
            self._scrubber.close()
            self._floor_file.close()
        if sound:
            with storage_errors("leaving the clean mark"):
                leave_clean_mark(self._directory.log_path, self._files)

    def _abandon(self) -> None:
        self._transactions.abandon()
        self._floor_file.close()

    def _poison(self) -> None:
        self._transactions.poison()


def _follow(configurations: ConfigurationStack, write: Write) -> None:
    """What a write does to the configurations along the log (rules 38, 39)."""
    if write.truncate_from is not None:
        configurations.truncate(write.truncate_from)
    for entry in write.entries:
        if entry.type is EntryType.CONFIGURATION:
            configurations.push(entry.index, decode_configuration(entry.data))


def _reader_of_writes(writes: Sequence[Write]) -> int:
    """The oldest reader of a log that holds those configurations."""
    return max(
        (
            reader_of(decode_configuration(entry.data))
            for write in writes
            for entry in write.entries
            if entry.type is EntryType.CONFIGURATION
        ),
        default=FIRST_FORMAT_VERSION,
    )


def _poison_all() -> None:
    for log in tuple(_open_logs):
        log._poison()


os.register_at_fork(after_in_child=_poison_all)
