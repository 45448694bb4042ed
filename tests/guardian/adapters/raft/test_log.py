"""Commands to whoever leads, under one id for ever; a fake node plays what a cluster may do."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from guardian.adapters.raft import log as log_module
from guardian.adapters.raft.log import ClusterLog
from guardian.adapters.raft.members import HTTP_ATTRIBUTE, ClusterMembers
from guardian.domain.problems import Problem
from guardian.fsm.commands import (
    DeleteProject,
    Done,
    Envelope,
    Refused,
    decode_command,
    encode_command,
    encode_result,
)
from raftcore.core.effects import LeadershipChanged
from raftcore.core.types import Configuration, Member
from raftcore.errors import (
    EntryTooLargeError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    QuarantinedError,
    RefusedError,
    RemovedError,
    StoppedError,
    UnknownPeerError,
)
from raftcore.runtime.status import Proposed

COMMAND = DeleteProject(Envelope(b"i" * 16, "user:u1"), "p1")
DONE = Done(7)
RESULT, NOT_LEADER, OVERLOADED, UNKNOWN, TOO_LARGE = (bytes((n,)) for n in range(5))

Turn = Exception | Any


@dataclass
class FakeNode:
    """Plays a script: what each ``propose``, ``request`` and ``read_barrier`` comes to."""

    script: deque[Turn] = field(default_factory=deque)
    leader_id: str | None = "a"
    is_leader: bool = True
    said: list[tuple[str, bytes]] = field(default_factory=list)
    config: Any = field(default_factory=lambda: SimpleNamespace(node_id="a"))
    callbacks: list[Callable[[Any], None]] = field(default_factory=list)
    configuration: Any = None
    rebuilt: bool = False
    removed: str | None = None

    def on_leadership(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    async def _turn(self, said: tuple[str, bytes]) -> Any:
        self.said.append(said)
        turn = self.script.popleft()
        if callable(turn):
            turn = turn()
            if isinstance(turn, Awaitable):
                turn = await turn
        if isinstance(turn, Exception):
            raise turn
        return turn

    async def propose(self, data: bytes, *, timeout_s: float) -> Any:
        assert timeout_s > 0
        return await self._turn(("propose", data))

    async def request(self, to: str, payload: bytes, *, timeout_s: float) -> Any:
        assert timeout_s > 0
        return await self._turn((f"ask {to}", payload))

    async def read_barrier(self, *, timeout_s: float) -> Any:
        assert timeout_s > 0
        return await self._turn(("barrier", b""))

    def lead(self, leader: str | None) -> None:
        self.leader_id, self.is_leader = leader, leader == "a"
        for callback in self.callbacks:
            callback(LeadershipChanged("leader" if self.is_leader else "follower", 2, leader))


class State:
    def __init__(self) -> None:
        self.now = 5

    def revision(self) -> int:
        return self.now


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def log(state: State) -> ClusterLog:
    return ClusterLog(state, ClusterMembers())  # type: ignore[arg-type]


def attach(log: ClusterLog, *script: Turn, leader: str | None = "a") -> FakeNode:
    node = FakeNode(deque(script), leader, leader == "a")
    log.attach(node)  # type: ignore[arg-type]
    return node


def command_of(said: tuple[str, bytes]) -> bytes:
    """The command in what was proposed or asked for."""
    kind, payload = said
    return payload if kind == "propose" else payload[struct.calcsize(">BI") :]


async def refused(work: Awaitable[Any]) -> Problem:
    with pytest.raises(Problem) as raised:
        await work
    return raised.value


# -- on the leader --------------------------------------------------------------------------------


async def test_on_the_leader_a_command_is_proposed(log: ClusterLog) -> None:
    node = attach(log, Proposed(DONE, 7, 1))
    assert await log.execute(COMMAND, timeout_s=5.0) == DONE
    assert node.said == [("propose", encode_command(COMMAND))]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OverloadedError("full"), "overloaded"),
        (EntryTooLargeError("big"), "payload_too_large"),
    ],
)
async def test_what_a_leader_refuses_is_refused_at_once(
    log: ClusterLog, error: Exception, code: str
) -> None:
    node = attach(log, error)
    assert (await refused(log.execute(COMMAND, timeout_s=5.0))).code == code
    assert len(node.said) == 1


async def test_a_node_that_is_still_starting_has_no_leader(log: ClusterLog) -> None:
    assert (await refused(log.execute(COMMAND, timeout_s=5.0))).code == "no_leader"
    assert not log.is_leader()
    assert log.leader_http_address() is None
    assert log.staleness_ms() is None


async def test_an_unknown_outcome_is_asked_again_under_the_same_command_id(
    log: ClusterLog,
) -> None:
    node = attach(log, OutcomeUnknownError("lost"), NotLeaderError(None), Proposed(DONE, 7, 2))
    assert await log.execute(COMMAND, timeout_s=5.0) == DONE
    assert {command_of(said) for said in node.said} == {encode_command(COMMAND)}
    assert len(node.said) == 3


# -- on a follower --------------------------------------------------------------------------------


async def test_on_a_follower_the_command_goes_to_the_leader(log: ClusterLog) -> None:
    node = attach(log, RESULT + encode_result(DONE), leader="b")
    assert await log.execute(COMMAND, timeout_s=5.0) == DONE
    ((kind, payload),) = node.said
    assert kind == "ask b"
    version, timeout_ms = struct.unpack_from(">BI", payload)
    assert version == 1
    assert 0 < timeout_ms <= 5000
    assert command_of(node.said[0]) == encode_command(COMMAND)


@pytest.mark.parametrize(
    ("answer", "code"), [(OVERLOADED, "overloaded"), (TOO_LARGE, "payload_too_large")]
)
async def test_what_the_leader_refuses_a_follower_is_refused(
    log: ClusterLog, answer: bytes, code: str
) -> None:
    attach(log, answer, leader="b")
    assert (await refused(log.execute(COMMAND, timeout_s=5.0))).code == code


@pytest.mark.parametrize(
    "turn",
    [
        UnknownPeerError("not connected"),
        NOT_LEADER,
        RefusedError("forward format 9 is not known here"),
        OutcomeUnknownError("no answer"),
        UNKNOWN,
        b"",
        b"\xff",
        RESULT + b"not a result",
    ],
)
async def test_whatever_happens_on_the_way_is_tried_again_under_the_same_id(
    log: ClusterLog, turn: Turn
) -> None:
    node = attach(log, turn, RESULT + encode_result(DONE), leader="b")
    assert await log.execute(COMMAND, timeout_s=5.0) == DONE
    assert [command_of(said) for said in node.said] == [encode_command(COMMAND)] * 2


async def test_a_new_leader_is_asked_as_soon_as_it_is_known(log: ClusterLog) -> None:
    def moved() -> bytes:
        node.lead("c")
        return NOT_LEADER

    node = attach(log, moved, RESULT + encode_result(DONE), leader="b")
    await log.execute(COMMAND, timeout_s=5.0)
    assert [kind for kind, _ in node.said] == ["ask b", "ask c"]


async def test_a_follower_that_comes_to_lead_proposes_itself(log: ClusterLog) -> None:
    def moved() -> Exception:
        node.lead("a")
        return OutcomeUnknownError("the connection broke")

    node = attach(log, moved, Proposed(DONE, 7, 2), leader="b")
    assert await log.execute(COMMAND, timeout_s=5.0) == DONE
    assert [kind for kind, _ in node.said] == ["ask b", "propose"]


# -- certainty ------------------------------------------------------------------------------------


async def test_without_a_leader_it_is_said_that_nothing_happened(
    log: ClusterLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "LEADER_WAIT_S", 0.1)
    attach(log, leader=None)
    problem = await refused(log.execute(COMMAND, timeout_s=5.0))
    assert (problem.code, problem.retry_after_s) == ("no_leader", 1.0)


async def test_a_leader_that_appears_while_waiting_is_used(log: ClusterLog) -> None:
    node = attach(log, Proposed(DONE, 7, 2), leader=None)
    executing = asyncio.create_task(log.execute(COMMAND, timeout_s=5.0))
    await asyncio.sleep(0)
    node.lead("a")
    assert await executing == DONE


@pytest.mark.parametrize(
    "later",
    [
        lambda: NotLeaderError(None),
        lambda: OverloadedError("full"),
        lambda: StoppedError("stopping"),
        lambda: EntryTooLargeError("big"),
    ],
)
async def test_after_an_unknown_outcome_no_refusal_makes_it_certain(
    log: ClusterLog, later: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "LEADER_WAIT_S", 0.05)
    attach(log, OutcomeUnknownError("lost"), *[later()] * 100)
    assert (await refused(log.execute(COMMAND, timeout_s=0.3))).code == "outcome_unknown"


async def test_when_the_deadline_passes_before_any_try_got_through_nothing_happened(
    log: ClusterLog,
) -> None:
    attach(log, *[NotLeaderError(None)] * 100)
    assert (await refused(log.execute(COMMAND, timeout_s=0.2))).code == "no_leader"


async def test_a_removed_node_passes_nothing_on(log: ClusterLog) -> None:
    node = attach(log, leader="b")
    node.removed = "the configuration at 9 no longer has it"
    problem = await refused(log.execute(COMMAND, timeout_s=5.0))
    assert (problem.code, "removed" in problem.detail) == ("unavailable", True)
    assert node.said == []


async def test_a_leader_removed_while_it_proposes_says_so(log: ClusterLog) -> None:
    attach(log, RemovedError("gone"))
    problem = await refused(log.execute(COMMAND, timeout_s=5.0))
    assert (problem.code, "removed" in problem.detail) == ("unavailable", True)


async def test_a_removal_does_not_make_an_unknown_outcome_certain(log: ClusterLog) -> None:
    attach(log, OutcomeUnknownError("lost"), *[RemovedError("gone")] * 100)
    assert (await refused(log.execute(COMMAND, timeout_s=0.3))).code == "outcome_unknown"


# -- for other members ----------------------------------------------------------------------------


def forwarded(data: bytes, version: int = 1) -> bytes:
    return struct.pack(">BI", version, 1500) + data


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        (Proposed(DONE, 7, 1), RESULT + encode_result(DONE)),
        (Proposed(Refused(7, "not_found"), 7, 1), RESULT + encode_result(Refused(7, "not_found"))),
        (NotLeaderError("c"), NOT_LEADER),
        (OverloadedError("full"), OVERLOADED),
        (OutcomeUnknownError("lost"), UNKNOWN),
        (EntryTooLargeError("big"), TOO_LARGE),
    ],
)
async def test_a_forwarded_command_is_proposed_here_and_answered(
    log: ClusterLog, turn: Turn, answer: bytes
) -> None:
    node = attach(log, turn)
    assert await log.on_request("b", forwarded(encode_command(COMMAND))) == answer
    assert node.said == [("propose", encode_command(COMMAND))]


async def test_a_forwarded_command_is_never_forwarded_again(log: ClusterLog) -> None:
    node = attach(log, NotLeaderError("c"), leader="c")
    assert await log.on_request("b", forwarded(encode_command(COMMAND))) == NOT_LEADER
    assert [kind for kind, _ in node.said] == ["propose"]


@pytest.mark.parametrize(
    "payload", [b"", b"\x01\x00", forwarded(b""), forwarded(b"junk"), forwarded(b"x", version=9)]
)
async def test_what_is_no_forwarded_command_never_reaches_the_log(
    log: ClusterLog, payload: bytes
) -> None:
    node = attach(log)
    with pytest.raises(RefusedError):
        await log.on_request("b", payload)
    assert node.said == []


async def test_a_forwarded_command_arrives_as_it_was(log: ClusterLog) -> None:
    node = attach(log, RESULT + encode_result(DONE), leader="b")
    await log.execute(COMMAND, timeout_s=5.0)
    assert decode_command(command_of(node.said[0])) == COMMAND


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "word"),
    [(QuarantinedError("lost 3"), "lost data"), (RemovedError("gone"), "removed")],
)
async def test_a_read_that_this_node_can_not_serve_for_long_is_refused_at_once(
    log: ClusterLog, error: Exception, word: str
) -> None:
    node = attach(log, error)
    problem = await refused(log.barrier(timeout_s=5.0))
    assert (problem.code, word in problem.detail) == ("unavailable", True)
    assert len(node.said) == 1


async def test_a_barrier_is_asked_for_until_a_leader_confirms_it(log: ClusterLog) -> None:
    node = attach(log, NotLeaderError(None), NotLeaderError("b"), 9)
    await log.barrier(timeout_s=5.0)
    assert len(node.said) == 3


async def test_a_barrier_that_nobody_confirms_is_no_leader(
    log: ClusterLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "LEADER_WAIT_S", 0.1)
    attach(log, *[NotLeaderError(None)] * 100)
    problem = await refused(log.barrier(timeout_s=5.0))
    assert (problem.code, problem.retry_after_s) == ("no_leader", 1.0)


async def test_an_overloaded_barrier_says_so(log: ClusterLog) -> None:
    attach(log, OverloadedError("full"))
    assert (await refused(log.barrier(timeout_s=5.0))).code == "overloaded"


async def test_a_revision_is_waited_for(log: ClusterLog, state: State) -> None:
    await log.wait_revision(5, timeout_s=1.0)  # there already
    waiting = [asyncio.create_task(log.wait_revision(n, timeout_s=5.0)) for n in (8, 6, 7)]
    await asyncio.sleep(0)
    log.on_applied(7)
    await asyncio.gather(*waiting[1:])
    assert not waiting[0].done()
    log.on_applied(8)
    await waiting[0]


async def test_a_revision_that_does_not_come_is_unavailable(log: ClusterLog) -> None:
    assert (await refused(log.wait_revision(99, timeout_s=0.01))).code == "unavailable"
    log.on_applied(99)  # nobody is left to be told


async def test_those_who_gave_up_make_room_for_others(
    log: ClusterLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "MAX_REVISION_WAITERS", 2)
    for _ in range(3):
        assert (await refused(log.wait_revision(99, timeout_s=0.01))).code == "unavailable"
    waiting = [asyncio.create_task(log.wait_revision(99, timeout_s=5.0)) for _ in range(2)]
    await asyncio.sleep(0)
    assert (await refused(log.wait_revision(99, timeout_s=0.01))).code == "overloaded"
    log.on_applied(99)
    await asyncio.gather(*waiting)


async def test_the_leaders_http_address_is_known_from_the_configuration(log: ClusterLog) -> None:
    node = attach(log, leader="b")
    members = (
        Member("a", "h:1", b"a" * 16, True, ((HTTP_ATTRIBUTE, "h:81"),)),
        Member("b", "h:2", b"b" * 16, True, ((HTTP_ATTRIBUTE, "h:82"),)),
        Member("c", "h:3", b"c" * 16, True),
    )
    node.configuration = Configuration("c0ffee", members)
    assert log.leader_http_address() == "h:82"
    node.lead("c")
    assert log.leader_http_address() is None


async def test_after_a_rebuild_local_reads_wait_for_a_barrier(log: ClusterLog) -> None:
    with pytest.raises(Problem, match="rebuilding"):
        log.require_local()  # not even attached
    node = FakeNode(deque([OverloadedError("full"), 9]), rebuilt=True)
    log.attach(node)  # type: ignore[arg-type]
    with pytest.raises(Problem, match="rebuilding"):
        log.require_local()
    async with asyncio.timeout(5):
        await log.allow_local_when_caught_up()
    log.require_local()
    assert len(node.said) == 2


async def test_a_state_that_was_not_rebuilt_serves_at_once(log: ClusterLog) -> None:
    attach(log)
    log.require_local()


# -- looking --------------------------------------------------------------------------------------

MEMBERS = (Member("a", "a:1", b"a" * 16), Member("b", "b:1", b"b" * 16, voter=False))


@dataclass
class LookedAt(FakeNode):
    """A node in a certain state."""

    members: tuple[Member, ...] = MEMBERS
    core: dict[str, Any] = field(default_factory=dict)
    quarantine: str | None = None

    def status(self) -> Any:
        core = {
            "node_id": "a", "role": "follower", "term": 3, "leader_id": "b", "commit_index": 9,
            "applied_index": 8, "voters": ("a",), "learners": ("b",), "stalled": False,
            "change_waits_for": None,
        }  # fmt: skip
        self.configuration = Configuration("cluster", self.members)
        return SimpleNamespace(
            core=SimpleNamespace(**core | self.core),
            configuration=self.configuration,
            configuration_version=5,
            stage="stable",
            connected=frozenset(),
            quarantine=self.quarantine,
            removed=self.removed,
            joiners=(Member("d", "d:1", b"d" * 16, attributes=((HTTP_ATTRIBUTE, "d:2"),)),),
        )


@pytest.mark.parametrize(
    ("node", "role", "conditions"),
    [
        (LookedAt(), "follower", ()),
        (LookedAt(core={"role": "leader"}), "leader", ()),
        (LookedAt(core={"role": "pre_candidate"}), "candidate", ()),
        (LookedAt(core={"node_id": "b"}), "learner", ()),
        (LookedAt(members=()), "outside", ("not_a_member",)),
        (LookedAt(members=MEMBERS[1:], removed="gone at 9"), "outside", ("removed",)),
        (LookedAt(quarantine="lost 3"), "follower", ("quarantined",)),
        (LookedAt(core={"stalled": True}), "follower", ("disk_stalled",)),
        (
            LookedAt(members=(), quarantine="lost 3", core={"stalled": True}),
            "outside",
            ("not_a_member", "quarantined", "disk_stalled"),
        ),
    ],
)
def test_a_node_says_what_it_is_and_what_keeps_it_from_its_part(
    log: ClusterLog, node: LookedAt, role: str, conditions: tuple[str, ...]
) -> None:
    log.attach(node)  # type: ignore[arg-type]
    view = log.cluster()
    assert (view.role, view.conditions) == (role, conditions)
    assert view.members_version == 5
    (joiner,) = view.joiners
    assert (joiner.id, joiner.http_address, joiner.wants_vote) == ("d", "d:2", True)
