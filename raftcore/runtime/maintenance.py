"""What a node does once a second, busy or not: look after the log's store, verify some of the log.

A bit that flips in an old entry is found when somebody reads it, which may be when the last good
copy is gone. So everything that is stored is verified once per pass, a little at a time, on the
worker that reads for slow peers; what does not verify is final, as everywhere (rule 46), and the
next start goes on in quarantine (D3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raftcore.core.raft import Raft
from raftcore.runtime.observer import Observer
from raftcore.runtime.workers import LogWriter, PostToLoop, Worker
from raftcore.storage.base import LogStorage, ScrubProgress
from raftcore.storage.scrub import BYTES_PER_ENTRY
from raftcore.trace import Kind
from raftcore.transport.base import Transport

INTERVAL_S = 1.0

#: Most that one step verifies, so that a peer's read waits behind little.
SCRUB_STEP_ENTRIES = 256

#: Entries looked at for the age of the oldest: a leader's first entry has no time of its own.
OLDEST_ENTRIES = 16
OLDEST_BYTES = 1 << 20


class Pace:
    """Says how much to verify now, so that a pass takes ``interval_s``. Only arithmetic."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._due = 0.0

    def step(self, entries: int, elapsed_s: float) -> int:
        """How many of that many entries are due; 0 for none yet."""
        if self._interval_s <= 0:
            return 0
        self._due += entries * elapsed_s / self._interval_s
        if self._due < 1:
            return 0
        count = min(int(self._due), SCRUB_STEP_ENTRIES)
        # What could not be done in time is not made up for: the pass takes longer then.
        self._due = min(self._due - count, SCRUB_STEP_ENTRIES)
        return count


class Maintenance:
    """The once-a-second work of one node. On the loop, but for what it hands to workers."""

    def __init__(
        self,
        *,
        storage: LogStorage,
        transport: Transport,
        writer: LogWriter,
        read_worker: Worker,
        post: PostToLoop,
        observer: Observer,
        wall_clock_ms: Callable[[], int],
        scrub_interval_s: float,
    ) -> None:
        self._storage = storage
        self._transport = transport
        self._writer = writer
        self._read_worker = read_worker
        self._post = post
        self._observer = observer
        self._wall_clock_ms = wall_clock_ms
        self._pace = Pace(scrub_interval_s)
        self._verified_before = 0  #: entries, in the passes before this one
        self._reading = False
        self._oldest: tuple[int, int] | None = None  #: first index, and its time
        self._timer: asyncio.TimerHandle | None = None

    def start(self, raft: Raft) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._tick, raft)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def oldest_entry_age_ms(self) -> int | None:
        """Age of the oldest entry in the log, as of the last look; None if it bears no time."""
        if self._oldest is None or self._oldest[1] == 0:
            return None
        return max(self._wall_clock_ms() - self._oldest[1], 0)

    def _tick(self, raft: Raft) -> None:
        self.start(raft)
        self._writer.maintain()
        self._observer.connected(self._transport.connected())
        if self._reading:
            return  # the disk is slow enough already
        first, last = raft.first_index, raft.durable_index
        snapshot = self._storage.newest_snapshot()
        weight = last - first + 1
        if snapshot is not None:
            weight += snapshot.size_bytes // BYTES_PER_ENTRY + 1
        if last >= first and (self._oldest is None or self._oldest[0] != first):
            self._reading = True
            self._read_worker.submit(lambda: self._look_at_oldest(first, last))
        elif (due := self._pace.step(weight, INTERVAL_S)) > 0:
            self._reading = True
            self._read_worker.submit(lambda: self._scrub(due))

    # -- on the read worker ---------------------------------------------------------------------

    def _look_at_oldest(self, first: int, last: int) -> None:
        until = min(last, first + OLDEST_ENTRIES - 1)
        entries = self._storage.read(first, until, OLDEST_BYTES)
        time_ms = next((entry.timestamp_ms for entry in entries if entry.timestamp_ms), 0)
        self._post(lambda: self._looked(first, time_ms))

    def _scrub(self, max_entries: int) -> None:
        progress = self._storage.scrub(max_entries)
        self._post(lambda: self._scrubbed(progress))

    # -- back on the loop -----------------------------------------------------------------------

    def _looked(self, first: int, time_ms: int) -> None:
        self._reading = False
        self._oldest = (first, time_ms)

    def _scrubbed(self, progress: ScrubProgress) -> None:
        self._reading = False
        if progress.finished:
            entries = progress.entries - self._verified_before
            self._verified_before = progress.entries
            self._observer.trace(Kind.SCRUB_FINISHED, entries=entries)
