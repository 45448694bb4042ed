"""A report on a directory: every kind of damage is found, and nothing else is."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import lmdb
import pytest

from raftcore.core.membership import encode_configuration
from raftcore.core.types import Configuration, Entry, EntryType
from raftcore.errors import ExitCode, LockedError
from raftcore.storage.closed import ClosedDirectory
from raftcore.storage.directory import DataDirectory
from raftcore.storage.plan import stored_value
from raftcore.storage.records import seal, unseal
from raftcore.tools.verification import MAX_FINDINGS, Report, Severity, verify

Directories = Any  #: of the conftest above


def report_on(path: Path) -> Report:
    with ClosedDirectory.open(path) as directory:
        return verify(directory)


def codes(report: Report) -> list[tuple[str, str]]:
    return [(finding.code, finding.where) for finding in report.findings]


def change(path: Path, table: bytes, key: bytes, value: bytes | None) -> None:
    """Change a table behind the back of everybody."""
    env = lmdb.open(str(path / "log"), max_dbs=4, map_size=2**26, lib_version=0)
    with contextlib.closing(env):
        handle = env.open_db(table, create=False)
        with env.begin(write=True) as txn:
            if value is None:
                txn.delete(key, db=handle)
            else:
                txn.put(key, value, db=handle)


def test_a_healthy_directory_is_sound_and_has_no_findings(three: Directories) -> None:
    three.snapshot("n1", 10, compact_to=6)
    report = report_on(three.path("n1"))
    assert (report.sound, report.entries, report.snapshots) == (True, 15, 1)
    assert report.findings == ()


def test_a_flipped_bit_in_a_value_is_found_and_the_entries_after_it_still_count(
    three: Directories,
) -> None:
    path = three.path("n1")
    log = path / "log" / "data.mdb"
    raw, data = log.read_bytes(), b"client"
    places = [n for n in range(len(raw)) if raw.startswith(data, n)]
    three.flip(log, places[-1])
    report = report_on(path)
    assert report.exit_code is ExitCode.LOG_CORRUPT
    assert [code for code, _ in codes(report)] == ["entry_damaged"]
    assert report.entries == 19


def test_a_missing_entry_is_found(three: Directories) -> None:
    change(three.path("n1"), b"entries", struct.pack(">Q", 7), None)
    report = report_on(three.path("n1"))
    assert codes(report) == [("entry_missing", "7")]
    assert report.exit_code is ExitCode.LOG_CORRUPT


def test_an_entry_of_another_history_breaks_the_chain(three: Directories) -> None:
    with three.log("n2") as log:
        other = log._environment
        with other.env.begin() as txn:
            nine = txn.get(struct.pack(">Q", 9), db=other.entries)
    body = bytearray(nine[:-36])
    body[-1] ^= 1  # another command, sealed properly, under the chain of the first
    value = bytes(body) + nine[-36:-4]
    value += zlib.crc32(value).to_bytes(4, "big")
    change(three.path("n2"), b"entries", struct.pack(">Q", 9), value)
    assert codes(report_on(three.path("n2"))) == [("chain_broken", "9")]


def test_a_meta_record_that_disagrees_with_the_entries_is_found(three: Directories) -> None:
    path = three.path("n1")
    change(path, b"meta", b"commit_hint", seal({"index": 99}))
    change(path, b"meta", b"hard_state", seal({"term": 1, "vote": None}))
    (path / "FLOOR").unlink()
    change(path, b"meta", b"floor", None)
    assert codes(report_on(path)) == [("commit_beyond_log", "log"), ("term_below_log", "log")]


def test_a_log_that_ends_elsewhere_than_its_meta_record_says_is_found(three: Directories) -> None:
    change(three.path("n1"), b"entries", struct.pack(">Q", 20), None)
    assert codes(report_on(three.path("n1"))) == [("tip_differs", "log")]


def test_a_damaged_meta_record_is_found(three: Directories) -> None:
    change(three.path("n1"), b"meta", b"last", b"nonsense")
    assert codes(report_on(three.path("n1"))) == [("E_LOG_CORRUPT", "log")]


def test_a_key_that_is_no_index_is_found(three: Directories) -> None:
    change(three.path("n1"), b"entries", b"\xff\xff", b"x")
    assert ("E_LOG_CORRUPT", "log") in codes(report_on(three.path("n1")))


def test_a_damaged_snapshot_before_which_the_log_is_complete_is_a_warning(
    three: Directories,
) -> None:
    snapshot = three.snapshot("n1", 10)
    three.flip(snapshot, snapshot.stat().st_size // 2)
    report = report_on(three.path("n1"))
    assert report.sound
    assert {finding.severity for finding in report.findings} == {Severity.WARNING}
    assert [code for code, _ in codes(report)] == ["snapshot_damaged", "snapshot_in_force_unusable"]


def test_a_damaged_snapshot_that_the_log_needs_is_a_gap(three: Directories) -> None:
    snapshot = three.snapshot("n1", 10, compact_to=11)
    three.flip(snapshot, snapshot.stat().st_size // 2)
    report = report_on(three.path("n1"))
    assert codes(report)[-1] == ("E_GAP", "log")
    assert report.exit_code is ExitCode.LOG_CORRUPT


def test_a_snapshot_of_another_history_is_found(three: Directories) -> None:
    with three.log("n1") as log:
        writer = log.begin_snapshot(12, 2, bytes(32), three.configuration)
        writer.finish()
    found = codes(report_on(three.path("n1")))
    assert ("snapshot_of_another_history", "12-2.snap") in found


def test_a_snapshot_and_an_entry_that_name_another_cluster_are_found(three: Directories) -> None:
    stranger = Configuration("another", three.configuration.members)
    entry = Entry(21, 3, EntryType.CONFIGURATION, encode_configuration(stranger))
    three.append("n1", [entry], term=3, commit=15)
    with three.log("n1") as log:
        chain = log.chain_at(20)
    value, chain = stored_value(Entry(21, 3, EntryType.CONFIGURATION, b"{}"), chain)
    assert codes(report_on(three.path("n1"))) == [("foreign_configuration", "21")]
    change(three.path("n1"), b"entries", struct.pack(">Q", 21), value)
    tip = seal({"index": 21, "term": 3, "chain": chain.hex()})
    change(three.path("n1"), b"meta", b"last", tip)
    assert codes(report_on(three.path("n1"))) == [("configuration_damaged", "21")]


def test_a_log_below_its_floor_is_found(three: Directories) -> None:
    path = three.path("n1")
    change(path, b"meta", b"hard_state", seal({"term": 2, "vote": "n2"}))
    assert report_on(path).sound
    three.append("n1", [], term=7, commit=15)
    change(path, b"meta", b"hard_state", seal({"term": 2, "vote": None}))
    report = report_on(path)
    assert codes(report) == [("floor_missed", "FLOOR")]
    assert report.exit_code is ExitCode.LOG_CORRUPT
    (path / "FLOOR").unlink()
    assert codes(report_on(path)) == [("floor_missed", "FLOOR")]


def test_a_quarantine_is_a_warning_and_a_damaged_log_kept_aside_too(three: Directories) -> None:
    path = three.path("n1")
    three.damage("n1")
    with three.log("n1"):
        assert (path / "QUARANTINE").exists()
    report = report_on(path)
    assert report.sound
    assert codes(report) == [("quarantine", "QUARANTINE"), ("set_aside", "log.damaged-1")]


def test_leftovers_are_notes_and_a_snapshot_set_aside_is_a_warning(three: Directories) -> None:
    path = three.path("n1")
    three.snapshot("n1", 10)
    (path / "snap" / "12-2.snap.0.tmp").write_bytes(b"")
    (path / "snap" / "9-2.snap.bad").write_bytes(b"")
    (path / "mine.txt").write_bytes(b"")
    report = report_on(path)
    assert report.sound
    assert [(f.severity, f.code, f.where) for f in report.findings] == [
        (Severity.NOTE, "unknown_file", "mine.txt"),
        (Severity.NOTE, "unfinished", "snap/12-2.snap.0.tmp"),
        (Severity.WARNING, "set_aside", "snap/9-2.snap.bad"),
    ]


def test_snapshots_that_nobody_points_to_are_notes(three: Directories) -> None:
    path = three.path("n1")
    for index in (8, 10, 12):
        three.snapshot("n1", index)
    change(path, b"meta", b"snap_ptr", None)
    assert codes(report_on(path)) == [
        ("snapshot_unpointed", "12-2.snap"),
        ("snapshot_unpointed", "10-2.snap"),
    ]


def test_an_empty_directory_is_none_of_ours(tmp_path: Path) -> None:
    report = report_on(tmp_path)
    assert report.exit_code is ExitCode.CONFIG
    assert codes(report) == [("no_lock", "LOCK"), ("E_IDENTITY", "IDENTITY")]


def test_a_damaged_identity_does_not_hide_what_the_log_says(three: Directories) -> None:
    path = three.path("n1")
    three.flip(path / "IDENTITY", 20)
    report = report_on(path)
    assert codes(report) == [("E_IDENTITY", "IDENTITY")]
    assert (report.exit_code, report.entries) == (ExitCode.CONFIG, 20)


def test_the_log_of_another_node_is_found(three: Directories) -> None:
    here, there = three.path("n1") / "log", three.path("n2") / "log"
    (here / "data.mdb").write_bytes((there / "data.mdb").read_bytes())
    report = report_on(three.path("n1"))
    assert codes(report) == [("E_IDENTITY", "log")]
    assert report.exit_code is ExitCode.CONFIG


@pytest.mark.parametrize("where", ["IDENTITY", "log"])
def test_a_newer_format_is_said_to_be_newer_not_damaged(three: Directories, where: str) -> None:
    path = three.path("n1")
    newer = {"format_version": 9, "min_reader_version": 9}
    if where == "IDENTITY":
        body = unseal((path / "IDENTITY").read_bytes())
        (path / "IDENTITY").write_bytes(seal(body | newer))
    else:
        change(path, b"meta", b"format", seal(newer))
    report = report_on(path)
    assert codes(report) == [("E_FORMAT_TOO_NEW", where)]
    assert report.exit_code is ExitCode.CONFIG


def test_findings_are_bounded(three: Directories) -> None:
    for number in range(MAX_FINDINGS + 7):
        (three.path("n1") / f"stray{number}").write_bytes(b"")
    report = report_on(three.path("n1"))
    assert (len(report.findings), report.omitted) == (MAX_FINDINGS, 7)


def test_a_directory_in_use_is_refused(three: Directories) -> None:
    with (
        contextlib.closing(DataDirectory.open(three.path("n1"), "n1")),
        pytest.raises(LockedError, match="pid"),
    ):
        ClosedDirectory.open(three.path("n1"))


def test_a_log_cut_short_anywhere_is_reported_and_never_mapped(three: Directories) -> None:
    """In a child: a mapped file that is cut short kills its reader."""
    script = """
import json, sys
from pathlib import Path
from raftcore.storage.closed import ClosedDirectory
from raftcore.tools.verification import verify
path = Path(sys.argv[1]); log = path / "log" / "data.mdb"
whole = log.read_bytes(); told = []
sizes = [*range(0, len(whole), 1021), *range(4096, len(whole), 4096), len(whole) - 1]
for size in sizes:
    log.write_bytes(whole[:size])
    with ClosedDirectory.open(path) as directory:
        report = verify(directory)
    told.append([size, report.exit_code, [f.code for f in report.findings]])
log.write_bytes(whole)
with ClosedDirectory.open(path) as directory:
    assert verify(directory).sound
print(json.dumps(told))
"""
    child = subprocess.run(
        [sys.executable, "-c", script, str(three.path("n1"))],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    told = json.loads(child.stdout)
    assert len(told) > 30
    for size, exit_code, found in told:
        if exit_code != ExitCode.LOG_CORRUPT:  # a loose page at the end holds nothing
            assert exit_code == ExitCode.OK, (size, found)
            assert size % 4096 == 0, size
    assert sum(exit_code == ExitCode.LOG_CORRUPT for _, exit_code, _ in told) > 25
