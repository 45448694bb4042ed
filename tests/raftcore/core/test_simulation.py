"""Random whole-cluster runs of the core, every invariant checked after every step."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from jepsen_like.sim import SimOptions, run_seed
from raftcore.core import election, quorum, reads
from raftcore.core.log import RaftLog
from raftcore.core.state import CoreState, WaitFor

SEEDS = 24


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_invariant_holds_and_the_cluster_recovers(seed: int) -> None:
    result = run_seed(seed)
    assert result.failure is None, f"{result.failure} in {result.options}"


def test_the_runs_do_something() -> None:
    """A simulation in which nothing happens would hold every invariant too."""
    options = SimOptions(
        nodes=3, drop=0.02, crash_ms=700, partition_ms=900, snapshot_every=10, trailing_entries=1
    )
    result = run_seed(1, options)
    assert result.failure is None
    for what in ("elections", "writes acknowledged", "reads served", "crashes", "partitions"):
        assert result.counters.get(what, 0) >= 2, what
    assert result.counters["snapshots taken"] >= 5


PRINT_HASHES = """
from jepsen_like.sim import run_seed
for seed in (2, 5, 11):
    print(run_seed(seed).trace_hash)
"""


def test_equal_seeds_give_equal_traces_in_processes_with_different_hash_seeds() -> None:
    printed = set()
    for hash_seed in ("1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", PRINT_HASHES],
            env=environment, capture_output=True, text=True, check=True, timeout=100,
        )  # fmt: skip
        printed.add(done.stdout)
    (hashes,) = printed
    assert len(set(hashes.split())) == 3


def test_another_seed_gives_another_trace() -> None:
    options = SimOptions(nodes=3, duration_ms=300)
    assert run_seed(1, options).trace_hash != run_seed(2, options).trace_hash


def send_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Votes and acknowledgements leave before they are durable."""
    send = CoreState.send
    monkeypatch.setattr(
        CoreState, "send", lambda s, to, m, _wait_for: send(s, to, m, WaitFor.NOTHING)
    )


def half_is_a_majority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quorum, "majority_size", lambda voters: max(len(voters) // 2, 1))


def any_log_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(election, "up_to_date", lambda _s, _m: True)


def longest_log_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(election, "up_to_date", lambda s, m: m.last_index >= s.log.last_index)


def apply_before_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RaftLog, "applicable", lambda log: (log.handed + 1, log.committed))


def read_without_a_quorum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "quorum_value", lambda _configuration, _value_of: 10**9)


def forget_the_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vote is erased by a step-down in the same term (rule 3)."""
    become_follower = election.become_follower

    def forgetful(s: CoreState, term: int, leader: str | None) -> None:
        become_follower(s, term, leader)
        s.vote = None

    monkeypatch.setattr(election, "become_follower", forgetful)


MUTANTS: dict[Callable[[pytest.MonkeyPatch], None], set[str]] = {
    send_at_once: {"I17"},
    half_is_a_majority: {"I1", "I9"},
    any_log_is_up_to_date: {"I6", "I7", "InvariantError"},
    longest_log_wins: {"I6", "I7", "InvariantError"},
    apply_before_durable: {"I10"},
    read_without_a_quorum: {"I12"},
    forget_the_vote: {"I1", "I2", "AssertionError"},
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_the_simulation_notices(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checker that can not fail proves nothing: break one rule, and see who says so."""
    mutant(monkeypatch)
    for seed in range(40):
        result = run_seed(seed)
        if result.failure is not None:
            assert result.invariant in MUTANTS[mutant], result.failure
            return
    pytest.fail("40 seeds and nobody noticed")
