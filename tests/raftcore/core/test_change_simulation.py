"""Random runs with changes of membership, and proof that the ghost would notice a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import pytest

from jepsen_like.sim import SimOptions, run_seed
from jepsen_like.sim.configurations import (
    ConfigurationGhost,
    decides,
    in_order,
    with_learners,
)
from jepsen_like.sim.errors import BrokenInvariantError
from jepsen_like.sim.manual import configuration_of
from raftcore.core import change, election, quorum, replication
from raftcore.core.effects import MembershipOutcome
from raftcore.core.membership import ConfigurationStack, final_of
from raftcore.core.raft import Raft
from raftcore.core.state import CoreState, Leadership
from raftcore.core.types import Configuration, NodeId

CHANGING = SimOptions(
    nodes=3,
    learners=1,
    drop=0.03,
    duplicate=0.03,
    delay_ms=4.0,
    disk_ms=4.0,
    crash_ms=900,
    crash_new_leader=0.3,
    partition_ms=700,
    pause_ms=900,
    transfer_ms=900,
    change_ms=90,
    snapshot_every=10,
    trailing_entries=1,
)


@pytest.mark.parametrize("seed", range(12))
def test_every_invariant_holds_while_members_change(seed: int) -> None:
    result = run_seed(seed, CHANGING)
    assert result.failure is None, result.failure


def test_the_runs_change_members() -> None:
    """Every kind of outcome comes about, or the seeds prove less than they seem to."""
    seen: dict[str, int] = {}
    for seed in range(20, 30):
        for what, count in run_seed(seed, CHANGING).counters.items():
            seen[what] = seen.get(what, 0) + count
    for what in ("change done", "change in_progress", "change unknown", "removals learned"):
        assert seen.get(what, 0) >= 3, (what, seen)
    assert seen["configurations appended"] >= 40


# -- mutants ------------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def in_force_once_committed(patch: Patch) -> None:
    """M37."""
    patch.setattr(
        CoreState,
        "configuration",
        property(lambda s: s.configurations.committed(s.log.committed)[1]),
    )


def a_second_change_before_the_first_is_committed(patch: Patch) -> None:
    """M38."""
    allow(patch, MembershipOutcome.IN_PROGRESS)


def a_change_before_the_own_term_is_committed(patch: Patch) -> None:
    """M39."""
    allow(patch, MembershipOutcome.NOT_READY)


def allow(patch: Patch, outcome: MembershipOutcome) -> None:
    """Requests are not refused for that reason, but for joint mode, which has no next change."""
    refusal = change._refusal

    def refuse(
        s: CoreState, leadership: Leadership, version: int
    ) -> tuple[MembershipOutcome, str] | None:
        found = refusal(s, leadership, version)
        joint = bool(s.configuration.old_voters)
        return found if found is None or joint or found[0] is not outcome else None

    patch.setattr(change, "_refusal", refuse)


def joint_mode_left_at_once(patch: Patch) -> None:
    """Rule 40."""
    append = change.append

    def hasty(s: CoreState, leadership: Leadership, configuration: Configuration) -> None:
        append(s, leadership, configuration)
        if configuration.old_voters:
            append(s, leadership, final_of(configuration))

    patch.setattr(change, "append", hasty)


def straight_to_the_new_voters(patch: Patch) -> None:
    """No joint mode at all."""
    joint_of = change.joint_of
    patch.setattr(change, "joint_of", lambda staging: final_of(joint_of(staging)))


def majority_of_all(
    pick: Callable[[Configuration, NodeId], Sequence[NodeId]],
) -> Callable[[Patch], None]:
    """Everything is decided by one majority of the nodes that ``pick`` chooses."""

    def mutate(patch: Patch) -> None:
        def value(configuration: Configuration, value_of: Callable[[NodeId], int]) -> int:
            return quorum._majority_value(pick(configuration, ""), value_of)

        def votes(configuration: Configuration, cast: Mapping[NodeId, bool]) -> quorum.VoteResult:
            return quorum._count(pick(configuration, ""), cast)

        patch.setattr(replication, "quorum_value", value)
        patch.setattr(election, "vote_result", votes)

    return mutate


def union_majority(patch: Patch) -> None:
    """M40: the majority of both sets of voters together, instead of one of each."""
    majority_of_all(lambda c, _n: sorted({*c.voters, *c.old_voters}))(patch)


def learners_count(patch: Patch) -> None:
    """M42."""
    majority_of_all(lambda c, _n: [m.node_id for m in c.members])(patch)


def removed_leader_counts_itself(patch: Patch) -> None:
    """M41."""

    def advance(s: CoreState, leadership: Leadership) -> None:
        voters = sorted({*s.configuration.voters, s.node_id})
        matches = {node: p.counted_match for node, p in leadership.progress.items()}
        matches[s.node_id] = s.log.durable
        index = quorum._majority_value(voters, matches.__getitem__)
        if s.log.term_at(index) == s.term:
            s.log.commit(index)

    patch.setattr(replication, "advance_commit", advance)


def snapshots_with_an_old_configuration(patch: Patch) -> None:
    """M30."""
    patch.setattr(
        Raft, "configuration_at", lambda raft, _index: raft._s.configurations._stack[0][1]
    )


def truncated_configurations_stay(patch: Patch) -> None:
    """Rule 39."""
    patch.setattr(ConfigurationStack, "truncate", lambda _stack, _from_index: False)


MUTANTS: dict[Callable[[Patch], None], set[str]] = {
    in_force_once_committed: {"I9", "I14", "I15"},
    a_second_change_before_the_first_is_committed: {"I14"},
    a_change_before_the_own_term_is_committed: {"I14"},
    joint_mode_left_at_once: {"I14"},
    straight_to_the_new_voters: {"I14"},
    union_majority: {"I9", "I14", "I15"},
    learners_count: {"I15", "liveness"},
    removed_leader_counts_itself: {"I9", "I15"},
    snapshots_with_an_old_configuration: {"I14"},
    truncated_configurations_stay: {"I14", "AssertionError"},
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_the_simulation_notices(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    for seed in range(60):
        result = run_seed(seed, CHANGING)
        if result.failure is not None:
            assert result.invariant in MUTANTS[mutant], result.failure
            return
    pytest.fail("60 seeds and nobody noticed")


# -- the ghost itself ---------------------------------------------------------------------------


def test_the_ghost_s_majorities_are_those_of_brute_force() -> None:
    for configuration in (configuration_of("abc", "l"), configuration_of("abd", "l", "abc")):
        names = [m.node_id for m in configuration.members]
        for size in range(len(names) + 1):
            for chosen in combinations(names, size):
                expected = quorum.vote_result(configuration, dict.fromkeys(chosen, True))
                won = expected is quorum.VoteResult.WON
                assert decides(configuration, set(chosen)) is won
    assert with_learners(configuration_of("ab", "l"), {"a", "l"})
    assert not decides(configuration_of("ab", "l"), {"a", "l"})


def test_the_ghost_knows_which_configuration_may_follow_which() -> None:
    stable, joint = configuration_of("abc"), configuration_of("abd", (), "abc")
    assert in_order(stable, joint)
    assert in_order(joint, configuration_of("abd"))
    assert in_order(stable, configuration_of("abc", "l"))
    assert in_order(Configuration("sim", ()), stable)
    assert not in_order(stable, configuration_of("ab"))
    assert not in_order(joint, stable)
    assert not in_order(joint, joint)
    assert not in_order(configuration_of("ab"), joint)


def test_the_ghost_tells_a_snapshot_with_the_wrong_configuration() -> None:
    ghost = ConfigurationGhost(committed=[(0, configuration_of("a")), (5, configuration_of("ab"))])
    ghost.snapshot("a", 4, configuration_of("a"))
    with pytest.raises(BrokenInvariantError):
        ghost.snapshot("a", 5, configuration_of("a"))
