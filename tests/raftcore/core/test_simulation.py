"""Random whole-cluster runs of the core, every invariant checked after every step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jepsen_like.sim import SimOptions, run_seed

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
