"""Roles of users in projects."""

from __future__ import annotations

from guardian.domain.entities import Principal, Role, RoleGrant
from guardian.domain.keys import is_id
from guardian.domain.problems import Fault, Problem
from guardian.usecases.access import Access
from guardian.usecases.executing import Call, Consistency, Seen, Written, absent
from guardian.usecases.paging import Page, PageRequest, page_of
from guardian.usecases.ports import Log, State
from guardian.usecases.ports import Roles as RoleRows


class Roles:
    """The verbs on roles. All of them are for a project's admins."""

    def __init__(self, log: Log, state: State, access: Access, rows: RoleRows) -> None:
        self._log = log
        self._state = state
        self._access = access
        self._rows = rows

    async def list(
        self, principal: Principal, project_id: str, page: PageRequest, consistency: Consistency
    ) -> Seen[Page[RoleGrant]]:
        """Grants in the order of user ids."""
        scope = f"roles:{project_id}"
        after = page.after(scope)
        await self._access.reading(principal, project_id, Role.ADMIN, consistency)
        rows = await self._rows.list(project_id, after, page.limit + 1)
        found = page_of(rows, page.limit, scope, _user_id)
        return Seen(found, self._state.revision(), self._log.staleness_ms())

    async def grant(
        self, principal: Principal, project_id: str, user_id: str, role: Role, call: Call
    ) -> Written[RoleGrant]:
        """Give a user a role, or another one than before.

        The log knows nothing of roles: the revision is that of the state in which the project was
        found to live.

        Raises:
            Problem: ``validation_failed`` at ``/user_id`` for no such user, ``not_found``,
                ``forbidden``.
        """
        await self._access.writing(principal, project_id, Role.ADMIN, call)
        nobody = Fault("/user_id", "there is no such user")
        if not is_id(user_id):
            raise Problem("validation_failed", errors=(nobody,), revision=self._state.revision())
        grant = RoleGrant(user_id, role)
        try:
            await self._rows.grant(project_id, grant)
        except Problem as problem:
            if problem.code != "not_found":
                raise
            raise Problem(
                "validation_failed", errors=(nobody,), revision=self._state.revision()
            ) from problem
        return Written(grant, self._state.revision())

    async def revoke(
        self, principal: Principal, project_id: str, user_id: str, call: Call
    ) -> Written[None]:
        """Raises ``Problem("not_found")`` when the user has no role there."""
        await self._access.writing(principal, project_id, Role.ADMIN, call)
        if not is_id(user_id) or not await self._rows.revoke(project_id, user_id):
            raise absent(self._state)
        return Written(None, self._state.revision())


def _user_id(grant: RoleGrant) -> str:
    return grant.user_id
