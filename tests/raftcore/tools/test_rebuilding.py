"""The directory of a new cluster made from an old log."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from raftcore.core.membership import decode_configuration, encode_configuration
from raftcore.core.types import Entry, EntryType
from raftcore.errors import IdentityError, LogCorruptError, RefusedError
from raftcore.storage.closed import ClosedDirectory
from raftcore.storage.directory import DataDirectory
from raftcore.storage.files import Files
from raftcore.tools.rebuilding import (
    MAX_HISTORY,
    NewMember,
    Rebuilt,
    Source,
    derive_epoch_cluster_id,
    rebuild,
    verified_source,
)
from raftcore.tools.verification import verify

Directories = Any  #: of the conftest above


@contextlib.contextmanager
def source_of(directories: Directories, name: str) -> Iterator[Source]:
    with ClosedDirectory.open(directories.path(name)) as directory, directory.log() as log:
        yield verified_source(directory, log)


def rebuilt(directories: Directories, name: str, into: str, **options: Any) -> Rebuilt:
    with source_of(directories, name) as source:
        return rebuild(source, directories.path(into), kind="recovered", **options)


def entries_of(directories: Directories, name: str) -> list[Entry]:
    with ClosedDirectory.open(directories.path(name)) as directory, directory.log() as log:
        return [entry for entry, _ in log.entries()]


def with_a_change(directories: Directories, name: str) -> None:
    """Entry 21 is another configuration of the old cluster, 22 and on are commands."""
    old = directories.configuration
    changed = replace(old, members=old.members[:2])
    entry = Entry(21, 2, EntryType.CONFIGURATION, encode_configuration(changed))
    directories.append(name, [entry], term=2, commit=21)


@pytest.mark.parametrize("snapshot", [None, 10])
def test_the_same_commands_lie_at_the_same_places(three: Directories, snapshot: int | None) -> None:
    with_a_change(three, "n1")
    if snapshot:
        three.snapshot("n1", snapshot, compact_to=6)
    rebuilt(three, "n1", "new")
    before = {e.index: e for e in entries_of(three, "n1")}
    after = entries_of(three, "new")
    assert [e.index for e in after] == list(range((snapshot or 0) + 1, 22))
    for entry in after:
        if before[entry.index].type is EntryType.COMMAND:
            assert entry == before[entry.index]
        assert entry.term == before[entry.index].term


@pytest.mark.parametrize("snapshot", [None, 10])
def test_no_configuration_but_that_of_the_new_cluster_is_left(
    three: Directories, snapshot: int | None
) -> None:
    """A node of the new cluster refuses whatever names another one, so nothing of it may stay."""
    with_a_change(three, "n1")
    if snapshot:
        three.snapshot("n1", snapshot)
    made = rebuilt(three, "n1", "new")
    found = [
        decode_configuration(e.data)
        for e in entries_of(three, "new")
        if e.type is EntryType.CONFIGURATION
    ]
    with three.log("new", "n1") as log:
        recovered = log.load()
    if recovered.snapshot is not None:
        found.append(recovered.snapshot.configuration)
    (configuration,) = found
    assert configuration.cluster_id == made.identity.cluster_id != three.configuration.cluster_id
    assert [(m.node_id, m.incarnation) for m in configuration.members] == [
        ("n1", made.identity.incarnation)
    ]
    assert configuration.level == three.configuration.level
    assert made.identity.incarnation not in {m.incarnation for m in three.configuration.members}
    assert recovered.commit_hint == 21
    assert entries_of(three, "new")[-1].type is EntryType.NOOP


def test_the_snapshots_records_are_the_same(three: Directories) -> None:
    three.snapshot("n1", 10, compact_to=11)
    rebuilt(three, "n1", "new")
    with three.log("new", "n1") as log:
        meta = log.newest_snapshot()
        assert meta is not None
        assert list(log.snapshot_records(meta)) == [b"record %d" % n for n in range(1, 11)]


def test_an_older_snapshot_is_used_when_the_newest_is_damaged(three: Directories) -> None:
    three.snapshot("n1", 8)
    newest = three.snapshot("n1", 12, compact_to=9)
    three.flip(newest, newest.stat().st_size // 2)
    rebuilt(three, "n1", "new")
    assert [e.index for e in entries_of(three, "new")] == list(range(9, 21))


def test_two_rebuilds_of_one_directory_are_two_clusters(three: Directories) -> None:
    first, second = rebuilt(three, "n1", "x"), rebuilt(three, "n1", "y")
    assert first.identity.cluster_id != second.identity.cluster_id
    assert first.identity.incarnation != second.identity.incarnation


def test_the_cluster_id_follows_from_cluster_epoch_and_incarnation() -> None:
    known = derive_epoch_cluster_id("c0ffee", 1, bytes(16))
    assert known == "e14ef7667210ce944d269341f6b0271d"
    assert len({known, derive_epoch_cluster_id("c0ffee", 2, bytes(16))}) == 2
    assert known != derive_epoch_cluster_id("c0ffee", 1, b"1" * 16)


def test_epochs_count_up_and_the_earlier_ones_are_kept(three: Directories) -> None:
    names = ["n1", *(f"epoch{n}" for n in range(1, MAX_HISTORY + 4))]
    three.snapshot("n1", 10)
    for old, new in itertools.pairwise(names):
        made = rebuilt(three, old, new)
    assert made.epoch == MAX_HISTORY + 3
    with ClosedDirectory.open(three.path(names[-1])) as directory:
        origin = directory.record("ORIGIN")
    assert origin is not None
    assert len(origin["history"]) == MAX_HISTORY
    assert [step["epoch"] for step in origin["history"]][:2] == [MAX_HISTORY + 2, MAX_HISTORY + 1]


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(three: Directories) -> None:
    before = three.fingerprint("n2")
    with pytest.raises(RefusedError, match="not an empty"):
        rebuilt(three, "n1", "n2")
    assert three.fingerprint("n2") == before


def test_who_was_no_member_must_say_where_it_is(three: Directories) -> None:
    old = three.configuration
    changed = replace(old, members=old.members[1:])
    entry = Entry(21, 2, EntryType.CONFIGURATION, encode_configuration(changed))
    three.append("n1", [entry], term=2, commit=21)
    with pytest.raises(RefusedError, match="address"):
        rebuilt(three, "n1", "new")
    with pytest.raises(RefusedError, match="nonsense"):
        rebuilt(three, "n1", "new", member=NewMember(address="nonsense"))
    assert not three.path("new").exists()
    assert rebuilt(three, "n1", "new", member=NewMember("x", "h:1")).identity.node_id == "x"


def test_large_logs_are_written_in_several_transactions(directories: Directories) -> None:
    directories.found("n1")
    directories.fill("n1", 2500)
    told: list[int] = []
    rebuilt(directories, "n1", "new", on_progress=lambda _doing, done, _total: told.append(done))
    assert told[:3] == [1000, 2000, 2500]
    assert entries_of(directories, "new")[1:] == entries_of(directories, "n1")[1:]


def test_a_log_of_another_directory_is_refused(three: Directories) -> None:
    here, there = three.path("n1") / "log", three.path("n2") / "log"
    (here / "data.mdb").write_bytes((there / "data.mdb").read_bytes())
    with pytest.raises(IdentityError, match="another directory"):
        rebuilt(three, "n1", "new")


class Crash(BaseException):
    pass


class CrashingFiles(Files):
    def __init__(self, at: int) -> None:
        self.left = at

    def reached(self, step: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash(step)


def test_a_crash_at_any_step_leaves_what_every_start_refuses_or_what_is_whole(
    three: Directories,
) -> None:
    three.snapshot("n1", 10)
    for step in range(100):
        into = f"new{step}"
        try:
            rebuilt(three, "n1", into, files=CrashingFiles(step))
        except Crash:
            with ClosedDirectory.open(three.path(into)) as directory:
                whole = (directory.path / "IDENTITY").exists()
                assert verify(directory).sound is whole
            if whole:
                continue
            with pytest.raises(IdentityError, match="no IDENTITY"):
                DataDirectory.open(three.path(into), "n1")
        else:
            assert step > 8
            return
    pytest.fail("it never got through")


def test_a_log_whose_first_entry_is_no_configuration_is_refused(three: Directories) -> None:
    with source_of(three, "n1") as source:
        broken = replace(source, entries=lambda: iter([Entry(1, 1, EntryType.NOOP)]))
        with pytest.raises(LogCorruptError, match="configuration"):
            rebuild(broken, three.path("new"), kind="recovered")
