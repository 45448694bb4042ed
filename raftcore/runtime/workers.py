"""Owned threads: work goes in by a queue, completions come back to the event loop in order.

Everything that may block (log writes, applies, snapshots, reads) runs on one of these, never on the
loop and never on a shared executor: a hanging disk then holds up one thread and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol, TypeVar

from raftcore.core.effects import Persist
from raftcore.core.types import WriteMark
from raftcore.storage.base import LogStorage, Write

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Runs a callback on the event loop's thread, soon; safe from any thread.
PostToLoop = Callable[[Callable[[], None]], None]
Job = Callable[[], None]

#: How often the log writer looks after its store, also while nothing is written.
MAINTAIN_INTERVAL_NS = 1_000_000_000


class Worker(Protocol):
    """Runs jobs one after the other. The first exception is final: ``on_error`` gets it."""

    def submit(self, job: Job) -> None: ...

    def stop(self, timeout_s: float) -> bool:
        """Finish what was submitted, then end; False if it has not ended within the time."""
        ...


class ThreadWorker:
    """A daemon thread with a queue.

    Args:
        name: thread name.
        on_error: called on the worker thread with the first exception; later jobs are dropped.
    """

    def __init__(self, name: str, on_error: Callable[[BaseException], None]) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._on_error = on_error
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._queue.put(job)

    def stop(self, timeout_s: float) -> bool:
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._failed:
                continue
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - the node decides, and always stops
                self._failed = True
                self._on_error(error)


@dataclass(frozen=True, slots=True)
class Written:
    """A durable transaction: its last mark, what was in it, and how long it took."""

    mark: WriteMark
    entries: int
    size_bytes: int
    waited_ns: int  #: how long the oldest write in it had waited
    duration_ns: int


class Poster:
    """Brings what workers have to say back to the event loop. Callable from any thread.

    Args:
        on_failure: told what a callback raises: a completion that is not understood leaves
            something waiting for ever, so that is final.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_failure: Callable[[BaseException], None]
    ) -> None:
        self._loop = loop
        self._on_failure = on_failure

    def __call__(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` on the loop. Dropped when the loop is gone."""
        try:
            self._loop.call_soon_threadsafe(self._run, callback)
        except RuntimeError:
            logger.debug("a completion came after the event loop was closed")

    def _run(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - the first failure is final
            self._on_failure(error)

    async def result_of(self, worker: Worker, job: Callable[[], T]) -> T:
        """Run ``job`` on a worker and await its result; errors come back here."""
        future: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 - handed to who awaits it
                failure = error
                self(lambda: None if future.done() else future.set_exception(failure))
            else:
                # Whoever awaited it may have been cancelled meanwhile.
                self(lambda: None if future.done() else future.set_result(result))

        worker.submit(run)
        return await future


class LogWriter:
    """The one writer of the log: joins all writes that wait into one durable transaction.

    While a write is on its way to the disk the following ones queue up; they then go together, so
    batches grow with load and latency stays at about one transaction when there is none.

    Args:
        on_durable: told each finished transaction, on the loop.
        on_maintained: told the space left on the store's disk about once a second, on the loop.
    """

    def __init__(
        self,
        storage: LogStorage,
        worker: Worker,
        post: PostToLoop,
        on_durable: Callable[[Written], None],
        on_maintained: Callable[[int], None],
        clock_ns: Callable[[], int],
    ) -> None:
        self._storage = storage
        self._worker = worker
        self._post = post
        self._on_durable = on_durable
        self._on_maintained = on_maintained
        self._clock_ns = clock_ns
        self._maintained_ns: int | None = None
        self._maintenance_waits = False
        self._waiting: list[tuple[Persist, int]] = []
        self._lock = threading.Lock()

    def persist(self, effect: Persist) -> None:
        asked_ns = self._clock_ns()
        with self._lock:
            self._waiting.append((effect, asked_ns))
            first = len(self._waiting) == 1
        if first:
            self._worker.submit(self._write_waiting)

    def submit(self, job: Job) -> None:
        """Other work for the writer thread, after the writes asked for before it."""
        self._worker.submit(self._write_waiting)
        self._worker.submit(job)

    def _write_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        batch = [effect for effect, _ in waiting]
        started_ns = self._clock_ns()
        self._storage.persist(_writes(batch))
        written = Written(
            mark=batch[-1].mark,
            entries=sum(len(effect.entries) for effect in batch),
            size_bytes=sum(len(entry.data) for effect in batch for entry in effect.entries),
            waited_ns=started_ns - waiting[0][1],
            duration_ns=self._clock_ns() - started_ns,
        )
        self._post(lambda: self._on_durable(written))
        self._maintain()

    def maintain(self) -> None:
        """Look after the store, unless that was done less than a second ago or is asked for
        already: with a disk that hangs one wish waits, not a queue of them."""
        if not self._maintenance_waits:
            self._maintenance_waits = True
            self._worker.submit(self._maintain_asked)

    def _maintain_asked(self) -> None:
        self._maintenance_waits = False
        self._maintain()

    def _maintain(self) -> None:
        now_ns = self._clock_ns()
        last_ns = self._maintained_ns
        if last_ns is not None and now_ns - last_ns < MAINTAIN_INTERVAL_NS:
            return
        self._maintained_ns = now_ns
        self._storage.maintain()
        free_bytes = self._storage.free_bytes()
        self._post(lambda: self._on_maintained(free_bytes))


def _writes(batch: Sequence[Persist]) -> list[Write]:
    return [
        Write(effect.hard_state, effect.truncate_from, effect.entries, effect.commit_hint)
        for effect in batch
    ]
