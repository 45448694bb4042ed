"""Changes of the members and of the leader, asked of any node and done by the leader.

A node that does not lead passes the request on, once. It is never passed on again, and never
repeated by itself: a change names the version of the members that it replaces, so whoever repeats
it is told what became of the first try.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
    StaleVersionError,
    TransferFailedError,
)
from raftcore.node import Node
from raftcore.runtime.members import wanted_members

#: Member attribute that holds the address a node's HTTP API is reached at.
HTTP_ATTRIBUTE = "http"

#: First byte of a forwarded request; commands begin with another.
FORMAT = 2
#: What the way to the leader and back may take of the time that a caller waits.
_MARGIN_S = 0.2


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
        wanted = [[member.id, member.voter] for member in members]
        answer = await self._on_leader(
            {"do": "change", "members": wanted, "version": expected_version}, timeout_s
        )
        return bool(answer["caught_up"])

    async def transfer(self, target: str | None, *, timeout_s: float) -> str:
        """See :meth:`guardian.usecases.ports.Members.transfer`."""
        answer = await self._on_leader({"do": "transfer", "target": target}, timeout_s)
        return str(answer["leader"])

    async def announce(self, address: str, attributes: dict[str, str], *, timeout_s: float) -> None:
        """Have the others call this node at ``address`` from now on. Raises ``Problem``."""
        request = {
            "do": "address",
            "node": self._node.config.node_id,
            "address": address,
            "attributes": attributes,
        }
        await self._on_leader(request, timeout_s)

    async def _on_leader(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        node = self._node
        if node.is_leader:
            return await self._do(node, request, timeout_s)
        leader = node.leader_id
        if leader is None or leader == node.config.node_id:
            raise Problem("no_leader", retry_after_s=1.0)
        request["timeout_s"] = max(timeout_s - _MARGIN_S, 0.1)
        payload = bytes((FORMAT,)) + json.dumps(request).encode()
        try:
            raw = await node.request(leader, payload, timeout_s=timeout_s)
        except OutcomeUnknownError:
            raise Problem("outcome_unknown") from None
        except RefusedError:
            raise Problem("no_leader", retry_after_s=1.0) from None
        answer: dict[str, Any] = json.loads(raw)
        if "problem" in answer:
            raise _problem_of(answer)
        return answer

    async def on_request(self, payload: bytes) -> bytes:
        """A request that another member passed on: done here if this node leads, or refused."""
        try:
            request = json.loads(payload[1:])
            timeout_s = float(request["timeout_s"])
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"not a request about members: {error!r}") from error
        try:
            answer = await self._do(self._node, request, timeout_s)
        except Problem as problem:
            answer = _answer_of(problem)
        return json.dumps(answer).encode()

    async def _do(self, node: Node, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """On the leader."""
        try:
            if request.get("do") == "transfer":
                return {"leader": await node.transfer_leadership(request["target"])}
            if request.get("do") == "address":
                await _readdress(node, request, timeout_s)
                return {}
            members = _resolve(node, request["members"])
            version = request["version"]
            await node.change_members(members, version=version, timeout_s=timeout_s)
        except NotCaughtUpError:
            return {"caught_up": False}
        except OutcomeUnknownError as error:
            raise Problem("outcome_unknown", str(error)) from error
        except TransferFailedError as error:
            raise Problem("transfer_failed", str(error), retry_after_s=1.0) from error
        except RefusedError as error:
            raise _refusal(error) from error
        return {"caught_up": True}


async def _readdress(node: Node, request: dict[str, Any], timeout_s: float) -> None:
    attributes = tuple(sorted(request["attributes"].items()))
    await node.update_address(
        request["node"], request["address"], attributes=attributes, timeout_s=timeout_s
    )


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
    if isinstance(error, NotLeaderError | NotReadyError):
        return Problem("no_leader", retry_after_s=1.0)
    return Problem("overloaded", str(error), retry_after_s=1.0)


def _answer_of(problem: Problem) -> dict[str, Any]:
    return {
        "problem": problem.code,
        "detail": problem.detail,
        "errors": [[fault.pointer, fault.message] for fault in problem.errors],
        "current_version": problem.current_version,
        "retry_after_s": problem.retry_after_s,
    }


def _problem_of(answer: dict[str, Any]) -> Problem:
    code = answer["problem"]
    return Problem(
        code if code in CODES else "unavailable",
        answer["detail"],
        errors=tuple(Fault(pointer, message) for pointer, message in answer["errors"]),
        current_version=answer["current_version"],
        retry_after_s=answer["retry_after_s"],
    )
