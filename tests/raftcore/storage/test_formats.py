"""What is on disks: golden bytes of every format, and directories that release 0.1 made.

``fixtures/release-0.1.tar.xz`` was made by the code of release 0.1: node n1 of three, entries 11 to
40, snapshots at 10 and 20, a vote for itself in term 3, closed cleanly.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from raftcore.core.membership import encode_configuration
from raftcore.core.types import (
    Configuration,
    Entry,
    EntryType,
    HardState,
    Lease,
    Member,
    SnapshotMeta,
)
from raftcore.encoding import GENESIS_CHAIN
from raftcore.errors import FormatTooNewError, LogCorruptError, StorageError
from raftcore.storage.base import Write
from raftcore.storage.environment import read_meta
from raftcore.storage.plan import stored_value
from raftcore.storage.records import FORMAT_VERSION, seal, unseal
from raftcore.storage.snapshot_format import SnapshotEncoder, SnapshotHeader
from raftcore.testing.storage_model import commands

FIXTURES = Path(__file__).parent / "fixtures"
INCARNATION = bytes(range(16))
OLD = "release-0.1"


@pytest.fixture
def old(place: Any) -> Path:
    """A directory as release 0.1 left it."""
    with tarfile.open(FIXTURES / f"{OLD}.tar.xz") as archive:
        archive.extractall(place.root, filter="data")
    return Path(place.root / OLD)


# -- release 0.1 ----------------------------------------------------------------------------------


def check_old_content(log: Any) -> None:
    found = log.load()
    assert log.identity.incarnation == INCARNATION
    assert found.quarantine is None
    assert found.hard_state == HardState(3, "n1")
    assert (found.first_index, found.last_index, found.commit_hint) == (11, 40, 35)
    assert found.terms == ((11, 2), (31, 3))
    assert found.snapshot.index == 20
    assert found.snapshot.configuration.level == 1
    assert [m.node_id for m in found.snapshot.configuration.members] == ["n1", "n2", "n3"]
    assert list(log.snapshot_records(found.snapshot)) == [b"state at 20"]
    assert log.read(11, 30, 10**6) == list(commands(11, 30, 2))
    assert log.read(31, 40, 10**6) == list(commands(31, 40, 3))


def test_a_directory_of_release_0_1_opens_and_gets_its_floor(place: Any, old: Path) -> None:
    log = place.again(OLD)
    check_old_content(log)
    log.persist([Write(HardState(4), None, commands(41, 50, 4))])
    assert log._floor.recorded.term == 4
    assert (old / "FLOOR").exists()
    found = place.reopen(log).load()
    assert (found.last_index, found.hard_state, found.quarantine) == (50, HardState(4), None)


def test_the_upgrade_is_one_transaction_after_a_backup_of_the_records(
    place: Any, old: Path
) -> None:
    log = place.again(OLD)
    records = read_meta(log._environment)
    assert (records.format["format_version"], records.format["min_reader_version"]) == (2, 1)
    backup = unseal((old / "log" / "meta-format-1.bak").read_bytes())
    assert json.loads(backup["hard_state"].splitlines()[0]) == {"term": 3, "vote": "n1"}
    assert json.loads(backup["format"].splitlines()[0])["format_version"] == 1
    assert "floor" not in backup


@pytest.mark.parametrize("mode", ["crash_at", "fail_at", "fail_fsync_at"])
def test_the_upgrade_may_be_cut_off_anywhere(
    place: Any, old: Path, faulty_files: Any, crash: type[BaseException], mode: str
) -> None:
    number = 0
    while True:
        place.crash_all()
        with tarfile.open(FIXTURES / f"{OLD}.tar.xz") as archive:
            archive.extractall(place.root / str(number), filter="data")
        name = f"{number}/{OLD}"
        try:
            place.log(place.directory(name, faulty_files(**{mode: number})))
        except (crash, StorageError):
            place.crash_all()
            check_old_content(place.again(name))
            number += 1
        else:
            break
    place.crash_all()
    assert number >= 5


def test_release_0_1_may_open_it_again_until_something_it_does_not_know_is_in_it(
    place: Any, old: Path
) -> None:
    log = place.again(OLD)
    assert log._format["min_reader_version"] == 1
    members = log.newest_snapshot().configuration.members
    first = Configuration("cluster-0.1", members, level=1)
    second = Configuration("cluster-0.1", members, level=2, lease=Lease(1000, 500))
    _append_configuration(log, 41, first)
    assert log._format["min_reader_version"] == 1
    _append_configuration(log, 42, second)
    assert log._format["min_reader_version"] == 2
    log = place.reopen(log)
    assert log._format["min_reader_version"] == 2


def _append_configuration(log: Any, index: int, configuration: Configuration) -> None:
    entry = Entry(index, 3, EntryType.CONFIGURATION, encode_configuration(configuration))
    log.persist([Write(None, None, (entry,))])


def test_an_installed_snapshot_that_0_1_does_not_know_shuts_it_out_too(
    place: Any, old: Path
) -> None:
    log = place.again(OLD)
    members = log.newest_snapshot().configuration.members
    meta, raw = _snapshot_of(Configuration("cluster-0.1", members, level=2))
    receiver = log.receive_snapshot(meta)
    receiver.write(0, raw)
    assert receiver.finish()
    log.install_snapshot(meta)
    assert place.reopen(log)._format["min_reader_version"] == 2


def _snapshot_of(configuration: Configuration) -> tuple[SnapshotMeta, bytes]:
    raw = bytearray()
    encoder = SnapshotEncoder(SnapshotHeader(70, 3, b"c" * 32, configuration), raw.extend)
    encoder.write(b"state")
    digest = encoder.finish()
    return SnapshotMeta(70, 3, b"c" * 32, configuration, len(raw), digest), bytes(raw)


def test_after_release_0_1_ran_again_floor_is_made_anew(place: Any, old: Path) -> None:
    """It cuts the log below a FLOOR that it does not know: that is no loss."""
    log = place.again(OLD)
    log.persist([Write(None, None, commands(41, 2000, 3))])
    place.close(log)
    log = place.again(OLD)
    with log._environment.env.begin(write=True) as txn:  # what release 0.1 does
        log._environment.put_record(txn, b"runs", {"count": log.runs + 1})
        log._environment.delete_from(txn, 61, 3000)
        link = log._environment.get_link(txn, 60)
        body = {"index": 60, "term": link.term, "chain": link.chain.hex()}
        log._environment.put_record(txn, b"last", body)
    place.crash(log)
    log = place.again(OLD)
    assert log.load().quarantine is None
    assert log._floor.recorded.last_index == 60
    place.crash(log)
    assert place.again(OLD).load().quarantine is None


def test_the_log_put_back_to_release_0_1_s_time_is_found(place: Any, old: Path) -> None:
    before = (old / "log" / "data.mdb").read_bytes()
    log = place.again(OLD)
    log.persist([Write(HardState(9, "n2"), None, ())])
    place.close(log)
    (old / "log" / "data.mdb").write_bytes(before)
    found = place.again(OLD).load()
    assert "its term is 3, it was 9" in found.quarantine
    assert found.hard_state == HardState(9, "n2")


def test_a_damaged_log_of_release_0_1_goes_on_in_quarantine(place: Any, old: Path) -> None:
    data_file = old / "log" / "data.mdb"
    data_file.write_bytes(data_file.read_bytes().replace(b"clientdata", b"clientdatb"))
    found = place.again(OLD).load()
    assert (found.first_index, found.last_index, found.snapshot.index) == (21, 20, 20)
    assert "checksum of entry" in found.quarantine
    assert found.hard_state == HardState(3, "n1")


# -- newer releases -------------------------------------------------------------------------------


def make_newer(path: Path, name: str, **versions: int) -> None:
    body = unseal((path / name).read_bytes())
    (path / name).write_bytes(seal(body | versions))


def test_a_newer_identity_is_refused_and_no_file_changes(place: Any) -> None:
    path = place.close(place.voter("node"))
    make_newer(path, "IDENTITY", format_version=9, min_reader_version=FORMAT_VERSION + 1)
    before = place.hashes(path)
    with pytest.raises(FormatTooNewError):
        place.again("node")
    assert place.hashes(path) == before


def test_a_newer_log_is_refused_and_no_file_changes(place: Any) -> None:
    log = place.voter("node")
    with log._environment.env.begin(write=True) as txn:
        body = log._environment.get_record(txn, b"format")
        newer = body | {"format_version": 9, "min_reader_version": FORMAT_VERSION + 1}
        log._environment.put_record(txn, b"format", newer)
    path = place.close(log)
    before = place.hashes(path)
    with pytest.raises(FormatTooNewError):
        place.again("node")
    assert place.hashes(path) == before


def test_what_a_newer_release_says_this_one_can_read_is_read_and_kept(place: Any) -> None:
    log = place.voter("node")
    with log._environment.env.begin(write=True) as txn:
        body = log._environment.get_record(txn, b"format")
        log._environment.put_record(txn, b"format", body | {"format_version": 9})
    path = place.close(log)
    make_newer(path, "IDENTITY", format_version=9)
    log = place.again("node")
    assert log.load().last_index == 50
    assert read_meta(log._environment).format["format_version"] == 9


# -- golden bytes: a change here needs a new format version ---------------------------------------


def test_golden_identity(place: Any, old: Path) -> None:
    """New directories get the bytes that release 0.1 gave them."""
    written = (old / "IDENTITY").read_bytes()
    assert written == (
        b'{"cluster_id":"cluster-0.1","engine":"lmdb-0.9","format_version":1,'
        b'"incarnation":"000102030405060708090a0b0c0d0e0f","min_reader_version":1,'
        b'"node_id":"n1"}\n44680246\n'
    )
    directory = place.directory("new")
    directory._founding = {"incarnation": INCARNATION.hex()}
    directory.join("cluster-0.1")
    assert (directory.path / "IDENTITY").read_bytes() == written


def test_golden_entry() -> None:
    entry = Entry(7, 3, EntryType.COMMAND, b"data", b"client", 5, 1_700_000_000_000, 2)
    value, _ = stored_value(entry, GENESIS_CHAIN)
    assert value.hex() == (
        "0101000000000000000700000000000000030600000000000000050000018bcfe5680000020000000000000004"
        "636c69656e746461746138a9e30a277079a926834c1e2f34bac790efcddf4275d801ac721d6a39158c10cc7052b0"
    )


def test_golden_meta_records(place: Any) -> None:
    directory = place.directory("node")
    directory._founding = {"incarnation": INCARNATION.hex()}
    member = Member("n1", "a:1", INCARNATION)
    directory.bootstrap(Configuration("cluster", (member, Member("n2", "b:1", b"b" * 16)), level=1))
    log = place.log(directory)
    log.persist([Write(HardState(2, "n2"), None, commands(2, 3, 2), commit_hint=2)])
    place.snapshot(log, 2)
    with log._environment.env.begin() as txn:
        found = {
            key: txn.get(key, db=log._environment.meta)
            for key, _ in txn.cursor(log._environment.meta)
        }
    assert found == {
        b"commit_hint": (b'{"index":2}\nc6ec31d2\n'),
        b"first": (
            b'{"chain":"00000000000000000000000000000000000000000000000000'
            b'00000000000000","index":0,"term":0}\n'
            b"25866548\n"
        ),
        b"floor": (b'{"runs":1}\n56a32ca8\n'),
        b"format": (
            b'{"cluster_id":"cluster","format_version":2,"incarnation":"00'
            b'0102030405060708090a0b0c0d0e0f","min_reader_version":1,"node'
            b'_id":"n1"}\n'
            b"a1562527\n"
        ),
        b"hard_state": (b'{"term":2,"vote":"n2"}\n555a8de7\n'),
        b"last": (
            b'{"chain":"c769b673176eb2a886252529dc1da17ecd9d6da8c6df1cff92'
            b'0ebe8b04610f70","index":3,"term":2}\n'
            b"aa937b16\n"
        ),
        b"runs": (b'{"count":1}\ndadb62a9\n'),
        b"snap_ptr": (
            b'{"digest":"eeea70efea7ee7a12e3770e7c2411bd843db3e250abf74a1d'
            b'b4c9377066b2261","index":2,"size_bytes":591,"term":2}\n'
            b"291c2c2c\n"
        ),
    }


def test_golden_snapshot() -> None:
    raw = bytearray()
    member = Member("n", "a:1", b"i" * 16)
    header = SnapshotHeader(7, 3, bytes(range(32)), Configuration("c", (member,), level=2))
    encoder = SnapshotEncoder(header, raw.extend)
    for record in (b"one", b"", b"three"):
        encoder.write(record)
    assert (
        encoder.finish().hex() == "af1aae6055cf00a61ab6e56871b4884d5165fea5cd4d8abe70b05501b1d13447"
    )
    assert bytes(raw).hex() == (
        "52414654534e4150000001b07b22636861696e223a2230303031303230333034303530363037303830393061"
        "306230633064306530663130313131323133313431353136313731383139316131623163316431653166222c"
        "22636f6e66696775726174696f6e223a227b5c22636c75737465725f69645c223a5c22635c222c5c22666f72"
        "6d61745c223a322c5c226c656173655c223a6e756c6c2c5c226c656176696e675c223a5b5d2c5c226c657665"
        "6c5c223a322c5c226d656d626572735c223a5b7b5c22616464726573735c223a5c22613a315c222c5c226174"
        "74726962757465735c223a5b5d2c5c22696e6361726e6174696f6e5c223a5c22363936393639363936393639"
        "36393639363936393639363936393639363936395c222c5c226e6f64655f69645c223a5c226e5c222c5c2276"
        "6f7465725c223a747275657d5d2c5c226f6c645f766f746572735c223a5b5d2c5c22726574697265645c223a"
        "5b5d2c5c227461726765745c223a6e756c6c7d222c22666f726d61745f76657273696f6e223a312c22696e64"
        "6578223a372c226d696e5f7265616465725f76657273696f6e223a312c227465726d223a337d0a6633303463"
        "3632370a000000149cfd283d000000036f6e650000000000000005746872656500000000534e4150464f4f54"
        "00000000000001dc00000000000000038616fd648b1284832f0ab13f1d2f7ea0e62b1dbcec4b7b6e469dd883"
        "e12c9e89e852babd"
    )


def test_a_damaged_entry_format_is_not_taken_for_a_newer_one(place: Any) -> None:
    """Entries carry their format too; one that is not known is damage, never a guess."""
    path = place.close(place.filled("node"))
    data_file = path / "log" / "data.mdb"
    raw = bytearray(data_file.read_bytes())
    raw[raw.rfind(b"clientdata") - 40] ^= 0xFF
    data_file.write_bytes(raw)
    with pytest.raises(LogCorruptError):
        place.again("node")
