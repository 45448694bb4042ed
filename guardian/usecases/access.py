"""Who may do what: 404 where existence is secret, 403 where only the right is missing."""

from __future__ import annotations

from guardian.domain.entities import Principal, Role
from guardian.domain.keys import is_id
from guardian.domain.problems import Problem
from guardian.usecases.executing import Call, Consistency, absent
from guardian.usecases.ports import Log, Roles, State


class Access:
    """Rights in projects. ``is_admin`` passes every check but existence."""

    def __init__(self, log: Log, state: State, roles: Roles) -> None:
        self._log = log
        self._state = state
        self._roles = roles

    async def reading(
        self, principal: Principal, project_id: str, need: Role, consistency: Consistency
    ) -> None:
        """Make local state as fresh as asked, then check.

        Raises:
            Problem: ``not_found`` for no such project or no role in it, ``forbidden``.
        """
        await consistency.ensure(self._log)
        if not self._lives(project_id):
            raise absent(self._state)
        await self._check_role(principal, project_id, need)

    async def writing(self, principal: Principal, project_id: str, need: Role, call: Call) -> None:
        """Check before a write. A project that is absent here may only be late: a barrier decides.

        Whether it still lives when the command arrives is for the state machine to say.

        Raises:
            Problem: ``not_found`` for no such project or no role in it, ``forbidden``.
        """
        if not self._lives(project_id):
            await self._log.barrier(timeout_s=call.remaining_s())
            if not self._lives(project_id):
                raise absent(self._state)
        await self._check_role(principal, project_id, need)

    def _lives(self, project_id: str) -> bool:
        return is_id(project_id) and self._state.project_exists(project_id)

    async def _check_role(self, principal: Principal, project_id: str, need: Role) -> None:
        if principal.is_admin:
            return
        role = await self._roles.role(project_id, principal.user_id)
        if role is None:
            raise absent(self._state)
        if not role.includes(need):
            raise Problem("forbidden", revision=self._state.revision())


def require_admin(principal: Principal) -> None:
    """Raises ``Problem("forbidden")`` for anyone without ``is_admin``."""
    if not principal.is_admin:
        raise Problem("forbidden")
