"""Upkeep: dead readers are cleared, the log's size is watched, figures are given."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from raftcore.core.types import HardState
from raftcore.errors import StorageError
from raftcore.storage.base import Write
from raftcore.testing.storage_model import commands

MINUTE_NS = 60_000_000_000

DIE_READING = """
    import os, signal, sys
    import lmdb
    env = lmdb.open(sys.argv[1], max_dbs=4, lib_version=0, map_size=2**26)
    txn = env.begin()
    print("reading", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def test_a_reader_that_was_killed_is_cleared_each_minute(place: Any, children: Any) -> None:
    clock = Clock()
    log = place.log(place.directory(place.close(place.voter("node")).name), clock_ns=clock)
    env = log._environment.env
    code, said = children.run(DIE_READING, log._directory.log_path)
    assert (code, said) == (-signal.SIGKILL, "reading\n")
    own = env.readers().count("\n")
    log.maintain()
    assert env.readers().count("\n") == own
    clock.now_ns += MINUTE_NS
    log.maintain()
    assert log._maintenance.reader_checks == 1
    assert env.readers().count("\n") < own
    log.maintain()
    assert log._maintenance.reader_checks == 1


def test_killed_readers_do_not_let_the_file_grow_without_bound(place: Any, children: Any) -> None:
    clock = Clock()
    log = place.log(place.directory(place.close(place.voter("node")).name), clock_ns=clock)
    sizes = []
    for round_number in range(6):
        children.run(DIE_READING, log._directory.log_path)
        for _ in range(20):
            log.persist([Write(None, 51, commands(51, 150, 2))])
            log.persist([Write(None, 51, ())])
        clock.now_ns += MINUTE_NS
        log.maintain()
        sizes.append((log._directory.log_path / "data.mdb").stat().st_size)
        assert round_number < 2 or sizes[-1] <= 2 * sizes[1]


def test_sizes_are_measured(place: Any) -> None:
    log = place.voter("node")
    log.maintain()
    small = log.stats()
    assert small.used_bytes > 0
    log.persist([Write(None, None, commands(51, 3000, 2))])
    log.maintain()
    large = log.stats()
    file_bytes = (log._directory.log_path / "data.mdb").stat().st_size
    assert large.used_bytes > small.used_bytes + 2950 * 50
    assert large.used_bytes + large.free_bytes == pytest.approx(file_bytes, rel=0.2)
    log.persist([Write(None, 51, ())])
    log.maintain()
    assert log.stats().free_bytes > large.used_bytes // 2
    assert log.stats().map_bytes == 64 * 2**20
    assert log.stats().limit_bytes >= log.stats().map_bytes


def test_a_log_near_its_limit_is_said_once(place: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = place.close(place.voter("node"))
    log = place.again(path.name, map_size_bytes=2**20, map_limit_bytes=2**20)
    log.maintain()
    assert caplog.text.count("of the 1048576") == 0
    log.persist([Write(None, None, commands(51, 102, 2, bytes(13_000)))])
    for _ in range(3):
        log.maintain()
    assert caplog.text.count("of the 1048576") == 1
    log.persist([Write(None, 51, ())])
    log.maintain()
    for term in (3, 4):  # what was cut is free once two more transactions have passed
        log.persist([Write(HardState(term), None, ())])
    log.persist([Write(None, None, commands(51, 102, 4, bytes(13_000)))])
    log.maintain()
    assert caplog.text.count("of the 1048576") == 2


def test_commits_and_their_time_are_counted(place: Any) -> None:
    log = place.voter("node")
    before = log.stats()
    log.persist([Write(None, None, commands(51, 60, 2))])
    log.persist([Write(None, None, commands(61, 70, 2))])
    after = log.stats()
    assert after.commits == before.commits + 2
    assert after.commit_seconds > before.commit_seconds
    assert after.runs == log.runs == 1


def test_upkeep_of_a_failed_log_is_refused(place: Any) -> None:
    log = place.voter("node")
    log._transactions._latch.trip(StorageError("a fault"))
    for use in (log.maintain, log.scrub, lambda: log.enter_quarantine("why")):
        with pytest.raises(StorageError, match="a fault"):
            use()
