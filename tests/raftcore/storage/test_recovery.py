"""What a damaged log gets: a named error, no signal, and not one byte changed by it."""

from __future__ import annotations

import hashlib
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import lmdb.verify
import pytest

from raftcore.core.types import Entry, EntryType, HardState
from raftcore.errors import (
    ExitCode,
    FormatTooNewError,
    LogCorruptError,
    StorageError,
    TruncatedFileError,
)
from raftcore.storage import environment, opening, recovery
from raftcore.storage.base import Write
from raftcore.storage.plan import Link, stored_value
from raftcore.testing.storage_model import command, commands

OPEN = """
    import sys
    from raftcore.errors import StorageError
    from raftcore.storage.directory import DataDirectory
    from raftcore.storage.lmdb_log import open_log
    try:
        log = open_log(
            DataDirectory.open(sys.argv[1], "n1"), verify_limit_bytes=int(sys.argv[2])
        )
    except StorageError as error:
        print(error.code, error)
        sys.exit(error.exit_code)
    print("opened", log.load().last_index)
"""
IN_PROCESS = 2**30
PAGE = 4096


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def data_file(path: Path) -> Path:
    return path / "log" / "data.mdb"


def free_root(path: Path) -> int:
    """The page at which the free list in force begins."""
    raw = path.read_bytes()[: 2 * PAGE]
    metas = [struct.unpack_from("=40x40xQ48x8xQ", raw, n * PAGE) for n in (0, 1)]
    root: int = max(metas, key=lambda meta: meta[1])[0]
    return root


# -- structure ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [IN_PROCESS, 0])
def test_a_log_cut_short_is_refused_without_a_signal(place: Any, children: Any, limit: int) -> None:
    path = place.crash(place.filled("node", 400))
    size = data_file(path).stat().st_size
    copy = place.root / "copy"
    for kept in (0, 100, PAGE, PAGE + 1, 3 * PAGE, size // 2 // PAGE * PAGE, size - PAGE - 1):
        shutil.copytree(path, copy)
        with data_file(copy).open("r+b") as file:
            file.truncate(kept)
        before = digest(data_file(copy))
        code, said = children.run(OPEN, copy, limit)
        assert said.startswith("E_TRUNCATED"), (kept, code, said)
        assert code == 76
        assert digest(data_file(copy)) == before
        shutil.rmtree(copy)


def test_a_log_cut_within_its_free_list_is_refused_without_a_signal(
    place: Any, children: Any
) -> None:
    """No reader comes by those pages: it would be the first write that dies."""
    log, copy, tried = place.create("node"), place.root / "copy", 0
    for last in range(31, 1200, 30):
        log.persist([Write(HardState(2), None, commands(last - 29, last, 2), commit_hint=last)])
        path = log._directory.path
        root, pages = free_root(data_file(path)), data_file(path).stat().st_size // PAGE
        if root != pages - 1:
            continue
        shutil.copytree(path, copy)
        (copy / "log" / "lock.mdb").unlink()
        with data_file(copy).open("r+b") as file:
            file.truncate(root * PAGE)
        code, said = children.run(OPEN, copy, 0)
        assert (code, said.split()[0]) == (76, "E_TRUNCATED"), (last, said)
        shutil.rmtree(copy)
        tried += 1
        if tried == 5:
            return
    pytest.fail(f"only {tried} logs ended with their free list")


@pytest.mark.parametrize("limit", [IN_PROCESS, 0])
def test_a_healthy_log_passes_both_ways_of_looking_at_it(
    place: Any, children: Any, limit: int
) -> None:
    path = place.crash(place.filled("node", 400))
    assert children.run(OPEN, path, limit) == (0, "opened 400\n")


def test_the_parent_of_a_killed_reader_goes_on(place: Any) -> None:
    """The same in this process: the child takes the signal, we raise."""
    path = place.crash(place.filled("node", 400))
    with data_file(path).open("r+b") as file:
        file.truncate(5 * PAGE)
    with pytest.raises(TruncatedFileError, match="ends before its last page"):
        place.again("node", verify_limit_bytes=0)
    place.edit(data_file(path), PAGE, bytes(PAGE))
    place.close_all()
    with pytest.raises(LogCorruptError, match="InvalidError"):
        place.again("node", verify_limit_bytes=0)
    with data_file(path).open("r+b") as file:
        file.truncate(10)
    place.close_all()
    with pytest.raises(TruncatedFileError, match="has 10 bytes"):
        place.again("node")


def test_a_log_cut_after_a_clean_stop_is_found_too(place: Any) -> None:
    path = place.close(place.filled("node", 400))
    with data_file(path).open("r+b") as file:
        file.truncate(5 * PAGE)
    with pytest.raises(TruncatedFileError):
        place.again("node")


def test_a_file_of_odd_size_is_refused(place: Any) -> None:
    path = place.close(place.filled("node"))
    with data_file(path).open("ab") as file:
        file.write(b"odd")
    with pytest.raises(TruncatedFileError, match="whole pages") as caught:
        place.again("node")
    assert caught.value.exit_code is ExitCode.LOG_CORRUPT


@pytest.mark.parametrize("garbage", [bytes(2 * PAGE), b"\xa5" * 2 * PAGE], ids=["zero", "noise"])
def test_metas_that_are_no_metas_are_refused(place: Any, garbage: bytes) -> None:
    path = place.close(place.filled("node"))
    place.edit(data_file(path), 0, garbage)
    before = digest(data_file(path))
    with pytest.raises(LogCorruptError) as caught:
        place.again("node")
    assert caught.value.exit_code is ExitCode.LOG_CORRUPT
    assert digest(data_file(path)) == before


def test_a_second_meta_that_is_none_is_refused(place: Any) -> None:
    path = place.close(place.filled("node"))
    place.edit(data_file(path), PAGE, bytes(PAGE))
    with pytest.raises(LogCorruptError):
        place.again("node")


def test_a_damaged_page_header_is_refused_by_either_way(place: Any, children: Any) -> None:
    path = place.crash(place.filled("node", 400))
    size = data_file(path).stat().st_size
    for page in range(2, size // PAGE):
        place.edit(data_file(path), page * PAGE, b"\xff" * 16)
    for limit in (IN_PROCESS, 0):
        code, said = children.run(OPEN, path, limit)
        assert (code, said.split()[0]) == (76, "E_LOG_CORRUPT"), said


def test_the_childs_walk_is_bounded_in_time(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "WALK_TIMEOUT_S", 0.0)
    monkeypatch.setattr(recovery, "WALK_BYTES_PER_S", 1e15)
    path = place.crash(place.filled("node"))
    with pytest.raises(Exception, match="took more than") as caught:
        place.again(path.name, verify_limit_bytes=0)
    assert caught.value.exit_code is ExitCode.STORAGE_IO


@pytest.mark.parametrize("gone", ["log", "log/data.mdb"])
def test_a_log_that_is_gone_is_corruption_not_a_beginning(place: Any, gone: str) -> None:
    path = place.close(place.filled("node"))
    victim = path / gone
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    with pytest.raises(LogCorruptError, match="is missing"):
        place.again("node")
    assert not data_file(path).exists()


def test_an_emptied_environment_is_refused(place: Any) -> None:
    path = place.close(place.filled("node"))
    shutil.rmtree(path / "log")
    (path / "log").mkdir()
    lmdb.open(str(path / "log"), lib_version=0, max_dbs=4).close()
    with pytest.raises(LogCorruptError):
        place.again("node")


# -- clean and unclean stops ----------------------------------------------------------------------


def test_structure_is_verified_after_an_unclean_stop_only(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    path = place.close(place.filled("node"))
    monkeypatch.setattr(recovery, "_verify_structure", looked.append)
    place.crash(place.again("node"))
    assert looked == []
    log = place.again("node")
    assert looked == [path / "log"]
    place.close(log)
    (path / "log" / "CLEAN").write_bytes(b"nonsense")
    place.again("node")
    assert len(looked) == 2


def test_a_start_that_dies_of_a_page_that_rotted_is_followed_by_one_that_looks(
    place: Any, monkeypatch: pytest.MonkeyPatch, crash: type[BaseException]
) -> None:
    """Size and time of the file say that nobody touched it, so the first start maps it."""
    path = place.close(place.filled("node"))

    def die(*_: Any, **__: Any) -> None:
        raise crash("SIGBUS")

    with monkeypatch.context() as patch:
        patch.setattr(opening.Environment, "open", die)
        with pytest.raises(crash):
            place.again("node")
    looked: list[Path] = []
    monkeypatch.setattr(recovery, "_verify_structure", looked.append)
    place.again("node")
    assert looked == [path / "log"]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (lmdb.Error("mdb_cursor_get: Invalid argument"), LogCorruptError),
        (lmdb.BadTxnError("mdb_get"), LogCorruptError),
        (lmdb.DiskError("mdb_txn_begin: No space left on device"), StorageError),
        (lmdb.ReadersFullError("mdb_txn_begin"), StorageError),
    ],
)
def test_what_lmdb_says_of_the_content_is_damage_and_what_it_says_of_the_system_is_not(
    place: Any, monkeypatch: pytest.MonkeyPatch, said: lmdb.Error, kind: type[Exception]
) -> None:
    place.close(place.filled("node"))

    def fail(*_: Any) -> None:
        raise said

    monkeypatch.setattr(opening, "verify_entries", fail)
    with pytest.raises(StorageError) as caught:
        place.again("node")
    assert type(caught.value) is kind


def test_a_file_put_in_place_of_the_one_left_clean_is_verified(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    path = place.close(place.filled("node"))
    shutil.copy2(data_file(path), path / "copy")
    (path / "copy").rename(data_file(path))
    monkeypatch.setattr(recovery, "_verify_structure", looked.append)
    place.again("node")
    assert looked == [path / "log"]


@pytest.mark.parametrize("number", range(3))
def test_a_failing_fsync_before_mapping_stops_the_start(
    place: Any, faulty_files: Any, number: int
) -> None:
    path = place.close(place.filled("node"))
    files = faulty_files(fail_fsync_at=number)
    directory = place.directory(path.name, files)
    with pytest.raises(Exception, match="Input/output error") as caught:
        place.log(directory)
    assert caught.value.exit_code is ExitCode.STORAGE_IO


# -- content --------------------------------------------------------------------------------------


def test_flipped_bits_in_stored_values_are_found_and_never_truncated_away(place: Any) -> None:
    """LMDB itself returns such values without a word; fifty flips, fifty refusals."""
    path = place.crash(place.filled("node", 300))
    raw = data_file(path).read_bytes()
    rng = random.Random(7)
    offsets = [n for n in range(len(raw)) if raw.startswith(b"clientdata", n)]
    current = [n for n in offsets if _is_reachable(place, path, n)]
    for offset in rng.sample(current, 50):
        position = offset + rng.randrange(10 + 32 + 4)
        place.edit(data_file(path), position, bytes([raw[position] ^ 1 << rng.randrange(8)]))
        before = digest(data_file(path))
        with pytest.raises(LogCorruptError, match="checksum of entry"):
            place.again("node")
        place.close_all()
        _same_entries(before, path, raw, position)
        data_file(path).write_bytes(raw)
    assert place.again("node").load().last_index == 300


def _is_reachable(place: Any, path: Path, offset: int) -> bool:
    """Whether the page holding ``offset`` belongs to the current tree, not to an older one."""
    with data_file(path).open("rb") as file:
        verifier = lmdb.verify._Verifier(file, data_file(path).stat().st_size)
        verifier.verify()
        return bool(verifier.live[offset // PAGE])


def _same_entries(before: str, path: Path, raw: bytes, position: int) -> None:
    """The run counter may have moved; the page with the damage must be as it was."""
    page = position // PAGE * PAGE
    now = data_file(path).read_bytes()[page : page + PAGE]
    assert now[: position - page] == raw[page:position]
    assert now[position - page + 1 :] == raw[position + 1 : page + PAGE]


def rewrite(place: Any, change: Callable[[Any, Any], None]) -> None:
    """Change a stopped log from inside LMDB, as no disk fault could: structure stays sound."""
    log = place.filled("node", 20)
    with log._environment.env.begin(write=True) as txn:
        change(log._environment, txn)
    place.close(log)


def put(env: Any, txn: Any, entry: Entry, previous: Link, key: int | None = None) -> None:
    value, _ = stored_value(entry, previous.chain)
    txn.put(environment.key_of(key or entry.index), value, db=env.entries)


def link(env: Any, txn: Any, index: int) -> Link:
    found = env.get_link(txn, index)
    assert found is not None
    return found


def lose_an_entry(env: Any, txn: Any) -> None:
    txn.delete(environment.key_of(7), db=env.entries)


def lose_the_end(env: Any, txn: Any) -> None:
    env.delete_from(txn, 18, 100)


def lose_the_beginning(env: Any, txn: Any) -> None:
    env.delete_from(txn, 1, 4)


def replace_an_entry(env: Any, txn: Any) -> None:
    put(env, txn, command(7, 2, b"other"), link(env, txn, 6))


def break_the_chain(env: Any, txn: Any) -> None:
    put(env, txn, command(7, 2), link(env, txn, 5))


def let_the_term_fall(env: Any, txn: Any) -> None:
    put(env, txn, command(20, 1), link(env, txn, 19))


def misplace_an_entry(env: Any, txn: Any) -> None:
    put(env, txn, command(6, 2), link(env, txn, 6), key=7)


def store_no_entry(env: Any, txn: Any) -> None:
    body = b"\xff" + bytes(44) + bytes(32)
    value = body + zlib.crc32(body).to_bytes(4, "big")
    txn.put(environment.key_of(7), value, db=env.entries)


def store_no_configuration(env: Any, txn: Any) -> None:
    put(env, txn, Entry(20, 2, EntryType.CONFIGURATION, b"{}"), link(env, txn, 19))


def store_a_strange_key(env: Any, txn: Any) -> None:
    txn.put(b"short", b"value", db=env.entries)


def damage_a_record(env: Any, txn: Any) -> None:
    txn.put(b"hard_state", b'{"term":9,"vote":null}\n00000000\n', db=env.meta)


def lose_a_record(env: Any, txn: Any) -> None:
    txn.delete(b"hard_state", db=env.meta)


def empty_a_record(env: Any, txn: Any) -> None:
    env.put_record(txn, b"last", {})


def unstamp_the_log(env: Any, txn: Any) -> None:
    env.put_record(txn, b"format", {})


def commit_beyond_the_end(env: Any, txn: Any) -> None:
    env.put_record(txn, b"commit_hint", {"index": 21})


def forget_the_term(env: Any, txn: Any) -> None:
    env.put_record(txn, b"hard_state", {"term": 1, "vote": None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_an_entry, "entry 8 follows entry 6"),
        (lose_the_end, "ends at 17"),
        (lose_the_beginning, "entry 4 follows entry 0"),
        (replace_an_entry, "chain breaks at entry 8"),
        (break_the_chain, "chain breaks at entry 7"),
        (let_the_term_fall, "term falls at entry 20"),
        (misplace_an_entry, "under key 7 lies entry 6"),
        (store_no_entry, "entry 7: entry format 255"),
        (store_no_configuration, "entry 20: "),
        (store_a_strange_key, "a key of 5 bytes"),
        (damage_a_record, "meta record hard_state"),
        (lose_a_record, "hard_state is missing"),
        (empty_a_record, "do not read"),
        (unstamp_the_log, "no format version"),
        (commit_beyond_the_end, "outside the log"),
        (forget_the_term, "outside the log"),
    ],
)
def test_every_inconsistency_of_the_content_is_refused(
    place: Any, change: Callable[[Any, Any], None], message: str
) -> None:
    rewrite(place, change)
    with pytest.raises(LogCorruptError, match=message) as caught:
        place.again("node")
    assert caught.value.exit_code is ExitCode.LOG_CORRUPT


def test_a_log_of_a_newer_format_is_refused_and_untouched(place: Any) -> None:
    def make_newer(env: Any, txn: Any) -> None:
        body = env.get_record(txn, b"format")
        env.put_record(txn, b"format", body | {"format_version": 2, "min_reader_version": 3})

    rewrite(place, make_newer)
    before = digest(data_file(place.root / "node"))
    with pytest.raises(FormatTooNewError):
        place.again("node")
    assert digest(data_file(place.root / "node")) == before


def test_terms_and_configurations_are_found_again(place: Any) -> None:
    log = place.filled("node", 20)
    log.persist([Write(HardState(5), 21, tuple(command(n, 5) for n in range(21, 24)))])
    found = place.reopen(log).load()
    assert found.terms == ((1, 1), (2, 2), (21, 5))
    assert [index for index, _ in found.configurations] == [1]
