"""Configurations: their bytes, and the stack along the log (rules 38, 39)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepsen_like.sim.manual import configuration_of
from raftcore.core.membership import (
    ConfigurationStack,
    decode_configuration,
    encode_configuration,
    is_voter,
)
from raftcore.core.types import FIRST_FEATURE_LEVEL, Configuration, Lease, Member, Target


def stable(configuration: Configuration) -> Configuration:
    return replace(configuration, retired=(b"r" * 16,), lease=Lease(1000, 200))


def staging(configuration: Configuration) -> Configuration:
    target = Target(configuration.voters, configuration.learners)
    return replace(configuration, target=target if configuration.members else None)


def joint(configuration: Configuration) -> Configuration:
    learners = configuration.learners
    return replace(configuration, old_voters=configuration.voters, leaving=learners)


def first_level(configuration: Configuration) -> Configuration:
    return replace(configuration, level=FIRST_FEATURE_LEVEL)


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
members = st.builds(
    Member,
    node_id=names,
    address=names,
    incarnation=st.binary(min_size=16, max_size=16),
    voter=st.booleans(),
    attributes=st.lists(st.tuples(names, names), max_size=2).map(tuple),
)
configurations = st.builds(
    lambda cluster, found, stage: stage(
        Configuration(cluster, tuple(sorted(found, key=lambda m: m.node_id)))
    ),
    names,
    st.lists(members, max_size=4, unique_by=lambda m: m.node_id).filter(
        lambda found: not found or any(m.voter for m in found)
    ),
    st.sampled_from([stable, staging, joint, first_level]),
)


@given(configurations)
def test_what_is_encoded_is_decoded(configuration: Configuration) -> None:
    assert decode_configuration(encode_configuration(configuration)) == configuration


GOLDEN = (
    b'{"cluster_id":"sim","format":1,"members":[{"address":"a:1","attributes":[],"incarnation":'
    b'"ca978112ca1bbdcafac231b39a23dc4d","node_id":"a","voter":true}],"old_voters":["a"]}'
)


def test_the_bytes_of_a_configuration_never_change() -> None:
    first = replace(configuration_of("a", (), "a"), level=FIRST_FEATURE_LEVEL)
    assert encode_configuration(first) == GOLDEN


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        GOLDEN.replace(b'"format":1', b'"format":2'),
        GOLDEN.replace(b'"ca97', b'"zz97'),
        GOLDEN.replace(b'"old_voters":["a"]', b'"old_voters":7'),
        GOLDEN.replace(b'"old_voters":["a"]', b'"old_voters":[7]'),
        GOLDEN.replace(b'"voter":true', b'"voter":1'),
        GOLDEN.replace(b'"members":', b'"members":[[]],"rest":'),
        b"[" * 200_000,
        b'{"format":1,"members":' + b"[" * 200_000,
        json.dumps({**json.loads(GOLDEN), "members": json.loads(GOLDEN)["members"] * 2}).encode(),
    ],
)
def test_bytes_that_are_no_configuration_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        decode_configuration(raw)


def test_members_must_be_sorted_and_unique() -> None:
    b, a = Member("b", "", b""), Member("a", "", b"")
    with pytest.raises(ValueError, match="sorted"):
        Configuration("c", (b, a))
    with pytest.raises(ValueError, match="sorted"):
        Configuration("c", (a, a))


def test_members_are_found_by_id_and_kind() -> None:
    configuration = configuration_of("ab", "l", "o")
    assert (configuration.voters, configuration.learners) == (("a", "b"), ("l",))
    found = configuration.member("l")
    assert found is not None
    assert not found.voter
    assert configuration.member("nobody") is None


def test_old_voters_of_a_joint_configuration_still_vote() -> None:
    configuration = configuration_of("ab", "l", "o")
    voters = [n for n in ("a", "b", "l", "o", "x") if is_voter(configuration, n)]
    assert voters == ["a", "b", "o"]


def test_a_truncated_configuration_goes_out_of_force() -> None:
    """Rule 39."""
    one, two, three = (configuration_of(v) for v in ("a", "ab", "abc"))
    stack = ConfigurationStack(0, one)
    stack.push(4, two)
    stack.push(7, three)
    assert not stack.truncate(8)
    assert stack.current is three
    assert stack.truncate(7)
    assert (stack.current, stack.current_index) == (two, 4)
    assert stack.truncate(1)
    assert stack.current is one, "the base is never truncated"


def test_the_configuration_at_an_index_is_the_last_one_up_to_it() -> None:
    one, two, three = (configuration_of(v) for v in ("a", "ab", "abc"))
    stack = ConfigurationStack(2, one)
    stack.push(4, two)
    stack.push(7, three)
    assert [stack.at(i) for i in (2, 3, 4, 6, 7, 99)] == [one, one, two, two, three, three]
    with pytest.raises(AssertionError):
        stack.at(1)


def test_compaction_makes_the_last_covered_configuration_the_base() -> None:
    one, two, three = (configuration_of(v) for v in ("a", "ab", "abc"))
    stack = ConfigurationStack(0, one)
    stack.push(4, two)
    stack.push(7, three)
    stack.compact(6)
    assert stack.at(5) is two
    assert stack.truncate(5)
    assert stack.current is two


def test_configuration_entries_come_in_order() -> None:
    stack = ConfigurationStack(3, configuration_of("a"))
    with pytest.raises(AssertionError):
        stack.push(3, configuration_of("ab"))
