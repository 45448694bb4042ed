"""A crash at every operation of a workload: what was acknowledged is there afterwards.

:func:`check_crash_at_every_operation` runs a workload once to count its operations, and then once
for each operation and each fault. After every run the store is opened again and compared with a
model: all that was returned from must be there, and what was under way must be there as a whole or
not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from raftcore.core.types import HardState, SnapshotMeta
from raftcore.errors import LogCorruptError, StorageError
from raftcore.storage.base import LogStorage, Write
from raftcore.testing.faulty_storage import (
    DIVISIBLE,
    PATIENCE_S,
    Fault,
    FaultyStorage,
    Plan,
    SimulatedCrash,
    at,
    never,
)
from raftcore.testing.storage_model import (
    Model,
    begin_term,
    commands,
    make_snapshot,
    receive,
    take_snapshot,
)

#: The faults that end a run. A hang ends with a crash, and makes two runs: see
#: :func:`_check_hung`.
ENDING: Final = (
    Fault.CRASH_BEFORE,
    Fault.CRASH_AFTER,
    Fault.TORN,
    Fault.ERROR_BEFORE,
    Fault.ERROR_AFTER,
    Fault.HUNG,
)


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What was checked: the workload's operations in order, and how many runs ended in a fault."""

    operations: tuple[str, ...]
    runs: int


class WitnessedStorage(FaultyStorage):
    """A faulty store that keeps what it may hold after a crash: ``possible`` models."""

    def __init__(self, inner: LogStorage, plan: Plan = never) -> None:
        super().__init__(inner, plan)
        self.possible = [Model(inner.read(1, 1, 1)[0])]

    def persist(self, writes: Sequence[Write]) -> None:
        def change(model: Model) -> None:
            for write in writes:
                model.write(write)

        self._change(change, lambda: super(WitnessedStorage, self).persist(writes))

    def adopt_snapshot(self, meta: SnapshotMeta) -> int:
        kept: list[int] = []
        self._change(
            lambda model: model.adopt(meta),
            lambda: kept.append(super(WitnessedStorage, self).adopt_snapshot(meta)),
        )
        return kept[0]

    def install_snapshot(self, meta: SnapshotMeta) -> None:
        self._change(
            lambda model: model.install(meta),
            lambda: super(WitnessedStorage, self).install_snapshot(meta),
        )

    def compact(self, first_index: int, max_entries: int = 1000) -> bool:
        # How many go with one call is the store's affair, so each number of them is possible.
        self.possible = [
            _compacted(model, first)
            for model in self.possible
            for first in range(model.first, max(first_index, model.first) + 1)
        ]
        done = super().compact(first_index, max_entries)
        if done:
            self.possible = [_compacted(self.possible[-1], first_index)]
        return done

    def _change(self, change: Callable[[Model], None], call: Callable[[], None]) -> None:
        changed = [model.copy() for model in self.possible]
        for model in changed:
            change(model)
        self.possible = self.possible + changed
        call()
        self.possible = changed

    def check(self, recovered: LogStorage) -> None:
        """``recovered``, just opened, holds what one of the possible models does, and works.

        Raises:
            AssertionError: something acknowledged is missing, or half of something is there.
        """
        found = recovered.load()
        problems = []
        for model in [*self.possible, *self._with_orphans()]:
            try:
                model.check_recovered(found)
                model.check(recovered)
                break
            except AssertionError as error:
                problems.append(error)
        else:
            raise AssertionError(f"found {found}") from problems[0]
        newest = recovered.newest_snapshot()
        if newest is not None:
            assert list(recovered.snapshot_records(newest)), "its records can be read"
        recovered.persist([Write(HardState(found.hard_state.term + 1), None, ())])

    def _with_orphans(self) -> list[Model]:
        """A store may point to a finished snapshot that a crash left without a pointer, if it is of
        the log's own history: that loses nothing."""
        pointed = []
        for model in self.possible:
            chains = model.chains()
            for meta in self.finished:
                if meta.index > model.snapshot_index and chains.get(meta.index) == meta.chain:
                    pointed.append(model.copy())
                    pointed[-1].adopt(meta)
        return pointed


def _compacted(model: Model, first: int) -> Model:
    twin = model.copy()
    twin.drop_before(first)
    return twin


def storage_workload(storage: LogStorage) -> None:
    """A workload that uses every operation of a store at least once, as a node does."""
    storage.load()
    storage.persist([Write(HardState(2, "a"), None, commands(2, 6, 2), commit_hint=1)])
    storage.persist(
        [
            Write(None, None, commands(7, 9, 2), commit_hint=5),
            Write(HardState(3), 8, commands(8, 8, 3)),
            Write(HardState(4, "b"), None, commands(9, 12, 4), commit_hint=8),
        ]
    )
    storage.read(1, 12, 10**6)
    storage.free_bytes()
    storage.adopt_snapshot(take_snapshot(storage, 4, [b"one", b"two"]))
    storage.persist([Write(None, None, commands(13, 14, 4), commit_hint=12)])
    keep_from = storage.adopt_snapshot(take_snapshot(storage, 8, [b"three"]))
    while not storage.compact(keep_from, 2):
        pass
    abandoned = storage.begin_snapshot(
        10, 4, storage.chain_at(10), make_snapshot(10, 4, bytes(32), [])[0].configuration
    )
    abandoned.write(b"never finished")
    abandoned.abort()
    _receive_and_install(storage, 12, storage.chain_at(12))
    begin_term(storage, 6)
    _receive_and_install(storage, 30, b"c" * 32)
    storage.persist([Write(None, None, commands(31, 33, 6), commit_hint=31)])
    with contextlib.suppress(LogCorruptError):  # a lone voter has nobody to refill it
        storage.enter_quarantine("the workload asks for it")
    storage.end_quarantine()
    storage.maintain()
    storage.scrub()


def _receive_and_install(storage: LogStorage, index: int, chain: bytes) -> None:
    meta, raw = make_snapshot(index, 4 if index < 30 else 6, chain, [b"received"])
    begun = storage.receive_snapshot(meta)
    begun.write(0, raw[:10])
    begun.abort()
    assert receive(storage, meta, raw), "a whole snapshot verifies"
    storage.install_snapshot(meta)
    newest = storage.newest_snapshot()
    assert newest is not None, "an installed snapshot is pointed to"
    storage.read_snapshot_chunk(newest, 0, 1000)
    assert list(storage.snapshot_records(newest)) == [b"received"]


def check_crash_at_every_operation(
    make_storage: Callable[[], LogStorage],
    reopen: Callable[[LogStorage], LogStorage],
    workload: Callable[[LogStorage], None] = storage_workload,
    faults: Sequence[Fault] = ENDING,
) -> CrashReport:
    """Check that a store keeps what it acknowledged, whatever operation a run ends at.

    Args:
        make_storage: a new bootstrapped store, opened.
        reopen: end the run of a store as a crash does, and open it again.
        workload: what is done with the store. Equal calls each time.
        faults: which ways to end a run.

    Raises:
        AssertionError: a vote or an entry that was acknowledged is missing, a part of an atomic
            write is there, or the workload went on after a fault.
    """
    witness = WitnessedStorage(make_storage())
    workload(witness)
    _check(witness, reopen, "after a run without faults")
    operations = tuple(witness.operations)
    runs = 0
    for number, operation in enumerate(operations):
        for fault in faults:
            if fault is Fault.TORN and operation not in DIVISIBLE:
                continue
            where = f"{fault.value} operation {number}, {operation}"
            if fault is Fault.HUNG:
                for done in (False, True):
                    witness = WitnessedStorage(make_storage(), at(number, fault))
                    _check_hung(workload, witness, reopen, where, done=done)
                    runs += 1
                continue
            witness = WitnessedStorage(make_storage(), at(number, fault))
            _check_ended(_ended(workload, witness), witness, where)
            _check(witness, reopen, where)
            runs += 1
    return CrashReport(operations, runs)


def _check_hung(
    workload: Callable[[LogStorage], None],
    witness: WitnessedStorage,
    reopen: Callable[[LogStorage], LogStorage],
    where: str,
    *,
    done: bool,
) -> None:
    """The process dies while an operation hangs. Either the disk does it all the same, and what is
    recovered may hold it; or never, and the store is recovered while it still hangs."""
    where += ", done after the death" if done else ", never done"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(_ended, workload, witness)
        running.add_done_callback(lambda _: witness.hanging.set())  # it may end without hanging
        try:
            assert witness.hanging.wait(PATIENCE_S), f"{where}: it is not reached"
            assert not running.done(), f"{where}: ended with {running.result()} before it hung"
            if not done:
                _check(witness, reopen, where)
        finally:
            witness.crash(done=done)
        _check_ended(running.result(), witness, where)
    if done:
        _check(witness, reopen, where)


def _check_ended(
    ended: StorageError | SimulatedCrash | None, witness: WitnessedStorage, where: str
) -> None:
    assert ended is not None, f"{where}: the workload went on"
    assert ended is witness.failed, f"{where}: another failure came first: {ended}"


def _ended(
    workload: Callable[[LogStorage], None], witness: WitnessedStorage
) -> StorageError | SimulatedCrash | None:
    """What the workload ended with."""
    try:
        workload(witness)
    except (SimulatedCrash, StorageError) as error:
        return error
    return None


def _check(
    witness: WitnessedStorage, reopen: Callable[[LogStorage], LogStorage], where: str
) -> None:
    recovered = reopen(witness.inner)
    try:
        witness.check(recovered)
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from error
    finally:
        witness.abandon()
        recovered.close()
