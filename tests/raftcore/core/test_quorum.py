"""Majority arithmetic against brute force over all subsets (rule 23)."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepsen_like.sim.manual import configuration_of
from raftcore.core.quorum import VoteResult, majority_size, quorum_value, vote_result
from raftcore.core.types import Configuration

NAMES = "abcdefg"


def quorums(configuration: Configuration) -> list[set[str]]:
    """Every set of nodes that holds a majority of each voter list, found by trying all sets."""
    everybody = sorted({*configuration.voters, *configuration.old_voters})
    found = []
    for size in range(len(everybody) + 1):
        for chosen in combinations(everybody, size):
            lists = [configuration.voters]
            if configuration.old_voters:
                lists.append(configuration.old_voters)
            if all(2 * len(set(chosen) & set(voters)) > len(voters) for voters in lists):
                found.append(set(chosen))
    return found


configurations = st.builds(
    lambda voters, old, learners: configuration_of(
        sorted(voters), sorted(learners - voters), sorted(old)
    ),
    st.sets(st.sampled_from(NAMES), min_size=1),
    st.sets(st.sampled_from(NAMES), max_size=4),
    st.sets(st.sampled_from(NAMES), max_size=2),
)


@pytest.mark.parametrize("size", range(1, 8))
def test_majority_is_the_smallest_number_of_which_two_must_meet(size: int) -> None:
    needed = majority_size(NAMES[:size])
    assert 2 * needed > size
    assert 2 * (needed - 1) <= size


@given(configurations, st.data())
def test_quorum_value_is_the_largest_that_some_quorum_has_reached(
    configuration: Configuration, data: st.DataObject
) -> None:
    """Rule 23: compared with brute force over all voter sets, plain and joint."""
    values = {name: data.draw(st.integers(0, 6), name) for name in NAMES}
    expected = max(min(values[n] for n in quorum) for quorum in quorums(configuration))
    assert quorum_value(configuration, values.__getitem__) == expected


@pytest.mark.parametrize("voters", ["a", "ab", "abc", "abcd", "abcde"])
@pytest.mark.parametrize("old", ["", "a", "abc", "bcd", "fg"])
def test_vote_result_agrees_with_brute_force_for_every_cast_of_votes(voters: str, old: str) -> None:
    """Rule 6: only voters count, and both majorities are needed in a joint configuration."""
    configuration = configuration_of(voters, "z", old)
    needed = quorums(configuration)
    everybody = sorted({*voters, *old})
    for cast in product((None, False, True), repeat=len(everybody)):
        votes = {n: v for n, v in zip(everybody, cast, strict=True) if v is not None}
        granted = {n for n, v in votes.items() if v}
        possible = granted | {n for n in everybody if n not in votes}
        if any(quorum <= granted for quorum in needed):
            expected = VoteResult.WON
        elif not any(quorum <= possible for quorum in needed):
            expected = VoteResult.LOST
        else:
            expected = VoteResult.PENDING
        assert vote_result(configuration, votes) is expected, votes


def test_votes_of_learners_and_strangers_do_not_count() -> None:
    """Rule 6."""
    configuration = configuration_of("abc", "z")
    votes = {"a": True, "z": True, "stranger": True}
    assert vote_result(configuration, votes) is VoteResult.PENDING


@pytest.mark.parametrize("size", range(1, 6))
def test_quorums_of_a_change_meet_those_before_and_after_it(size: int) -> None:
    """Thesis 4.3, by trying every pair of voter sets among five nodes: what joint mode decides, a
    quorum of the old voters and one of the new ones each has a part in."""
    for new in combinations(NAMES[:5], size):
        for old_size in range(1, 6):
            for old in combinations(NAMES[:5], old_size):
                joint = quorums(configuration_of(new, (), old))
                for other in (configuration_of(new), configuration_of(old)):
                    assert all(one & two for one in joint for two in quorums(other))
                assert all(one & two for one in joint for two in joint)


def test_a_majority_of_the_union_would_not_do() -> None:
    """M40: {d, e, b} is a majority of all five, and misses the old majority {a, c}."""
    configuration = configuration_of("de", (), "abc")
    votes = dict.fromkeys("bde", True)
    assert vote_result(configuration, votes) is VoteResult.PENDING
    assert quorum_value(configuration, lambda node: int(node in votes)) == 0


def test_who_is_in_no_set_of_voters_does_not_count_itself() -> None:
    """Rule 41: the leader a has removed itself."""
    values = {"a": 9, "b": 9, "c": 3}
    assert quorum_value(configuration_of("bc"), values.__getitem__) == 3
    assert vote_result(configuration_of("bc"), {"a": True, "b": True}) is VoteResult.PENDING
