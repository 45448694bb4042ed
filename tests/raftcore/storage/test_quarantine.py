"""A log that is damaged: what is kept of it, what stays for a look, and that the node says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest

from raftcore.core.types import HardState, Position
from raftcore.errors import ExitCode, FormatTooNewError, LogCorruptError, StorageError
from raftcore.storage import environment, opening, salvage
from raftcore.storage.base import Write
from raftcore.storage.files import Files
from raftcore.storage.floor import Floor
from raftcore.storage.quarantine import (
    MAX_DAMAGED_LOGS,
    Quarantine,
    QuarantineFile,
    encode_quarantine,
)
from raftcore.storage.records import seal, unseal
from raftcore.testing.storage_model import begin_term, commands, make_snapshot, receive
from raftcore.testing.storage_model import take_snapshot as finish_snapshot

FLOOR = Floor(3, "n2", 40, 2, 2, 7)


def flip_entry(path: Path, index: int) -> None:
    """Flip a bit of every stored copy of an entry's payload, in a log that nobody has open."""
    data_file = path / "log" / "data.mdb"
    raw = bytearray(data_file.read_bytes())
    needle = b"payload %05d" % index
    offset = raw.find(needle)
    assert offset >= 0
    while offset >= 0:
        raw[offset] ^= 1
        offset = raw.find(needle, offset + 1)
    data_file.write_bytes(raw)


def filled(place: Any, name: str = "node", last: int = 50) -> Any:
    """A voter of three; entries 2 to ``last`` can each be found in the file."""
    log = place.voter(name, 1)
    entries = tuple(
        replace(entry, data=b"payload %05d" % entry.index) for entry in commands(2, last, 2)
    )
    log.persist([Write(HardState(2, "n3"), None, entries, commit_hint=last - 5)])
    return log


def names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()} - {"LOCK", "IDENTITY", "FLOOR", "snap"}


# -- the record -----------------------------------------------------------------------------------


def test_golden_bytes() -> None:
    """These bytes are on disks: a change here needs a new format version."""
    assert encode_quarantine(Quarantine("why", 1_700_000_000_000, FLOOR, "log.damaged-1")) == (
        b'{"floor":{"last_index":40,"last_term":2,"other_voters":2,"runs":7,"term":3,"vote":"n2"},'
        b'"format_version":2,"min_reader_version":2,"reason":"why","replaces":"log.damaged-1",'
        b'"since_ms":1700000000000,"vouched":false}\n1a9922ad\n'
    )


def test_a_record_comes_back_and_keeps_its_first_reason(tmp_path: Path) -> None:
    file = QuarantineFile(tmp_path, Files())
    assert file.read() is None
    first = file.begin("first", FLOOR, vouched=True)
    assert file.read() == first
    second = file.begin("second", None, "log.damaged-1", vouched=True)
    assert second == replace(first, replaces="log.damaged-1")
    third = file.begin("third", FLOOR, vouched=False)
    assert third == replace(first, vouched=False) == file.begin("fourth", FLOOR, vouched=True)
    file.end()
    file.end()
    assert file.read() is None


@pytest.mark.parametrize(
    "raw",
    [b"", b"nonsense", seal({"format_version": 2, "min_reader_version": 2})],
    ids=["empty", "noise", "incomplete"],
)
def test_a_record_that_does_not_read_is_still_a_quarantine(place: Any, raw: bytes) -> None:
    path = place.close(filled(place))
    (path / "QUARANTINE").write_bytes(raw)
    assert "record is damaged" in place.again("node").load().quarantine


def test_a_record_that_names_a_strange_place_is_not_followed(tmp_path: Path) -> None:
    file = QuarantineFile(tmp_path, Files())
    file.write(Quarantine("why", 0, None, "../elsewhere"))
    found = file.finish_exchange()
    assert found is not None
    assert found.replaces is None
    assert "names no damaged log" in found.reason


def test_a_record_of_a_newer_format_stops_the_start_and_nothing_is_touched(place: Any) -> None:
    path = place.close(filled(place))
    (path / "QUARANTINE").write_bytes(seal({"format_version": 3, "min_reader_version": 3}))
    before = place.hashes(path)
    with pytest.raises(FormatTooNewError):
        place.again("node")
    assert place.hashes(path) == before


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [2, 3, 25, 50])
def test_a_flipped_entry_costs_the_entries_from_there_on_and_nothing_else(
    place: Any, index: int
) -> None:
    log = filled(place)
    kept = log.read(1, index - 1, 10**6)
    path = place.crash(log)
    flip_entry(path, index)
    damaged = place.hashes(path / "log")
    log = place.again("node")
    found = log.load()
    assert found.quarantine == f"E_LOG_CORRUPT: checksum of entry {index} does not match"
    assert found.hard_state == HardState(2, "n3")
    assert (found.first_index, found.last_index) == (1, index - 1)
    assert found.commit_hint == min(45, index - 1)
    assert log.read(1, 100, 10**6) == kept
    assert names(path) == {"QUARANTINE", "log", "log.damaged-1"}
    assert place.hashes(path / "log.damaged-1") == damaged
    log.persist([Write(HardState(3), None, commands(index, 60, 3))])
    again = place.reopen(log).load()
    assert (again.last_index, again.hard_state, again.quarantine) == (
        60, HardState(3), found.quarantine,
    )  # fmt: skip


@pytest.mark.parametrize("limits", [(7, 10**9), (1000, 300)], ids=["entries", "bytes"])
def test_what_is_kept_is_copied_in_bounded_pieces(
    place: Any, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]
) -> None:
    monkeypatch.setattr(salvage, "COPY_ENTRIES", limits[0])
    monkeypatch.setattr(salvage, "COPY_BYTES", limits[1])
    sizes: list[int] = []
    copy = salvage._copy_chunk

    def note(target: Any, first: int, values: tuple[bytes, ...]) -> None:
        sizes.append(len(values))
        copy(target, first, values)

    monkeypatch.setattr(salvage, "_copy_chunk", note)
    log = filled(place)
    kept = log.read(1, 39, 10**6)
    flip_entry(place.crash(log), 40)
    log = place.again("node")
    assert log.read(1, 100, 10**6) == kept
    assert sum(sizes) == 39
    assert len(sizes) > 5
    assert max(sizes) <= 7


def test_a_lone_voter_with_a_damaged_log_is_refused_and_nothing_is_touched(place: Any) -> None:
    log = place.filled("node", 1)
    log.persist([Write(HardState(3), None, commands(2, 9, 3, b"payload 00005"))])
    path = place.close(log)
    flip_entry(path, 5)
    before = place.hashes(path)
    with pytest.raises(LogCorruptError, match="checksum of entry") as caught:
        place.again("node")
    assert caught.value.exit_code is ExitCode.LOG_CORRUPT
    assert place.hashes(path) == before


def test_damage_found_while_running_is_fatal_and_the_next_start_is_in_quarantine(
    place: Any,
) -> None:
    place.crash(filled(place))
    log = place.again("node")
    with log._environment.env.begin(write=True) as txn:
        txn.put(environment.key_of(30), b"not what it was", db=log._environment.entries)
    with pytest.raises(LogCorruptError, match="checksum of entry 30"):
        log.read(25, 35, 10**6)
    with pytest.raises(LogCorruptError, match="checksum of entry 30"):
        begin_term(log, 9)
    found = place.reopen(log).load()
    assert (found.last_index, found.hard_state) == (29, HardState(2, "n3"))
    assert "checksum of entry 30" in found.quarantine


def test_the_newest_snapshot_is_kept_with_the_entries_that_continue_it(place: Any) -> None:
    log = filled(place)
    place.snapshot(log, 20)
    newest = place.snapshot(log, 30)
    path = place.crash(log)
    flip_entry(path, 40)
    found = place.again("node").load()
    assert (found.snapshot, found.first_index, found.last_index) == (newest, 21, 39)


def test_where_the_entries_do_not_reach_the_snapshot_it_is_kept_alone(place: Any) -> None:
    log = filled(place)
    place.snapshot(log, 20)
    newest = place.snapshot(log, 30)
    path = place.crash(log)
    flip_entry(path, 25)
    log = place.again("node")
    found = log.load()
    assert (found.snapshot, found.first_index, found.last_index) == (newest, 31, 30)
    assert found.before_first == newest.position
    assert found.commit_hint == 30
    assert list(log.snapshot_records(newest)) == [b"state at 30"]
    log.persist([Write(None, None, commands(31, 35, 2))])
    assert place.reopen(log).load().last_index == 35


def damage_file(path: Path, name: str) -> None:
    file = path / "snap" / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def test_with_newest_snapshot_and_an_entry_damaged_the_older_one_is_kept(place: Any) -> None:
    log = filled(place)
    older = place.snapshot(log, 20)
    place.snapshot(log, 30)
    path = place.crash(log)
    damage_file(path, "30-2.snap")
    flip_entry(path, 25)
    found = place.again("node").load()
    assert (found.snapshot, found.first_index, found.last_index) == (older, 21, 24)
    assert {file.name for file in (path / "snap").iterdir()} == {"20-2.snap", "30-2.snap.bad"}


def test_without_any_usable_snapshot_an_empty_log_with_the_old_vote_is_kept(place: Any) -> None:
    log = filled(place)
    place.snapshot(log, 20)
    place.snapshot(log, 30)
    path = place.crash(log)
    for name in ("20-2.snap", "30-2.snap"):
        damage_file(path, name)
    log = place.again("node")
    found = log.load()
    assert found.quarantine == "E_GAP: the log begins at 21, the snapshot ends at 0"
    assert (found.first_index, found.last_index, found.snapshot) == (1, 0, None)
    assert found.hard_state == HardState(2, "n3")
    assert found.configurations == ()
    meta, raw = make_snapshot(70, 2, b"c" * 32, [b"state"])
    assert receive(log, meta, raw)
    log.install_snapshot(meta)
    assert place.reopen(log).load().snapshot == meta


def spoil(key: bytes) -> Callable[[Any, Any], None]:
    def change(env: Any, txn: Any) -> None:
        txn.put(key, b'{"index":9}\n00000000\n', db=env.meta)

    return change


def drop(key: bytes) -> Callable[[Any, Any], None]:
    def change(env: Any, txn: Any) -> None:
        txn.delete(key, db=env.meta)

    return change


def rewrite(place: Any, change: Callable[[Any, Any], None], log: Any) -> Path:
    with log._environment.env.begin(write=True) as txn:
        change(log._environment, txn)
    path: Path = place.crash(log)
    return path


@pytest.mark.parametrize("key", [b"hard_state", b"commit_hint", b"last", b"runs", b"first"])
@pytest.mark.parametrize("harm", [spoil, drop])
def test_a_damaged_record_costs_no_entry_that_verifies(place: Any, harm: Any, key: bytes) -> None:
    rewrite(place, harm(key), filled(place))
    log = place.again("node")
    found = log.load()
    assert f"meta record {key.decode()}" in found.quarantine
    assert found.last_index == 50
    assert found.hard_state == HardState(2, "n3"), "FLOOR has it, if the record does not"
    assert log.runs >= 1


@pytest.mark.parametrize("harm", [spoil, drop])
def test_a_damaged_pointer_is_replaced_by_the_newest_snapshot_that_verifies(
    place: Any, harm: Any
) -> None:
    log = filled(place)
    place.snapshot(log, 20)
    newest = place.snapshot(log, 30)
    rewrite(place, harm(b"snap_ptr"), log)
    found = place.again("node").load()
    assert found.quarantine
    assert (found.snapshot, found.first_index, found.last_index) == (newest, 21, 50)


def test_a_foreign_snapshot_is_not_taken_for_a_damaged_pointers(place: Any) -> None:
    log = filled(place)
    meta = place.snapshot(log, 20)
    path = rewrite(place, spoil(b"snap_ptr"), log)
    foreign, raw = make_snapshot(40, 2, b"c" * 32, [])
    assert foreign.configuration.cluster_id != meta.configuration.cluster_id
    (path / "snap" / "40-2.snap").write_bytes(raw)
    assert place.again("node").load().snapshot == meta


def test_without_a_trustworthy_term_the_start_is_refused_and_nothing_is_touched(
    place: Any,
) -> None:
    path = rewrite(place, spoil(b"hard_state"), filled(place))
    (path / "FLOOR").write_bytes(bytes(8192))
    before = place.hashes(path)
    with pytest.raises(LogCorruptError, match="neither the log nor FLOOR says"):
        place.again("node")
    assert place.hashes(path) == before


def test_a_term_below_that_of_the_entries_is_not_trusted(place: Any) -> None:
    def forget(env: Any, txn: Any) -> None:
        env.put_record(txn, b"hard_state", {"term": 1, "vote": None})

    path = rewrite(place, forget, filled(place))
    (path / "FLOOR").write_bytes(bytes(8192))
    with pytest.raises(LogCorruptError, match="only 1 is known"):
        place.again("node")


def test_a_log_that_does_not_say_whose_it_is_is_refused(place: Any) -> None:
    for harm in (spoil, drop):
        name = harm.__name__
        path = rewrite(place, harm(b"format"), filled(place, name))
        before = place.hashes(path)
        with pytest.raises(LogCorruptError):
            place.again(name)
        assert place.hashes(path) == before


def test_a_newer_log_is_not_salvaged_whatever_else_is_wrong_with_it(place: Any) -> None:
    def change(env: Any, txn: Any) -> None:
        body = env.get_record(txn, b"format")
        env.put_record(txn, b"format", body | {"min_reader_version": 3})
        spoil(b"hard_state")(env, txn)

    path = rewrite(place, change, filled(place))
    before = place.hashes(path)
    with pytest.raises(FormatTooNewError):
        place.again("node")
    assert place.hashes(path) == before


def test_a_release_that_does_not_know_quarantine_may_not_open_the_log(place: Any) -> None:
    path = place.crash(filled(place))
    flip_entry(path, 30)
    log = place.again("node")
    assert log._format["min_reader_version"] == 2
    with log._environment.env.begin() as txn:
        assert log._environment.get_record(txn, b"format")["min_reader_version"] == 2


def test_at_most_a_few_damaged_logs_are_kept(place: Any) -> None:
    log = filled(place)
    for number in range(1, MAX_DAMAGED_LOGS + 1):
        path = place.crash(log)
        flip_entry(path, 50 - number)
        log = place.again("node")
        assert f"log.damaged-{number}" in names(path)
    path = place.crash(log)
    flip_entry(path, 10)
    before = place.hashes(path)
    with pytest.raises(LogCorruptError, match="already keeps 3 damaged logs"):
        place.again("node")
    assert place.hashes(path) == before
    shutil.rmtree(path / "log.damaged-2")
    assert place.again("node").load().last_index == 9
    assert "log.damaged-2" in names(path)


# -- whether it has an end ------------------------------------------------------------------------


def test_floor_vouches_for_term_and_vote_of_a_damaged_log(place: Any) -> None:
    path = place.crash(filled(place))
    flip_entry(path, 30)
    assert not place.again("node").load().quarantine_final


def test_without_floor_nothing_vouches_and_the_quarantine_has_no_end(place: Any) -> None:
    path = place.crash(filled(place))
    (path / "FLOOR").unlink()
    found = place.again("node").load()
    assert (found.quarantine, found.quarantine_final) == ("FLOOR is missing or damaged", True)
    place.close_all()
    assert place.again("node").load().quarantine_final, "FLOOR is there again, and knows no more"


def test_a_damaged_log_without_floor_has_no_end_of_its_quarantine(place: Any) -> None:
    path = place.crash(filled(place))
    flip_entry(path, 30)
    (path / "FLOOR").unlink()
    assert place.again("node").load().quarantine_final


def test_a_floor_that_goes_missing_in_quarantine_takes_its_end_away(place: Any) -> None:
    path = place.crash(filled(place))
    flip_entry(path, 30)
    assert not place.again("node").load().quarantine_final
    place.close_all()
    (path / "FLOOR").unlink()
    found = place.again("node").load()
    assert "entry 30" in found.quarantine
    assert found.quarantine_final


def test_a_floor_that_a_program_without_floor_has_left_behind_vouches_for_nothing(
    place: Any,
) -> None:
    path = place.crash(filled(place))
    env = lmdb.open(str(path / "log"), max_dbs=2, map_size=1 << 26)
    with env.begin(write=True, db=env.open_db(b"meta")) as txn:
        runs = unseal(txn.get(environment.RUNS))
        txn.put(environment.RUNS, seal(runs | {"count": runs["count"] + 1}))
    env.close()
    flip_entry(path, 30)
    assert place.again("node").load().quarantine_final


def test_a_record_of_before_that_was_written_down_has_no_end(place: Any) -> None:
    path = place.close(filled(place))
    body = {"reason": "why", "since_ms": 0, "floor": None, "replaces": None}
    (path / "QUARANTINE").write_bytes(seal(body | {"format_version": 2, "min_reader_version": 2}))
    found = place.again("node").load()
    assert (found.quarantine, found.quarantine_final) == ("why", True)


def test_a_state_ahead_of_a_log_that_floor_vouched_for_goes_back_beyond_floor(place: Any) -> None:
    log = filled(place)
    assert log.enter_quarantine("the state is ahead", Position(2, 60))
    assert log.enter_quarantine("again", Position(2, 60))
    assert place.reopen(log).load().quarantine_final


@pytest.mark.parametrize(
    ("applied", "final"),
    [
        (Position(2, 50), False),
        (Position(1, 1049), False),
        (Position(2, 1050), True),
        (Position(3, 50), True),
        (None, True),
    ],
)
def test_a_state_ahead_by_what_floor_noticed_does_not_take_the_end_away(
    place: Any, applied: Position | None, *, final: bool
) -> None:
    """FLOOR knew of 50 entries and term 2, and may have missed 999 entries."""
    path = place.crash(filled(place))
    flip_entry(path, 30)
    log = place.again("node")
    assert not log.load().quarantine_final
    assert log.enter_quarantine("the state is ahead", applied) is final
    place.close_all()
    assert place.again("node").load().quarantine_final is final


# -- the quarantine itself ------------------------------------------------------------------------


def test_the_recovery_can_begin_a_quarantine(place: Any) -> None:
    log = filled(place)
    log.enter_quarantine("the state is ahead")
    log.enter_quarantine("again")
    assert log.stats().quarantine == "the state is ahead"
    assert place.reopen(log).load().quarantine == "the state is ahead"


def test_a_lone_voter_can_not_begin_one(place: Any) -> None:
    log = place.filled("node")
    with pytest.raises(LogCorruptError, match="the state is ahead"):
        log.enter_quarantine("the state is ahead")
    assert place.reopen(log).load().quarantine is None


def test_the_end_is_durable_and_brings_floor_up_to_date(place: Any) -> None:
    path = place.crash(filled(place))
    flip_entry(path, 30)
    log = place.again("node")
    log.persist([Write(None, None, commands(30, 60, 2))])
    log.end_quarantine()
    log.end_quarantine()
    assert log._floor.recorded.last_index == 60
    assert log.stats().quarantine is None
    place.crash(log)
    assert place.again("node").load().quarantine is None
    assert names(path) == {"log", "log.damaged-1"}


def test_an_end_that_fails_is_final_and_the_quarantine_stays(place: Any, faulty_files: Any) -> None:
    place.close(filled(place))
    files = faulty_files()
    log = place.log(place.directory("node", files))
    log.enter_quarantine("why")
    files.fail_fsync_at = files.fsyncs
    with pytest.raises(StorageError):
        log.end_quarantine()
    with pytest.raises(StorageError):
        begin_term(log, 9)


def test_a_quarantined_log_that_is_damaged_again_keeps_its_first_reason(place: Any) -> None:
    path = place.crash(filled(place))
    flip_entry(path, 30)
    first = place.again("node").load().quarantine
    place.close_all()
    flip_entry(path, 20)
    found = place.again("node").load()
    assert (found.quarantine, found.last_index) == (first, 19)


def test_the_floor_from_before_is_in_the_record(place: Any) -> None:
    path = place.close(filled(place))
    flip_entry(path, 30)
    place.again("node")
    body = unseal((path / "QUARANTINE").read_bytes())
    assert body["floor"]["last_index"] == 50
    assert body["replaces"] is None


def test_an_unpointed_snapshot_in_a_damaged_log_is_not_believed(place: Any) -> None:
    """It may be of another history: only what had been in force is."""
    log = filled(place)
    kept = place.snapshot(log, 10)
    finish_snapshot(log, 20, [b"x"])
    path = place.crash(log)
    flip_entry(path, 30)
    found = place.again("node").load()
    assert found.snapshot == kept
    assert found.last_index == 29


def test_what_lmdb_finds_wrong_while_the_content_is_read_is_damage_too(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that was left clean is not walked page by page before it is read."""
    path = place.close(filled(place))
    real = opening.verify_entries
    calls: list[int] = []

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise lmdb.CorruptedError("mdb_cursor_get: a page of a wrong kind")
        return real(*arguments)

    monkeypatch.setattr(opening, "verify_entries", fail)
    found = place.again("node").load()
    assert found.quarantine.startswith("E_LOG_CORRUPT: the log does not read")
    assert found.last_index == 50, "all of it verified when it was copied"
    assert (path / "log.damaged-1").exists()


def test_a_log_that_fails_to_settle_is_closed_again(place: Any, faulty_files: Any) -> None:
    place.close(filled(place))
    files = faulty_files()
    log = place.log(place.directory("node", files))
    settled = len(files.steps) - 1
    assert files.steps[settled] == "snapshots:settled"
    place.close(log)
    with pytest.raises(StorageError):
        place.log(place.directory("node", faulty_files(fail_at=settled)))
    place.crash_all()
    assert place.again("node").load().quarantine is None


def test_another_file_under_the_pointers_name_is_not_kept(place: Any) -> None:
    log = filled(place)
    older, newest = place.snapshot(log, 20), place.snapshot(log, 30)
    _, forged = make_snapshot(30, 2, newest.chain, [b"forged"])
    path = place.crash(log)
    (path / "snap" / "30-2.snap").write_bytes(forged)
    flip_entry(path, 45)
    found = place.again("node").load()
    assert (found.snapshot, found.last_index) == (older, 44)
