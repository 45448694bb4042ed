"""This node's picture of the cluster, and what may be changed about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guardian.domain.entities import Principal
from guardian.domain.problems import Fault, Problem
from guardian.usecases.access import require_admin
from guardian.usecases.executing import Seen
from guardian.usecases.ports import ClusterView, Log, Members, State, WantedMember


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """What came of a change. ``caught_up`` False: a new voter is a learner for now."""

    caught_up: bool
    cluster: ClusterView


class Cluster:
    """The verbs on the cluster."""

    def __init__(self, log: Log, state: State, members: Members) -> None:
        self._log = log
        self._state = state
        self._members = members

    def view(self, principal: Principal) -> Seen[ClusterView]:
        """For any signed-in user; always this node's own view, with or without a leader."""
        assert principal.user_id, "only authenticated callers get here"
        return Seen(self._log.cluster(), self._state.revision(), self._log.staleness_ms())

    async def change_members(
        self,
        principal: Principal,
        members: Sequence[WantedMember],
        expected_version: int,
        *,
        timeout_s: float,
    ) -> Seen[MembersChanged]:
        """State the members that are wanted, under the version of those that were seen.

        Raises:
            Problem: ``forbidden``, ``invalid_members``, ``version_conflict``,
                ``change_in_progress``, ``no_leader``, ``outcome_unknown``.
        """
        require_admin(principal)
        _check(members)
        caught_up = await self._members.change(members, expected_version, timeout_s=timeout_s)
        changed = MembersChanged(caught_up, self._log.cluster())
        return Seen(changed, self._state.revision(), self._log.staleness_ms())

    async def transfer(
        self, principal: Principal, target: str | None, *, timeout_s: float
    ) -> Seen[ClusterView]:
        """Hand leadership over, to ``target`` or to whoever is furthest along.

        Raises:
            Problem: ``forbidden``, ``transfer_failed``, ``no_leader``, ``outcome_unknown``.
        """
        require_admin(principal)
        await self._members.transfer(target, timeout_s=timeout_s)
        return self.view(principal)


def _check(members: Sequence[WantedMember]) -> None:
    """What can be told without looking at the cluster."""
    seen: set[str] = set()
    for number, member in enumerate(members):
        if member.id in seen:
            fault = Fault(f"/members/{number}/id", "is listed twice")
            raise Problem("invalid_members", errors=(fault,))
        seen.add(member.id)
    if not any(member.voter for member in members):
        raise Problem("invalid_members", errors=(Fault("/members", "needs at least one voter"),))
