"""Changes of the members, done by the leader and asked of anybody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from guardian.adapters.raft import members as members_module
from guardian.adapters.raft.members import FORMAT, ClusterMembers
from guardian.domain.problems import Problem
from guardian.usecases.ports import WantedMember
from raftcore.core.types import Configuration, Member
from raftcore.errors import (
    ChangeInProgressError,
    InvalidChangeError,
    NotCaughtUpError,
    NotLeaderError,
    NotReadyError,
    OutcomeUnknownError,
    OverloadedError,
    RefusedError,
    RemovedError,
    StaleVersionError,
    TransferFailedError,
    UnknownPeerError,
)

A, B, C = (Member(name, f"{name}:1", name.encode() * 16) for name in "abc")
JOINER = Member("d", "d:1", b"d" * 16, voter=False)
THREE = Configuration("cluster", (A, B, C))
WANTED = [WantedMember("a", True), WantedMember("b", False)]


@dataclass
class FakeNode:
    """Records what is asked of it, and answers or raises what it is told to."""

    name: str = "a"
    leader_id: str | None = "a"
    outcome: Any = None
    answers: dict[str, Any] = field(default_factory=dict)  #: of the others, by name
    configuration: Configuration = THREE
    version: int = 7
    commit_index: int = 9
    stage: str = "stable"
    pending_joiners: tuple[Member, ...] = (JOINER,)
    said: list[Any] = field(default_factory=list)

    @property
    def config(self) -> Any:
        return SimpleNamespace(node_id=self.name)

    @property
    def is_leader(self) -> bool:
        return self.leader_id == self.name

    def _do(self, *said: Any) -> Any:
        self.said.append(said)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def change_members(self, members: list[Member], *, version: int, timeout_s: float) -> Any:
        return self._do("change", members, version, timeout_s)

    async def transfer_leadership(self, target: str | None, *, timeout_s: float) -> Any:
        return self._do("transfer", target, timeout_s)

    async def update_address(
        self, node_id: str, address: str, *, attributes: Any, timeout_s: float
    ) -> Any:
        return self._do("address", node_id, address, attributes)

    async def request(self, to: str, payload: bytes, *, timeout_s: float) -> bytes:
        self.said.append(to)
        answer = self.answers[to]
        if isinstance(answer, Exception):
            raise answer
        raw: bytes = await answer(payload) if callable(answer) else answer
        return raw

    def status(self) -> Any:
        return SimpleNamespace(
            stage=self.stage,
            configuration=self.configuration,
            configuration_version=self.version,
            core=SimpleNamespace(commit_index=self.commit_index),
        )


def attached(node: FakeNode) -> ClusterMembers:
    members = ClusterMembers()
    members.attach(node)  # type: ignore[arg-type]
    return members


def pair(**of_leader: Any) -> tuple[ClusterMembers, FakeNode, FakeNode]:
    """A follower b whose requests reach the leader a."""
    leader = FakeNode(**of_leader)
    on_leader = attached(leader)

    async def deliver(payload: bytes) -> bytes:
        return await on_leader.on_request("b", payload)

    follower = FakeNode(name="b", answers={"a": deliver})
    return attached(follower), follower, leader


async def refused(work: Awaitable[Any]) -> Problem:
    with pytest.raises(Problem) as raised:
        await work
    return raised.value


# -- on the leader --------------------------------------------------------------------------------


async def test_wanted_members_are_those_that_are_there_with_the_votes_that_are_wanted() -> None:
    node = FakeNode()
    assert await attached(node).change(WANTED, 7, timeout_s=5.0)
    ((what, wanted, version, timeout_s),) = node.said
    assert (what, version, timeout_s) == ("change", 7, 5.0)
    assert wanted == [A, Member("b", B.address, B.incarnation, voter=False)]


async def test_who_asked_to_join_can_be_wanted_and_nobody_else() -> None:
    node = FakeNode()
    wanted = [WantedMember("a", True), WantedMember("d", True)]
    await attached(node).change(wanted, 7, timeout_s=5.0)
    assert node.said[0][1][1] == Member("d", "d:1", JOINER.incarnation, voter=True)
    problem = await refused(attached(node).change([WantedMember("x", True)], 7, timeout_s=5.0))
    assert problem.code == "invalid_members"
    assert [fault.pointer for fault in problem.errors] == ["/members/0/id"]


REFUSALS: list[tuple[Exception, str, int | None]] = [
    (StaleVersionError("it is 9", 9), "version_conflict", 9),
    (InvalidChangeError("no voter"), "invalid_members", None),
    (ChangeInProgressError("one is"), "change_in_progress", None),
    (NotLeaderError("b"), "no_leader", None),
    (NotReadyError("too new"), "no_leader", None),
    (RemovedError("gone"), "unavailable", None),
    (OverloadedError("full"), "overloaded", None),
    (OutcomeUnknownError("late"), "outcome_unknown", None),
]


@pytest.mark.parametrize(("error", "code", "version"), REFUSALS)
@pytest.mark.parametrize("forwarded", [False, True])
async def test_a_refusal_is_the_same_problem_here_and_by_way_of_a_follower(
    error: Exception, code: str, version: int | None, forwarded: bool
) -> None:
    members = pair(outcome=error)[0] if forwarded else attached(FakeNode(outcome=error))
    problem = await refused(members.change(WANTED, 7, timeout_s=0.3))
    assert (problem.code, problem.current_version) == (code, version)
    if problem.info.status in (409, 503) and code not in ("version_conflict", "unavailable"):
        assert problem.retry_after_s == 1.0


@pytest.mark.parametrize("forwarded", [False, True])
async def test_a_voter_that_did_not_catch_up_is_no_problem_but_told(forwarded: bool) -> None:
    error = NotCaughtUpError("d is a learner", 9)
    members = pair(outcome=error)[0] if forwarded else attached(FakeNode(outcome=error))
    assert not await members.change(WANTED, 7, timeout_s=5.0)


@pytest.mark.parametrize("forwarded", [False, True])
async def test_leadership_is_handed_over_by_whoever_leads(forwarded: bool) -> None:
    members, _, leader = pair(outcome="c")
    members = members if forwarded else attached(leader)
    assert await members.transfer("c", timeout_s=5.0) == "c"
    ((what, target, timeout_s),) = leader.said
    assert (what, target) == ("transfer", "c")
    assert 4.0 < timeout_s <= 5.0
    leader.outcome = TransferFailedError("it did not take over")
    assert (await refused(members.transfer(None, timeout_s=5.0))).code == "transfer_failed"
    leader.outcome = UnknownPeerError("x is no voter")
    problem = await refused(members.transfer("x", timeout_s=5.0))
    assert problem.code == "validation_failed"
    assert [fault.pointer for fault in problem.errors] == ["/target"]


# -- on a follower --------------------------------------------------------------------------------


async def test_a_follower_passes_a_change_on_once() -> None:
    members, follower, leader = pair()
    assert await members.change(WANTED, 7, timeout_s=5.0)
    assert follower.said == ["a"]
    ((_, wanted, version, timeout_s),) = leader.said
    assert ([m.node_id for m in wanted], version) == (["a", "b"], 7)
    assert timeout_s < 5.0, "the answer needs time to come back"
    leader.leader_id = "c"
    leader.outcome = NotLeaderError("c")
    assert (await refused(members.change(WANTED, 7, timeout_s=5.0))).code == "no_leader"
    assert follower.said == ["a", "a"]


async def test_without_a_leader_nothing_is_sent() -> None:
    node = FakeNode(name="b", leader_id=None)
    members = attached(node)
    assert (await refused(members.change(WANTED, 7, timeout_s=5.0))).code == "no_leader"
    assert node.said == []


async def test_a_leader_that_can_not_be_reached_has_changed_nothing() -> None:
    members = attached(FakeNode(name="b", answers={"a": UnknownPeerError("not connected")}))
    assert (await refused(members.change(WANTED, 7, timeout_s=5.0))).code == "no_leader"
    assert (await refused(members.transfer(None, timeout_s=5.0))).code == "no_leader"


async def test_a_node_that_is_still_starting_has_no_leader() -> None:
    assert (await refused(ClusterMembers().transfer(None, timeout_s=5.0))).code == "no_leader"


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b'{"caught_up": 1}', b"\xff"])
async def test_an_answer_that_is_none_leaves_the_outcome_unknown(answer: bytes) -> None:
    members = attached(FakeNode(name="b", answers={"a": answer}))
    assert (await refused(members.transfer(None, timeout_s=5.0))).code == "outcome_unknown"


async def test_a_problem_that_only_a_newer_leader_knows_is_told_in_its_words() -> None:
    answer = b'{"problem": "moon_phase", "detail": "not tonight", "more": 1}'
    members = attached(FakeNode(name="b", answers={"a": answer}))
    problem = await refused(members.transfer(None, timeout_s=5.0))
    assert (problem.code, problem.detail) == ("unavailable", "not tonight")


# -- a leader that goes with the change -----------------------------------------------------------


def unanswered(**of_node: Any) -> FakeNode:
    return FakeNode(name="b", answers={"a": OutcomeUnknownError("hung up")}, **of_node)


AFTER = Configuration("cluster", (A, Member("b", B.address, B.incarnation, voter=False)))


async def test_a_change_that_is_seen_to_be_done_needs_no_answer() -> None:
    node = unanswered(stage="joint")
    changing = asyncio.create_task(attached(node).change(WANTED, 7, timeout_s=5.0))
    await asyncio.sleep(0)
    node.stage, node.configuration, node.version, node.commit_index = "stable", AFTER, 12, 11
    await asyncio.sleep(2 * members_module._LOOK_AGAIN_S)
    assert not changing.done(), "not committed yet"
    node.commit_index = 12
    assert await changing


async def test_a_change_that_another_one_overtook_stays_unknown() -> None:
    node = unanswered(version=8)
    problem = await refused(attached(node).change(WANTED, 7, timeout_s=60.0))
    assert problem.code == "outcome_unknown"


async def test_a_change_that_is_not_seen_in_time_stays_unknown() -> None:
    problem = await refused(attached(unanswered()).change(WANTED, 7, timeout_s=0.1))
    assert problem.code == "outcome_unknown"


# -- addresses ------------------------------------------------------------------------------------


async def test_a_node_that_moved_has_the_leader_say_so() -> None:
    members, _, leader = pair()
    await members.announce("b:2", {"http": "b:3", "zone": "x"}, timeout_s=5.0)
    assert leader.said == [("address", "b", "b:2", (("http", "b:3"), ("zone", "x")))]


# -- what others send -----------------------------------------------------------------------------


def request(**fields: Any) -> bytes:
    return bytes((FORMAT,)) + json.dumps(fields).encode()


TRANSFER = {"do": "transfer", "target": None, "timeout_s": 1.0}
CHANGE = {"do": "change", "members": [["a", True]], "version": 7, "timeout_s": 1.0}
ADDRESS = {"do": "address", "node": "b", "address": "b:2", "attributes": {}, "timeout_s": 1.0}


@pytest.mark.parametrize("fields", [TRANSFER, CHANGE, ADDRESS, TRANSFER | {"added_later": 1}])
async def test_what_another_member_passes_on_is_done(fields: dict[str, Any]) -> None:
    node = FakeNode(outcome="a")
    await attached(node).on_request("b", request(**fields))
    assert [said[0] for said in node.said] == [fields["do"]]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes((FORMAT,)),
        bytes((FORMAT,)) + b"\xff\xfe",
        bytes((FORMAT,)) + b"[" * 100_000,
        bytes((FORMAT,)) + b"[]",
        bytes((FORMAT,)) + b"7",
        request(),
        request(do="dance", timeout_s=1.0),
        request(**TRANSFER | {"timeout_s": 0}),
        request(**TRANSFER | {"timeout_s": -1.0}),
        request(**TRANSFER | {"timeout_s": 1e9}),
        request(**TRANSFER | {"timeout_s": None}),
        request(**TRANSFER | {"target": 7}),
        request(**CHANGE | {"members": None}),
        request(**CHANGE | {"members": [["a"]]}),
        request(**CHANGE | {"members": [["a", "yes"]]}),
        request(**CHANGE | {"version": "7"}),
        request(**ADDRESS | {"attributes": {"http": 7}}),
        request(**ADDRESS | {"attributes": [["http", "b:3"]]}),
        request(**ADDRESS | {"node": "c"}),  # only about itself
    ],
)
async def test_what_is_no_request_is_refused_and_nothing_done(payload: bytes) -> None:
    node = FakeNode()
    with pytest.raises(RefusedError):
        await attached(node).on_request("b", payload)
    assert node.said == []
