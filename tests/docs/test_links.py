"""What documents point to exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import pytest


class Document(Protocol):
    path: Path
    text: str
    prose: str


_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE_PATH = re.compile(r"`((?:[a-z_]+/)+[a-z0-9_]+\.(?:py|md|toml|yml|yaml))(?:::([a-z0-9_*]+))?`")
#: paths in tables of rules are relative to these
_ABOVE = ("", "raftcore", "tests/raftcore", "tests/raftcore/core")


def anchor_of(heading: str) -> str:
    """A heading's anchor, as GitHub and MyST make it."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    headings = {anchor_of(h) for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    return headings | set(re.findall(r"^\(([a-z-]+)\)=$", text, re.MULTILINE))


def test_links_between_files_lead_somewhere(documents: list[Document]) -> None:
    checked = 0
    for document in documents:
        for target in _LINK.findall(document.prose):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = document.path.parent / name if name else document.path
            assert path.exists(), f"{document.path.name}: {target}"
            if anchor:
                assert anchor in anchors(path), f"{document.path.name}: {target}"
            checked += 1
    assert checked > 20


def test_every_page_is_in_a_table_of_contents(root: Path) -> None:
    index = (root / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (root / "docs").glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", index, re.MULTILINE), page.name


def test_code_that_is_named_exists(documents: list[Document], root: Path) -> None:
    checked = 0
    for document in documents:
        for name, test in _CODE_PATH.findall(document.text):
            found = [root / above / name for above in _ABOVE if (root / above / name).exists()]
            assert found, f"{document.path.name}: {name}"
            if test:
                pattern = rf"def {test.replace('*', '')}"
                assert any(re.search(pattern, path.read_text()) for path in found), test
            checked += 1
    assert checked > 50


def test_tests_that_are_named_exist(root: Path) -> None:
    """The tables of rules and promises name tests; a renamed test would make them lie."""
    defined = set()
    for path in (root / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"def (test_[a-z0-9_]+)", path.read_text(encoding="utf-8")))
    for name in ("raft-rules.md", "verification.md"):
        text = (root / "docs" / name).read_text(encoding="utf-8")
        mentioned = re.findall(r"\b(test_[a-z0-9_]+)(\*|\.py|/)?", text)
        assert len(mentioned) > 5
        for test, suffix in mentioned:
            if suffix in {".py", "/"}:
                assert list((root / "tests").rglob(f"{test}{suffix}")), f"{name}: {test}{suffix}"
            elif suffix == "*":
                assert any(known.startswith(test) for known in defined), f"{name}: {test}*"
            else:
                assert test in defined, f"{name}: {test}"


def test_every_rule_names_a_test_or_a_transcript(root: Path) -> None:
    text = (root / "docs" / "raft-rules.md").read_text(encoding="utf-8")
    transcripts = root / "tests" / "raftcore" / "core" / "transcripts"
    rows = re.findall(r"^\| (\d+) \|(.+)\|(.+)\|(.+)\|$", text, re.MULTILINE)
    assert len(rows) == 52
    for number, rule, code, shown in rows:
        assert not re.search(r"\bnext\b", rule + code + shown), f"rule {number} is still to come"
        assert re.search(r"`[\w/]+(\.py|/)`", code), f"rule {number}"
        assert re.search(r"`[\w/.]*(::)?(test_\w+|\w+\.txt)|`tests/", shown), f"rule {number}"
        for name in re.findall(r"`(\w+\.txt)`", shown):
            assert (transcripts / name).exists(), f"rule {number}: {name}"


@pytest.mark.parametrize("page", ["design.md", "durability.md", "raft-rules.md", "contract.md"])
def test_every_module_is_named_with_its_package(root: Path, page: str) -> None:
    """`log.py` alone could be one of several."""
    text = (root / "docs" / page).read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+\.py)`", text):
        if not name.startswith("test_"):
            assert any((root / above / name).exists() for above in _ABOVE[:3]), f"{page}: {name}"


#: where, and in which words, something may be said to be missing
_MISSING = {"README.md": "**Not there yet**", "guarantees.md": "## Not there yet"}


def test_nothing_is_put_off_but_where_that_is_said_for_all(
    documents: list[Document], root: Path
) -> None:
    pages = [d for d in documents if d.path.parent == root / "docs"]
    pages += [d for d in documents if d.path == root / "README.md"]
    for page in pages:
        text = page.text
        if page.path.name in _MISSING:
            assert text.count(_MISSING[page.path.name]) == 1
            text = text.replace(_MISSING[page.path.name], "")
        words = " ".join(text.lower().split())
        for putting_off in (
            "not in this release",
            "next release",
            "not there yet",
            "one release so far",
        ):
            assert putting_off not in words, f"{page.path.name}: {putting_off}"


def test_mutants_that_are_named_exist(root: Path) -> None:
    simulation = root / "tests" / "raftcore" / "core" / "test_simulation.py"
    defined = set(re.findall(r"^def (\w+)\(", simulation.read_text(encoding="utf-8"), re.MULTILINE))
    checked = 0
    for name in ("raft-rules.md", "verification.md"):
        text = (root / "docs" / name).read_text(encoding="utf-8")
        for mutant in re.findall(r"\bmutant `(\w+)`", text):
            assert mutant in defined, f"{name}: {mutant}"
            checked += 1
    assert checked > 5


def test_each_rule_has_its_row_and_the_code_names_no_other(root: Path) -> None:
    text = (root / "docs" / "raft-rules.md").read_text(encoding="utf-8")
    rows = [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert rows == list(range(1, 53))
    for package in ("raftcore", "guardian", "jepsen_like"):
        for path in (root / package).rglob("*.py"):
            for number in re.findall(r"\brules? (\d+)", path.read_text(encoding="utf-8")):
                assert int(number) in rows, f"{path.name}: rule {number}"


def test_each_invariant_that_the_code_names_has_its_row(root: Path) -> None:
    text = (root / "docs" / "design.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| (I\d+) \|", text, re.MULTILINE))
    named = set()
    for path in (root / "jepsen_like").rglob("*.py"):
        named |= set(re.findall(r'"(I\d+)"', path.read_text(encoding="utf-8")))
    assert named, "the simulator names its invariants"
    assert named <= rows


@pytest.mark.parametrize("forbidden", [r"(?<![\w.])/(?:home|root|Users|tmp)/", r"TODO|FIXME|XXX"])
def test_documents_hold_no_path_of_a_machine_and_nothing_unfinished(
    documents: list[Document], forbidden: str
) -> None:
    for document in documents:
        found = re.search(forbidden, document.text)
        assert found is None, f"{document.path.name}: {found}"
