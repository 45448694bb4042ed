"""A crash, an error or a torn write at every step of everything the store does.

After each of them the next start finds every vote and every entry that had been acknowledged, and
sees no loss where there was none.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftcore.core.types import Entry, HardState
from raftcore.errors import StorageError
from raftcore.storage.base import Write
from raftcore.testing.storage_model import commands, make_snapshot, receive, take_snapshot

MODES = ["crash_at", "fail_at", "fail_fsync_at", "tear_at"]


class Promises:
    """What the store has acknowledged: the hard state, and the entries that must be found."""

    def __init__(self) -> None:
        self.hard_state = HardState(1)
        self.entries: dict[int, Entry] = {}
        self.snapshot_index = 0
        self.doubtful_from: int | None = None  #: an unfinished write may have cut from here on
        self.log: Any = None

    def check(self, log: Any) -> None:
        found = log.load()
        assert found.quarantine is None, "a crash is no loss"
        assert found.hard_state.term >= self.hard_state.term
        if found.hard_state.term == self.hard_state.term and self.hard_state.vote:
            assert found.hard_state.vote == self.hard_state.vote
        snapshot_index = found.snapshot.index if found.snapshot else 0
        assert snapshot_index >= self.snapshot_index
        for index, entry in self.entries.items():
            if index <= snapshot_index:
                continue
            if self.doubtful_from is None or index < self.doubtful_from:
                assert log.read(index, index, 1) == [entry]


def persist(promises: Promises, *writes: Write) -> None:
    cuts = [write.truncate_from for write in writes if write.truncate_from is not None]
    promises.doubtful_from = min(cuts, default=None)
    promises.log.persist(writes)
    for write in writes:
        promises.hard_state = write.hard_state or promises.hard_state
        if write.truncate_from is not None:
            for index in [i for i in promises.entries if i >= write.truncate_from]:
                del promises.entries[index]
        promises.entries |= {entry.index: entry for entry in write.entries}
    promises.doubtful_from = None


def life(place: Any, files: Any, promises: Promises) -> None:
    """Every kind of change, one after the other, on the voter in ``node``."""
    log = promises.log = place.log(place.directory("node", files))
    persist(promises, Write(HardState(2, "n2"), None, commands(2, 60, 2), 10))
    persist(promises, Write(None, None, commands(61, 1100, 2)))  # more than FLOOR may lack
    persist(promises, Write(HardState(3), 50, commands(50, 70, 3), 40))  # below FLOOR
    persist(promises, Write(HardState(3, "n3"), None, ()))
    log.maintain()
    log.adopt_snapshot(take_snapshot(log, 20, [b"state at 20"]))
    log.adopt_snapshot(take_snapshot(log, 40, [b"state at 40"]))
    promises.snapshot_index = 40
    while not log.compact(21, 7):
        pass
    persist(promises, Write(HardState(4, "n1"), None, commands(71, 75, 4)))
    promises.doubtful_from = 41  # the leader's snapshot takes the place of all that
    meta, raw = make_snapshot(65, 4, b"c" * 32, [b"the leader's"])
    assert receive(log, meta, raw)
    log.install_snapshot(meta)
    promises.entries.clear()
    promises.snapshot_index, promises.doubtful_from = 65, None
    persist(promises, Write(None, None, commands(66, 80, 4)))
    log.close()
    log._directory.close()


def counted(files: Any, mode: str) -> int:
    counts = {
        "crash_at": len(files.steps),
        "fail_at": len(files.steps),
        "fail_fsync_at": files.fsyncs,
        "tear_at": files.pwrites,
    }
    return counts[mode]


def prepared(place: Any) -> Path:
    """A founded voter of three that has never been opened."""
    place.close(place.voter("template", 1))
    return Path(place.root / "template")


def from_template(place: Any, template: Path, name: str = "node") -> None:
    place.crash_all()
    shutil.rmtree(place.root / name, ignore_errors=True)
    shutil.copytree(template, place.root / name)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_acknowledged_is_lost_at_any_step_of_a_nodes_life(
    place: Any, faulty_files: Any, crash: type[BaseException], mode: str
) -> None:
    template = prepared(place)
    from_template(place, template)
    files = faulty_files()
    life(place, files, Promises())
    total = counted(files, mode)
    assert total > 8
    for number in range(total):
        from_template(place, template)
        promises = Promises()
        with pytest.raises((crash, StorageError)):
            life(place, faulty_files(**{mode: number}), promises)
        place.crash_all()
        promises.check(place.again("node"))


def test_a_second_run_over_the_same_faults_loses_nothing_either(
    place: Any, faulty_files: Any, crash: type[BaseException]
) -> None:
    """A crash in the start after a crash, at every step of that start."""
    template = prepared(place)
    from_template(place, template)
    files = faulty_files()
    promises = Promises()
    files.crash_at = 60
    with pytest.raises(crash):
        life(place, files, promises)
    place.crash_all()
    crashed = place.root / "crashed"
    shutil.copytree(place.root / "node", crashed)
    for number in _until_it_opens(place, faulty_files, crash, crashed):
        promises.check(place.again("node"))
        assert number < 50


def _until_it_opens(
    place: Any, faulty_files: Any, crash: type[BaseException], template: Path
) -> Iterator[int]:
    """Each step at which a start from ``template`` can be cut off; what the cut left is in node."""
    number = 0
    while True:
        from_template(place, template)
        try:
            place.log(place.directory("node", faulty_files(crash_at=number)))
        except crash:
            place.crash_all()
            yield number
        else:
            break
        number += 1
    place.crash_all()
    assert number > 2, "a start has steps"


# -- what is damaged, at every step of the exchange ---------------------------------------------


def damaged(place: Any) -> Path:
    """A voter of three whose entry 30 is damaged and whose newest snapshot does not verify."""
    log = place.voter("template", 1)
    log.persist([Write(HardState(2, "n3"), None, commands(2, 29, 2), 20)])
    for index in (10, 20):
        place.snapshot(log, index)
    log.persist([Write(None, None, commands(30, 50, 2, b"the one"))])
    path = Path(place.crash(log))
    data_file = path / "log" / "data.mdb"
    data_file.write_bytes(data_file.read_bytes().replace(b"the one", b"the onf", 1))
    snapshot = path / "snap" / "20-2.snap"
    snapshot.write_bytes(snapshot.read_bytes()[:-5])
    return path


def check_exchanged(place: Any) -> None:
    log = place.again("node")
    found = log.load()
    path = place.root / "node"
    assert found.quarantine is not None
    assert found.hard_state == HardState(2, "n3")
    assert found.snapshot.index == 10
    assert 29 <= found.last_index < 50
    assert log.read(11, 29, 10**6) == list(commands(11, 29, 2))
    kept = sorted(file.name for file in path.glob("log.*"))
    assert kept == ["log.damaged-1"]
    assert (path / "log.damaged-1" / "data.mdb").exists()
    assert (path / "snap" / "20-2.snap.bad").exists()
    log.persist([Write(HardState(3), None, commands(found.last_index + 1, 60, 3))])
    assert place.reopen(log).load().quarantine == found.quarantine


@pytest.mark.parametrize("mode", ["crash_at", "fail_at", "fail_fsync_at"])
def test_the_exchange_of_a_damaged_log_may_be_cut_off_anywhere(
    place: Any, faulty_files: Any, crash: type[BaseException], mode: str
) -> None:
    template = damaged(place)
    from_template(place, template)
    files = faulty_files()
    place.log(place.directory("node", files))
    total = counted(files, mode)
    assert {"salvage:built", "quarantine:begun", "exchange:moved", "exchange:placed"} <= {
        *files.steps
    }
    for number in range(total):
        from_template(place, template)
        with pytest.raises((crash, StorageError)):
            place.log(place.directory("node", faulty_files(**{mode: number})))
        place.crash_all()
        check_exchanged(place)


def gone_back(place: Any) -> Path:
    """A voter of three whose log is an older one than FLOOR knows."""
    path = Path(place.close(place.voter("template", 40)))
    shutil.copytree(path / "log", place.root / "older")
    log = place.again("template")
    log.persist([Write(HardState(5, "n2"), None, commands(41, 60, 2))])
    place.close(log)
    shutil.rmtree(path / "log")
    shutil.move(place.root / "older", path / "log")
    return path


@pytest.mark.parametrize("mode", ["crash_at", "fail_at", "fail_fsync_at", "tear_at"])
def test_the_beginning_of_a_quarantine_may_be_cut_off_anywhere(
    place: Any, faulty_files: Any, crash: type[BaseException], mode: str
) -> None:
    template = gone_back(place)
    from_template(place, template)
    files = faulty_files()
    place.log(place.directory("node", files))
    total = counted(files, mode)
    for number in range(total):
        from_template(place, template)
        with pytest.raises((crash, StorageError)):
            place.log(place.directory("node", faulty_files(**{mode: number})))
        place.crash_all()
        found = place.again("node").load()
        assert (found.hard_state, found.last_index) == (HardState(5, "n2"), 40)
        assert "its term is 2, it was 5" in found.quarantine


@pytest.mark.parametrize(
    ("act", "before", "after"),
    [
        (lambda log: log.end_quarantine(), "why", None),
        (lambda log: log.enter_quarantine("again"), None, "again"),
    ],
    ids=["end", "enter"],
)
@pytest.mark.parametrize("mode", ["crash_at", "fail_at", "fail_fsync_at"])
def test_entering_and_ending_a_quarantine_may_be_cut_off_anywhere(
    place: Any,
    faulty_files: Any,
    crash: type[BaseException],
    mode: str,
    act: Callable[[Any], None],
    before: str | None,
    after: str | None,
) -> None:
    log = place.voter("template", 20)
    if before is not None:
        log.enter_quarantine(before)
    template = Path(place.close(log))

    def run(files: Any) -> Any:
        from_template(place, template)
        log = place.log(place.directory("node", files))
        started = counted(files, mode)
        log.persist([Write(HardState(3, "n2"), None, commands(21, 30, 3))])
        act(log)
        return started

    files = faulty_files()
    started = run(files)
    for number in range(started, counted(files, mode)):
        with pytest.raises((crash, StorageError)):
            run(faulty_files(**{mode: number}))
        place.crash_all()
        found = place.again("node").load()
        assert found.quarantine in (before, after)
    run(faulty_files())
    place.crash_all()
    assert place.again("node").load().quarantine == after
