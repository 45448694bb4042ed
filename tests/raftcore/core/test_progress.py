"""What a leader knows of a peer: the three states, the window, what only ever grows."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jepsen_like.sim.manual import configuration_of
from raftcore.core.progress import InFlight, Progress, ProgressState
from raftcore.core.types import SnapshotMeta

META = SnapshotMeta(9, 1, b"", configuration_of("abc"), 10, b"d")


def sent(sequence: int, size: int = 10) -> InFlight:
    return InFlight(sequence, prev_index=sequence, last_index=sequence + 1, size_bytes=size)


def test_a_new_peer_is_probed_at_the_end_of_the_log() -> None:
    progress = Progress(8, 0)
    assert progress.state is ProgressState.PROBE
    assert (progress.match_index, progress.next_index) == (0, 8)


def test_replication_continues_from_what_is_proven() -> None:
    progress = Progress(8, 0)
    progress.acknowledge(5)
    progress.become_replicate()
    assert progress.state is ProgressState.REPLICATE
    assert progress.next_index == 6


def test_leaving_a_state_forgets_what_was_in_flight() -> None:
    progress = Progress(8, 0)
    for change in (
        progress.become_probe,
        progress.become_replicate,
        lambda: progress.become_snapshot(META),
        lambda: progress.backtrack(3),
    ):
        progress.sent(sent(1))
        progress.reading = 4
        change()
        assert not progress.inflight
        assert progress.inflight_bytes == 0
        assert progress.reading is None


def test_the_window_closes_by_messages_and_by_bytes() -> None:
    progress = Progress(1, 0)
    progress.sent(sent(1, 60))
    assert progress.window_open(2, 100)
    assert not progress.window_open(1, 100)
    assert not progress.window_open(2, 60)
    progress.forget_through(1)
    assert progress.window_open(1, 1)


def test_an_answer_settles_all_requests_before_it() -> None:
    progress = Progress(1, 0)
    for sequence in (3, 5, 9):
        progress.sent(sent(sequence))
    progress.forget_through(5)
    assert [m.sequence for m in progress.inflight] == [9]
    assert progress.inflight_bytes == 10
    assert progress.find(5) is None
    assert progress.find(9) is not None


def test_a_peer_that_denied_what_it_acknowledged_counts_for_nothing() -> None:
    progress = Progress(9, 0)
    progress.acknowledge(7)
    assert progress.counted_match == 7
    progress.regressed = True
    assert progress.counted_match == 0


def test_feeding_a_snapshot_begins_at_its_first_byte() -> None:
    progress = Progress(1, 0)
    progress.become_snapshot(META)
    assert progress.state is ProgressState.SNAPSHOT
    assert progress.feed is not None
    assert (progress.feed.meta, progress.feed.offset) == (META, 0)


class ProgressMachine(RuleBasedStateMachine):
    """Whatever the answers, match only grows and next stays above it (rule 22)."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = Progress(10, 0)
        self.highest = 0

    @rule(index=st.integers(0, 30))
    def acknowledge(self, index: int) -> None:
        grew = self.progress.acknowledge(index)
        assert grew == (index > self.highest)
        self.highest = max(self.highest, index)

    @rule(index=st.integers(-3, 30))
    def backtrack(self, index: int) -> None:
        before = self.progress.next_index
        self.progress.backtrack(index)
        assert self.progress.next_index <= max(before, self.highest + 1)

    @rule(change=st.sampled_from(["become_probe", "become_replicate"]))
    def change(self, change: str) -> None:
        getattr(self.progress, change)()

    @rule(size=st.integers(0, 50))
    def send(self, size: int) -> None:
        sequence = self.progress.inflight[-1].sequence + 1 if self.progress.inflight else 1
        self.progress.sent(sent(sequence, size))

    @rule(sequence=st.integers(0, 20))
    def forget(self, sequence: int) -> None:
        self.progress.forget_through(sequence)

    @invariant()
    def match_only_grows(self) -> None:
        assert self.progress.match_index == self.highest
        assert self.progress.next_index > self.progress.match_index

    @invariant()
    def bytes_are_the_sum_of_what_is_in_flight(self) -> None:
        assert self.progress.inflight_bytes == sum(m.size_bytes for m in self.progress.inflight)


ProgressMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20)
TestProgressMachine = ProgressMachine.TestCase


@given(st.integers(1, 40), st.integers(0, 40), st.integers(-5, 40))
def test_backtracking_never_reaches_what_is_proven(next_index: int, match: int, to: int) -> None:
    """Rule 25."""
    progress = Progress(next_index, 0)
    progress.acknowledge(match)
    progress.backtrack(to)
    assert progress.next_index >= match + 1


# -- against a plain model ------------------------------------------------------------------------


class History:
    """The same peer, computed anew from all that ever happened instead of being kept up to date."""

    def __init__(self, next_index: int) -> None:
        self.first = next_index
        self.done: list[tuple[str, int]] = []

    @property
    def match(self) -> int:
        """The greatest acknowledgement since it last began anew."""
        return self._match_after(len(self.done))

    def _match_after(self, count: int) -> int:
        begun = max((n for n in range(count) if self.done[n][0] == "restart"), default=-1)
        since = self.done[begun + 1 : count]
        return max((value for what, value in since if what == "acknowledge"), default=0)

    @property
    def next(self) -> int:
        """The guess: set back by a rejection or a new state, and pushed on by what is proven."""
        guess = self.first
        for count, (what, value) in enumerate(self.done, start=1):
            above = self._match_after(count) + 1
            if what in ("become_probe", "become_replicate"):
                guess = above
            elif what == "backtrack":
                guess = min(guess, value)
            if what in ("acknowledge", "backtrack"):
                guess = max(guess, above)
        return guess

    @property
    def inflight(self) -> list[tuple[int, int]]:
        """Sequence and size of everything sent that nothing since has settled or given up."""
        found = []
        for number, (what, size) in enumerate(self.done):
            after = self.done[number + 1 :]
            given_up = any(later in CLEARING for later, _ in after)
            settled = any(later == "forget" and value >= number for later, value in after)
            if what == "send" and not given_up and not settled:
                found.append((number, size))
        return found


CLEARING = ("become_probe", "become_replicate", "become_snapshot", "backtrack", "restart")
STEPS = (
    ("acknowledge", 3), ("acknowledge", 7), ("backtrack", -1), ("backtrack", 5),
    ("become_probe", 0), ("become_replicate", 0), ("become_snapshot", 0), ("restart", 0),
    ("send", 10), ("send", 25), ("forget", 1), ("forget", 9),
)  # fmt: skip
BOUNDS = tuple(product((1, 2, 3), (10, 11, 25, 36)))


def _take(progress: Progress, number: int, what: str, value: int) -> None:
    if what == "send":
        progress.sent(sent(number, value))
    elif what == "forget":
        progress.forget_through(value)
    elif what == "become_snapshot":
        progress.become_snapshot(META)
    elif what in ("become_probe", "become_replicate"):
        getattr(progress, what)()
    elif what == "restart":
        progress.restart(value, 0)
    else:
        getattr(progress, what)(value)


@pytest.mark.parametrize("first", STEPS, ids=str)
def test_next_match_and_window_agree_with_a_model_after_every_short_history(
    first: tuple[str, int],
) -> None:
    """Rules 22, 24, 25, 28: every history of four steps."""
    for rest in product(STEPS, repeat=3):
        progress, history = Progress(6, 0), History(6)
        for number, step in enumerate((first, *rest)):
            _take(progress, number, *step)
            history.done.append(step)
        case = history.done
        assert (progress.match_index, progress.next_index) == (history.match, history.next), case
        inflight = history.inflight
        assert [(m.sequence, m.size_bytes) for m in progress.inflight] == inflight, case
        for messages, size in BOUNDS:
            is_open = len(inflight) < messages and sum(s for _, s in inflight) < size
            assert progress.window_open(messages, size) is is_open, case
