"""Snapshot files on disk: a crash at any step, a tear at any place, and the start after it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raftcore.core.types import HardState
from raftcore.errors import (
    ExitCode,
    FormatTooNewError,
    GapError,
    LogCorruptError,
    NoSpaceError,
    StorageError,
)
from raftcore.storage import snapshots
from raftcore.storage.base import Write
from raftcore.storage.records import seal
from raftcore.testing.storage_model import (
    CONFIGURATION,
    begin_term,
    commands,
    make_snapshot,
    receive,
    take_snapshot,
)


def names(path: Path) -> set[str]:
    return {file.name for file in (path / "snap").iterdir()}


def adopt(log: Any, index: int) -> Any:
    meta = take_snapshot(log, index, [b"state at %d" % index] * 50)
    log.compact(log.adopt_snapshot(meta))
    return meta


# -- crashes --------------------------------------------------------------------------------------

LOCAL_STEPS = [
    "snap:written", "snap:synced", "snap:renamed", "snap:verified", "commit:filled", "commit:done",
    "adopt:pointed", "snapshots:settled",
]  # fmt: skip
INSTALL_STEPS = [
    "recv:written", "recv:synced", "recv:renamed", "commit:filled", "commit:done",
    "install:pointed", "floor:begun", "floor:written", "floor:synced", "snapshots:settled",
]  # fmt: skip


def local_snapshot(log: Any) -> None:
    log.adopt_snapshot(take_snapshot(log, 40, [b"new"]))


def installed_snapshot(log: Any) -> None:
    meta, raw = make_snapshot(70, 2, b"c" * 32, [b"new"])
    receive(log, meta, raw)
    log.install_snapshot(meta)


@pytest.mark.parametrize(
    ("act", "steps"), [(local_snapshot, LOCAL_STEPS), (installed_snapshot, INSTALL_STEPS)]
)
def test_the_steps_are_all_exercised(
    place: Any, faulty_files: Any, act: Any, steps: list[str]
) -> None:
    files = faulty_files()
    log = place.filled("node", 50, files)
    files.steps.clear()
    act(log)
    assert files.steps == steps


def crashed_at(place: Any, faulty_files: Any, crash: Any, act: Any, step: int) -> Any:
    """A log with two snapshots, after a crash at that step of a third; what was before it."""
    files = faulty_files()
    log = place.filled("node", 50, files)
    adopt(log, 20)
    before = adopt(log, 30)
    files.crash_at = len(files.steps) + step
    with pytest.raises(crash):
        act(log)
    return place.crash(log), before


@pytest.mark.parametrize("step", range(len(LOCAL_STEPS)))
def test_a_crash_at_any_step_of_a_local_snapshot_is_recovered(
    place: Any, faulty_files: Any, crash: Any, step: int
) -> None:
    path, before = crashed_at(place, faulty_files, crash, local_snapshot, step)
    log = place.again("node")
    found = log.load()
    renamed = step >= 2  # from the rename on, the file is whole and of this very log
    assert found.snapshot.index == (40 if renamed else before.index)
    assert found.last_index == 50
    assert log.read(found.snapshot.index + 1, 50, 10**6)
    assert list(log.snapshot_records(found.snapshot))
    kept = {"40-2.snap", "30-2.snap"} if renamed else {"30-2.snap", "20-2.snap"}
    assert names(path) == kept
    local_snapshot(log) if not renamed else None
    assert place.reopen(log).load().snapshot.index == 40


@pytest.mark.parametrize("step", range(len(INSTALL_STEPS)))
def test_a_crash_at_any_step_of_an_install_is_recovered(
    place: Any, faulty_files: Any, crash: Any, step: int
) -> None:
    path, before = crashed_at(place, faulty_files, crash, installed_snapshot, step)
    log = place.again("node")
    found = log.load()
    pointed = step >= INSTALL_STEPS.index(
        "commit:done"
    )  # one transaction makes pointer and log change together
    if pointed:
        assert (found.snapshot.index, found.first_index, found.last_index) == (70, 71, 70)
    else:
        assert (found.snapshot, found.last_index) == (before, 50)
        assert names(path) == {"30-2.snap", "20-2.snap"}
        installed_snapshot(log)
    assert place.reopen(log).load().snapshot.index == 70


def test_leftovers_are_removed_and_strangers_are_left_alone(place: Any) -> None:
    log = place.filled("node")
    adopt(log, 20)
    path = place.close(log)
    for name in ("30-2.snap.0.tmp", "31-2.snap.1.recv", "note.txt"):
        (path / "snap" / name).write_bytes(b"x")
    place.again("node")
    assert names(path) == {"20-2.snap", "note.txt"}


def test_an_orphan_of_another_history_is_removed(place: Any) -> None:
    log = place.filled("node")
    meta, raw = make_snapshot(30, 2, b"c" * 32, [])
    assert receive(log, meta, raw)
    path = place.crash(log)
    assert place.again("node").load().snapshot is None
    assert names(path) == set()


def test_an_orphan_that_does_not_verify_is_removed(place: Any) -> None:
    log = place.filled("node")
    take_snapshot(log, 30, [b"state"])
    path = place.crash(log)
    with (path / "snap" / "30-2.snap").open("r+b") as file:
        file.truncate(50)
    assert place.again("node").load().snapshot is None
    assert names(path) == set()


# -- damage ---------------------------------------------------------------------------------------


def damage(path: Path, name: str) -> None:
    with (path / "snap" / name).open("r+b") as file:
        file.seek(-30, 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def test_a_torn_newest_snapshot_gives_way_to_the_older_and_its_log(place: Any) -> None:
    log = place.filled("node")
    older = adopt(log, 20)
    newest = adopt(log, 30)
    path = place.close(log)
    step = newest.size_bytes // 18
    for length in (0, 1, *range(step, newest.size_bytes, step), newest.size_bytes - 1):
        copy = place.root / f"cut{length}"
        shutil.copytree(path, copy)
        with (copy / "snap" / "30-2.snap").open("r+b") as file:
            file.truncate(length)
        log = place.again(copy.name)
        found = log.load()
        assert found.snapshot == older
        assert found.first_index <= 21
        assert [e.index for e in log.read(21, 50, 10**6)] == list(range(21, 51))
        assert "30-2.snap.bad" in names(copy)
        again = adopt(log, 30)
        assert place.reopen(log).load().snapshot == again


def test_a_newest_snapshot_that_is_gone_gives_way_too(place: Any) -> None:
    log = place.filled("node")
    older = adopt(log, 20)
    adopt(log, 30)
    path = place.close(log)
    (path / "snap" / "30-2.snap").unlink()
    assert place.again("node").load().snapshot == older


def test_a_snapshot_that_the_disk_can_not_read_gives_way_to_the_older_one(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = place.filled("node")
    older = adopt(log, 20)
    adopt(log, 30)
    path = place.close(log)
    read = snapshots.SnapshotDecoder._take

    def fail(decoder: Any, size: int) -> bytes:
        if decoder._source.name.endswith("30-2.snap"):
            raise OSError(5, "Input/output error")
        return read(decoder, size)

    with monkeypatch.context() as patch:
        patch.setattr(snapshots.SnapshotDecoder, "_take", fail)
        assert place.again("node").load().snapshot == older
    assert "30-2.snap.bad" in names(path)


def test_another_file_under_the_newest_name_is_not_believed(place: Any) -> None:
    log = place.filled("node")
    older = adopt(log, 20)
    adopt(log, 30)
    _, forged = make_snapshot(30, 2, log.chain_at(30), [b"forged"])
    path = place.close(log)
    (path / "snap" / "30-2.snap").write_bytes(forged)
    assert place.again("node").load().snapshot == older


def test_a_file_under_another_name_is_not_believed(place: Any) -> None:
    log = place.filled("node")
    older = adopt(log, 20)
    adopt(log, 30)
    path = place.close(log)
    shutil.copy(path / "snap" / "20-2.snap", path / "snap" / "30-2.snap")
    assert place.again("node").load().snapshot == older


def test_without_any_good_snapshot_a_whole_log_is_enough(place: Any) -> None:
    log = place.filled("node")
    adopt(log, 20)
    path = place.close(log)
    damage(path, "20-2.snap")
    log = place.again("node")
    found = log.load()
    assert found.snapshot is None
    assert (found.first_index, found.last_index) == (1, 50)
    assert [index for index, _ in found.configurations] == [1]
    assert place.reopen(log).load().snapshot is None


def test_without_a_good_snapshot_and_with_a_compacted_log_nothing_starts(place: Any) -> None:
    log = place.filled("node")
    adopt(log, 20)
    adopt(log, 30)
    path = place.close(log)
    damage(path, "20-2.snap")
    damage(path, "30-2.snap")
    before = names(path)
    with pytest.raises(GapError) as caught:
        place.again("node")
    assert caught.value.exit_code is ExitCode.LOG_CORRUPT
    assert names(path) == before


def test_a_log_that_starts_after_an_older_snapshot_does_not_continue_it(place: Any) -> None:
    log = place.filled("node")
    adopt(log, 20)
    begin_term(log, 3)
    meta, raw = make_snapshot(70, 3, b"c" * 32, [])
    assert receive(log, meta, raw)
    log.install_snapshot(meta)
    path = place.close(log)
    assert names(path) == {"20-2.snap", "70-3.snap"}
    damage(path, "70-3.snap")
    found = place.again("node").load()
    assert found.quarantine.startswith("E_GAP: the log begins at 71")
    assert (found.first_index, found.last_index, found.snapshot) == (1, 0, None)
    assert found.hard_state == HardState(3)


def test_a_log_that_ends_below_its_snapshot_is_a_gap(place: Any) -> None:
    """As if the log's file alone had been put back to an older copy."""
    log = place.filled("node")
    meta = adopt(log, 30)
    path = place.close(log)
    damage(path, "30-2.snap")
    log = place.again("node")
    with log._environment.env.begin(write=True) as txn:
        log._environment.put_pointer(txn, replace(meta, index=60))
    place.crash(log)
    with pytest.raises(GapError, match="below snapshot 60"):
        place.again("node")


def test_a_snapshot_of_another_history_than_the_log_is_refused(place: Any) -> None:
    log = place.filled("node")
    meta, raw = make_snapshot(30, 2, b"c" * 32, [])
    with log._environment.env.begin(write=True) as txn:
        log._environment.put_pointer(txn, meta)
    path = place.crash(log)
    (path / "snap" / "30-2.snap").write_bytes(raw)
    with pytest.raises(LogCorruptError, match="another history"):
        place.again("node")


def test_adopting_or_installing_another_history_is_refused(place: Any) -> None:
    log = place.filled("node")
    writer = log.begin_snapshot(30, 2, bytes(32), CONFIGURATION)
    meta = writer.finish()
    with pytest.raises(LogCorruptError, match="another history"):
        log.adopt_snapshot(meta)
    log = place.filled("other")
    meta, raw = make_snapshot(30, 2, b"c" * 32, [])
    assert receive(log, meta, raw)
    with pytest.raises(LogCorruptError, match="another history"):
        log.install_snapshot(meta)


def test_damage_under_a_running_node_is_found_when_read_and_final(place: Any) -> None:
    log = place.filled("node")
    meta = adopt(log, 20)
    damage(log._directory.path, "20-2.snap")
    with pytest.raises(LogCorruptError):
        list(log.snapshot_records(meta))
    with pytest.raises(LogCorruptError):
        log.persist([Write(HardState(3), None, ())])


def test_a_damaged_newest_snapshot_is_not_sent_and_the_older_one_serves_after_the_restart(
    place: Any,
) -> None:
    """It used to be sent, refused by its receiver, and sent again for ever."""
    log = place.filled("node")
    older = adopt(log, 20)
    newest = adopt(log, 30)
    damage(log._directory.path, "30-2.snap")
    assert log.read_snapshot_chunk(newest, 10, 100) != b"", "a transfer that has begun goes on"
    with pytest.raises(LogCorruptError, match=r"30-2\.snap is damaged"):
        log.read_snapshot_chunk(newest, 0, 100)
    with pytest.raises(LogCorruptError, match="is damaged"):
        log.persist([Write(HardState(3), None, ())])
    with pytest.raises(LogCorruptError, match="is damaged"):
        log.read_snapshot_chunk(older, 0, 100)
    path = place.close(log)
    log = place.again("node")
    assert log.load().snapshot == older
    assert [e.index for e in log.read(21, 50, 10**6)] == list(range(21, 51))
    assert "30-2.snap.bad" in names(path)
    raw = b""
    while chunk := log.read_snapshot_chunk(older, len(raw), 100):
        raw += chunk
    assert len(raw) == older.size_bytes


def test_an_exchanged_file_is_not_sent(place: Any) -> None:
    log = place.filled("node")
    meta = adopt(log, 20)
    _, other = make_snapshot(20, 2, meta.chain, [b"other"])
    (log._directory.path / "snap" / "20-2.snap").write_bytes(other)
    with pytest.raises(LogCorruptError, match="is damaged"):
        log.read_snapshot_chunk(meta, 0, 100)


def test_an_exchanged_file_under_a_running_node_is_found(place: Any) -> None:
    log = place.filled("node")
    meta = adopt(log, 20)
    _, other = make_snapshot(20, 2, meta.chain, [b"other"])
    (log._directory.path / "snap" / "20-2.snap").write_bytes(other)
    with pytest.raises(LogCorruptError, match="not the one it was"):
        list(log.snapshot_records(meta))


def test_a_file_that_vanished_reads_as_empty(place: Any) -> None:
    log = place.filled("node")
    meta = adopt(log, 20)
    (log._directory.path / "snap" / "20-2.snap").unlink()
    assert log.read_snapshot_chunk(meta, 0, 100) == b""


def test_a_snapshot_of_a_newer_format_stops_the_start(place: Any) -> None:
    log = place.filled("node")
    adopt(log, 20)
    path = place.close(log)
    body = seal({"format_version": 2, "min_reader_version": 3})
    newer = b"RAFTSNAP" + len(body).to_bytes(4, "big") + body
    (path / "snap" / "20-2.snap").write_bytes(newer)
    with pytest.raises(FormatTooNewError):
        place.again("node")
    assert (path / "snap" / "20-2.snap").read_bytes() == newer


def test_a_received_file_of_a_newer_format_is_not_accepted(place: Any) -> None:
    log = place.filled("node")
    meta, _ = make_snapshot(70, 2, b"c" * 32, [])
    body = seal({"format_version": 2, "min_reader_version": 3})
    newer = b"RAFTSNAP" + len(body).to_bytes(4, "big") + body
    receiver = log.receive_snapshot(meta)
    receiver.write(0, newer)
    assert not receiver.finish()


# -- failing disks --------------------------------------------------------------------------------


def test_a_failing_fsync_at_any_step_latches(place: Any, faulty_files: Any) -> None:
    for act in (local_snapshot, installed_snapshot):
        files = faulty_files()
        log = place.filled(f"{act.__name__}-counted", 50, files)
        files.fsyncs = 0
        act(log)
        for number in range(files.fsyncs):
            faulty = faulty_files()
            log = place.filled(f"{act.__name__}-{number}", 50, faulty)
            faulty.fail_fsync_at = faulty.fsyncs + number
            with pytest.raises(StorageError) as first:
                act(log)
            faulty.fail_fsync_at = None
            with pytest.raises(StorageError) as again:
                log.persist([Write(None, None, commands(51, 51, 2))])
            assert again.value is first.value
            assert place.reopen(log).load().last_index in (50, 70)


def test_a_full_disk_while_writing_a_snapshot_latches(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = place.filled("node")
    writer = log.begin_snapshot(20, 2, log.chain_at(20), CONFIGURATION)

    def fail(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._encoder, "_sink", fail)
    writer.write(bytes(70_000))
    with pytest.raises(NoSpaceError):
        writer.write(bytes(70_000))
    for use in (writer.finish, log.newest_snapshot, writer.abort):
        with pytest.raises(NoSpaceError):
            use()


def test_what_reads_back_as_something_else_latches(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = place.filled("node")
    writer = log.begin_snapshot(20, 2, log.chain_at(20), CONFIGURATION)
    monkeypatch.setattr(writer._encoder, "finish", lambda: bytes(32))
    with pytest.raises(LogCorruptError):
        writer.finish()
