"""Configurations: their bytes, and the stack along the log (rules 38, 39)."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepsen_like.sim.manual import ManualCluster, configuration_of, incarnation_of, members_of
from raftcore.core.membership import (
    MAX_RETIRED,
    ConfigurationStack,
    check_configuration,
    decode_configuration,
    encode_configuration,
    final_of,
    is_stable,
    joint_of,
    plan_change,
    stage_of,
    without_target,
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
        GOLDEN.replace(b'"format":1', b'"format":3'),
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
    nodes = ManualCluster("ablox").nodes.items()
    voters = [name for name, node in nodes if node.raft._s.is_voter_of(configuration)]
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


# -- which configurations there can be ----------------------------------------------------------

STABLE = configuration_of("abc", "l")
JOINT = configuration_of("abd", "l", "abc")


def with_target(voters: str, learners: str = "") -> Configuration:
    return replace(STABLE, target=Target(tuple(voters), tuple(learners)))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (configuration_of("", "ab"), "without a voter"),
        (replace(STABLE, old_voters=("a", "x")), "old voters must be members"),
        (replace(STABLE, old_voters=("b", "a")), "old voters must be members, sorted"),
        (replace(STABLE, old_voters=("a", "a")), "without repeats"),
        (replace(JOINT, leaving=("x",)), "leaving members must be members"),
        (replace(STABLE, leaving=("l",)), "not joint"),
        (replace(JOINT, leaving=("a",)), "a voter is said to leave"),
        (with_target("ax"), "target voters must be members"),
        (with_target("a", "x"), "target learners must be members"),
        (with_target(""), "a target without a voter"),
        (with_target("ab", "b"), "a target without a voter, or with"),
        (replace(JOINT, target=Target(("a",))), "has no target any more"),
        (replace(STABLE, retired=(b"x" * 16, b"x" * 16)), "repeat"),
        (replace(STABLE, retired=tuple(b"%016d" % i for i in range(MAX_RETIRED + 1))), "too many"),
        (replace(STABLE, retired=(STABLE.members[0].incarnation,)), "incarnation that is retired"),
        (replace(Configuration("sim", ()), target=Target(("a",))), "target voters must be members"),
        (replace(Configuration("sim", ()), old_voters=("a",)), "old voters must be members"),
        (replace(STABLE, level=0), "not a feature level"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(
    wrong: Configuration, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        check_configuration(wrong)
    if wrong.level > 1:
        with pytest.raises(ValueError, match=why):
            decode_configuration(encode_configuration(wrong))


@pytest.mark.parametrize("right", [STABLE, JOINT, with_target("ab", "l"), Configuration("sim", ())])
def test_every_stage_is_a_configuration(right: Configuration) -> None:
    check_configuration(right)


@pytest.mark.parametrize(
    "wrong",
    ['"lease":[1]', '"lease":[1,2,3]', '"lease":7', '"lease":[1,-2]', '"lease":[true,2]',
     '"target":{"voters":["a"]}', '"target":["a"]', '"level":"2"', '"retired":["zz"]'],
)  # fmt: skip
def test_additions_of_the_wrong_shape_are_refused(wrong: str) -> None:
    raw = encode_configuration(configuration_of("a")).decode()
    name = wrong.split(":")[0]
    body = json.loads(raw) | json.loads(f"{{{wrong}}}")
    assert name.strip('"') in body
    with pytest.raises(ValueError):
        decode_configuration(json.dumps(body).encode())


# -- which follows which ------------------------------------------------------------------------


def every_choice(names: str) -> list[tuple[Member, ...]]:
    """Every way to make some of ``names`` voters, some learners, and leave the others out."""
    found = []
    for kinds in product((True, False, None), repeat=len(names)):
        chosen = [n for n, kind in zip(names, kinds, strict=True) if kind is not None]
        voters = [n for n, kind in zip(names, kinds, strict=True) if kind]
        if voters:
            found.append(members_of(voters, [n for n in chosen if n not in voters]))
    return found


def way(current: Configuration, wanted: tuple[Member, ...], leader: str) -> list[Configuration]:
    """All configurations of a change, when every new voter catches up."""
    steps = [plan_change(current, wanted, None, leader)]
    while not is_stable(steps[-1]):
        last = steps[-1]
        steps.append(final_of(last) if last.old_voters else joint_of(last))
    return steps


def quorums(configuration: Configuration) -> list[set[str]]:
    everybody = [m.node_id for m in configuration.members]
    halves = [h for h in (configuration.voters, configuration.old_voters) if h]
    return [
        set(chosen)
        for size in range(1, len(everybody) + 1)
        for chosen in combinations(everybody, size)
        if all(2 * len({*chosen} & {*half}) > len(half) for half in halves)
    ]


@pytest.mark.parametrize("start", ["a", "ab", "abc", "abcd"])
def test_every_change_among_four_nodes_keeps_neighbouring_quorums_together(start: str) -> None:
    """From every cluster of up to four nodes to every other one: each step is consistent in
    itself, its quorums meet those of the one before, and the end is what was wanted."""
    known: dict[Configuration, list[set[str]]] = {}
    current = configuration_of(start)
    for wanted in every_choice("abcd"):
        for leader in start:
            before = current
            for step in way(current, wanted, leader):
                check_configuration(step)
                for one in known.setdefault(before, quorums(before)):
                    assert all(one & two for two in known.setdefault(step, quorums(step)))
                before = step
            assert before.members == wanted
            gone = {m.node_id for m in current.members} - {m.node_id for m in wanted}
            assert before.retired == tuple(incarnation_of(n) for n in sorted(gone))


@pytest.mark.parametrize(
    ("wanted", "leader", "expected"),
    [
        (members_of("abc", "l"), "a", ["stable"]),
        (members_of("ab"), "a", ["joint", "stable"]),
        (members_of("ab", "c"), "a", ["joint", "stable"]),
        (members_of("bc"), "a", ["staging", "joint", "stable"]),
        (members_of("abcd"), "a", ["staging", "joint", "stable"]),
        (members_of("abd"), "a", ["staging", "joint", "stable"]),
    ],
)
def test_the_stages_of_a_change(
    wanted: tuple[Member, ...], leader: str, expected: list[str]
) -> None:
    assert [stage_of(c) for c in way(configuration_of("abc"), wanted, leader)] == expected


def test_new_voters_are_learners_until_they_have_caught_up() -> None:
    staging, joint, final = way(configuration_of("abc", "l"), members_of("abd", "e"), "a")
    assert (staging.voters, staging.learners) == (("a", "b", "c"), ("d", "e", "l"))
    assert staging.target == Target(("a", "b", "d"), ("e",))
    assert (joint.voters, joint.old_voters) == (("a", "b", "d"), ("a", "b", "c"))
    assert (joint.leaving, joint.learners) == (("c", "l"), ("e",))
    assert (final.voters, final.learners) == (("a", "b", "d"), ("e",))
    assert final.retired == (incarnation_of("c"), incarnation_of("l"))
    given_up = without_target(staging)
    assert (given_up.voters, given_up.learners) == (("a", "b", "c"), ("d", "e", "l"))
    assert is_stable(given_up)


def test_only_the_newest_retired_incarnations_are_kept() -> None:
    full = tuple(b"%016d" % i for i in range(MAX_RETIRED))
    current = replace(configuration_of("a", "l"), retired=full)
    final = plan_change(current, members_of("a"), None, "a")
    assert final.retired == (*full[1:], incarnation_of("l"))


def test_the_configurations_since_the_last_committed_one() -> None:
    one, two, three = (configuration_of(v) for v in ("a", "ab", "abc"))
    stack = ConfigurationStack(0, one)
    stack.push(4, two)
    stack.push(7, three)
    assert stack.since(3) == ((0, one), (4, two), (7, three))
    assert stack.since(4) == stack.since(6) == ((4, two), (7, three))
    assert stack.since(7) == ((7, three),)
    assert stack.committed(6) == (4, two)
    assert stack.between(-1, 6) == ((0, one), (4, two))
    assert stack.between(4, 9) == ((7, three),)
    assert stack.between(7, 9) == ()
