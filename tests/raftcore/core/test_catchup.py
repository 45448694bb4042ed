"""Rounds in which a new voter catches up (thesis 4.2.1)."""

from __future__ import annotations

from jepsen_like.sim.machine import ChainMachine
from jepsen_like.sim.manual import snapshot_of
from raftcore.core.catchup import Rounds
from raftcore.core.config import MS, CoreConfig
from raftcore.core.progress import Progress
from raftcore.core.types import Configuration

TIMEOUT_NS = 300 * MS
CONFIG = CoreConfig(node_id="a", catch_up_rounds=2, catch_up_ms=1000)


class Voter:
    """A new voter and its rounds; ``at`` moves both."""

    def __init__(self, goal: int) -> None:
        self.progress = Progress(1, 0)
        self.rounds = Rounds(goal, 0, 0)

    def at(self, ms: int, match: int, last: int, *, contact: bool = True) -> None:
        self.progress.match_index = match
        if contact:
            self.progress.last_contact_ns = ms * MS
        self.rounds.observe(self.progress, last, ms * MS, TIMEOUT_NS)

    def failure(self, ms: int) -> str | None:
        return self.rounds.failure(CONFIG, ms * MS)


def test_a_round_in_time_is_enough_though_the_log_has_grown() -> None:
    v = Voter(10)
    v.at(100, 5, 20)
    assert v.rounds.goal_index == 10
    v.at(200, 10, 30)
    assert v.rounds.caught_up
    assert (v.rounds.goal_index, v.rounds.number) == (30, 1)


def test_a_round_that_took_an_election_timeout_was_too_long() -> None:
    v = Voter(10)
    v.at(300, 10, 30)
    assert not v.rounds.caught_up
    assert v.rounds.number == 2
    v.at(500, 30, 40)
    assert v.rounds.caught_up


def test_who_falls_behind_again_no_longer_counts_as_caught_up() -> None:
    v = Voter(10)
    v.at(100, 10, 30)
    v.at(350, 20, 40)
    assert v.rounds.caught_up
    v.at(400, 20, 50)
    assert not v.rounds.caught_up


def test_who_is_not_heard_from_is_not_caught_up_though_there_is_nothing_to_send() -> None:
    v = Voter(10)
    v.at(100, 10, 10)
    assert v.rounds.caught_up
    v.at(400, 10, 10, contact=False)
    assert not v.rounds.caught_up
    v.at(1099, 10, 10, contact=False)
    assert v.failure(1099) is None
    assert v.failure(1100) == "made no progress for 1000 ms"


def test_rounds_are_bounded() -> None:
    v = Voter(10)
    v.at(400, 10, 20)
    assert v.failure(400) is None
    v.at(800, 20, 30)
    assert v.failure(800) == "did not catch up in 2 rounds"


def test_bytes_of_a_snapshot_are_progress_too() -> None:
    v = Voter(10)
    v.progress.become_snapshot(snapshot_of(ChainMachine(), Configuration("c", ())).meta)
    assert v.progress.feed is not None
    for ms in range(0, 5000, 500):
        v.progress.feed.offset += 1
        v.at(ms, 0, 20)
    assert v.failure(5000) is None
    assert v.failure(5500) == "made no progress for 1000 ms"


def test_to_be_fed_the_same_bytes_again_is_no_progress() -> None:
    v = Voter(10)
    v.progress.become_snapshot(snapshot_of(ChainMachine(), Configuration("c", ())).meta)
    assert v.progress.feed is not None
    for ms in range(0, 5000, 100):
        v.progress.feed.offset = ms // 100 % 5
        v.at(ms, 0, 20)
        if v.failure(ms) is not None:
            break
    assert ms == 1400
    assert v.failure(ms) == "made no progress for 1000 ms"


def test_a_newer_snapshot_is_progress_however_little_of_it_has_come() -> None:
    v = Voter(10)
    machine = ChainMachine()
    for ms in range(0, 5000, 900):
        machine.index += 1
        v.progress.become_snapshot(snapshot_of(machine, Configuration("c", ())).meta)
        v.at(ms, 0, 20)
        assert v.failure(ms) is None


def test_snapshots_that_can_not_be_installed_end_a_change_however_many_new_ones_there_are() -> None:
    v = Voter(10)
    v.progress.failed_installs = 4
    v.at(0, 0, 20)
    assert v.failure(0) is None
    v.progress.failed_installs = 5
    v.at(100, 0, 20)
    assert v.failure(100) == "could not install the snapshot 5 times"


def test_what_a_regressed_voter_once_had_is_not_progress() -> None:
    v = Voter(10)
    v.progress.regressed = True
    v.at(100, 10, 10)
    assert not v.rounds.caught_up
