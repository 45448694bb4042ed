"""What is read of the log while it is in use: entries, the hash chain, snapshots.

From any thread, in short read transactions; whatever is returned has been verified, and damage is
final (rule 46).
"""

from __future__ import annotations

from collections.abc import Iterator

from raftcore.core.types import Entry, SnapshotMeta
from raftcore.errors import LogCorruptError
from raftcore.storage.environment import checked_entry, index_of, key_of
from raftcore.storage.plan import Link, Shape
from raftcore.storage.snapshots import SnapshotDirectory
from raftcore.storage.transactions import Transactions


class LogReader:
    """The reading half of a log; whoever writes replaces ``_shape`` after each commit."""

    def __init__(
        self, transactions: Transactions, snapshots: SnapshotDirectory, shape: Shape
    ) -> None:
        self._transactions = transactions
        self._environment = transactions.environment
        self._snapshots = snapshots
        self._shape = shape

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
