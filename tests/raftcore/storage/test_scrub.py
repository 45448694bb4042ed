"""The background check finds damage that nobody reads, and never finds any where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftcore.core.types import HardState
from raftcore.errors import LogCorruptError
from raftcore.storage.base import Write
from raftcore.storage.environment import key_of
from raftcore.testing.storage_model import commands


def whole_pass(log: Any, max_entries: int = 7) -> int:
    """Scrub until a pass ends; how many steps that took."""
    steps = 1
    while not log.scrub(max_entries).finished:
        steps += 1
        assert steps < 10_000
    return steps


def test_a_pass_reads_everything_in_bounded_steps(place: Any) -> None:
    log = place.voter("node", 100)
    place.snapshot(log, 10)
    place.snapshot(log, 20)
    before = log.scrub(7).entries
    assert before == 7
    assert whole_pass(log, 7) > 12
    progress = log.stats().scrub
    assert (progress.passes, progress.snapshots) == (1, 2)
    assert progress.entries == 90
    whole_pass(log, 1000)
    assert log.stats().scrub.entries == 180
    assert log.stats().scrub.passes == 2


def test_a_large_snapshot_takes_several_steps(place: Any) -> None:
    log = place.voter("node", 30)
    (entry,) = log.read(20, 20, 1)
    writer = log.begin_snapshot(20, entry.term, log.chain_at(20), log._configurations.current)
    for number in range(200):
        writer.write(number.to_bytes(4, "big") * 1000)
    log.adopt_snapshot(writer.finish())
    log.scrub(1000)
    assert whole_pass(log, 100) > 5


def test_a_flipped_entry_is_found_within_one_pass_and_final(place: Any) -> None:
    log = place.voter("node", 100)
    with log._environment.env.begin(write=True) as txn:
        raw = bytearray(txn.get(key_of(60), db=log._environment.entries))
        raw[50] ^= 1
        txn.put(key_of(60), bytes(raw), db=log._environment.entries)
    with pytest.raises(LogCorruptError, match="checksum of entry 60"):
        whole_pass(log)
    with pytest.raises(LogCorruptError, match="checksum of entry 60"):
        log.persist([Write(HardState(9), None, ())])
    assert "checksum of entry 60" in place.reopen(log).load().quarantine


def test_an_entry_of_another_history_is_found(place: Any) -> None:
    log = place.voter("node", 100)
    with log._environment.env.begin(write=True) as txn:
        other = txn.get(key_of(61), db=log._environment.entries)
        txn.delete(key_of(60), db=log._environment.entries)
        assert other
    with pytest.raises(LogCorruptError, match="entry 61 follows entry 59"):
        whole_pass(log)


def test_a_lost_first_record_is_found(place: Any) -> None:
    log = place.voter("node", 10)
    with log._environment.env.begin(write=True) as txn:
        txn.delete(b"first", db=log._environment.meta)
    with pytest.raises(LogCorruptError, match="first is missing"):
        log.scrub()


def damage(path: Path, name: str) -> None:
    file = path / "snap" / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize("harm", [damage, lambda path, name: (path / "snap" / name).unlink()])
def test_a_damaged_newest_snapshot_is_final_and_the_older_one_serves_next(
    place: Any, harm: Any
) -> None:
    log = place.voter("node", 100)
    older, _ = place.snapshot(log, 10), place.snapshot(log, 20)
    harm(log._directory.path, "20-2.snap")
    with pytest.raises(LogCorruptError, match="snapshot 20-2"):
        whole_pass(log)
    found = place.reopen(log).load()
    assert (found.snapshot, found.quarantine) == (older, None)


def test_a_damaged_older_snapshot_is_set_aside_and_the_node_goes_on(
    place: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is only a fallback; a start would never look at it, so failing would repeat for ever."""
    log = place.voter("node", 100)
    place.snapshot(log, 10)
    newest = place.snapshot(log, 20)
    damage(log._directory.path, "10-2.snap")
    whole_pass(log)
    assert "10-2" in caplog.text
    assert (log._directory.path / "snap" / "10-2.snap.bad").exists()
    whole_pass(log)
    assert log.newest_snapshot() == newest
    assert place.reopen(log).load().snapshot == newest


def test_an_exchanged_snapshot_is_not_the_one_it_was(place: Any) -> None:
    log = place.voter("node", 100)
    place.snapshot(log, 20)
    other = place.voter("other", 100)
    (entry,) = other.read(20, 20, 1)
    writer = other.begin_snapshot(20, entry.term, other.chain_at(20), other._configurations.current)
    writer.write(b"another state")
    writer.finish()
    raw = (other._directory.path / "snap" / "20-2.snap").read_bytes()
    (log._directory.path / "snap" / "20-2.snap").write_bytes(raw)
    with pytest.raises(LogCorruptError, match="not the one it was"):
        whole_pass(log)


def test_writes_compactions_and_truncations_between_two_steps_are_no_damage(place: Any) -> None:
    log = place.voter("node", 40)
    log.persist([Write(None, None, commands(41, 100, 2))])
    for _ in range(9):
        log.scrub(9)
    log.persist([Write(HardState(3), 60, commands(60, 65, 3))])  # the step ended beyond
    whole_pass(log, 9)
    for _ in range(3):
        log.scrub(9)
    place.snapshot(log, 30)
    place.snapshot(log, 40)  # compacts up to 30: beyond where the step ended
    whole_pass(log, 9)
    log.scrub(5)
    log.persist([Write(HardState(4), 60, commands(60, 90, 4))])
    whole_pass(log, 9)


def test_a_snapshot_removed_in_the_middle_of_being_read_is_no_damage(place: Any) -> None:
    log = place.voter("node", 100)
    for index in (10, 20):
        place.snapshot(log, index)
    log.scrub(1000)
    log.scrub(1)
    place.snapshot(log, 30)
    place.snapshot(log, 40)
    whole_pass(log, 1)
    assert log.stats().scrub.passes == 1


def test_closing_in_the_middle_of_a_snapshot_lets_go_of_it(place: Any) -> None:
    log = place.voter("node", 100)
    place.snapshot(log, 20)
    log.scrub(1000)
    log.scrub(1)
    place.close(log)
    with pytest.raises(Exception, match="closed"):
        log.scrub()
