"""From what somebody wants to the members to ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from raftcore.core.effects import MembershipFinished, MembershipOutcome
from raftcore.core.types import Configuration, Member, Target
from raftcore.errors import (
    ChangeInProgressError,
    InvalidChangeError,
    NotCaughtUpError,
    NotLeaderError,
    NotReadyError,
    OutcomeUnknownError,
    RefusedError,
    StaleVersionError,
)
from raftcore.runtime.members import MemberCommands, check_outcome, complete, wanted_members


def member(node_id: str, *, voter: bool = True) -> Member:
    return Member(node_id, f"{node_id}:1", node_id.encode() * 16, voter)


A, B, C, D = (member(i) for i in "abcd")
L = member("l", voter=False)
STABLE = Configuration("c", (A, B, C, L))
STAGING = Configuration(
    "c", (A, B, C, replace(D, voter=False), L), target=Target(("a", "b", "d"), ("l",))
)
JOINT = Configuration(
    "c", (A, B, replace(C, voter=False), D, L), old_voters=("a", "b", "c"), leaving=("c",)
)


class Asked(MemberCommands):
    """Takes the place of a node: remembers what was stated."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.configuration_version = 7
        self.stated: tuple[Member, ...] = ()

    async def change_members(
        self, members: Sequence[Member], *, version: int, timeout_s: float = 1
    ) -> tuple[Configuration, int]:
        assert version == 7
        assert timeout_s > 1
        self.stated = tuple(sorted(members, key=lambda m: m.node_id))
        return self.configuration, 8


@pytest.mark.parametrize(
    ("name", "arguments", "stated"),
    [
        ("add_voter", (D,), (A, B, C, D, L)),
        ("add_learner", (D,), (A, B, C, replace(D, voter=False), L)),
        ("add_voter", (replace(L, voter=False),), (A, B, C, replace(L, voter=True))),
        ("remove", ("b",), (A, C, L)),
        ("promote", ("l",), (A, B, C, replace(L, voter=True))),
        ("demote", ("a",), (replace(A, voter=False), B, C, L)),
        ("replace_member", ("c", D), (A, B, D, L)),
        ("update_address", ("b", "b:9"), (A, replace(B, address="b:9"), C, L)),
    ],
)
async def test_a_short_form_states_the_members_with_one_thing_altered(
    name: str, arguments: tuple[Any, ...], stated: tuple[Member, ...]
) -> None:
    asked = Asked(STABLE)
    assert await getattr(asked, name)(*arguments) == (STABLE, 8)
    assert asked.stated == stated


async def test_attributes_are_kept_unless_others_are_given() -> None:
    labelled = replace(B, attributes=(("http", "x"),))
    asked = Asked(Configuration("c", (A, labelled)))
    await asked.update_address("b", "b:9")
    assert asked.stated[1].attributes == (("http", "x"),)
    await asked.update_address("b", "b:9", attributes=())
    assert asked.stated[1].attributes == ()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("remove", ("nobody",)),
        ("promote", ("nobody",)),
        ("demote", ("nobody",)),
        ("replace_member", ("nobody", D)),
        ("replace_member", ("b", B)),
        ("update_address", ("nobody", "x:1")),
    ],
)
async def test_a_short_form_about_nobody_is_refused(name: str, arguments: tuple[Any, ...]) -> None:
    asked = Asked(STABLE)
    with pytest.raises(InvalidChangeError):
        await getattr(asked, name)(*arguments)
    assert asked.stated == ()


async def test_on_top_of_a_change_under_way_its_target_is_altered() -> None:
    assert wanted_members(STAGING) == [A, B, D, L]
    assert wanted_members(JOINT) == [A, B, D, L]
    asked = Asked(STAGING)
    await asked.remove("b")
    assert asked.stated == (A, D, L)


def test_an_empty_incarnation_is_that_of_the_member_or_of_who_asked_to_join() -> None:
    blank = [replace(m, incarnation=b"") for m in (D, B)]
    assert complete([*blank, A], STABLE, [D]) == (A, B, D)
    with pytest.raises(InvalidChangeError, match="incarnation"):
        complete(blank, STABLE, [])
    with pytest.raises(InvalidChangeError, match="twice"):
        complete([A, A], STABLE, [])
    impostor = replace(B, incarnation=b"?" * 16)
    assert complete([replace(B, incarnation=b"")], STABLE, [impostor]) == (B,), "members first"


@pytest.mark.parametrize(
    ("outcome", "error", "refused"),
    [
        (MembershipOutcome.NOT_LEADER, NotLeaderError, True),
        (MembershipOutcome.IN_PROGRESS, ChangeInProgressError, True),
        (MembershipOutcome.STALE_VERSION, StaleVersionError, True),
        (MembershipOutcome.NOT_READY, NotReadyError, True),
        (MembershipOutcome.INVALID, InvalidChangeError, True),
        (MembershipOutcome.NOT_CAUGHT_UP, NotCaughtUpError, False),
        (MembershipOutcome.UNKNOWN, OutcomeUnknownError, False),
    ],
)
def test_each_outcome_is_an_error_that_says_whether_something_happened(
    outcome: MembershipOutcome, error: type[Exception], refused: bool
) -> None:
    with pytest.raises(error) as raised:
        check_outcome(MembershipFinished(1, outcome, 9, "because", "b"))
    assert isinstance(raised.value, RefusedError) is refused
    if isinstance(raised.value, StaleVersionError | NotCaughtUpError):
        assert raised.value.version == 9


def test_done_is_no_error() -> None:
    check_outcome(MembershipFinished(1, MembershipOutcome.DONE, 9, ""))
    assert len(MembershipOutcome) == 8, "a new outcome needs its error"
