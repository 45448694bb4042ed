"""Failure at every storage operation: both stores keep what they acknowledged, liars are found."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from raftcore.core.types import Configuration, Member
from raftcore.errors import StorageError
from raftcore.storage.base import LogStorage, Recovered, Write
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import LmdbLog, open_log
from raftcore.testing import (
    Fault,
    MemoryDisk,
    MemoryLog,
    SimulatedCrash,
    WitnessedStorage,
    check_crash_at_every_operation,
    on,
    storage_workload,
)
from raftcore.testing.crash_checks import ENDING
from raftcore.testing.faulty_storage import DIVISIBLE
from raftcore.testing.storage_model import begin_term, commands


def new_disk() -> MemoryDisk:
    member = Member("n1", "127.0.0.1:1", b"i" * 16)
    return MemoryDisk.bootstrapped("n1", Configuration("cluster", (member,)))


def new_memory_log() -> MemoryLog:
    return MemoryLog(new_disk())


def reopen_memory_log(storage: LogStorage) -> MemoryLog:
    return MemoryLog(cast(MemoryLog, storage).disk)


def test_memory_log_keeps_what_it_acknowledged_wherever_a_run_ends() -> None:
    report = check_crash_at_every_operation(new_memory_log, reopen_memory_log)
    divisible = sum(operation in DIVISIBLE for operation in report.operations)
    # A torn run only where a part can be done, two where an operation hangs.
    assert report.runs == len(report.operations) * len(ENDING) + divisible


def test_the_workload_uses_every_operation_of_a_store() -> None:
    operations = set(check_crash_at_every_operation(new_memory_log, reopen_memory_log).operations)
    calls = {name for name in vars(LogStorage) if not name.startswith("_")}
    parts = {
        f"{kind}.{call}"
        for kind in ("snapshot", "receive")
        for call in ("write", "finish", "abort")
    }
    assert operations == calls - {"identity", "stats", "close"} | parts


def test_lmdb_log_keeps_what_it_acknowledged_wherever_a_run_ends(tmp_path: Path) -> None:
    """Each run has a copy of one bootstrapped directory, and is left as a crash leaves it. An error
    leaves the files as a crash does, so the crashes stand for both."""
    template = DataDirectory.open(tmp_path / "template", "n1")
    member = Member("n1", "127.0.0.1:1", template.founding_incarnation())
    template.bootstrap(Configuration("cluster", (member,)))
    template.close()
    made: list[Path] = []

    def create() -> LogStorage:
        made.append(tmp_path / f"run{len(made)}")
        shutil.copytree(template.path, made[-1])
        return open_log(DataDirectory.open(made[-1], "n1"), map_size_bytes=16 * 2**20)

    def reopen(storage: LogStorage) -> LogStorage:
        log = cast(LmdbLog, storage)
        log._abandon()
        log._directory.close()
        directory = DataDirectory.open(log._directory.path, "n1")
        found = open_log(directory, map_size_bytes=16 * 2**20)
        return Closing(found)

    crashes = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.TORN, Fault.HUNG)
    report = check_crash_at_every_operation(create, reopen, faults=crashes)
    assert report.runs == len(made) - 1 > 4 * len(report.operations)


class Closing:
    """An LMDB log that gives its directory's lock back when it is closed."""

    def __init__(self, log: LmdbLog) -> None:
        self._log = log

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def close(self) -> None:
        self._log.close()
        self._log._directory.close()


# -- liars ----------------------------------------------------------------------------------------


def check(log: type[MemoryLog], workload: object = storage_workload) -> None:
    check_crash_at_every_operation(
        lambda: log(new_disk()),
        lambda storage: log(cast(MemoryLog, storage).disk),
        workload,  # type: ignore[arg-type]
    )


def test_a_store_that_acknowledges_early_is_found() -> None:
    class Early(MemoryLog):
        """Makes a write durable with the one after it."""

        held: Sequence[Write] = ()

        def persist(self, writes: Sequence[Write]) -> None:
            held, self.held = self.held, writes
            super().persist(held)

    with pytest.raises(AssertionError, match="found"):
        check(Early, lambda storage: begin_term(storage, 2, "a"))


def test_a_store_that_loses_the_vote_is_found() -> None:
    class Voteless(MemoryLog):
        def persist(self, writes: Sequence[Write]) -> None:
            super().persist(
                [Write(None, w.truncate_from, w.entries, w.commit_hint) for w in writes]
            )

    with pytest.raises(AssertionError, match="after a run without faults"):
        check(Voteless, lambda storage: begin_term(storage, 2, "a"))


def test_a_store_that_is_not_atomic_is_found() -> None:
    class Power(Exception):  # noqa: N818
        """It went in the middle."""

    class Halves(MemoryLog):
        """Its transactions are one per write, and the run may end between them."""

        def persist(self, writes: Sequence[Write]) -> None:
            for write in writes:
                super().persist([write])

    def dying(storage: LogStorage) -> None:
        begin_term(storage, 2)
        storage.persist(
            [Write(None, None, commands(2, 3, 2)), Write(None, None, commands(4, 5, 2))]
        )

    # Whole runs can not tell; a death inside of persist does.
    check(Halves, dying)
    disk = new_disk()

    class Dying(Halves):
        def persist(self, writes: Sequence[Write]) -> None:
            if len(writes) > 1:
                super().persist(writes[:1])
                raise Power
            super().persist(writes)

    witness = WitnessedStorage(Dying(disk))
    with pytest.raises(Power):
        dying(witness)
    with pytest.raises(AssertionError, match="found"):
        witness.check(MemoryLog(disk))


def test_a_store_that_drops_entries_with_a_snapshot_is_found() -> None:
    class Greedy(MemoryLog):
        """Compacts the whole log when a snapshot is adopted, also what comes after it."""

        def adopt_snapshot(self, meta: object) -> int:
            kept = super().adopt_snapshot(meta)  # type: ignore[arg-type]
            self.compact(self.disk.shape.snapshot_index + 1)
            return kept

    with pytest.raises(AssertionError, match="found"):
        check(Greedy)


def test_a_store_that_asserts_what_a_later_operation_makes_durable_is_found() -> None:
    """A run that ends well shows nothing of it; one that ends while that operation hangs does."""

    class Lazy(MemoryLog):
        held: Sequence[Write] = ()

        def persist(self, writes: Sequence[Write]) -> None:
            self.held = writes

        def load(self) -> Recovered:
            super().persist(self.held)
            return super().load()

    def vote_then_load(storage: LogStorage) -> None:
        begin_term(storage, 2, "a")
        storage.load()

    with pytest.raises(AssertionError, match="hung operation 1, load, never done: found"):
        check_crash_at_every_operation(
            lambda: Lazy(new_disk()), reopen_memory_log, vote_then_load, faults=[Fault.HUNG]
        )


@pytest.mark.parametrize("done", [False, True])
def test_a_crash_ends_a_hanging_operation_either_way(done: bool) -> None:
    disk = new_disk()
    witness = WitnessedStorage(MemoryLog(disk), on("persist", Fault.HUNG))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(begin_term, witness, 7, "a")
        assert witness.hanging.wait(10)
        before = disk.shape.hard_state.term
        witness.crash(done=done)
        with pytest.raises(SimulatedCrash):
            running.result()
    assert before < 7
    assert (disk.shape.hard_state.term == 7) is done
    with pytest.raises(SimulatedCrash):
        witness.load()


def test_a_workload_that_ends_before_it_hangs_is_found() -> None:
    calls = [0]

    def once(storage: LogStorage) -> None:
        calls[0] += 1
        if calls[0] == 1:
            begin_term(storage, 2)

    with pytest.raises(AssertionError, match="before it hung"):
        check_crash_at_every_operation(new_memory_log, reopen_memory_log, once, faults=[Fault.HUNG])


def test_a_workload_that_goes_on_after_an_error_is_found() -> None:
    def deaf(storage: LogStorage) -> None:
        try:
            begin_term(storage, 2)
        except StorageError:
            return

    with pytest.raises(AssertionError, match="went on"):
        check_crash_at_every_operation(
            new_memory_log, reopen_memory_log, deaf, faults=[Fault.ERROR_BEFORE]
        )
