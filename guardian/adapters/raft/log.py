"""The port onto raftcore: any node takes any command.

A follower forwards the *command*, not the HTTP request: this node has authenticated, authorised and
validated it already. Whatever happens on the way, a retry carries the same command id, and the
state machine answers it with the first result; so a lost answer, a new leader or a broken
connection never turns a committed write into a conflict, and never doubles it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import struct
from collections.abc import Iterator
from enum import IntEnum

from guardian.adapters.raft.members import FORMAT as MEMBERS_FORMAT
from guardian.adapters.raft.members import HTTP_ATTRIBUTE, REMOVED, ClusterMembers
from guardian.domain.problems import Problem
from guardian.fsm.commands import (
    AnyCommand,
    AnyResult,
    UndecodableError,
    decode_command,
    decode_result,
    encode_command,
    encode_result,
)
from guardian.fsm.state import StateReader
from guardian.usecases.ports import ClusterView, JoinerView, MemberView
from raftcore.core.effects import LeadershipChanged
from raftcore.core.types import NodeId
from raftcore.errors import (
    EntryTooLargeError,
    OutcomeUnknownError,
    OverloadedError,
    QuarantinedError,
    RefusedError,
    RemovedError,
    StorageFullError,
)
from raftcore.node import Node
from raftcore.runtime.status import NodeStatus

logger = logging.getLogger(__name__)

#: Pause before asking again when there is a leader that did not take the command.
RETRY_PAUSE_S = 0.05

#: How long to wait for a leader before saying that there is none. Longer than any election of a
#: healthy cluster, shorter than a client's patience.
LEADER_WAIT_S = 3.0

#: Requests that may wait for a revision at once.
MAX_REVISION_WAITERS = 10_000

#: What a node in quarantine says to who wants the newest state; it passes writes on as ever.
QUARANTINED = "This node lost data and is being filled again: ask another one"

_FORWARD = struct.Struct(">BI")  # format, milliseconds that the sender will wait
_FORWARD_FORMAT = 1


class _Answer(IntEnum):
    """First byte of the answer to a forwarded command."""

    RESULT = 0
    NOT_LEADER = 1
    OVERLOADED = 2
    UNKNOWN = 3
    TOO_LARGE = 4
    STORAGE_FULL = 5


class _NotHereError(Exception):
    """The command certainly did not enter the log on this try."""


class _MaybeError(Exception):
    """This try may have put the command into the log."""


class ClusterLog:
    """Implements :class:`guardian.usecases.ports.Log` over a node."""

    def __init__(self, state: StateReader, members: ClusterMembers) -> None:
        self._state = state
        self._members = members
        self._node_or_none: Node | None = None
        self._local_ready = False
        self._leader_changed = asyncio.Event()
        self._revision_waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def attach(self, node: Node) -> None:
        """Use ``node`` from now on. The node's request handler is :meth:`on_request`."""
        self._node_or_none = node
        self._local_ready = not node.rebuilt
        node.on_leadership(self._on_leadership)

    @property
    def _node(self) -> Node:
        if self._node_or_none is None:
            raise Problem("no_leader", "This node is still starting", retry_after_s=1.0)
        return self._node_or_none

    # -- writing --------------------------------------------------------------------------------

    async def execute(self, command: AnyCommand, *, timeout_s: float) -> AnyResult:
        """See :meth:`guardian.usecases.ports.Log.execute`."""
        loop = asyncio.get_running_loop()
        data = encode_command(command)
        deadline = loop.time() + timeout_s
        leaderless_since: float | None = None
        maybe_sent = False
        while (left := deadline - loop.time()) > 0:
            changed = self._leader_changed
            try:
                return await self._try_once(data, left)
            except Problem:
                # A refusal of this try; an earlier one may have got through all the same.
                if not maybe_sent:
                    raise
            except _MaybeError:
                maybe_sent = True
                leaderless_since = None
            except _NotHereError:
                now = loop.time()
                leaderless_since = leaderless_since if leaderless_since is not None else now
                if not maybe_sent and now - leaderless_since >= LEADER_WAIT_S:
                    break
            await _wait(changed, min(RETRY_PAUSE_S, max(deadline - loop.time(), 0)))
        if maybe_sent:
            raise Problem("outcome_unknown")
        raise Problem("no_leader", retry_after_s=1.0)

    async def _try_once(self, data: bytes, timeout_s: float) -> AnyResult:
        node = self._node
        leader = node.leader_id
        if node.removed is not None:
            raise Problem("unavailable", REMOVED)
        if node.is_leader:
            return await self._propose(node, data, timeout_s)
        if leader is None or leader == node.config.node_id:
            raise _NotHereError
        return await self._forward(node, leader, data, timeout_s)

    async def _propose(self, node: Node, data: bytes, timeout_s: float) -> AnyResult:
        try:
            proposed = await node.propose(data, timeout_s=timeout_s)
        except OverloadedError:
            raise Problem("overloaded", retry_after_s=1.0) from None
        except EntryTooLargeError:
            raise Problem("payload_too_large") from None
        except StorageFullError:
            raise Problem("storage_full", retry_after_s=10.0) from None
        except RemovedError:
            raise Problem("unavailable", REMOVED) from None
        except RefusedError as error:
            raise _NotHereError from error
        except OutcomeUnknownError as error:
            raise _MaybeError from error
        result: AnyResult = proposed.result
        return result

    async def _forward(
        self, node: Node, leader: NodeId, data: bytes, timeout_s: float
    ) -> AnyResult:
        payload = _FORWARD.pack(_FORWARD_FORMAT, max(int(timeout_s * 1000), 1)) + data
        try:
            raw = await node.request(leader, payload, timeout_s=timeout_s)
        except OutcomeUnknownError as error:
            raise _MaybeError from error
        except RefusedError as error:
            raise _NotHereError from error
        try:
            kind = _Answer(raw[0])
            if kind is _Answer.RESULT:
                return decode_result(raw[1:])
        except (IndexError, ValueError) as error:
            # Not understood, but the command may well have committed.
            raise _MaybeError from error
        if kind is _Answer.OVERLOADED:
            raise Problem("overloaded", retry_after_s=1.0)
        if kind is _Answer.TOO_LARGE:
            raise Problem("payload_too_large")
        if kind is _Answer.STORAGE_FULL:
            raise Problem("storage_full", retry_after_s=10.0)
        if kind is _Answer.NOT_LEADER:
            raise _NotHereError
        raise _MaybeError

    async def on_request(self, sender: NodeId, payload: bytes) -> bytes:
        """A command forwarded by another member: propose it here, and here only.

        It is never forwarded again: a chain of nodes that each believe another to lead would have
        no end.
        """
        if payload[:1] == bytes((MEMBERS_FORMAT,)):
            return await self._members.on_request(sender, payload)
        node = self._node
        data, timeout_ms = _unpack_forwarded(payload)
        try:
            proposed = await node.propose(data, timeout_s=timeout_ms / 1000)
        except OverloadedError:
            return bytes((_Answer.OVERLOADED,))
        except EntryTooLargeError:
            return bytes((_Answer.TOO_LARGE,))
        except StorageFullError:
            return bytes((_Answer.STORAGE_FULL,))
        except RefusedError:
            # Not the leader, handing over, stopping or removed: another node has to be asked.
            return bytes((_Answer.NOT_LEADER,))
        except OutcomeUnknownError:
            return bytes((_Answer.UNKNOWN,))
        return bytes((_Answer.RESULT,)) + encode_result(proposed.result)

    # -- reading --------------------------------------------------------------------------------

    async def barrier(self, *, timeout_s: float) -> None:
        """See :meth:`guardian.usecases.ports.Log.barrier`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(timeout_s, LEADER_WAIT_S)
        while (left := deadline - loop.time()) > 0:
            changed = self._leader_changed
            try:
                await self._node.read_barrier(timeout_s=left)
            except OverloadedError:
                raise Problem("overloaded", retry_after_s=1.0) from None
            except QuarantinedError:  # until others have filled it: not a matter of moments
                raise Problem("unavailable", QUARANTINED, retry_after_s=1.0) from None
            except RemovedError:
                raise Problem("unavailable", REMOVED) from None
            except RefusedError:
                await _wait(changed, min(RETRY_PAUSE_S, max(deadline - loop.time(), 0)))
            else:
                return
        raise Problem("no_leader", retry_after_s=1.0)

    async def wait_revision(self, revision: int, *, timeout_s: float) -> None:
        """See :meth:`guardian.usecases.ports.Log.wait_revision`."""
        if self._state.revision() >= revision:
            return
        self._forget_revision_waiters()
        if len(self._revision_waiters) >= MAX_REVISION_WAITERS:
            raise Problem("overloaded", retry_after_s=1.0)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._revision_waiters, (revision, next(self._order), future))
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            raise Problem(
                "unavailable", "This node has not reached that revision yet", retry_after_s=1.0
            ) from None

    def _forget_revision_waiters(self) -> None:
        """Drop those who gave up, once they are many: a far revision may never come."""
        if len(self._revision_waiters) >= MAX_REVISION_WAITERS:
            self._revision_waiters = [w for w in self._revision_waiters if not w[2].done()]
            heapq.heapify(self._revision_waiters)

    def on_applied(self, revision: int) -> None:
        """On the loop: the state machine has reached ``revision``."""
        waiting = self._revision_waiters
        while waiting and (waiting[0][0] <= revision or waiting[0][2].done()):
            future = heapq.heappop(waiting)[2]
            if not future.done():
                future.set_result(None)

    def drain(self) -> None:
        """The node stops: whoever waits for a revision is answered now."""
        waiting, self._revision_waiters = self._revision_waiters, []
        for _, _, future in waiting:
            if not future.done():
                future.set_exception(
                    Problem("unavailable", "This node is stopping", retry_after_s=1.0)
                )

    # -- looking --------------------------------------------------------------------------------

    def is_leader(self) -> bool:
        return self._node_or_none is not None and self._node_or_none.is_leader

    def leader_http_address(self) -> str | None:
        node = self._node_or_none
        if node is None or node.leader_id is None:
            return None
        member = node.configuration.member(node.leader_id)
        return dict(member.attributes).get(HTTP_ATTRIBUTE) if member else None

    def require_local(self) -> None:
        """See :meth:`guardian.usecases.ports.Log.require_local`."""
        if not self._local_ready:
            raise Problem("unavailable", "This node is rebuilding its state", retry_after_s=1.0)

    async def allow_local_when_caught_up(self) -> None:
        """After a start that rebuilt the state: let local reads wait for one read barrier."""
        while not self._local_ready:
            try:
                await self.barrier(timeout_s=LEADER_WAIT_S)
            except Problem:
                await asyncio.sleep(RETRY_PAUSE_S)
            else:
                self._local_ready = True

    def staleness_ms(self) -> int | None:
        return self._node_or_none.staleness_ms() if self._node_or_none else None

    def cluster(self) -> ClusterView:
        node = self._node
        status = node.status()
        core = status.core
        voters = frozenset(core.voters)
        members = tuple(
            MemberView(
                id=member.node_id,
                raft_address=member.address,
                http_address=dict(member.attributes).get(HTTP_ATTRIBUTE, ""),
                voter=member.node_id in voters,
                healthy=member.node_id == core.node_id or member.node_id in status.connected,
            )
            for member in node.configuration.members
        )
        return ClusterView(
            node_id=core.node_id,
            role=_role_of(status),
            term=core.term,
            leader_id=core.leader_id,
            commit_index=core.commit_index,
            applied_index=core.applied_index,
            members=members,
            members_version=status.configuration_version,
            stage=status.stage,
            waits_for=core.change_waits_for,
            joiners=tuple(
                JoinerView(
                    id=joiner.node_id,
                    raft_address=joiner.address,
                    http_address=dict(joiner.attributes).get(HTTP_ATTRIBUTE, ""),
                    wants_vote=joiner.voter,
                )
                for joiner in status.joiners
            ),
            conditions=tuple(_conditions_of(status)),
        )

    def _on_leadership(self, _change: LeadershipChanged) -> None:
        """Wake everybody who waits for another leader."""
        changed, self._leader_changed = self._leader_changed, asyncio.Event()
        changed.set()


def _is_outside(status: NodeStatus) -> bool:
    return status.configuration.member(status.core.node_id) is None


def _role_of(status: NodeStatus) -> str:
    core = status.core
    if _is_outside(status):
        return "outside"
    if core.role == "follower" and core.node_id in core.learners:
        return "learner"
    return {"pre_candidate": "candidate"}.get(core.role, core.role)


def _conditions_of(status: NodeStatus) -> Iterator[str]:
    """What keeps this node from its part; the words are those of ``GET /cluster``."""
    if status.removed is not None:
        yield "removed"
    elif _is_outside(status):
        yield "not_a_member"
    if status.quarantine is not None:
        yield "quarantined"
    if status.core.stalled:
        yield "disk_stalled"


def _unpack_forwarded(payload: bytes) -> tuple[bytes, int]:
    """The command's bytes, known to be a command, and how long the sender waits."""
    if len(payload) < _FORWARD.size:
        raise RefusedError("not a forwarded command: too short")
    version, timeout_ms = _FORWARD.unpack_from(payload)
    if version != _FORWARD_FORMAT:
        raise RefusedError(f"forward format {version} is not known here")
    data = payload[_FORWARD.size :]
    try:
        decode_command(data)
    except UndecodableError as error:
        raise RefusedError(f"not a forwarded command: {error}") from error
    return data, timeout_ms


async def _wait(changed: asyncio.Event, timeout_s: float) -> None:
    """Until leadership changed, or a moment has passed."""
    try:
        async with asyncio.timeout(timeout_s):
            await changed.wait()
    except TimeoutError:
        return
