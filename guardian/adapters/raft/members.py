"""Changes of the members and of the leader, asked of any node and done by the leader.

A node that does not lead passes the request on, once. It is never passed on again, and never
repeated by itself: a change names the version of the members that it replaces, so whoever repeats
it is told what became of the first try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import msgspec
from msgspec import Meta

from guardian.domain.problems import CODES, Fault, Problem
from guardian.usecases.ports import WantedMember
from raftcore.core.types import Member, NodeId
from raftcore.errors import (
    ChangeInProgressError,
    InvalidChangeError,
    NotCaughtUpError,
    NotLeaderError,
    NotReadyError,
    OutcomeUnknownError,
    RefusedError,
    RemovedError,
    StaleVersionError,
    TransferFailedError,
    UnknownPeerError,
)
from raftcore.node import Node
from raftcore.runtime.members import wanted_members

#: Member attribute that holds the address a node's HTTP API is reached at.
HTTP_ATTRIBUTE = "http"

#: First byte of a forwarded request; commands begin with another.
FORMAT = 2
#: What the way to the leader and back may take of the time that a caller waits.
_MARGIN_S = 0.2


#: Pause between looks at what became of a change that nobody answered for.
_LOOK_AGAIN_S = 0.05
#: What a node that is out of the cluster says to whoever asks it.
REMOVED = "This node was removed from the cluster: ask another one"

#: The longest that a member may have another one wait, whatever it says.
MAX_TIMEOUT_S = 3600.0

_Timeout = Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_S)]


class _Change(msgspec.Struct, frozen=True, tag_field="do", tag="change"):
    """These are to be the members: (id, whether it votes)."""

    members: list[tuple[NodeId, bool]]
    version: int
    timeout_s: _Timeout


class _Transfer(msgspec.Struct, frozen=True, tag_field="do", tag="transfer"):
    """That one is to lead, or whoever is furthest along."""

    target: NodeId | None
    timeout_s: _Timeout


class _Address(msgspec.Struct, frozen=True, tag_field="do", tag="address"):
    """The member that asks is reached somewhere else."""

    node: NodeId
    address: str
    attributes: dict[str, str]
    timeout_s: _Timeout


_Request = _Change | _Transfer | _Address


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a request; ``problem`` is the code of what was wrong."""

    caught_up: bool = True
    leader: str = ""
    problem: str = ""
    detail: str = ""
    errors: list[tuple[str, str]] = []
    current_version: int | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, problem: Problem) -> _Answer:
        return cls(
            problem=problem.code,
            detail=problem.detail,
            errors=[(fault.pointer, fault.message) for fault in problem.errors],
            current_version=problem.current_version,
            retry_after_s=problem.retry_after_s,
        )

    def checked(self) -> _Answer:
        """Itself; raises the ``Problem`` that it is, also one that only a newer leader knows."""
        if not self.problem:
            return self
        raise Problem(
            self.problem if self.problem in CODES else "unavailable",
            self.detail,
            errors=tuple(Fault(pointer, message) for pointer, message in self.errors),
            current_version=self.current_version,
            retry_after_s=self.retry_after_s,
        )


_request_decoder = msgspec.json.Decoder(_Request)
_answer_decoder = msgspec.json.Decoder(_Answer)
_encoder = msgspec.json.Encoder()


class ClusterMembers:
    """Implements :class:`guardian.usecases.ports.Members` over a node."""

    def __init__(self) -> None:
        self._node_or_none: Node | None = None

    def attach(self, node: Node) -> None:
        """Use ``node`` from now on."""
        self._node_or_none = node

    @property
    def _node(self) -> Node:
        if self._node_or_none is None:
            raise Problem("no_leader", "This node is still starting", retry_after_s=1.0)
        return self._node_or_none

    async def change(
        self, members: Sequence[WantedMember], expected_version: int, *, timeout_s: float
    ) -> bool:
        """See :meth:`guardian.usecases.ports.Members.change`."""
        wanted = [(member.id, member.voter) for member in members]
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            answer = await self._on_leader(_Change(wanted, expected_version, timeout_s))
        except Problem as problem:
            if problem.code != "outcome_unknown":
                raise
            # A leader that goes with this very change is hung up on before it can answer.
            if not await self._came_about(wanted, expected_version, deadline):
                raise
            return True
        return answer.caught_up

    async def _came_about(
        self, wanted: list[tuple[NodeId, bool]], version: int, deadline: float
    ) -> bool:
        """Whether the change that nobody answered for is seen to be done, here, in time."""
        loop = asyncio.get_running_loop()
        while loop.time() < deadline:
            status = self._node.status()
            settled = status.stage == "stable" and status.configuration_version > version
            if settled and status.core.commit_index >= status.configuration_version:
                # Whatever replaced that version: no other change of it can follow.
                members = status.configuration.members
                return sorted((m.node_id, m.voter) for m in members) == sorted(wanted)
            await asyncio.sleep(_LOOK_AGAIN_S)
        return False

    async def transfer(self, target: str | None, *, timeout_s: float) -> str:
        """See :meth:`guardian.usecases.ports.Members.transfer`."""
        return (await self._on_leader(_Transfer(target, timeout_s))).leader

    async def announce(self, address: str, attributes: dict[str, str], *, timeout_s: float) -> None:
        """Have the others call this node at ``address`` from now on. Raises ``Problem``."""
        me = self._node.config.node_id
        await self._on_leader(_Address(me, address, attributes, timeout_s))

    async def _on_leader(self, request: _Request) -> _Answer:
        node = self._node
        if node.is_leader:
            return await _do(node, request)
        leader = node.leader_id
        if leader is None or leader == node.config.node_id:
            raise Problem("no_leader", retry_after_s=1.0)
        timeout_s = request.timeout_s
        inner = msgspec.structs.replace(request, timeout_s=max(timeout_s - _MARGIN_S, 0.1))
        payload = bytes((FORMAT,)) + _encoder.encode(inner)
        try:
            raw = await node.request(leader, payload, timeout_s=timeout_s)
        except OutcomeUnknownError:
            raise Problem("outcome_unknown") from None
        except RefusedError:
            raise Problem("no_leader", retry_after_s=1.0) from None
        try:
            answer = _answer_decoder.decode(raw)
        except msgspec.DecodeError:
            raise Problem("outcome_unknown", "The leader's answer is not understood") from None
        return answer.checked()

    async def on_request(self, sender: NodeId, payload: bytes) -> bytes:
        """A request that another member passed on: done here if this node leads, or refused."""
        try:
            request = _request_decoder.decode(payload[1:])
        except msgspec.DecodeError as error:
            raise RefusedError(f"not a request about members: {error}") from error
        if isinstance(request, _Address) and request.node != sender:
            raise RefusedError(f"{sender} can not say where {request.node} is")
        try:
            answer = await _do(self._node, request)
        except Problem as problem:
            answer = _Answer.of(problem)
        return _encoder.encode(answer)


async def _do(node: Node, request: _Request) -> _Answer:
    """On the leader."""
    try:
        match request:
            case _Transfer(target, timeout_s):
                return _Answer(leader=await node.transfer_leadership(target, timeout_s=timeout_s))
            case _Address(node_id, address, attributes, timeout_s):
                sorted_attributes = tuple(sorted(attributes.items()))
                await node.update_address(
                    node_id, address, attributes=sorted_attributes, timeout_s=timeout_s
                )
            case _Change(wanted, version, timeout_s):
                members = _resolve(node, wanted)
                await node.change_members(members, version=version, timeout_s=timeout_s)
    except NotCaughtUpError:
        return _Answer(caught_up=False)
    except OutcomeUnknownError as error:
        raise Problem("outcome_unknown", str(error)) from error
    except TransferFailedError as error:
        raise Problem("transfer_failed", str(error), retry_after_s=1.0) from error
    except RefusedError as error:
        raise _refusal(error) from error
    return _Answer()


def _resolve(node: Node, wanted: Sequence[tuple[NodeId, bool]]) -> list[Member]:
    """The members of these ids: as they are now, or as they asked to join."""
    known = {member.node_id: member for member in node.pending_joiners}
    known |= {member.node_id: member for member in wanted_members(node.configuration)}
    faults = tuple(
        Fault(f"/members/{number}/id", "is no member, and has not asked to join")
        for number, (node_id, _) in enumerate(wanted)
        if node_id not in known
    )
    if faults:
        raise Problem("invalid_members", errors=faults)
    return [replace(known[node_id], voter=voter) for node_id, voter in sorted(wanted)]


def _refusal(error: RefusedError) -> Problem:
    if isinstance(error, StaleVersionError):
        return Problem("version_conflict", str(error), current_version=error.version)
    if isinstance(error, InvalidChangeError):
        return Problem("invalid_members", str(error))
    if isinstance(error, ChangeInProgressError):
        return Problem("change_in_progress", str(error), retry_after_s=1.0)
    if isinstance(error, UnknownPeerError):
        return Problem("validation_failed", str(error), errors=(Fault("/target", "is no voter"),))
    if isinstance(error, NotLeaderError | NotReadyError):
        return Problem("no_leader", retry_after_s=1.0)
    if isinstance(error, RemovedError):
        return Problem("unavailable", REMOVED)
    return Problem("overloaded", str(error), retry_after_s=1.0)
