"""FLOOR over random histories: no false alarm, and no loss below it that is not found."""

from __future__ import annotations

import os
import random

import pytest

from raftcore.core.types import HardState
from raftcore.storage.floor import Floor, FloorKeeper, went_back

HISTORIES = int(os.environ.get("RAFTCORE_FLOOR_HISTORIES", "4000"))


class CrashError(Exception):
    """The process died here."""


class ModelFloor:
    """The two slots, with a crash before, in the middle of, or after a write."""

    def __init__(self, rng: random.Random, first: Floor) -> None:
        self.rng = rng
        self.slots: list[tuple[int, Floor] | None] = [None, (1, first)]

    def write(self, floor: Floor) -> None:
        newest = max(slot for slot in self.slots if slot is not None)
        maybe_crash(self.rng)
        self.slots[(newest[0] + 1) % 2] = None
        maybe_crash(self.rng)
        self.slots[(newest[0] + 1) % 2] = (newest[0] + 1, floor)
        maybe_crash(self.rng)

    def read(self) -> Floor:
        return max((slot for slot in self.slots if slot is not None), key=lambda s: s[0])[1]


def maybe_crash(rng: random.Random) -> None:
    if rng.random() < 0.02:
        raise CrashError


class ModelNode:
    """A log as plainly as it can be said: terms of entries, hard state; and the real keeper."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now_ns = 0
        self.terms = [0]  # of entry 0, 1, 2 ...
        self.hard_state = HardState(1)
        self.runs = 1
        self.file = ModelFloor(rng, self.floor())
        self.said = self.floor()  # the most that anybody may have been told
        self.start()

    def floor(self) -> Floor:
        hard_state = self.hard_state
        last = len(self.terms) - 1
        return Floor(hard_state.term, hard_state.vote, last, self.terms[-1], 2, self.runs)

    def start(self) -> None:
        self.keeper = FloorKeeper(self.file, self.file.read(), lambda: self.now_ns)

    def check(self) -> None:
        assert went_back(self.file.read(), self.hard_state, len(self.terms) - 1) == ""

    def commit(self, terms: list[int], hard_state: HardState) -> None:
        maybe_crash(self.rng)
        self.terms, self.hard_state = terms, hard_state
        maybe_crash(self.rng)
        self.keeper.committed(self.floor())
        self.said = self.floor()

    def write(self) -> None:
        rng, terms, hard_state = self.rng, list(self.terms), self.hard_state
        if rng.random() < 0.4:
            hard_state = HardState(hard_state.term + rng.randint(1, 2), rng.choice([None, "a"]))
        elif hard_state.vote is None and rng.random() < 0.3:
            hard_state = HardState(hard_state.term, "b")
        if rng.random() < 0.3 and len(terms) > 1:
            del terms[rng.randint(1, len(terms) - 1) :]
            self.keeper.before_truncation(len(terms) - 1, terms[-1])
        terms += [hard_state.term] * rng.choice([0, 1, 3, 700])
        self.commit(terms, hard_state)

    def install(self) -> None:
        """A snapshot drops the log and ends above or below it."""
        last = self.rng.randint(1, len(self.terms) + 5)
        terms = [self.hard_state.term] * (last + 1)
        self.keeper.before_truncation(last, terms[-1])
        self.commit(terms, self.hard_state)
        self.keeper.flush(self.floor())

    def wait(self) -> None:
        self.now_ns += self.rng.choice([10**6, 10**9])
        self.keeper.committed(self.floor())

    def stop(self) -> None:
        self.keeper.flush(self.floor())
        self.runs += 1
        self.start()


def run_history(seed: int) -> ModelNode:
    rng = random.Random(seed)
    node = ModelNode(rng)
    for _ in range(12):
        action = rng.choice([node.write, node.write, node.install, node.wait, node.stop])
        try:
            action()
        except CrashError:
            node.runs += 1
            node.start()
        node.check()
    return node


def lose_something(node: ModelNode) -> tuple[HardState, int]:
    """What an older transaction would show: less than the floor in at least one respect."""
    floor, rng = node.file.read(), node.rng
    hard_state, last = node.hard_state, len(node.terms) - 1
    kinds = ["term"]
    if floor.last_index > 0:
        kinds.append("entries")
    if floor.vote is not None:
        kinds.append("vote")
    kind = rng.choice(kinds)
    if kind == "term":
        return HardState(rng.randint(0, floor.term - 1)), last
    if kind == "vote":
        return HardState(floor.term, rng.choice([None, "z"])), last
    return hard_state, rng.randint(0, floor.last_index - 1)


def check_histories(first: int, count: int) -> None:
    for seed in range(first, first + count):
        node = run_history(seed)
        hard_state, last = lose_something(node)
        assert went_back(node.file.read(), hard_state, last), f"seed {seed}: not found"


def test_no_legal_history_raises_an_alarm_and_no_loss_below_floor_is_missed() -> None:
    """A crash may come between any two steps, also in the middle of a slot; 4,000 of the 100,000
    histories of the slow test, or as many as RAFTCORE_FLOOR_HISTORIES says."""
    check_histories(0, HISTORIES)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand_legal_histories_raise_no_alarm() -> None:
    check_histories(1_000_000, 100_000)


def test_what_was_said_of_terms_and_votes_is_always_in_floor() -> None:
    """The alarm is not silent because FLOOR says nothing: a term or vote once said is in it."""
    for seed in range(500):
        node = run_history(seed)
        floor = node.file.read()
        assert (floor.term, floor.vote or "") >= (node.said.term, node.said.vote or "")
        assert node.said.last_index - floor.last_index < 1000


def test_a_keeper_that_forgets_to_lower_floor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A property test that can not fail proves nothing."""
    monkeypatch.setattr(FloorKeeper, "before_truncation", lambda *_: None)
    with pytest.raises(AssertionError):
        check_histories(0, 500)
