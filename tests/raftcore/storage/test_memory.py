"""The memory store beyond the contract: crashes, copies, failing and damaged disks."""

from __future__ import annotations

import pytest

from raftcore.core.types import Configuration, HardState, Member
from raftcore.errors import GapError, LogCorruptError, NoSpaceError, StorageError
from raftcore.storage.base import Write
from raftcore.storage.memory import MemoryDisk, MemoryLog
from raftcore.storage.plan import Link
from raftcore.testing.storage_model import (
    CONFIGURATION,
    commands,
    make_snapshot,
    receive,
    take_snapshot,
)


@pytest.fixture
def disk() -> MemoryDisk:
    member = Member("n1", "127.0.0.1:1", b"i" * 16)
    disk = MemoryDisk.bootstrapped("n1", Configuration("cluster", (member,)))
    MemoryLog(disk).persist([Write(HardState(2), None, commands(2, 9, 2), commit_hint=9)])
    return disk


def flip(disk: MemoryDisk, index: int) -> None:
    value = bytearray(disk.values[index - disk.shape.first_index])
    value[10] ^= 1
    disk.values[index - disk.shape.first_index] = bytes(value)


def test_a_crash_is_another_log_on_the_same_disk(disk: MemoryDisk) -> None:
    first = MemoryLog(disk)
    first.persist([Write(None, None, commands(10, 12, 2))])
    assert MemoryLog(disk).load().last_index == 12


def test_a_copied_disk_does_not_see_later_writes(disk: MemoryDisk) -> None:
    copy = disk.copy()
    MemoryLog(disk).persist([Write(HardState(3), None, commands(10, 12, 3))])
    found = MemoryLog(copy).load()
    assert (found.last_index, found.hard_state.term) == (9, 2)


@pytest.mark.parametrize(("survives", "last"), [(False, 9), (True, 12)])
def test_a_failed_write_latches_whether_or_not_it_reached_the_disk(
    disk: MemoryDisk, survives: bool, last: int
) -> None:
    log = MemoryLog(disk)
    disk.failure, disk.failed_write_survives = NoSpaceError("full"), survives
    with pytest.raises(NoSpaceError):
        log.persist([Write(None, None, commands(10, 12, 2))])
    with pytest.raises(NoSpaceError):
        log.persist([Write(None, None, commands(10, 12, 2))])
    with pytest.raises(NoSpaceError):
        log.read(1, 1, 1)
    assert MemoryLog(disk).load().last_index == last


def test_load_is_called_once(disk: MemoryDisk) -> None:
    log = MemoryLog(disk)
    log.load()
    with pytest.raises(AssertionError):
        log.load()


def test_a_damaged_entry_is_found_and_final(disk: MemoryDisk) -> None:
    flip(disk, 5)
    log = MemoryLog(disk)
    assert len(log.read(2, 4, 10**6)) == 3
    with pytest.raises(LogCorruptError):
        log.read(2, 6, 10**6)
    with pytest.raises(LogCorruptError):
        log.read(2, 4, 10**6)
    with pytest.raises(LogCorruptError):
        MemoryLog(disk).load()
    with pytest.raises(LogCorruptError):
        MemoryLog(disk).chain_at(5)


def test_a_gap_is_found(disk: MemoryDisk) -> None:
    log = MemoryLog(disk)
    log.adopt_snapshot(take_snapshot(log, 8, []))
    log.compact(5)
    disk.shape = type(disk.shape)(disk.shape.hard_state, 9, disk.shape.before, disk.shape.tip)
    with pytest.raises(GapError):
        MemoryLog(disk).load()


def test_a_damaged_snapshot_is_found_and_final(disk: MemoryDisk) -> None:
    log = MemoryLog(disk)
    meta = take_snapshot(log, 8, [b"state"])
    log.adopt_snapshot(meta)
    _, raw = disk.snapshots[8, 2]
    disk.snapshots[8, 2] = meta, raw[:-1]
    with pytest.raises(LogCorruptError):
        list(log.snapshot_records(meta))
    with pytest.raises(StorageError):
        log.newest_snapshot()


def test_a_damaged_snapshot_is_not_sent(disk: MemoryDisk) -> None:
    log = MemoryLog(disk)
    meta = take_snapshot(log, 8, [b"state"])
    log.adopt_snapshot(meta)
    _, raw = disk.snapshots[8, 2]
    disk.snapshots[8, 2] = meta, raw[:-1] + b"!"
    assert log.read_snapshot_chunk(meta, 1, 10) == raw[1:11]
    with pytest.raises(LogCorruptError, match="is damaged"):
        log.read_snapshot_chunk(meta, 0, 10)
    with pytest.raises(LogCorruptError, match="is damaged"):
        log.newest_snapshot()


def test_another_history_is_refused(disk: MemoryDisk) -> None:
    log = MemoryLog(disk)
    meta = log.begin_snapshot(8, 2, bytes(32), CONFIGURATION).finish()
    with pytest.raises(LogCorruptError):
        log.adopt_snapshot(meta)
    log = MemoryLog(disk.copy())
    log.disk.snapshots.clear()
    meta, raw = make_snapshot(8, 2, b"c" * 32, [])
    assert receive(log, meta, raw)
    with pytest.raises(LogCorruptError):
        log.install_snapshot(meta)


def test_a_snapshot_of_a_term_not_begun_is_refused(disk: MemoryDisk) -> None:
    log = MemoryLog(disk)
    meta, raw = make_snapshot(20, 3, b"c" * 32, [])
    assert receive(log, meta, raw)
    with pytest.raises(AssertionError):
        log.install_snapshot(meta)


def test_a_founder_is_in_its_configuration() -> None:
    with pytest.raises(AssertionError):
        MemoryDisk.bootstrapped("n1", Configuration("cluster", ()))


def test_links_say_their_position(disk: MemoryDisk) -> None:
    link = disk.link_at(9)
    assert isinstance(link, Link)
    assert (link.position.term, link.position.index) == (2, 9)


async def test_a_simulation_may_write_on_the_loops_thread(disk: MemoryDisk) -> None:
    """It never blocks; only the rule of one thread stays."""
    MemoryLog(disk).persist([Write(None, None, commands(10, 10, 2))])
    assert disk.shape.last_index == 10
