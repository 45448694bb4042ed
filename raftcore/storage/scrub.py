"""The background check: every entry and every snapshot file is verified again, little by little.

Damage that nobody reads stays unseen until the day it is needed. A pass reads everything once; the
driver paces the steps so that a pass ends within a day (D4).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO

import lmdb

from raftcore.errors import LogCorruptError
from raftcore.storage.base import ScrubProgress
from raftcore.storage.environment import FIRST, checked_entry, index_of, key_of, link_of
from raftcore.storage.plan import Link
from raftcore.storage.recovery import check_follows
from raftcore.storage.snapshot_format import SnapshotDecoder
from raftcore.storage.snapshots import SnapshotDirectory
from raftcore.storage.transactions import Transactions

_log = logging.getLogger(__name__)

#: How much of a snapshot file costs as much as one entry.
BYTES_PER_ENTRY = 1024


class Scrubber:
    """Where the check stands. One step at a time, from any thread."""

    def __init__(
        self,
        transactions: Transactions,
        snapshots: SnapshotDirectory,
        newest: Callable[[], tuple[int, int]],
    ) -> None:
        self._transactions = transactions
        self._snapshots = snapshots
        self._newest = newest
        self._lock = threading.Lock()
        self._next_index: int | None = 1  #: None when the pass has come to the snapshots
        self._todo: list[tuple[int, int]] = []
        self._file: _OpenFile | None = None
        self.progress = ScrubProgress()

    def step(self, max_entries: int) -> ScrubProgress:
        """Verify the next part.

        Raises:
            LogCorruptError: it is damaged.
        """
        with self._lock:
            self.progress = replace(self.progress, finished=False)
            if self._next_index is not None:
                self._check_entries(self._next_index, max_entries)
            else:
                self._check_snapshots(max_entries * BYTES_PER_ENTRY)
            return self.progress

    def _check_entries(self, first: int, max_entries: int) -> None:
        """One short read transaction: the log as it is now, from where the last step ended."""
        with self._transactions.reading("scrubbing the log") as txn:
            previous = self._place_before(txn, first)
            count = 0
            cursor = txn.cursor(self._transactions.environment.entries)
            found = cursor.set_range(key_of(previous.index + 1))
            while found and count < max_entries:
                index = index_of(cursor.key())
                if index != previous.index + 1:
                    raise LogCorruptError(f"entry {index} follows entry {previous.index}")
                entry, chain = checked_entry(index, cursor.value())
                check_follows(previous, entry, chain, cursor.value())
                previous = Link(index, entry.term, chain)
                count += 1
                found = cursor.next()
        self.progress = replace(self.progress, entries=self.progress.entries + count)
        self._next_index = previous.index + 1
        if not found:
            self._next_index = None
            newest = self._newest()
            self._todo = sorted({*self._snapshots.positions(), *([newest] if newest[0] else [])})

    def _place_before(self, txn: lmdb.Transaction[bytes], index: int) -> Link:
        """The place just before ``index``; what lies there may have been compacted or replaced."""
        environment = self._transactions.environment
        body = environment.get_record(txn, FIRST)
        if body is None:
            raise LogCorruptError("meta record first is missing")
        before = link_of(body)
        link = environment.get_link(txn, index - 1) if index - 1 > before.index else None
        return link or before

    def _check_snapshots(self, max_bytes: int) -> None:
        while max_bytes > 0:
            if self._file is None:
                if not self._todo:
                    self._end_pass()
                    return
                self._file = _OpenFile(self._snapshots, *self._todo.pop())
            file, before = self._file, self._file.read_bytes
            if file.check(max_bytes):
                self._file = None
                self._judge(file)
            max_bytes -= max(1, file.read_bytes - before)

    def _judge(self, file: _OpenFile) -> None:
        position, newest = (file.index, file.term), self._newest()
        if file.wrong and (position == newest or position in self._snapshots.positions()):
            if position >= newest:
                raise LogCorruptError(f"snapshot {file.index}-{file.term}: {file.wrong}")
            # Only a fallback, and the newest one is good: nothing that is in force is damaged.
            _log.error("snapshot %d-%d: %s; it is set aside", file.index, file.term, file.wrong)
            self._snapshots.set_aside(*position)
        self.progress = replace(self.progress, snapshots=self.progress.snapshots + 1)

    def _end_pass(self) -> None:
        self._next_index = 1
        self.progress = replace(self.progress, passes=self.progress.passes + 1, finished=True)

    def close(self) -> None:
        """Let go of a file that is being read; no step is under way. Harmless when repeated."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _OpenFile:
    """A snapshot file half verified. Held open, so that it stays the same file."""

    def __init__(self, snapshots: SnapshotDirectory, index: int, term: int) -> None:
        self.index = index
        self.term = term
        self.wrong = ""  #: what is, empty if nothing
        self.read_bytes = 0
        self._known = snapshots.finished.get((index, term))
        self._decoder: SnapshotDecoder | None = None
        self._records: Iterator[bytes] = iter(())
        self._source: IO[bytes] | None = None
        try:
            self._source = snapshots.file_of(index, term).open("rb")
        except FileNotFoundError:
            self.wrong = "it is gone"

    def check(self, max_bytes: int) -> bool:
        """Verify about so many bytes more; True when there is nothing more to verify."""
        limit = self.read_bytes + max_bytes
        try:
            while not self.wrong and self.read_bytes < limit:
                if self._advance():
                    break
            else:
                if not self.wrong:
                    return False
        except LogCorruptError as error:
            self.wrong = str(error)
        self.close()
        return True

    def _advance(self) -> bool:
        """One record more; True after the last one and what follows it."""
        if self._decoder is None:
            assert self._source is not None, "a file that is gone is not read"
            self._decoder = SnapshotDecoder(self._source)
            self._records = self._decoder.records()
        ended = next(self._records, None) is None
        self.read_bytes = self._decoder.size_bytes
        if ended and self._known is not None and self._known.digest != self._decoder.digest():
            self.wrong = "it is not the one it was"
        return ended

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
