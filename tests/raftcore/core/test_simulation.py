"""Random whole-cluster runs of the core, every invariant checked after every step."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from jepsen_like.cli import main
from jepsen_like.sim import SimOptions, run_seed
from jepsen_like.sim.cluster import CoreCluster
from raftcore.core import effects as ef
from raftcore.core import election, quorum, reads, replication
from raftcore.core import events as ev
from raftcore.core.log import RaftLog
from raftcore.core.raft import Raft
from raftcore.core.state import CoreState, Leadership, WaitFor
from raftcore.core.types import WriteMark

SEEDS = 20


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


def test_whoever_has_much_to_apply_when_all_is_healed_gets_the_time_for_it() -> None:
    """A newcomer that takes in 2,000 entries one by one, on a disk of 5 ms, is no dead cluster."""
    options = SimOptions(
        nodes=1, disk_ms=13.4, change_ms=686, write_every_ms=4.1, append_entries=1,
        snapshot_every=2, trailing_entries=0,
    )  # fmt: skip
    assert run_seed(3768, options).failure is None


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


def test_the_write_comes_first_and_notifications_last_in_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Durability must not hang on what is carried out before the write, such as an observer."""
    ranks: list[list[int]] = []
    step = Raft.step

    def watched(raft: Raft, event: ev.Event) -> list[ef.Effect]:
        effects = step(raft, event)
        ranks.append([rank(effect) for effect in effects])
        return effects

    def rank(effect: ef.Effect) -> int:
        order = (ef.Persist, ef.PeersChanged, ef.Send)
        if isinstance(effect, order):
            return order.index(type(effect))
        return 4 if isinstance(effect, ef.Notification) else 3

    monkeypatch.setattr(Raft, "step", watched)
    for seed in (2, 5):
        assert run_seed(seed, replace(HARSH, change_ms=300)).failure is None
    assert all(found == sorted(found) and found.count(0) <= 1 for found in ranks)
    for together in ({0, 1, 2}, {0, 2, 3}, {0, 2, 4}):
        assert any(set(found) >= together for found in ranks), together


def test_no_two_runs_of_a_node_number_their_reads_alike() -> None:
    """See test_reads.py for what happens if they do."""
    cluster = CoreCluster(1, SimOptions(nodes=3))
    asked: list[int] = []
    for node in cluster.nodes.values():
        for _ in range(3):
            node.start()
            before = node._next_read
            node.read()
            asked += [before, node._next_read]
    assert len(asked) == len(set(asked)) == 18
    assert max(asked) > 2**60


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


def apply_before_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RaftLog, "applicable", lambda log: (log.handed + 1, log.committed))


def read_without_a_quorum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "quorum_value", lambda _configuration, _value_of: 10**9)


def count_entries_of_old_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figure 8: the term of the entry is not asked for (rule 16)."""

    def advance(s: CoreState, leadership: Leadership) -> None:
        matches = {peer: p.match_index for peer, p in leadership.progress.items()}
        matches[s.node_id] = s.log.durable
        s.log.commit(quorum.quorum_value(s.configuration, matches.__getitem__))

    monkeypatch.setattr(replication, "advance_commit", advance)


def count_own_entries_before_they_are_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 17."""

    def issued(log: RaftLog, _mark: WriteMark) -> None:
        log.durable = log.last_index

    monkeypatch.setattr(RaftLog, "write_issued", issued)


HARSH = SimOptions(
    nodes=3,
    drop=0.05,
    duplicate=0.05,
    delay_ms=6.0,
    heavy_tail=True,
    disk_ms=6.0,
    crash_ms=700,
    crash_new_leader=0.5,
    partition_ms=500,
    pause_ms=500,
    transfer_ms=700,
    read_every_ms=10,
    snapshot_every=30,
    drift_ppm=100_000,
)

#: Leaders that are replaced without noticing it, under many reads.
PAUSING = SimOptions(
    nodes=3,
    delay_ms=3.0,
    disk_ms=3.0,
    partition_ms=600,
    pause_ms=300,
    drift_ppm=200_000,
    read_every_ms=4,
    write_every_ms=8,
)

MUTANTS: dict[Callable[[pytest.MonkeyPatch], None], set[str]] = {
    send_at_once: {"I17"},
    half_is_a_majority: {"I1", "I6", "I9", "I14"},
    any_log_is_up_to_date: {"I6", "I7", "InvariantError"},
    apply_before_durable: {"I10"},
    read_without_a_quorum: {"I12"},
    count_entries_of_old_terms: {"I8"},
    count_own_entries_before_they_are_durable: {"I9", "I10", "I17"},
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_the_simulation_notices(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checker that can not fail proves nothing: break one rule, and see who says so."""
    mutant(monkeypatch)
    # A stale read is rare: begin where one is close.
    options, first = (PAUSING, 57) if mutant is read_without_a_quorum else (HARSH, 41)
    for seed in range(first, first + 60):
        result = run_seed(seed, options)
        if result.failure is not None:
            assert result.invariant in MUTANTS[mutant], result.failure
            return
    pytest.fail("60 seeds and nobody noticed")


def test_the_command_says_what_it_did_and_that_it_was_valid(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["sim", "--seeds", "6:8", "--verbose"]) == 0
    printed = capsys.readouterr().out
    assert "seed 6:" in printed
    assert "2 seeds" in printed
    assert "0 failed" in printed


def test_the_command_names_the_failing_seed_and_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    send_at_once(monkeypatch)
    assert main(["sim", "--seeds", "3:9"]) == 1
    printed = capsys.readouterr().out
    assert "seed 3 FAILED: I17" in printed
    assert "python -m jepsen_like sim --seeds 3 --verbose" in printed
    assert "1 seeds" in printed


def test_a_broken_harness_is_told_from_a_broken_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_seed: int) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr("jepsen_like.cli.run_seed", broken)
    assert main(["sim", "--seeds", "1"]) == 3
    assert "a bug of ours" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", ["x", "5:5", "1:y"])
def test_a_wrong_command_line_is_the_harness_s_fault_too(seeds: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sim", "--seeds", seeds])
    assert stopped.value.code == 3
