"""The fault table names tests that exist, and names one for each fault that storage answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def rows(root: Path) -> list[tuple[str, str, str]]:
    text = (root / "docs" / "durability.md").read_text()
    table = text[text.index("| fault | answer | shown by |") :]
    lines = table[: table.index("\n\n")].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [(row[0], row[1], row[2] if len(row) > 2 else "") for row in cells]


def test_every_fault_names_what_shows_its_answer(root: Path) -> None:
    found = rows(root)
    assert len(found) > 25
    for fault, answer, shown in found:
        assert answer, fault
        assert re.search(r"`(test_\w+|tests/[\w/.]+)`", shown), fault


@pytest.mark.parametrize(
    ("fault", "file"),
    [
        ("a read of the log", "raftcore/storage/test_lmdb_log.py"),
        ("the log's disk hangs", "raftcore/node/test_disks.py"),
        ("the log's disk hangs", "raftcore/core/test_health.py"),
        ("the whole directory is put back", "raftcore/core/test_quarantine.py"),
        ("the whole directory is put back", "raftcore/transport/test_admission.py"),
        ("a backup is flipped", "raftcore/tools/test_archive.py"),
        ("a backup is put back", "raftcore/tools/test_archive.py"),
    ],
)
def test_a_fault_is_shown_by_a_test_of_where_it_is_answered(
    root: Path, fault: str, file: str
) -> None:
    (shown,) = (shown for name, _, shown in rows(root) if name.startswith(fault))
    text = (root / "tests" / file).read_text()
    assert any(f"def {test}(" in text for test in re.findall(r"`(test_\w+)`", shown))


def test_a_test_is_in_the_file_that_the_table_gives_for_it(root: Path) -> None:
    checked = 0
    for _, _, shown in rows(root):
        for names, path in re.findall(r"((?:`test_\w+`,? ?)+)\(`(tests/[\w/.]+)`\)", shown):
            place = root / path
            files = sorted(place.rglob("test_*.py")) if place.is_dir() else [place]
            text = "".join(file.read_text() for file in files)
            assert f"def {re.findall(r'test_[a-z0-9_]+', names)[-1]}(" in text, path
            checked += 1
    assert checked >= 7


def test_every_test_that_the_fault_table_names_exists(root: Path) -> None:
    defined = {
        name
        for path in (root / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:    )?(?:async )?def (test_\w+)", path.read_text(), re.M)
    }
    named = re.findall(r"`(test_\w+)`", " ".join(shown for _, _, shown in rows(root)))
    assert len(named) > 40
    assert set(named) <= defined
    for path in re.findall(r"`(tests/[\w/.]+)`", " ".join(shown for _, _, shown in rows(root))):
        assert (root / path).exists()
