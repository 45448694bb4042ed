"""The order of syncs and renames, which no crash of a process alone can show (rules O5, O6, O7)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from raftcore.storage import opening
from raftcore.storage.files import Files
from raftcore.testing.storage_model import make_snapshot, receive, take_snapshot


class Recorder(Files):
    """Writes down what was synced, renamed and removed, by name."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self.log.append("fsync " + Path(os.readlink(f"/proc/self/fd/{fd}")).name)

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        self.log.append(f"rename {source.name} {target.name}")
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        if path.exists():
            self.log.append(f"remove {path.name}")
        super().remove(path)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_a_local_snapshot_is_synced_before_it_gets_its_name(place: Any, recorder: Recorder) -> None:
    log = place.filled("node", 50, recorder)
    recorder.log.clear()
    meta = take_snapshot(log, 40, [b"state"])
    assert recorder.log == [
        "fsync 40-2.snap.0.tmp",
        "rename 40-2.snap.0.tmp 40-2.snap",
        "fsync snap",
    ]
    recorder.log.clear()
    log.adopt_snapshot(meta)
    assert recorder.log == []


def test_the_third_snapshot_removes_the_first_durably(place: Any, recorder: Recorder) -> None:
    log = place.filled("node", 50, recorder)
    for index in (10, 20):
        log.adopt_snapshot(take_snapshot(log, index, []))
    meta = take_snapshot(log, 30, [])
    recorder.log.clear()
    log.adopt_snapshot(meta)
    assert recorder.log == ["remove 10-2.snap", "fsync snap"]


def test_a_received_snapshot_is_synced_before_it_gets_its_name(
    place: Any, recorder: Recorder
) -> None:
    log = place.filled("node", 50, recorder)
    recorder.log.clear()
    meta, raw = make_snapshot(70, 2, b"c" * 32, [b"state"])
    assert receive(log, meta, raw)
    assert recorder.log == [
        "fsync 70-2.snap.0.recv",
        "rename 70-2.snap.0.recv 70-2.snap",
        "fsync snap",
    ]


def test_a_bootstrap_syncs_each_file_before_its_name_and_its_name_before_the_next(
    place: Any, recorder: Recorder
) -> None:
    directory = place.directory("node", recorder)
    assert recorder.log == [f"fsync {place.root.name}"]
    recorder.log.clear()
    directory.founding_incarnation()
    founding = ["fsync FOUNDING.tmp", "rename FOUNDING.tmp FOUNDING", "fsync node"]
    assert recorder.log == founding
    recorder.log.clear()
    place.bootstrap(directory)
    marker = ".node.raft-cluster"
    assert recorder.log == [
        *founding,
        "fsync node",  # what a cut-off try left is gone
        "fsync node",  # log.new is there
        "fsync data.mdb",
        "fsync log.new",
        "rename log.new log",
        "fsync node",
        "fsync IDENTITY.tmp",
        "rename IDENTITY.tmp IDENTITY",
        "fsync node",
        f"fsync {marker}.tmp",
        f"rename {marker}.tmp {marker}",
        f"fsync {place.root.name}",
        "remove FOUNDING",
        "fsync node",
    ]


def test_an_open_syncs_the_file_and_takes_the_mark_before_it_is_mapped(
    place: Any, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.close(place.filled("node", 50))
    directory = place.directory(path.name, recorder)
    opened = opening.Environment.open

    def note(*arguments: Any, **options: Any) -> Any:
        recorder.log.append("map")
        return opened(*arguments, **options)

    monkeypatch.setattr(opening.Environment, "open", note)
    log = place.log(directory)
    assert recorder.log == [
        "fsync data.mdb",
        "fsync log",
        "remove CLEAN",  # a page that rotted may kill this process; the next one looks then
        "fsync log",
        "map",
    ]
    recorder.log.clear()
    log.close()
    assert recorder.log == [
        "fsync FLOOR",
        "fsync CLEAN.tmp",
        "rename CLEAN.tmp CLEAN",
        "fsync log",
    ]
