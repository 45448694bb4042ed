"""The log against a naive list, its watermarks, its cache, its boundary with the snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jepsen_like.sim.manual import configuration_of
from raftcore.core.errors import InvariantError, MisuseError
from raftcore.core.log import RaftLog
from raftcore.core.types import Entry, EntryType, Position, SnapshotMeta, WriteMark

CONFIGURATION = configuration_of("abc")


def meta_at(index: int, term: int) -> SnapshotMeta:
    return SnapshotMeta(index, term, b"", CONFIGURATION, 10, b"d")


def entry(index: int, term: int, size: int = 3) -> Entry:
    return Entry(index, term, EntryType.COMMAND, b"x" * size)


def log_with(*terms: int, cache_bytes: int = 1 << 20, before: Position | None = None) -> RaftLog:
    """A log whose entries have these terms, all durable."""
    before = before or Position(0, 0)
    runs: list[tuple[int, int]] = []
    for index, term in enumerate(terms, start=before.index + 1):
        if not runs or runs[-1][1] != term:
            runs.append((index, term))
    return RaftLog(
        first_index=before.index + 1,
        last_index=before.index + len(terms),
        terms=tuple(runs),
        before_first=before,
        snapshot=meta_at(before.index, before.term) if before.index else None,
        committed=before.index,
        applied=before.index,
        cache_bytes=cache_bytes,
    )


@given(
    st.lists(st.integers(1, 6), max_size=12).map(sorted),
    st.integers(0, 4),
    st.integers(0, 20),
    st.integers(0, 8),
)
def test_last_index_with_term_at_most_agrees_with_a_linear_search(
    terms: list[int], before_index: int, index: int, term: int
) -> None:
    """Rule 25."""
    before = Position(1 if before_index else 0, before_index)
    log = log_with(*terms, before=before)
    there = {before.index: before.term}
    there |= dict(enumerate(terms, start=before.index + 1))
    fitting = [i for i in there if i <= index and there[i] <= term]
    best = max(fitting, default=before.index)
    assert log.last_index_with_term_at_most(index, term) == (best, there[best])


@dataclass
class Model:
    """What a log is: a list of (index, term), and how much of it each write covers."""

    first: int = 1
    before_term: int = 0
    terms: list[int] = field(default_factory=list)
    durable: int = 0
    committed: int = 0
    #: writes not durable yet: mark and the positions it holds, as (index, identity)
    writes: list[tuple[WriteMark, list[int]]] = field(default_factory=list)
    #: identity of the entry at each position, so that equal (index, term) can differ
    identity: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.first - 1 + len(self.terms)


class LogAgainstAList(RuleBasedStateMachine):
    """Random appends, truncations, writes, commits, compactions on both."""

    def __init__(self) -> None:
        super().__init__()
        self.log = log_with(cache_bytes=400)
        self.m = Model()
        self.marks = 0
        self.entries = 0

    @rule(term_up=st.integers(0, 2), count=st.integers(1, 4))
    def append(self, term_up: int, count: int) -> None:
        term = max(self.log.last_term + term_up, 1)
        new = tuple(entry(self.m.last + 1 + i, term, 40) for i in range(count))
        self.log.append(new)
        for _ in new:
            self.entries += 1
            self.m.terms.append(term)
            self.m.identity.append(self.entries)
        self._write()

    def _write(self) -> None:
        self.marks += 1
        mark = WriteMark(self.marks, self.log.last_term)
        self.log.write_issued(mark)
        self.m.writes.append((mark, list(self.m.identity)))

    @precondition(lambda self: self.m.last > self.m.committed)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(self.m.committed + 1, self.m.last))
        self.log.truncate(index)
        del self.m.terms[index - self.m.first :]
        del self.m.identity[index - self.m.first :]
        self._write()

    @precondition(lambda self: self.m.writes)
    @rule(data=st.data())
    def make_durable(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.m.writes)))
        mark, stored = self.m.writes[count - 1]
        del self.m.writes[:count]
        self.m.stored = stored
        self.log.write_durable(mark)

    @precondition(lambda self: self.m.last > self.m.committed)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.m.committed = data.draw(st.integers(self.m.committed + 1, self.m.last))
        assert self.log.commit(self.m.committed)

    @precondition(lambda self: self.log.applicable()[1] >= self.log.applicable()[0])
    @rule()
    def apply(self) -> None:
        self.log.handed = self.log.applicable()[1]
        self.log.applied_to(self.log.handed)

    @precondition(lambda self: self.log.applied >= self.m.first)
    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        index = self.log.applied
        term = self.log.term_at(index)
        assert term is not None
        self.log.snapshot = meta_at(index, term)
        first = data.draw(st.integers(self.m.first + 1, index + 1))
        self.log.compact(first)
        drop = first - self.m.first
        self.m.before_term = self.m.terms[drop - 1]
        del self.m.terms[:drop], self.m.identity[:drop]
        for _, stored in self.m.writes:
            del stored[:drop]
        del self.m.stored[:drop]
        self.m.first = first

    @invariant()
    def positions_agree(self) -> None:
        m, log = self.m, self.log
        assert (log.first_index, log.last_index) == (m.first, m.last)
        assert log.last_term == (m.terms[-1] if m.terms else m.before_term)
        assert log.term_at(m.first - 2) is None
        assert log.term_at(m.first - 1) == m.before_term
        assert log.term_at(m.last + 1) is None
        assert [log.term_at(m.first + i) for i in range(len(m.terms))] == m.terms

    @invariant()
    def durable_is_exactly_what_the_disk_shares_with_the_log(self) -> None:
        """Rule 30: an old write never vouches for new bytes at the same index."""
        same = 0
        for ours, stored in zip(self.m.identity, self.m.stored, strict=False):
            if ours != stored:
                break
            same += 1
        assert self.log.durable == self.m.first - 1 + same

    @invariant()
    def the_cache_gives_the_right_entries(self) -> None:
        found = self.log.cached(self.m.last, self.m.last, 1, 1)
        if self.m.terms and found:
            assert [(e.index, e.term) for e in found] == [(self.m.last, self.m.terms[-1])]
        if self.m.terms and self.log.durable < self.m.last:
            first = max(self.log.durable + 1, self.m.first)
            kept = self.log.cached(first, self.m.last, 1 << 20, 1000)
            assert kept is not None, "what is not durable is never evicted"
            assert [e.index for e in kept] == list(range(first, self.m.last + 1))


LogAgainstAList.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestLogAgainstAList = LogAgainstAList.TestCase


def test_a_gap_or_a_falling_term_is_refused() -> None:
    log = log_with(1, 2)
    with pytest.raises(InvariantError, match="does not continue"):
        log.append((entry(4, 2),))
    with pytest.raises(InvariantError, match="does not continue"):
        log.append((entry(3, 1),))
    assert log.last_index == 2


def test_truncation_at_the_commit_index_is_refused() -> None:
    """Rule 21."""
    log = log_with(1, 1, 1)
    log.commit(2)
    with pytest.raises(InvariantError, match="2 is committed"):
        log.truncate(2)
    log.truncate(3)
    assert log.last_index == 2


def test_commit_never_falls_and_never_passes_the_end() -> None:
    log = log_with(1, 1)
    assert log.commit(1)
    assert not log.commit(1)
    with pytest.raises(InvariantError, match="beyond the last index"):
        log.commit(3)
    assert log.committed == 1


def test_only_what_is_durable_may_be_applied() -> None:
    """Rule 31."""
    log = log_with(1)
    log.append((entry(2, 1),))
    log.write_issued(WriteMark(1, 1))
    log.commit(2)
    assert log.applicable() == (1, 1)
    log.write_durable(WriteMark(1, 1))
    assert log.applicable() == (1, 2)


def test_a_report_of_applied_entries_that_were_not_handed_out_is_misuse() -> None:
    log = log_with(1)
    with pytest.raises(MisuseError, match="was handed out"):
        log.applied_to(1)


def test_a_log_that_does_not_touch_its_beginning_is_misuse() -> None:
    with pytest.raises(MisuseError, match="does not touch"):
        RaftLog(
            first_index=5, last_index=4, terms=(), before_first=Position(1, 3), snapshot=None,
            committed=0, applied=0, cache_bytes=1,
        )  # fmt: skip


def test_equal_ranges_give_the_same_tuple_object() -> None:
    log = log_with()
    log.append(tuple(entry(i, 1) for i in range(1, 6)))
    assert log.cached(2, 5, 1000, 10) is log.cached(2, 5, 1000, 10)


def test_a_batch_keeps_to_its_limits_but_holds_at_least_one_entry() -> None:
    log = log_with()
    log.append(tuple(entry(i, 1, 36) for i in range(1, 6)))
    sizes = {limit: len(log.cached(1, 5, limit, 10) or ()) for limit in (1, 100, 199, 200, 1000)}
    assert sizes == {1: 1, 100: 1, 199: 1, 200: 2, 1000: 5}
    assert len(log.cached(1, 5, 1000, 3) or ()) == 3


def test_compaction_that_no_snapshot_covers_is_refused() -> None:
    log = log_with(1, 1, 1)
    with pytest.raises(InvariantError, match="no snapshot covers"):
        log.compact(2)
    log.snapshot = meta_at(1, 1)
    with pytest.raises(InvariantError, match="no snapshot covers"):
        log.compact(3)
    log.compact(2)
    log.compact(1)
    assert log.first_index == 2


def test_an_installed_snapshot_that_matches_keeps_the_suffix() -> None:
    """Rule 44."""
    log = log_with(1, 1, 2, 2)
    assert log.restore(meta_at(3, 2))
    assert (log.last_index, log.committed, log.applied) == (4, 3, 3)


@pytest.mark.parametrize("meta", [meta_at(3, 1), meta_at(9, 2)])
def test_an_installed_snapshot_that_does_not_match_drops_the_log(meta: SnapshotMeta) -> None:
    """Rule 44."""
    log = log_with(1, 1, 2, 2)
    log.append((entry(5, 2),))
    log.write_issued(WriteMark(1, 2))
    assert not log.restore(meta)
    assert (log.first_index, log.last_index) == (meta.index + 1, meta.index)
    assert log.last_position == meta.position
    log.write_durable(WriteMark(1, 2))
    assert log.durable == meta.index, "the old write vouches for nothing of the new log"


def test_entries_from_storage_that_are_not_those_of_the_log_stop_the_node() -> None:
    """Rule 29: a shifted or foreign range is never sent."""
    log = log_with(1, 1, 2)
    log.check_read(2, (entry(2, 1), entry(3, 2)))
    with pytest.raises(InvariantError, match="storage gave"):
        log.check_read(2, (entry(3, 2),))
    with pytest.raises(InvariantError, match="storage gave"):
        log.check_read(2, (entry(2, 2),))


def test_the_cache_gives_up_an_eighth_at_once() -> None:
    """One entry less per append would cost each append as much as the whole cache is long."""
    size = entry(1, 1).size_bytes
    log = log_with(cache_bytes=80 * size)
    evictions, first = 0, 1
    for index in range(1, 1001):
        log.append((entry(index, 1),))
        log.write_issued(WriteMark(index, 1))
        log.write_durable(WriteMark(index, 1))
        assert log._cache_size <= 80 * size
        if log._cache_first != first:
            assert log._cache_first - first >= 10
            evictions, first = evictions + 1, log._cache_first
    assert 80 <= evictions <= 100
    assert log._cache_size >= 70 * size
