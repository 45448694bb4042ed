"""Where logs part, and whether that may be so."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from raftcore.core.types import HardState
from raftcore.storage.base import Write
from raftcore.storage.closed import ClosedDirectory
from raftcore.testing.storage_model import commands
from raftcore.tools.comparison import Comparison, Relation, compare

Directories = Any  #: of the conftest above


def compared(directories: Directories, *names: str) -> Comparison:
    with contextlib.ExitStack() as held:
        opened = [
            held.enter_context(ClosedDirectory.open(directories.path(name))) for name in names
        ]
        return compare([(d.path, held.enter_context(d.log())) for d in opened])


def only(comparison: Comparison) -> tuple[Relation, int, int | None, str | None]:
    (pair,) = comparison.differences
    return pair.relation, pair.agree_to, pair.differ_from, pair.ahead


def test_equal_logs_are_equal_wherever_they_begin(three: Directories) -> None:
    three.snapshot("n1", 10, compact_to=11)
    assert only(compared(three, "n1", "n2")) == (Relation.EQUAL, 20, None, None)


def test_a_shorter_log_is_a_prefix(three: Directories) -> None:
    found = compared(three, "n3", "n2")
    assert only(found) == (Relation.PREFIX, 15, None, "n2")
    assert "5 entries more" in found.differences[0].explanation


@pytest.mark.parametrize("at", range(6, 30))
def test_the_first_difference_is_found_wherever_it_is(directories: Directories, at: int) -> None:
    directories.found("n1", "n2")
    for name, last in (("n1", 30), ("n2", 33)):
        directories.fill(name, at - 1, commit=5)
        term = 3 if name == "n1" else 4
        directories.append(name, commands(at, last, term), term=term, commit=5)
    found = compared(directories, "n1", "n2")
    assert only(found) == (Relation.DIVERGED, at - 1, at, "n2")
    pair = found.differences[0]
    assert (pair.term_a, pair.term_b) == (3, 4)
    assert not found.conflict


def test_committed_entries_that_differ_are_corruption(directories: Directories) -> None:
    directories.found("n1", "n2")
    for name, term in (("n1", 3), ("n2", 4)):
        directories.fill(name, 10)
        directories.append(name, commands(11, 20, term), term=term, commit=18)
    found = compared(directories, "n1", "n2")
    assert only(found)[0] is Relation.CONFLICT
    assert found.conflict
    assert "CORRUPTION" in found.differences[0].explanation


def test_a_later_leader_that_lacked_a_committed_entry_is_corruption(
    directories: Directories,
) -> None:
    """Leader completeness: only one of the two has committed, but the other can never have been."""
    directories.found("n1", "n2")
    directories.fill("n1", 10)
    directories.append("n1", commands(11, 12, 3), term=3, commit=12)
    directories.fill("n2", 10)
    directories.append("n2", commands(11, 12, 5), term=5, commit=10)
    assert compared(directories, "n1", "n2").conflict
    assert compared(directories, "n2", "n1").conflict


def test_an_uncommitted_entry_of_an_older_leader_is_no_corruption(
    directories: Directories,
) -> None:
    directories.found("n1", "n2")
    directories.fill("n1", 10)
    directories.append("n1", commands(11, 12, 5), term=5, commit=12)
    directories.fill("n2", 10)
    directories.append("n2", commands(11, 14, 3), term=3, commit=10)
    assert only(compared(directories, "n1", "n2")) == (Relation.DIVERGED, 10, 11, "n1")


def test_logs_without_a_common_index_cannot_be_compared(directories: Directories) -> None:
    directories.found("n1", "n2")
    directories.fill("n1", 30)
    directories.snapshot("n1", 25, compact_to=26)
    directories.fill("n2", 10)
    assert only(compared(directories, "n1", "n2")) == (Relation.NO_OVERLAP, 0, None, "n1")


def test_a_difference_below_what_is_kept_is_placed_at_the_first_common_index(
    directories: Directories,
) -> None:
    directories.found("n1", "n2")
    directories.fill("n1", 30)
    directories.snapshot("n1", 25, compact_to=26)
    with directories.log("n2") as log:
        log.persist([Write(HardState(3), None, commands(2, 30, 3), commit_hint=30)])
    assert only(compared(directories, "n1", "n2")) == (Relation.CONFLICT, 0, 25, "n2")


def test_two_clusters_are_two_clusters(directories: Directories) -> None:
    directories.found("n1")
    directories.found("n2", cluster_id="another")
    assert only(compared(directories, "n1", "n2"))[0] is Relation.OTHER_CLUSTER


def test_every_pair_is_compared(three: Directories) -> None:
    found = compared(three, "n1", "n2", "n3")
    assert [(d.a, d.b) for d in found.differences] == [("n1", "n2"), ("n1", "n3"), ("n2", "n3")]
    assert [s.last.index for s in found.sides] == [20, 20, 15]
