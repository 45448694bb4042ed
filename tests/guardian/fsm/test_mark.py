from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from guardian.fsm.mark import DATA_FILE, MARK_FILE, Mark, boot_id, why_not_reusable
from raftcore.storage.files import Files
from raftcore.storage.records import seal

INCARNATION = bytes(16)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / DATA_FILE).write_bytes(b"data")
    return tmp_path


def mark_of(directory: Path, *, clean: bool = False) -> Mark:
    return Mark.of(directory, boot="b1", cluster_id="c", incarnation=INCARNATION, clean=clean)


def verdict(directory: Path, boot: str = "b1", cluster_id: str = "c") -> str | None:
    return why_not_reusable(directory, boot=boot, cluster_id=cluster_id, incarnation=INCARNATION)


def test_a_mark_comes_back_as_written(directory: Path) -> None:
    mark = mark_of(directory, clean=True)
    mark.write(directory, Files())
    assert Mark.read(directory) == mark


def test_the_same_boot_and_file_may_go_on(directory: Path) -> None:
    mark_of(directory).write(directory, Files())
    assert verdict(directory) is None


@pytest.mark.parametrize("boot", ["b2", ""])
def test_after_another_boot_only_a_clean_state_is_used(directory: Path, boot: str) -> None:
    mark_of(directory).write(directory, Files())
    assert verdict(directory, boot=boot) == "it was not closed before the machine stopped"
    mark_of(directory, clean=True).write(directory, Files())
    assert verdict(directory, boot=boot) is None


def test_without_boot_ids_an_unclean_state_is_never_used(directory: Path) -> None:
    dataclasses.replace(mark_of(directory), boot_id="").write(directory, Files())
    assert verdict(directory, boot="") is not None


def test_a_copied_directory_is_used_only_if_clean(directory: Path, tmp_path: Path) -> None:
    mark_of(directory).write(directory, Files())
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    assert verdict(copy) == "it is a copy of a state that was not closed"
    mark_of(directory, clean=True).write(copy, Files())
    assert verdict(copy) is None


def test_another_cluster_incarnation_or_format_is_never_used(directory: Path) -> None:
    mark_of(directory, clean=True).write(directory, Files())
    assert verdict(directory, cluster_id="d") is not None
    reason = why_not_reusable(directory, boot="b1", cluster_id="c", incarnation=b"x" * 16)
    assert reason is not None
    dataclasses.replace(mark_of(directory, clean=True), format=99).write(directory, Files())
    assert verdict(directory) == "it has format 99"


def test_a_missing_or_damaged_mark_or_file_forbids_use(directory: Path) -> None:
    assert verdict(directory) == "it has no valid mark"
    mark_of(directory, clean=True).write(directory, Files())
    path = directory / MARK_FILE
    raw = bytearray(path.read_bytes())
    for position in range(len(raw)):
        raw[position] ^= 1
        path.write_bytes(raw)
        assert verdict(directory) == "it has no valid mark", position
        raw[position] ^= 1
    path.write_bytes(raw)
    (directory / DATA_FILE).unlink()
    assert verdict(directory) == "its data file is missing"


def test_a_mark_with_unknown_fields_is_not_a_mark(directory: Path) -> None:
    from_later = {"a": 1}
    (directory / MARK_FILE).write_bytes(seal(from_later))
    assert Mark.read(directory) is None


def test_the_boot_id_is_read_or_empty(tmp_path: Path) -> None:
    assert boot_id(tmp_path / "absent") == ""
    (tmp_path / "id").write_text("abc\n")
    assert boot_id(tmp_path / "id") == "abc"
