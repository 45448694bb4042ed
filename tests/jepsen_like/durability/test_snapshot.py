"""A snapshot that replaced a part of the log survives a power loss, unless its syncs are gone."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from jepsen_like.durability import Verdict
from raftcore.errors import RaftcoreError
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import open_log

#: ``build`` founds a node; ``snapshot`` takes a snapshot at 20 and trims the log behind it.
NODE = """
import pathlib, signal, sys
from raftcore.core.types import Configuration, Entry, EntryType, HardState, Member
from raftcore.storage.base import Write
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import open_log

directory = DataDirectory.open(pathlib.Path(sys.argv[1]) / "n1", "n1", allow_unsupported_fs=True)
member = Member("n1", "127.0.0.1:1", directory.founding_incarnation())
configuration = Configuration("c", (member,))
if sys.argv[2] == "build":
    directory.bootstrap(configuration)
log = open_log(directory, map_size_bytes=1 << 26)
if sys.argv[2] == "build":
    entries = tuple(Entry(i, 1, EntryType.COMMAND, b"x") for i in range(2, 31))
    log.persist([Write(HardState(1, None), None, entries, 30)])
else:
    writer = log.begin_snapshot(20, 1, log.chain_at(20), configuration)
    writer.write(b"state" * 1000)
    meta = writer.finish()
    log.adopt_snapshot(meta)
    assert log.compact(meta.index + 1)
print("done", flush=True)
signal.pause()
"""


def run(start_script: Any, what: str, prefix: tuple[str, ...] = ()) -> Verdict:
    process = start_script(NODE, what, prefix=prefix, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"done\n"
    verdict: Verdict = process.kill_with_power_loss()
    assert verdict.power_lost
    return verdict


def recover(data: Path) -> tuple[int, int, list[bytes]]:
    """First and last index of the log, and the newest snapshot's records."""
    directory = DataDirectory.open(data / "n1", "n1", allow_unsupported_fs=True)
    try:
        log = open_log(directory, map_size_bytes=1 << 26)
        try:
            recovered, meta = log.load(), log.newest_snapshot()
            records = [] if meta is None else list(log.snapshot_records(meta))
        finally:
            log.close()
    finally:
        directory.close()
    return recovered.first_index, recovered.last_index, records


def test_snapshot_and_trimmed_log_fit_after_a_power_loss(start_script: Any, data: Path) -> None:
    run(start_script, "build")
    assert recover(data) == (1, 30, [])
    run(start_script, "snapshot")
    assert recover(data) == (21, 30, [b"state" * 1000])


def test_a_snapshot_that_was_not_synced_leaves_a_gap(start_script: Any, data: Path) -> None:
    run(start_script, "build")
    prefix = ("-m", "jepsen_like.durability.without_sync", "--files")
    verdict = run(start_script, "snapshot", prefix)
    assert any("snap/" in name for name in verdict.lost_names)
    with pytest.raises(RaftcoreError, match="begins at 21"):
        recover(data)
