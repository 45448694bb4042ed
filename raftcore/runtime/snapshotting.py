"""Taking, sending, receiving and installing snapshots beside everything else the node does.

Each step runs on the worker that owns what it touches, and hands on to the next: the state machine
opens a view on the apply thread, the snapshot thread copies it out while applies go on, the log
writer points to the finished file (O5). Receiving runs the same way in reverse (O6).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

from raftcore.core import effects as fx
from raftcore.core import events as ev
from raftcore.core.raft import Raft
from raftcore.core.types import Configuration, Entry, NodeId, SnapshotMeta
from raftcore.errors import OverloadedError, RefusedError, StoppedError
from raftcore.runtime.observer import Observer
from raftcore.runtime.status import SnapshotStatus
from raftcore.runtime.workers import LogWriter, PostToLoop, Worker
from raftcore.statemachine import AppliedPosition, SnapshotSource, StateMachine
from raftcore.storage.base import LogStorage, SnapshotReceiver
from raftcore.trace import Kind

logger = logging.getLogger(__name__)


class Snapshotting:
    """Snapshots of one node. Methods are called on the loop's thread."""

    def __init__(
        self,
        *,
        storage: LogStorage,
        machine: StateMachine,
        writer: LogWriter,
        apply_worker: Worker,
        snapshot_worker: Worker,
        read_worker: Worker,
        post: PostToLoop,
        deliver: Callable[[ev.Event], None],
        clock_ns: Callable[[], int],
        observer: Observer,
        stopped: threading.Event,  # set as soon as the node ends, for every thread to see
        entries_limit: int,
        bytes_limit: int,
        last_snapshot_index: int,
    ) -> None:
        self._storage = storage
        self._machine = machine
        self._writer = writer
        self._apply_worker = apply_worker
        self._snapshot_worker = snapshot_worker
        self._read_worker = read_worker
        self._post = post
        self._deliver = deliver
        self._clock_ns = clock_ns
        self._observer = observer
        self._counters = observer.counters
        self._stopped = stopped
        self._entries_limit = entries_limit
        self._bytes_limit = bytes_limit
        self._last_index = last_snapshot_index
        self._bytes_since = 0
        self._taking = False
        self._begun_ns = 0
        #: written so far of the one being taken; only the snapshot thread adds to it
        self._taking_bytes = 0
        self._last_taken: tuple[int, int] | None = None  #: its size, and when
        self._receiving: tuple[int, int] | None = None  #: stored, and of how much
        self._waiting: list[asyncio.Future[int]] = []
        self._receiver: tuple[SnapshotMeta, SnapshotReceiver] | None = None

    def status(self) -> SnapshotStatus:
        size, taken_ns = self._last_taken or (None, None)
        return SnapshotStatus(
            last_index=self._last_index,
            last_bytes=size,
            last_age_ms=None if taken_ns is None else (self._clock_ns() - taken_ns) // 1_000_000,
            taking_bytes=self._taking_bytes if self._taking else None,
            receiving=self._receiving,
        )

    # -- taking ---------------------------------------------------------------------------------

    def on_applied(self, raft: Raft, entries: Sequence[Entry]) -> None:
        """Entries were applied: is it time for a snapshot?"""
        self._bytes_since += sum(entry.size_bytes for entry in entries)
        due = (
            entries[-1].index - self._last_index >= self._entries_limit
            or self._bytes_since >= self._bytes_limit
        )
        if due and not self._taking:
            self._begin(raft)

    async def take(self, raft: Raft) -> int:
        """Take one now and await it; returns its index."""
        if self._taking:
            raise OverloadedError("a snapshot is being taken already")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._begin(raft)
        return await future

    def _begin(self, raft: Raft) -> None:
        self._taking = True
        self._begun_ns = self._clock_ns()
        self._taking_bytes = 0
        self._bytes_since = 0

        def open_view() -> None:
            source = self._machine.open_snapshot()
            if self._stopped.is_set():
                source.close()
            else:
                self._post(lambda: self._opened(raft, source))

        self._apply_worker.submit(open_view)

    def _opened(self, raft: Raft, source: SnapshotSource) -> None:
        index = source.position.index
        if index <= self._last_index or self._stopped.is_set():
            self._snapshot_worker.submit(source.close)
            self._finished(self._last_index)
            return
        self._observer.trace(Kind.SNAPSHOT_STARTED, index=index)
        configuration = raft.configuration_at(index)
        self._snapshot_worker.submit(lambda: self._copy_out(source, configuration))

    def _copy_out(self, source: SnapshotSource, configuration: Configuration) -> None:
        """On the snapshot thread."""
        position = source.position
        try:
            writer = self._storage.begin_snapshot(
                position.index, position.term, position.chain, configuration
            )
            try:
                for record in source.records():
                    self._check_running()
                    writer.write(record)
                    self._taking_bytes += len(record)
                meta = writer.finish()
            except RefusedError as error:
                # The state machine ended the view (it had to grow), or the node stops: no snapshot
                # this time.
                writer.abort()
                logger.warning("a snapshot at %d was abandoned: %s", position.index, error)
                refusal = error
                self._post(lambda: self._abandoned(refusal))
                return
            except BaseException:
                writer.abort()
                raise
        finally:
            source.close()
        self._writer.submit(lambda: self._adopt(meta))

    def _check_running(self) -> None:
        if self._stopped.is_set():
            raise StoppedError("the node stops")

    def _adopt(self, meta: SnapshotMeta) -> None:
        """On the log writer's thread."""
        keep_from_index = self._storage.adopt_snapshot(meta)
        self._post(lambda: self._taken(meta, keep_from_index))

    def _taken(self, meta: SnapshotMeta, keep_from_index: int) -> None:
        if self._stopped.is_set():
            return
        now_ns = self._clock_ns()
        duration_ns, self._last_taken = now_ns - self._begun_ns, (meta.size_bytes, now_ns)
        self._counters.snapshots_taken += 1
        self._observer.measures["snapshot_seconds"].observe(duration_ns / 1e9)
        self._observer.trace(
            Kind.SNAPSHOT_TAKEN,
            index=meta.index, bytes=meta.size_bytes, duration_ms=duration_ns // 1_000_000,
        )  # fmt: skip
        logger.info("snapshot at index %d, %d bytes", meta.index, meta.size_bytes)
        self._deliver(ev.SnapshotTaken(self._clock_ns(), meta, keep_from_index))
        self._finished(meta.index)

    def _finished(self, index: int) -> None:
        self._taking = False
        self._last_index = max(self._last_index, index)
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(index)

    def _abandoned(self, error: RefusedError) -> None:
        if self._stopped.is_set():
            return
        self._taking = False
        self._counters.snapshots_abandoned += 1
        self._observer.trace(Kind.SNAPSHOT_ABANDONED, reason=str(error))
        self.end(error)

    def end(self, error: RefusedError) -> None:
        """Nobody is to wait for a snapshot any longer."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    def compact(self, first_index: int) -> None:
        """Delete the log below ``first_index`` in small transactions, appends going in between."""

        self._observer.trace(Kind.LOG_CUT, first_index=first_index)

        def step() -> None:
            if not self._storage.compact(first_index):
                self._writer.submit(step)

        self._writer.submit(step)

    # -- sending --------------------------------------------------------------------------------

    def read_chunk(self, effect: fx.ReadSnapshotChunk) -> None:
        meta = effect.meta
        if effect.offset == 0:
            self._observer.trace(
                Kind.SNAPSHOT_SENDING, peer=effect.to, index=meta.index, bytes=meta.size_bytes
            )

        def read() -> None:
            data = self._storage.read_snapshot_chunk(meta, effect.offset, effect.max_bytes)
            self._post(lambda: self._chunk_read(effect.to, meta, effect.offset, data))

        self._read_worker.submit(read)

    def _chunk_read(self, to: NodeId, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        self._counters.snapshot_bytes_sent += len(data)
        self._deliver(ev.SnapshotChunkRead(self._clock_ns(), to, meta, offset, data))

    # -- receiving ------------------------------------------------------------------------------

    def store_chunk(
        self, effect: fx.StoreSnapshotChunk, on_installed: Callable[[int], None]
    ) -> None:
        meta = effect.meta
        if effect.offset == 0:
            self._observer.trace(Kind.SNAPSHOT_RECEIVING, index=meta.index, bytes=meta.size_bytes)
        self._counters.snapshot_bytes_received += len(effect.data)
        self._receiving = (effect.offset + len(effect.data), meta.size_bytes)
        self._snapshot_worker.submit(lambda: self._store(effect, on_installed))

    def _store(self, effect: fx.StoreSnapshotChunk, on_installed: Callable[[int], None]) -> None:
        """On the snapshot thread."""
        meta = effect.meta
        if effect.offset == 0 or self._receiver is None or self._receiver[0] != meta:
            if self._receiver is not None:
                self._receiver[1].abort()
            self._receiver = (meta, self._storage.receive_snapshot(meta))
        receiver = self._receiver[1]
        next_offset = receiver.write(effect.offset, effect.data)
        if next_offset < meta.size_bytes:
            self._post(
                lambda: self._deliver(ev.SnapshotChunkStored(self._clock_ns(), meta, next_offset))
            )
            return
        self._receiver = None
        began_ns = self._clock_ns()
        if receiver.finish():
            # By way of the apply thread: batches handed out before still look into the log.
            self._apply_worker.submit(
                lambda: self._writer.submit(lambda: self._install_log(meta, began_ns, on_installed))
            )
        else:
            self._post(lambda: self._damaged(meta))

    def _damaged(self, meta: SnapshotMeta) -> None:
        if self._stopped.is_set():
            return
        logger.warning("a received snapshot at %d does not verify; asking again", meta.index)
        self._receiving = None
        self._counters.snapshots_damaged += 1
        self._observer.trace(Kind.SNAPSHOT_DAMAGED, index=meta.index)
        self._deliver(ev.SnapshotInstalled(self._clock_ns(), meta, ok=False))

    def _install_log(
        self, meta: SnapshotMeta, began_ns: int, on_installed: Callable[[int], None]
    ) -> None:
        """On the log writer's thread."""
        self._storage.install_snapshot(meta)
        newest = self._storage.newest_snapshot()
        # The core installs nothing at or below its commit index, so no local snapshot overtook it.
        assert newest is not None, "an installed snapshot is pointed to"
        assert newest.position == meta.position, "an overtaken snapshot must not be installed"
        self._apply_worker.submit(lambda: self._install_state(meta, began_ns, on_installed))

    def _install_state(
        self, meta: SnapshotMeta, began_ns: int, on_installed: Callable[[int], None]
    ) -> None:
        """On the apply thread."""
        position = AppliedPosition(meta.index, meta.term, meta.chain)
        self._machine.install_snapshot(self._storage.snapshot_records(meta), position)

        def done() -> None:
            if self._stopped.is_set():
                return
            now_ns = self._clock_ns()
            self._receiving = None
            self._last_index = max(self._last_index, meta.index)
            self._counters.snapshots_installed += 1
            duration_s = (now_ns - began_ns) / 1e9
            self._observer.measures["snapshot_install_seconds"].observe(duration_s)
            self._observer.trace(Kind.SNAPSHOT_INSTALLED, index=meta.index, bytes=meta.size_bytes)
            on_installed(meta.index)
            self._deliver(ev.SnapshotInstalled(now_ns, meta))

        self._post(done)
