"""The free list is reached as far as LMDB would, without mapping the file."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import lmdb
import lmdb.verify
import pytest

from raftcore.errors import LogCorruptError, TruncatedFileError
from raftcore.storage.free_list import check_free_list

PAGE = 4096


def written(path: Path, count: int) -> Path:
    """An environment with ``count`` values, most of them deleted in one transaction each way."""
    env = lmdb.open(str(path), map_size=2**28, max_dbs=2, lib_version=0)
    keys = [struct.pack(">Q", n) for n in range(count)]
    with env.begin(write=True) as txn:
        for key in keys:
            txn.put(key, key * 300)
    for part in (keys[10::2], keys[11::2]):
        with env.begin(write=True) as txn:
            for key in part:
                txn.delete(key)
    for _ in range(3):
        with env.begin(write=True) as txn:
            txn.put(keys[0], os.urandom(20))
    env.close()
    return path / "data.mdb"


def root_of(path: Path) -> int:
    """The page at which the free list in force begins."""
    raw = path.read_bytes()[: 2 * PAGE]
    metas = [struct.unpack_from("=40x40xQ48x8xQ", raw, n * PAGE) for n in (0, 1)]
    root: int = max(metas, key=lambda meta: meta[1])[0]
    return root


def test_a_file_without_free_pages_has_none_to_reach(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path), lib_version=0).close()
    assert check_free_list(tmp_path / "data.mdb") == 0


def test_long_runs_of_free_pages_are_reached_to_their_end(tmp_path: Path) -> None:
    assert check_free_list(written(tmp_path / "a", 3000)) > 3


@pytest.mark.parametrize("count", [50, 3000])
def test_a_cut_that_takes_a_page_of_the_free_list_is_found_and_no_other(
    tmp_path: Path, count: int
) -> None:
    path = written(tmp_path / "a", count)
    size = path.stat().st_size
    found: list[bool] = []
    for kept in range(size // PAGE - 1, 2, -max(1, size // PAGE // 20)):
        os.truncate(path, kept * PAGE)
        problems = lmdb.verify.verify(str(path), False)  # type: ignore[no-untyped-call]
        try:
            check_free_list(path)
            found.append(False)
        except TruncatedFileError:
            found.append(True)
        assert found[-1] is any(problem.startswith("freeDB") for problem in problems), problems
    assert True in found


@pytest.mark.parametrize("offset", [0, 10, 12, 16])
def test_a_damaged_page_of_the_free_list_is_refused(tmp_path: Path, offset: int) -> None:
    path = written(tmp_path / "a", 50)
    root = root_of(path)
    with path.open("r+b") as file:
        file.seek(root * PAGE + offset)
        file.write(b"\xff\xff")
    with pytest.raises(LogCorruptError):
        check_free_list(path)
