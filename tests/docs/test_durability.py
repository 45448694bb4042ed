"""The fault table names tests that exist, and names one for each fault that storage answers."""

from __future__ import annotations

import re
from pathlib import Path

UNSEEN = "not seen here"  #: how the table marks what no test of a single store can show


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
        assert shown.strip("| ") or answer.startswith(UNSEEN), fault


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
