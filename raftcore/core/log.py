"""What the core knows of its log: terms of all entries, bytes of the recent ones, watermarks.

Watermarks, each at most the one before it::

    last       accepted: appended here, perhaps not yet durable
    durable    the write that holds it has been reported durable
    committed  known to be committed (may run ahead of ``durable`` on a follower)
    handed     given to the state machine; at most min(committed, durable) (rule 31)
    applied    reported applied

``durable`` is kept exact under truncation: a pending write whose entries were cut meanwhile counts
only for what is left of it, so the completion of an old write can never vouch for new bytes at the
same index (rule 30).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

from raftcore.core.errors import InvariantError, MisuseError
from raftcore.core.types import Entry, Position, SnapshotMeta, WriteMark


class RaftLog:
    """The (index, term) trail, a cache of recent entries, and the watermarks."""

    def __init__(
        self,
        *,
        first_index: int,
        last_index: int,
        terms: tuple[tuple[int, int], ...],
        before_first: Position,
        snapshot: SnapshotMeta | None,
        committed: int,
        applied: int,
        cache_bytes: int,
    ) -> None:
        self.first_index = first_index
        self.last_index = last_index
        self.snapshot = snapshot
        self.durable = last_index
        self.committed = committed
        self.handed = applied
        self.applied = applied
        # Runs of equal terms, ascending; the first run stands for the position before the log.
        self._run_starts = [before_first.index] + [start for start, _ in terms]
        self._run_terms = [before_first.term] + [term for _, term in terms]
        self._pending: deque[tuple[WriteMark, int]] = deque()
        self._cache: list[Entry] = []
        self._cache_first = last_index + 1
        self._cache_size = 0
        self._cache_limit = cache_bytes
        self._slice: tuple[int, int, int, tuple[Entry, ...]] = (0, 0, 0, ())
        if before_first.index != first_index - 1:
            raise MisuseError("the position before the log does not touch the log")

    # -- terms ----------------------------------------------------------------------------------

    @property
    def last_term(self) -> int:
        return self._run_terms[-1]

    @property
    def last_position(self) -> Position:
        return Position(self.last_term, self.last_index)

    def term_at(self, index: int) -> int | None:
        """Term of the entry at ``index``; None if it is compacted away or beyond the end."""
        if index > self.last_index or index < self._run_starts[0]:
            return None
        return self._run_terms[bisect_right(self._run_starts, index) - 1]

    def last_index_with_term_at_most(self, index: int, term: int) -> tuple[int, int]:
        """Largest (index, term) at or below ``index`` whose term is at most ``term``.

        The search for where two logs may still agree skips a whole term at a time (rule 25). Falls
        back to the position before the log, which is committed and therefore matches (rule 26).
        """
        index = min(index, self.last_index)
        run = bisect_right(self._run_starts, index) - 1
        while run > 0 and self._run_terms[run] > term:
            index = self._run_starts[run] - 1
            run -= 1
        run = max(run, 0)
        return max(index, self._run_starts[0]), self._run_terms[run]

    # -- appending and truncating ---------------------------------------------------------------

    def append(self, entries: tuple[Entry, ...]) -> None:
        """Accept entries that continue the log."""
        for entry in entries:
            if entry.index != self.last_index + 1 or entry.term < self.last_term:
                raise InvariantError(
                    f"entry ({entry.index}, {entry.term}) does not continue a log that ends at "
                    f"({self.last_index}, {self.last_term})"
                )
            if entry.term > self.last_term:
                self._run_starts.append(entry.index)
                self._run_terms.append(entry.term)
            self._cache.append(entry)
            self._cache_size += entry.size_bytes
            self.last_index = entry.index
        self._evict()

    def truncate(self, from_index: int) -> None:
        """Drop ``from_index`` and everything after it."""
        if from_index <= self.committed:
            # Rule 21: whoever asks for this is wrong about what is committed.
            raise InvariantError(
                f"asked to truncate from {from_index}, but {self.committed} is committed"
            )
        self.last_index = from_index - 1
        while len(self._run_starts) > 1 and self._run_starts[-1] >= from_index:
            self._run_starts.pop()
            self._run_terms.pop()
        keep = max(from_index - self._cache_first, 0)
        for entry in self._cache[keep:]:
            self._cache_size -= entry.size_bytes
        del self._cache[keep:]
        if not self._cache:
            self._cache_first = from_index
        self.durable = min(self.durable, from_index - 1)
        self._pending = deque((mark, min(last, from_index - 1)) for mark, last in self._pending)
        self._slice = (0, 0, 0, ())

    # -- durability -----------------------------------------------------------------------------

    def write_issued(self, mark: WriteMark) -> None:
        """A write that makes everything up to the present end durable is on its way."""
        self._pending.append((mark, self.last_index))

    def write_durable(self, mark: WriteMark) -> None:
        """Writes up to ``mark`` are durable."""
        while self._pending and self._pending[0][0].sequence <= mark.sequence:
            _, last = self._pending.popleft()
            self.durable = max(self.durable, last)

    @property
    def last_issued(self) -> WriteMark | None:
        """The newest write that is not durable yet."""
        return self._pending[-1][0] if self._pending else None

    # -- commit and apply -----------------------------------------------------------------------

    def commit(self, index: int) -> bool:
        """Raise the commit index; whether it moved. It never falls (I8)."""
        if index <= self.committed:
            return False
        if index > self.last_index:
            raise InvariantError(f"commit {index} is beyond the last index {self.last_index}")
        self.committed = index
        return True

    def applicable(self) -> tuple[int, int]:
        """(first, last) that may be handed to the state machine now; empty if last < first."""
        return self.handed + 1, min(self.committed, self.durable)

    def applied_to(self, index: int) -> None:
        if not self.applied <= index <= self.handed:
            raise MisuseError(f"applied {index} was reported, but {self.handed} was handed out")
        self.applied = index

    # -- reading --------------------------------------------------------------------------------

    def cached(
        self, first: int, last: int, max_bytes: int, max_entries: int
    ) -> tuple[Entry, ...] | None:
        """Entries from ``first`` on if they are in memory, else None. At least one, if any.

        The same range asked for again gives the same tuple object, so that the transport can encode
        a batch once for all followers.
        """
        if first < self._cache_first:
            return None
        start = first - self._cache_first
        stop = min(last - self._cache_first + 1, start + max_entries)
        memo = self._slice
        if memo[0] == first and memo[1] == stop - start and memo[2] == max_bytes:
            return memo[3]
        size = 0
        end = start
        for entry in self._cache[start:stop]:
            size += entry.size_bytes
            if size > max_bytes and end > start:
                break
            end += 1
        found = tuple(self._cache[start:end])
        self._slice = (first, stop - start, max_bytes, found)
        return found

    def check_read(self, first: int, entries: tuple[Entry, ...]) -> None:
        """Entries read from storage must be those of this log, from ``first`` on (rule 29)."""
        for index, entry in enumerate(entries, start=first):
            if entry.index != index or entry.term != self.term_at(index):
                raise InvariantError(
                    f"storage gave ({entry.index}, {entry.term}) for index {index}, whose term is "
                    f"{self.term_at(index)}"
                )

    def _evict(self) -> None:
        """Forget the oldest cached entries beyond the limit, never one that is not durable.

        An eighth of the limit goes at once: taking entries off the front costs as much as all that
        stay, which one entry at a time would pay for each append.
        """
        if self._cache_size <= self._cache_limit:
            return
        drop, target = 0, self._cache_limit * 7 // 8
        while self._cache_size > target and drop < len(self._cache):
            entry = self._cache[drop]
            if entry.index > self.durable:
                break
            self._cache_size -= entry.size_bytes
            drop += 1
        if drop:
            del self._cache[:drop]
            self._cache_first += drop

    # -- snapshots ------------------------------------------------------------------------------

    def compact(self, first_index: int) -> None:
        """Entries below ``first_index`` are being deleted from storage."""
        if first_index <= self.first_index:
            return
        if self.snapshot is None or first_index > self.snapshot.index + 1:
            raise InvariantError(f"no snapshot covers the log below {first_index}")
        before = self.term_at(first_index - 1)
        assert before is not None, "only entries that are here can be compacted"
        run = bisect_right(self._run_starts, first_index - 1) - 1
        del self._run_starts[:run], self._run_terms[:run]
        self._run_starts[0] = first_index - 1
        self.first_index = first_index
        drop = first_index - self._cache_first
        if drop > 0:
            for entry in self._cache[:drop]:
                self._cache_size -= entry.size_bytes
            del self._cache[:drop]
            self._cache_first = first_index
        self._slice = (0, 0, 0, ())

    def restore(self, meta: SnapshotMeta) -> bool:
        """A snapshot from the leader is installed; whether the log's suffix was kept (rule 44)."""
        keep = self.term_at(meta.index) == meta.term
        self.snapshot = meta
        if not keep:
            self._run_starts, self._run_terms = [meta.index], [meta.term]
            self.first_index = meta.index + 1
            self.last_index = meta.index
            self._cache, self._cache_first, self._cache_size = [], meta.index + 1, 0
            self.durable = meta.index
            self._pending = deque((mark, meta.index) for mark, _ in self._pending)
        self.committed = max(self.committed, meta.index)
        self.durable = max(self.durable, meta.index)
        self.applied = self.handed = meta.index
        self._slice = (0, 0, 0, ())
        return keep
