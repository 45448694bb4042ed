"""Asking for other members, in the words that people use.

A change states all members that are wanted, with the version of the configuration that it was
thought out on, so that two changes made at once can not undo each other. The short forms here do
that from the configuration in force: look, alter one thing, state the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from raftcore.core.effects import MembershipFinished, MembershipOutcome
from raftcore.core.membership import encode_configuration
from raftcore.core.types import Configuration, Lease, Member, NodeId
from raftcore.errors import (
    ChangeInProgressError,
    InvalidChangeError,
    NotCaughtUpError,
    NotLeaderError,
    NotReadyError,
    OutcomeUnknownError,
    RaftcoreError,
    StaleVersionError,
)
from raftcore.naming import check_node_id
from raftcore.transport.address import parse_address
from raftcore.transport.checks import (
    MAX_CONFIGURATION_BYTES,
    MAX_SETTING,
    WireError,
    check_integer,
    check_member,
)

#: How long a change may take by default: a new voter has to catch up first.
CHANGE_TIMEOUT_S = 120.0

#: A configuration and its version, the index of its entry in the log.
Changed = tuple[Configuration, int]


#: Half of what a peer takes: the rest is for removed incarnations and the stages of a change.
_MAX_MEMBERS_BYTES = MAX_CONFIGURATION_BYTES // 2


class Changer(Protocol):
    """What the short forms stand on."""

    @property
    def configuration(self) -> Configuration: ...

    @property
    def configuration_version(self) -> int: ...

    async def change_members(
        self,
        members: Sequence[Member],
        *,
        version: int,
        timeout_s: float = CHANGE_TIMEOUT_S,
    ) -> Changed: ...


class MemberCommands:
    """Short forms of :meth:`raftcore.Node.change_members`; same errors, same result.

    Each also raises :class:`InvalidChangeError` if the member it is about is not there.
    """

    async def add_voter(
        self: Changer, member: Member, *, timeout_s: float = CHANGE_TIMEOUT_S
    ) -> Changed:
        """Add a node, or give a learner a vote. It catches up before its vote counts."""
        wanted = replace(_a_member(member), voter=True)
        return await _change(self, _with(self, wanted), timeout_s)

    async def add_learner(
        self: Changer, member: Member, *, timeout_s: float = CHANGE_TIMEOUT_S
    ) -> Changed:
        """Add a node that is sent everything and never votes."""
        wanted = replace(_a_member(member), voter=False)
        return await _change(self, _with(self, wanted), timeout_s)

    async def remove(
        self: Changer, node_id: NodeId, *, timeout_s: float = CHANGE_TIMEOUT_S
    ) -> Changed:
        """Remove a member for good; a leader may remove itself."""
        gone = _known(self, node_id)
        return await _change(self, _without(self, gone.node_id), timeout_s)

    async def promote(
        self: Changer, node_id: NodeId, *, timeout_s: float = CHANGE_TIMEOUT_S
    ) -> Changed:
        """Give a learner a vote."""
        member = replace(_known(self, node_id), voter=True)
        return await _change(self, _with(self, member), timeout_s)

    async def demote(
        self: Changer, node_id: NodeId, *, timeout_s: float = CHANGE_TIMEOUT_S
    ) -> Changed:
        """Take a voter's vote; it stays as a learner."""
        member = replace(_known(self, node_id), voter=False)
        return await _change(self, _with(self, member), timeout_s)

    async def replace_member(
        self: Changer, node_id: NodeId, member: Member, *, timeout_s: float = CHANGE_TIMEOUT_S
    ) -> Changed:
        """Put ``member`` into the place of another, in one change."""
        gone = _known(self, node_id)
        if _a_member(member).node_id == gone.node_id:
            raise InvalidChangeError(
                f"{node_id} can not replace itself: remove it first, then add its successor"
            )
        kept = [m for m in _with(self, member) if m.node_id != gone.node_id]
        return await _change(self, kept, timeout_s)

    async def update_address(
        self: Changer,
        node_id: NodeId,
        address: str,
        *,
        attributes: tuple[tuple[str, str], ...] | None = None,
        timeout_s: float = CHANGE_TIMEOUT_S,
    ) -> Changed:
        """A member is reached somewhere else from now on."""
        known = _known(self, node_id)
        kept = known.attributes if attributes is None else attributes
        member = replace(known, address=address, attributes=kept)
        return await _change(self, _with(self, member), timeout_s)


def wanted_members(configuration: Configuration) -> list[Member]:
    """The members that ``configuration`` is, or that it is heading for."""
    target = configuration.target
    if target is None:
        return [m for m in configuration.members if m.node_id not in configuration.leaving]
    wanted = {*target.voters, *target.learners}
    return [
        replace(member, voter=member.node_id in target.voters)
        for member in configuration.members
        if member.node_id in wanted
    ]


def complete(
    members: Sequence[Member], configuration: Configuration, joiners: Sequence[Member]
) -> tuple[Member, ...]:
    """``members`` in order, an incarnation left empty filled in from who is known by that id: a
    member, or a node that asked to join.

    Raises:
        InvalidChangeError: a member can not be one, a node is named twice, or nobody of that name
            is known.
    """
    members = _members(members)
    for member in members:
        _check_wanted(member, configuration)
    known = {member.node_id: member for member in (*joiners, *configuration.members)}
    completed = {}
    for member in members:
        if member.node_id in completed:
            raise InvalidChangeError(f"{member.node_id} is named twice")
        if not member.incarnation:
            same = known.get(member.node_id)
            if same is None:
                raise InvalidChangeError(
                    f"{member.node_id} is no member and has not asked to join: its incarnation "
                    f"is needed"
                )
            member = replace(member, incarnation=same.incarnation)  # noqa: PLW2901
        completed[member.node_id] = member
    wanted = tuple(completed[node_id] for node_id in sorted(completed))
    size = len(encode_configuration(Configuration(configuration.cluster_id, wanted)))
    if size > _MAX_MEMBERS_BYTES:
        raise InvalidChangeError(
            f"these members take {size} bytes, {_MAX_MEMBERS_BYTES} is the limit"
        )
    return wanted


def _members(members: object) -> tuple[Member, ...]:
    if isinstance(members, str) or not isinstance(members, Iterable):
        raise InvalidChangeError(f"members are a sequence of Member, not {members!r:.80}")
    return tuple(_a_member(member) for member in members)


def _a_member(member: object) -> Member:
    if not isinstance(member, Member):
        raise InvalidChangeError(f"{member!r:.80} is not a Member")
    return member


def _check_wanted(member: Member, configuration: Configuration) -> None:
    """What peers would not take, or could not use, never gets into the log."""
    try:
        check_member(member)
        if configuration.member(member.node_id) is None:
            check_node_id(member.node_id)
        parse_address(member.address)
    except (WireError, ValueError) as error:
        raise InvalidChangeError(f"{member!r:.120} can not be a member: {error}") from error


def check_lease(lease: object, heartbeat_ms: int) -> None:
    """Whether those terms can be kept by nodes with heartbeats like ours (rule 35).

    Raises:
        InvalidChangeError: they can not.
    """
    if lease is None:
        return
    if not isinstance(lease, Lease):
        raise InvalidChangeError(f"{lease!r:.80} is not a Lease")
    try:
        check_integer(lease.election_timeout_ms, 2 * heartbeat_ms, MAX_SETTING)
        check_integer(lease.clock_error_ppm, 0, 999_999)
    except WireError as error:
        raise InvalidChangeError(
            f"{lease!r:.120}: {error}. One lost heartbeat must not cost an election, and clocks "
            f"must not differ by their whole speed"
        ) from error


_ERRORS: dict[MembershipOutcome, Callable[[MembershipFinished], RaftcoreError]] = {
    MembershipOutcome.NOT_LEADER: lambda f: NotLeaderError(f.leader_id, f.detail),
    MembershipOutcome.IN_PROGRESS: lambda f: ChangeInProgressError(f.detail),
    MembershipOutcome.STALE_VERSION: lambda f: StaleVersionError(f.detail, f.version),
    MembershipOutcome.NOT_READY: lambda f: NotReadyError(f.detail),
    MembershipOutcome.INVALID: lambda f: InvalidChangeError(f.detail),
    MembershipOutcome.NOT_CAUGHT_UP: lambda f: NotCaughtUpError(f.detail, f.version),
    MembershipOutcome.UNKNOWN: lambda f: OutcomeUnknownError(f.detail),
}


def check_outcome(finished: MembershipFinished) -> None:
    """Raise what the outcome means, unless the change is done."""
    if finished.outcome is not MembershipOutcome.DONE:
        raise _ERRORS[finished.outcome](finished)


async def _change(changer: Changer, members: Sequence[Member], timeout_s: float) -> Changed:
    version = changer.configuration_version
    return await changer.change_members(members, version=version, timeout_s=timeout_s)


def _known(changer: Changer, node_id: NodeId) -> Member:
    for member in wanted_members(changer.configuration):
        if member.node_id == node_id:
            return member
    raise InvalidChangeError(f"{node_id} is no member")


def _without(changer: Changer, node_id: NodeId) -> list[Member]:
    return [m for m in wanted_members(changer.configuration) if m.node_id != node_id]


def _with(changer: Changer, member: Member) -> list[Member]:
    return [*_without(changer, member.node_id), member]
