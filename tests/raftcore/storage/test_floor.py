"""FLOOR: when it is written, that it never says too much, and how a log that went back is found."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raftcore.core.membership import encode_configuration
from raftcore.core.types import Configuration, Entry, EntryType, HardState, Member
from raftcore.errors import ExitCode, FormatTooNewError, LogCorruptError, StorageError
from raftcore.storage.base import Write
from raftcore.storage.files import Files
from raftcore.storage.floor import (
    SLOT_SIZE_BYTES,
    Floor,
    FloorFile,
    count_other_voters,
    restored,
    went_back,
)
from raftcore.storage.records import seal, stamp, unseal
from raftcore.testing.storage_model import begin_term, commands, make_snapshot, receive

INCARNATION = b"i" * 16
FLOOR = Floor(3, "n2", 40, 2, 2, 7)
SECOND_NS = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def voter(place: Any, name: str = "node", last: int = 50) -> tuple[Any, Clock]:
    """A log of one voter of three with a clock of its own, FLOOR up to date."""
    place.close(place.voter(name, last))
    clock = Clock()
    log = place.again(name, clock_ns=clock)
    log.maintain()
    clock.now_ns += SECOND_NS
    log.maintain()
    return log, clock


def stored(log: Any) -> Floor:
    """What is in the file now."""
    path = log._directory.path / "FLOOR"
    found = FloorFile(path, log.identity.incarnation, Files()).read()
    assert found is not None
    return found


def append(log: Any, first: int, last: int, term: int = 2) -> None:
    log.persist([Write(None, None, commands(first, last, term))])


# -- when it is written ---------------------------------------------------------------------------


@pytest.mark.parametrize("hard_state", [HardState(3), HardState(3, "n2")])
def test_a_term_and_a_vote_are_in_floor_when_persist_returns(
    place: Any, hard_state: HardState
) -> None:
    log, _ = voter(place)
    log.persist([Write(hard_state, None, ())])
    assert stored(log).hard_state == hard_state


def test_entries_alone_do_not_write_floor(place: Any) -> None:
    log, _ = voter(place)
    writes = log.stats().floor_writes
    for index in range(51, 151):
        append(log, index, index)
    assert log.stats().floor_writes == writes
    assert stored(log).last_index == 50


def test_floor_is_written_after_a_thousand_entries(place: Any) -> None:
    log, _ = voter(place)
    writes = log.stats().floor_writes
    append(log, 51, 1049)
    assert log.stats().floor_writes == writes
    append(log, 1050, 1050)
    assert log.stats().floor_writes == writes + 1
    assert (stored(log).last_index, stored(log).last_term) == (1050, 2)


def test_floor_is_written_a_second_after_the_first_entry_it_does_not_cover(place: Any) -> None:
    log, clock = voter(place)
    append(log, 51, 51)
    clock.now_ns += SECOND_NS - 1
    append(log, 52, 52)
    assert stored(log).last_index == 50
    clock.now_ns += 1
    append(log, 53, 53)
    assert stored(log).last_index == 53
    append(log, 54, 54)
    clock.now_ns += SECOND_NS - 1
    log.maintain()
    assert stored(log).last_index == 53
    clock.now_ns += 1
    log.maintain()
    assert stored(log).last_index == 54


def test_upkeep_of_an_idle_log_writes_nothing(place: Any) -> None:
    log, clock = voter(place)
    writes = log.stats().floor_writes
    for _ in range(100):
        clock.now_ns += SECOND_NS
        log.maintain()
    assert log.stats().floor_writes == writes


def test_a_clean_stop_brings_floor_up_to_date(place: Any) -> None:
    log, _ = voter(place)
    append(log, 51, 60)
    assert stored(log).last_index == 50
    place.close(log)
    assert stored(log).last_index == 60


def test_a_configuration_is_in_floor_at_once_and_out_again_when_cut(place: Any) -> None:
    log, _ = voter(place)
    alone = Configuration("cluster", (Member("n1", "a:1", log.identity.incarnation),))
    entry = Entry(51, 2, EntryType.CONFIGURATION, encode_configuration(alone))
    assert stored(log).other_voters == 2
    log.persist([Write(None, None, (entry,))])
    assert stored(log).other_voters == 0
    log.persist([Write(None, 51, ())])
    assert stored(log).other_voters == 2


def test_floor_is_lowered_before_the_log_is_cut(place: Any, faulty_files: Any, crash: Any) -> None:
    files = faulty_files()
    place.close(place.voter("node", 50))
    log = place.log(place.directory("node", files))
    log.persist([Write(HardState(3), None, commands(51, 90, 3))])
    assert stored(log).last_index == 90
    files.crash_at = len(files.steps) + 3  # floor: begun, written, synced; then the commit
    with pytest.raises(crash, match="commit:filled"):
        log.persist([Write(HardState(4), 60, commands(60, 70, 4))])
    assert (stored(log).last_index, stored(log).term) == (59, 3)
    place.crash(log)
    found = place.again("node").load()
    assert (found.last_index, found.hard_state, found.quarantine) == (90, HardState(3), None)


def test_a_truncation_above_floor_leaves_it_alone(place: Any) -> None:
    log, _ = voter(place)
    append(log, 51, 90)
    writes = log.stats().floor_writes
    log.persist([Write(None, 60, commands(60, 70, 2))])
    assert log.stats().floor_writes == writes


def test_floor_is_lowered_before_an_installed_snapshot_drops_the_log(
    place: Any, faulty_files: Any, crash: Any
) -> None:
    files = faulty_files()
    place.close(place.voter("node", 50))
    log = place.log(place.directory("node", files))
    log.persist([Write(HardState(3), None, commands(51, 90, 3))])
    meta, raw = make_snapshot(60, 2, b"c" * 32, [b"state"])
    assert receive(log, meta, raw)
    files.crash_at = len(files.steps) + 3
    with pytest.raises(crash, match="commit:filled"):
        log.install_snapshot(meta)
    assert stored(log).last_index == 60
    place.crash(log)
    log = place.again("node")
    assert (log.load().last_index, log._quarantine) == (90, None)
    assert receive(log, meta, raw)
    log.install_snapshot(meta)
    assert (stored(log).last_index, stored(log).last_term) == (60, 2)
    assert place.reopen(log).load().quarantine is None


def test_a_failing_floor_is_final(place: Any, faulty_files: Any) -> None:
    files = faulty_files()
    place.close(place.voter("node"))
    log = place.log(place.directory("node", files))
    files.fail_fsync_at = files.fsyncs
    with pytest.raises(StorageError) as first:
        begin_term(log, 3, "n2")
    files.fail_fsync_at = None
    with pytest.raises(StorageError) as again:
        append(log, 51, 51)
    assert again.value is first.value
    assert first.value.exit_code is ExitCode.STORAGE_IO


def test_what_floor_costs_in_syncs(place: Any, faulty_files: Any) -> None:
    """No sync more for a batch of entries; one for a term or vote; LMDB's own two are not ours."""
    files = faulty_files()
    place.close(place.voter("node"))
    log = place.log(place.directory("node", files), clock_ns=Clock())
    begin_term(log, 3)
    before = files.fsyncs
    for index in range(51, 551):
        append(log, index, index, 3)
    assert files.fsyncs == before
    begin_term(log, 4, "n2")
    assert files.fsyncs == before + 1


# -- the file -------------------------------------------------------------------------------------


def test_golden_bytes(tmp_path: Path) -> None:
    """These bytes are on disks: a change here needs a new format version."""
    file = FloorFile(tmp_path / "FLOOR", INCARNATION, Files())
    file.create(FLOOR)
    file.write(replace(FLOOR, vote=None, other_voters=None, term=4))
    first, second = (
        b'{"format_version":2,"incarnation":"69696969696969696969696969696969","last_index":40,'
        b'"last_term":2,"min_reader_version":2,"other_voters":2,"runs":7,"sequence":1,"term":3,'
        b'"vote":"n2"}\n1c8ae488\n',
        b'{"format_version":2,"incarnation":"69696969696969696969696969696969","last_index":40,'
        b'"last_term":2,"min_reader_version":2,"other_voters":null,"runs":7,"sequence":2,"term":4,'
        b'"vote":null}\n3ed11f5a\n',
    )
    raw = (tmp_path / "FLOOR").read_bytes()
    assert raw == second.ljust(SLOT_SIZE_BYTES, b"\0") + first.ljust(SLOT_SIZE_BYTES, b"\0")
    file.close()


def test_slots_are_written_in_turn_and_a_torn_one_leaves_the_other(tmp_path: Path) -> None:
    path = tmp_path / "FLOOR"
    file = FloorFile(path, INCARNATION, Files())
    assert file.read() is None
    file.create(FLOOR)
    for index in range(41, 60):
        file.write(replace(FLOOR, last_index=index))
        whole = path.read_bytes()
        newest = file._sequence % 2 * SLOT_SIZE_BYTES
        for cut in (0, 1, 100):
            torn = bytearray(whole)
            torn[newest + cut : newest + 150] = bytes(150 - cut)
            path.write_bytes(torn)
            found = FloorFile(path, INCARNATION, Files()).read()
            assert found == replace(FLOOR, last_index=index - 1)
        path.write_bytes(whole)
        assert FloorFile(path, INCARNATION, Files()).read() == replace(FLOOR, last_index=index)
    file.close()


def test_the_slot_of_a_torn_write_is_the_next_to_be_written(tmp_path: Path) -> None:
    path = tmp_path / "FLOOR"
    file = FloorFile(path, INCARNATION, Files())
    file.create(FLOOR)
    file.write(replace(FLOOR, last_index=41))
    raw = bytearray(path.read_bytes())
    raw[file._sequence % 2 * SLOT_SIZE_BYTES] ^= 1
    path.write_bytes(raw)
    file.close()
    again = FloorFile(path, INCARNATION, Files())
    assert again.read() == FLOOR
    again.write(replace(FLOOR, last_index=42))
    again.close()
    assert FloorFile(path, INCARNATION, Files()).read() == replace(FLOOR, last_index=42)


def test_another_directorys_floor_is_none(tmp_path: Path) -> None:
    FloorFile(tmp_path / "FLOOR", INCARNATION, Files()).create(FLOOR)
    assert FloorFile(tmp_path / "FLOOR", b"j" * 16, Files()).read() is None


@pytest.mark.parametrize("body", [{}, {"sequence": "x", "incarnation": INCARNATION.hex()}])
def test_a_whole_record_that_is_no_floor_is_none(tmp_path: Path, body: dict[str, Any]) -> None:
    (tmp_path / "FLOOR").write_bytes(seal(stamp(body)))
    assert FloorFile(tmp_path / "FLOOR", INCARNATION, Files()).read() is None


def test_a_vote_too_long_for_its_slot_is_refused_before_it_is_written(tmp_path: Path) -> None:
    file = FloorFile(tmp_path / "FLOOR", INCARNATION, Files())
    file.create(FLOOR)
    with pytest.raises(LogCorruptError, match="does not fit"):
        file.write(replace(FLOOR, vote="x" * SLOT_SIZE_BYTES))
    file.close()
    assert file.read() == FLOOR


def test_a_floor_of_a_newer_format_stops_the_start_and_nothing_is_touched(place: Any) -> None:
    path = place.close(place.voter("node"))
    body = unseal((path / "FLOOR").read_bytes()[:SLOT_SIZE_BYTES].rstrip(b"\0"))
    newer = seal(body | {"format_version": 3, "min_reader_version": 3})
    (path / "FLOOR").write_bytes(newer.ljust(SLOT_SIZE_BYTES, b"\0"))
    before = place.hashes(path)
    with pytest.raises(FormatTooNewError):
        place.again("node")
    assert place.hashes(path) == before


# -- the rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hard_state", "last_index", "lost"),
    [
        (HardState(3, "n2"), 40, False),
        (HardState(3, "n2"), 41, False),
        (HardState(4), 40, False),
        (HardState(2, "n2"), 40, True),
        (HardState(3), 40, True),
        (HardState(3, "n3"), 40, True),
        (HardState(3, "n2"), 39, True),
        (HardState(4), 39, True),
    ],
)
def test_each_way_of_going_back_is_found(
    hard_state: HardState, last_index: int, lost: bool
) -> None:
    assert bool(went_back(FLOOR, hard_state, last_index)) == lost


@pytest.mark.parametrize(
    ("floor", "hard_state", "expected"),
    [
        (None, None, None),
        (FLOOR, None, HardState(3, "n2")),
        (None, HardState(3), HardState(3)),
        (FLOOR, HardState(2, "n1"), HardState(3, "n2")),
        (FLOOR, HardState(3), HardState(3, "n2")),
        (FLOOR, HardState(3, "n3"), HardState(3, "n2")),
        (FLOOR, HardState(4), HardState(4)),
        (replace(FLOOR, vote=None), HardState(3, "n3"), HardState(3, "n3")),
    ],
)
def test_term_and_vote_are_restored_from_whichever_is_ahead(
    floor: Floor | None, hard_state: HardState | None, expected: HardState | None
) -> None:
    assert restored(floor, hard_state) == expected


def test_other_voters_are_counted_in_both_halves_of_a_joint_configuration() -> None:
    members = tuple(Member(n, n, n.encode() * 16, n != "d") for n in "abcd")
    joint = Configuration("c", members, old_voters=("a", "e"))
    assert count_other_voters(joint, "a") == 3
    assert count_other_voters(joint, "d") == 4
    assert count_other_voters(Configuration("c", members[:1]), "a") == 0
    assert count_other_voters(Configuration("c", ()), "a") == 1


# -- a log that went back -------------------------------------------------------------------------


def metas(path: Path) -> bytes:
    return (path / "log" / "data.mdb").read_bytes()[: 2 * 4096]


def newest_meta(raw: bytes) -> int:
    """Which of the two meta pages has the higher transaction id."""
    numbers = [int.from_bytes(raw[page * 4096 + 144 :][:8], "little") for page in (0, 1)]
    return numbers.index(max(numbers))


def with_older_meta(place: Any, path: Path, change: Any) -> None:
    """Put the newest meta page back to what it was before ``change``, as a lost write would."""
    log = place.again(path.name)
    place.crash(log)
    log = place.again(path.name)
    before = metas(path)
    change(log)
    after = metas(path)
    place.crash(log)
    page = newest_meta(after)
    assert before[page * 4096 :][:4096] != after[page * 4096 :][:4096]
    place.edit(path / "log" / "data.mdb", page * 4096, before[page * 4096 :][:4096])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda log: begin_term(log, 3), "its term is 2, it was 3"),
        (lambda log: begin_term(log, 2, "n2"), "its vote in term 2 is None, it was n2"),
        (lambda log: append(log, 51, 1100), "it ends at 50, it went to 1100"),
    ],
    ids=["term", "vote", "entries"],
)
def test_an_older_meta_page_put_back_is_found_and_quarantined(
    place: Any, change: Any, reason: str
) -> None:
    path = place.close(place.voter("node"))
    with_older_meta(place, path, change)
    floor = FloorFile(path / "FLOOR", b"", Files())
    floor._incarnation = bytes.fromhex(unseal((path / "IDENTITY").read_bytes())["incarnation"])
    expected = floor.read().hard_state
    log = place.again("node")
    found = log.load()
    assert found.quarantine == f"the log went back: {reason}"
    assert found.hard_state == expected
    assert found.last_index == 50
    assert log.stats().quarantine == found.quarantine
    again = place.reopen(log).load()
    assert (again.quarantine, again.hard_state) == (found.quarantine, expected)


def test_an_older_copy_of_the_log_put_back_is_found(place: Any) -> None:
    log = place.voter("node")
    path = place.close(log)
    shutil.copytree(path / "log", place.root / "older")
    log = place.again("node")
    append(log, 51, 80)
    begin_term(log, 7, "n3")
    place.close(log)
    shutil.rmtree(path / "log")
    shutil.move(place.root / "older", path / "log")
    found = place.again("node").load()
    assert found.hard_state == HardState(7, "n3")
    assert "its term is 2, it was 7" in found.quarantine
    assert found.last_index == 50


def test_a_lone_voter_whose_log_went_back_is_refused_and_nothing_is_touched(place: Any) -> None:
    path = place.close(place.filled("node"))
    with_older_meta(place, path, lambda log: begin_term(log, 3))
    before = place.hashes(path)
    with pytest.raises(LogCorruptError, match="its term is 2, it was 3") as caught:
        place.again("node")
    assert caught.value.exit_code is ExitCode.LOG_CORRUPT
    assert place.hashes(path) == before
    found = place.again("node", accept_loss=True).load()
    assert (found.quarantine, found.hard_state) == (None, HardState(3))
    place.close_all()
    assert place.again("node").load().quarantine is None


@pytest.mark.parametrize("lose", [os.unlink, lambda path: path.write_bytes(bytes(8192))])
def test_a_floor_that_is_lost_is_not_made_anew_in_silence(place: Any, lose: Any) -> None:
    path = place.close(place.voter("node"))
    lose(path / "FLOOR")
    log = place.again("node")
    assert log.load().quarantine == "FLOOR is missing or damaged"
    assert stored(log).last_index == 50
    alone = place.close(place.filled("alone"))
    lose(alone / "FLOOR")
    before = place.hashes(alone)
    with pytest.raises(LogCorruptError, match="FLOOR is missing"):
        place.again("alone")
    assert place.hashes(alone) == before
    assert place.again("alone", accept_loss=True).load().quarantine is None
