"""A store that fails by plan does so exactly, repeatably, and no more than the contract allows."""

from __future__ import annotations

import threading

import pytest

from raftcore.core.types import Configuration, HardState, Member
from raftcore.errors import StorageError
from raftcore.storage.base import Write
from raftcore.testing import (
    Fault,
    FaultyStorage,
    MemoryDisk,
    MemoryLog,
    SimulatedCrash,
    at,
    on,
    seeded,
    storage_workload,
)
from raftcore.testing.storage_model import begin_term, commands, take_snapshot


@pytest.fixture
def disk() -> MemoryDisk:
    member = Member("n1", "127.0.0.1:1", b"i" * 16)
    return MemoryDisk.bootstrapped("n1", Configuration("cluster", (member,)))


def terms(disk: MemoryDisk) -> int:
    return MemoryLog(disk).load().hard_state.term


@pytest.mark.parametrize(
    ("fault", "error", "done"),
    [
        (Fault.CRASH_BEFORE, SimulatedCrash, False),
        (Fault.CRASH_AFTER, SimulatedCrash, True),
        (Fault.ERROR_BEFORE, StorageError, False),
        (Fault.ERROR_AFTER, StorageError, True),
    ],
)
def test_a_fault_comes_before_or_after_the_operation(
    disk: MemoryDisk, fault: Fault, error: type[BaseException], done: bool
) -> None:
    log = FaultyStorage(MemoryLog(disk), on("persist", fault, skip=1))
    begin_term(log, 2)
    with pytest.raises(error, match=f"{fault.value} persist, operation 1"):
        begin_term(log, 3)
    assert terms(disk) == (3 if done else 2)


def test_after_the_first_failure_every_operation_fails_alike(disk: MemoryDisk) -> None:
    log = FaultyStorage(MemoryLog(disk), at(0, Fault.ERROR_BEFORE))
    with pytest.raises(StorageError) as first:
        begin_term(log, 2)
    for call in (lambda: begin_term(log, 3), lambda: log.read(1, 1, 1), log.free_bytes):
        with pytest.raises(StorageError) as again:
            call()
        assert again.value is first.value is log.failed
    assert log.operations == ["persist"]


def test_no_part_of_an_atomic_operation_can_be_asked_for(disk: MemoryDisk) -> None:
    log = FaultyStorage(MemoryLog(disk), at(0, Fault.TORN))
    with pytest.raises(AssertionError, match="atomic"):
        log.persist([Write(HardState(2), None, commands(2, 3, 2))])


def test_a_torn_compaction_has_done_a_part(disk: MemoryDisk) -> None:
    log = FaultyStorage(MemoryLog(disk), on("compact", Fault.TORN))
    log.persist([Write(HardState(2), None, commands(2, 9, 2), commit_hint=9)])
    log.adopt_snapshot(take_snapshot(log, 9, [b"all"]))
    with pytest.raises(SimulatedCrash):
        log.compact(9, 4)
    assert MemoryLog(disk).load().first_index == 3


def test_a_hung_operation_waits_until_it_is_released(disk: MemoryDisk) -> None:
    log = FaultyStorage(MemoryLog(disk), on("persist", Fault.HUNG))
    thread = threading.Thread(target=begin_term, args=(log, 2))
    thread.start()
    assert log.hanging.wait(20)
    assert terms(disk) == 1
    log.release()
    thread.join(20)
    assert terms(disk) == 2


def test_latency_is_waited_for_and_changes_nothing(disk: MemoryDisk) -> None:
    waited: list[float] = []
    log = FaultyStorage(
        MemoryLog(disk), on("persist", Fault.LATENCY), latency_s=2.5, sleep=waited.append
    )
    begin_term(log, 2)
    begin_term(log, 3)
    assert (waited, terms(disk)) == ([2.5], 3)


def test_a_seed_gives_the_same_faults_again(disk: MemoryDisk) -> None:
    def run(seed: int) -> tuple[list[str], str]:
        plan = seeded(seed, {Fault.ERROR_AFTER: 0.03, Fault.TORN: 0.03})
        log = FaultyStorage(MemoryLog(disk.copy()), plan)
        try:
            storage_workload(log)
        except (StorageError, SimulatedCrash) as error:
            return log.operations, str(error)
        return log.operations, "no fault"

    outcomes = [run(seed) for seed in range(30)]
    assert outcomes == [run(seed) for seed in range(30)]
    assert len({error for _, error in outcomes}) > 5


def test_closing_is_possible_after_a_failure(disk: MemoryDisk) -> None:
    log = FaultyStorage(MemoryLog(disk), at(0, Fault.CRASH_BEFORE))
    with pytest.raises(SimulatedCrash):
        log.load()
    log.close()
    assert log.identity == disk.identity
