"""A store that fails where a test wants it to: around any :class:`LogStorage`, at any operation.

Every call of the store, and of the snapshot writers and receivers it gives out, is one *operation*
with a number, from 0 on. A *plan* is asked before each what is to happen there. Plans are scripted
(:func:`at`, :func:`on`) or drawn from a seed (:func:`seeded`), and so repeat.

What a store may do to its user is bounded by the contract: a crash may come before or after an
operation, and an operation that is not atomic may be done in part. ``persist`` is one transaction,
so no fault here loses half of one; a store that could is not one (see the conformance suite).
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Final, TypeVar

from raftcore.core.types import Configuration, Entry, Position, SnapshotMeta
from raftcore.errors import StorageError
from raftcore.storage.base import (
    Identity,
    LogStorage,
    Recovered,
    ScrubProgress,
    SnapshotReceiver,
    SnapshotWriter,
    StorageStats,
    Write,
)

T = TypeVar("T")

#: How long a hung operation waits to be released before that is a failure of the test.
PATIENCE_S: Final = 60.0


class Fault(Enum):
    """What happens at an operation."""

    CRASH_BEFORE = "crash before"  #: the process dies; nothing of the operation was done
    CRASH_AFTER = "crash after"  #: the process dies; it was done and nobody was told
    TORN = "torn"  #: the process dies; a part of it was done (:data:`DIVISIBLE` operations only)
    ERROR_BEFORE = "error before"  #: a StorageError; nothing was done
    ERROR_AFTER = "error after"  #: a StorageError, and it was done nevertheless
    HUNG = "hung"  #: it begins with :meth:`FaultyStorage.release`, or ends with ``crash``
    LATENCY = "latency"  #: it takes ``latency_s`` longer


#: Operations of which a crash may leave a part: they are no transactions.
DIVISIBLE: Final = frozenset({"compact", "snapshot.write", "receive.write"})

#: The fault at the operation of this number and name, or None.
Plan = Callable[[int, str], Fault | None]


class SimulatedCrash(BaseException):
    """The process died here. No exception of the program's own, so that nothing handles it."""


def never(number: int, operation: str) -> Fault | None:  # noqa: ARG001
    """A plan without faults."""
    return None


def at(number: int, fault: Fault) -> Plan:
    """``fault`` at the operation of that number."""
    return lambda n, _: fault if n == number else None


def on(operation: str, fault: Fault, *, skip: int = 0) -> Plan:
    """``fault`` at the first operation of that name, after ``skip`` of them went well."""
    seen = [0]

    def plan(_: int, name: str) -> Fault | None:
        if name != operation:
            return None
        seen[0] += 1
        return fault if seen[0] == skip + 1 else None

    return plan


def seeded(seed: int, probabilities: Mapping[Fault, float]) -> Plan:
    """Each fault with its probability at every operation; the same for the same seed and calls."""
    rng = random.Random(seed)  # noqa: S311 - to repeat it

    def plan(_: int, operation: str) -> Fault | None:
        drawn = rng.random()  # one draw per operation, so that plans of one seed stay in step
        for fault, probability in probabilities.items():
            drawn -= probability
            if drawn < 0:
                divisible = fault is not Fault.TORN or operation in DIVISIBLE
                return fault if divisible else Fault.CRASH_BEFORE
        return None

    return plan


class FaultyStorage:
    """A :class:`LogStorage` that fails by plan. After a crash or an error every call fails alike.

    Args:
        inner: the store that does the work.
        plan: what happens where; may be replaced at any time.
        latency_s: what :attr:`Fault.LATENCY` adds.
        sleep: waits for it.

    Attributes:
        inner: also what to recover from.
        operations: the names of all operations so far, in order.
        failed: what every further operation raises, once something failed.
        hanging: set as soon as an operation hangs.
        finished: snapshot files that were finished, also by a call that then failed.
        unfinished: the inner store's writers and receivers that are neither finished nor aborted.
    """

    def __init__(
        self,
        inner: LogStorage,
        plan: Plan = never,
        *,
        latency_s: float = 0.01,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.inner = inner
        self.plan = plan
        self.operations: list[str] = []
        self.failed: StorageError | SimulatedCrash | None = None
        self.hanging = threading.Event()
        self.finished: list[SnapshotMeta] = []
        self.unfinished: list[SnapshotWriter | SnapshotReceiver] = []
        self._latency_s = latency_s
        self._sleep = sleep
        self._released = threading.Event()
        self._done_after_crash = False
        self._lock = threading.Lock()

    def release(self) -> None:
        """Let what hangs, and what would, go on."""
        self._released.set()

    def crash(self, *, done: bool) -> None:
        """The process dies now, while an operation hangs: the disk does it all the same
        (``done``), or never."""
        self._done_after_crash = done
        self._fail(SimulatedCrash("crash while an operation hung"))
        self.release()

    def settled(self, part: SnapshotWriter | SnapshotReceiver) -> None:
        """That writer or receiver was finished or aborted, perhaps not for the first time."""
        if part in self.unfinished:
            self.unfinished.remove(part)

    def abandon(self) -> None:
        """Give back the files of unfinished snapshots, which a process's end would do."""
        while self.unfinished:
            with contextlib.suppress(StorageError):  # its store is closed already
                self.unfinished.pop().abort()

    def run(
        self, operation: str, call: Callable[[], T], part: Callable[[], object] | None = None
    ) -> T:
        """One operation. ``part`` does a part of it, if that can be."""
        with self._lock:  # writer, readers and snapshots come from different threads
            if self.failed is not None:
                raise self.failed
            number = len(self.operations)
            self.operations.append(operation)
            fault = self.plan(number, operation)
        where = f"{operation}, operation {number}"
        if fault is Fault.LATENCY:
            self._sleep(self._latency_s)
        elif fault is Fault.HUNG:
            self.hanging.set()
            assert self._released.wait(PATIENCE_S), f"nobody released {where}"
            self._end_if_crashed(call)
        elif fault is Fault.TORN:
            assert part is not None, f"{where} is atomic: no store may do a part of it"
            part()
        elif fault in (Fault.CRASH_AFTER, Fault.ERROR_AFTER):
            call()
        if fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.TORN):
            raise self._fail(SimulatedCrash(f"{fault.value} {where}"))
        if fault in (Fault.ERROR_BEFORE, Fault.ERROR_AFTER):
            raise self._fail(StorageError(f"{fault.value} {where}"))
        return call()

    def _end_if_crashed(self, call: Callable[[], object]) -> None:
        """What hung goes on, or ends with the crash that came meanwhile."""
        if self.failed is None:
            return
        if self._done_after_crash:
            call()
        raise self.failed

    def _fail(self, error: StorageError | SimulatedCrash) -> StorageError | SimulatedCrash:
        with self._lock:
            self.failed = self.failed or error
            return self.failed

    # -- reading --------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        return self.inner.identity

    def load(self) -> Recovered:
        return self.run("load", self.inner.load)

    def read(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        return self.run("read", lambda: self.inner.read(first, last, max_bytes))

    def chain_at(self, index: int) -> bytes:
        return self.run("chain_at", lambda: self.inner.chain_at(index))

    def newest_snapshot(self) -> SnapshotMeta | None:
        return self.run("newest_snapshot", self.inner.newest_snapshot)

    def read_snapshot_chunk(self, meta: SnapshotMeta, offset: int, max_bytes: int) -> bytes:
        return self.run(
            "read_snapshot_chunk",
            lambda: self.inner.read_snapshot_chunk(meta, offset, max_bytes),
        )

    def snapshot_records(self, meta: SnapshotMeta) -> Iterator[bytes]:
        return self.run("snapshot_records", lambda: self.inner.snapshot_records(meta))

    def free_bytes(self) -> int:
        return self.run("free_bytes", self.inner.free_bytes)

    # -- writing --------------------------------------------------------------------------------

    def persist(self, writes: Sequence[Write]) -> None:
        self.run("persist", lambda: self.inner.persist(writes))

    def compact(self, first_index: int, max_entries: int = 1000) -> bool:
        return self.run(
            "compact",
            lambda: self.inner.compact(first_index, max_entries),
            lambda: self.inner.compact(first_index, max(1, max_entries // 2)),
        )

    def begin_snapshot(
        self, index: int, term: int, chain: bytes, configuration: Configuration
    ) -> SnapshotWriter:
        return self.run(
            "begin_snapshot",
            lambda: _FaultyWriter(
                self, self.inner.begin_snapshot(index, term, chain, configuration)
            ),
        )

    def adopt_snapshot(self, meta: SnapshotMeta) -> int:
        return self.run("adopt_snapshot", lambda: self.inner.adopt_snapshot(meta))

    def receive_snapshot(self, meta: SnapshotMeta) -> SnapshotReceiver:
        return self.run(
            "receive_snapshot",
            lambda: _FaultyReceiver(self, self.inner.receive_snapshot(meta), meta),
        )

    def install_snapshot(self, meta: SnapshotMeta) -> None:
        self.run("install_snapshot", lambda: self.inner.install_snapshot(meta))

    def enter_quarantine(self, reason: str, applied: Position | None = None) -> bool:
        return self.run("enter_quarantine", lambda: self.inner.enter_quarantine(reason, applied))

    def end_quarantine(self) -> None:
        self.run("end_quarantine", self.inner.end_quarantine)

    def maintain(self) -> None:
        self.run("maintain", self.inner.maintain)

    def scrub(self, max_entries: int = 1000) -> ScrubProgress:
        return self.run("scrub", lambda: self.inner.scrub(max_entries))

    def stats(self) -> StorageStats:
        return self.inner.stats()

    def close(self) -> None:
        """Closes the inner store, whatever failed: no operation, and without faults."""
        self.inner.close()


class _FaultyWriter:
    def __init__(self, storage: FaultyStorage, inner: SnapshotWriter) -> None:
        self._storage = storage
        self._inner = inner
        storage.unfinished.append(inner)

    def write(self, record: bytes) -> None:
        half = record[: len(record) // 2]
        self._storage.run(
            "snapshot.write",
            lambda: self._inner.write(record),
            lambda: self._inner.write(half),
        )

    def finish(self) -> SnapshotMeta:
        def call() -> SnapshotMeta:
            meta = self._inner.finish()
            self._storage.finished.append(meta)
            self._storage.settled(self._inner)
            return meta

        return self._storage.run("snapshot.finish", call)

    def abort(self) -> None:
        def call() -> None:
            self._inner.abort()
            self._storage.settled(self._inner)

        self._storage.run("snapshot.abort", call)


class _FaultyReceiver:
    def __init__(self, storage: FaultyStorage, inner: SnapshotReceiver, meta: SnapshotMeta) -> None:
        self._storage = storage
        self._inner = inner
        self._meta = meta
        storage.unfinished.append(inner)

    def write(self, offset: int, data: bytes) -> int:
        half = data[: len(data) // 2]
        return self._storage.run(
            "receive.write",
            lambda: self._inner.write(offset, data),
            lambda: self._inner.write(offset, half),
        )

    def finish(self) -> bool:
        def call() -> bool:
            verified = self._inner.finish()
            if verified:
                self._storage.finished.append(self._meta)
            self._storage.settled(self._inner)
            return verified

        return self._storage.run("receive.finish", call)

    def abort(self) -> None:
        def call() -> None:
            self._inner.abort()
            self._storage.settled(self._inner)

        self._storage.run("receive.abort", call)
