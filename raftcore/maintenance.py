"""What a node does once a second, busy or not: look after the log's store, verify some of the log.

A bit that flips in an old entry is found when somebody reads it, which may be when the last good
copy is gone. So the whole log is read once per pass, a little at a time, on the worker that reads
for slow peers; what does not verify is final, as everywhere (rule 46).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raftcore.core.raft import Raft
from raftcore.observer import Observer
from raftcore.storage.base import LogStorage
from raftcore.trace import Kind
from raftcore.transport.base import Transport
from raftcore.workers import LogWriter, PostToLoop, Worker

INTERVAL_S = 1.0

#: Most that one step verifies, so that a peer's read waits behind little.
SCRUB_STEP_ENTRIES = 256
SCRUB_STEP_BYTES = 1 << 20

#: Entries looked at for the age of the oldest: a leader's first entry has no time of its own.
OLDEST_ENTRIES = 16


class Scrub:
    """Walks over the log at a pace that makes one pass in ``interval_s``. Only arithmetic."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._due = 0.0
        self.next_index = 1

    def step(self, first: int, last: int, elapsed_s: float) -> tuple[int, int] | None:
        """The entries to verify now, of the log ``first..last``; None for none yet."""
        if self._interval_s <= 0 or last < first:
            return None
        if not first <= self.next_index <= last:
            self.next_index = first  # what was cut off needs no look, and the end is a new start
        self._due += (last - first + 1) * elapsed_s / self._interval_s
        if self._due < 1:
            return None
        count = min(int(self._due), SCRUB_STEP_ENTRIES)
        # What could not be done in time is not made up for: the pass takes longer then.
        self._due = min(self._due - count, SCRUB_STEP_ENTRIES)
        return self.next_index, min(self.next_index + count - 1, last)


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
        self.scrub = Scrub(scrub_interval_s)
        self._pass_entries = 0
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
        if last >= first and (self._oldest is None or self._oldest[0] != first):
            self._reading = True
            self._read_worker.submit(lambda: self._look_at_oldest(first, last))
        elif (step := self.scrub.step(first, last, INTERVAL_S)) is not None:
            self._reading = True
            self._read_worker.submit(lambda: self._verify(*step, last))

    # -- on the read worker ---------------------------------------------------------------------

    def _look_at_oldest(self, first: int, last: int) -> None:
        until = min(last, first + OLDEST_ENTRIES - 1)
        entries = self._storage.read(first, until, SCRUB_STEP_BYTES)
        time_ms = next((entry.timestamp_ms for entry in entries if entry.timestamp_ms), 0)
        self._post(lambda: self._looked(first, time_ms))

    def _verify(self, first: int, until: int, last: int) -> None:
        """Reading verifies each entry's checksum. Raises what is final if one does not fit."""
        entries = self._storage.read(first, until, SCRUB_STEP_BYTES)
        # None were read: they have been cut off meanwhile, and the next step begins where the log
        # does then.
        next_index = entries[-1].index + 1 if entries else until + 1
        self._post(lambda: self._verified(next_index, len(entries), last))

    # -- back on the loop -----------------------------------------------------------------------

    def _looked(self, first: int, time_ms: int) -> None:
        self._reading = False
        self._oldest = (first, time_ms)

    def _verified(self, next_index: int, count: int, last: int) -> None:
        self._reading = False
        self.scrub.next_index = next_index
        self._pass_entries += count
        self._observer.counters.scrub_entries += count
        if next_index > last:
            self._observer.counters.scrub_passes += 1
            self._observer.trace(Kind.SCRUB_FINISHED, entries=self._pass_entries)
            self._pass_entries = 0
