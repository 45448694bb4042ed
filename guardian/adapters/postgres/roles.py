"""Roles of users in projects, in PostgreSQL."""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from guardian.adapters.postgres.pool import Database
from guardian.domain.entities import Role, RoleGrant


class PostgresRoles:
    """:class:`guardian.usecases.ports.Roles`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def role(self, project_id: str, user_id: str) -> Role | None:
        rows = await self._database.fetch(
            "SELECT role FROM project_roles WHERE project_id = %s AND user_id = %s",
            (project_id, user_id),
        )
        return Role(rows[0][0]) if rows else None

    async def roles(self, project_ids: Sequence[str], user_id: str) -> dict[str, Role]:
        rows = await self._database.fetch(
            "SELECT project_id, role FROM project_roles"
            " WHERE user_id = %s AND project_id = ANY(%s)",
            (user_id, [*project_ids]),
        )
        return {project_id: Role(role) for project_id, role in rows}

    async def list(
        self, project_id: str, after_user_id: str, limit: int
    ) -> builtins.list[RoleGrant]:
        rows = await self._database.fetch(
            "SELECT user_id, role FROM project_roles"
            " WHERE project_id = %s AND user_id > %s ORDER BY user_id LIMIT %s",
            (project_id, after_user_id, limit),
        )
        return [RoleGrant(user_id, Role(role)) for user_id, role in rows]

    async def grant(self, project_id: str, grant: RoleGrant) -> None:
        await self._database.execute(
            "INSERT INTO project_roles (project_id, user_id, role) VALUES (%s, %s, %s)"
            " ON CONFLICT (project_id, user_id) DO UPDATE SET role = excluded.role",
            (project_id, grant.user_id, grant.role.value),
        )

    async def revoke(self, project_id: str, user_id: str) -> bool:
        touched = await self._database.execute(
            "DELETE FROM project_roles WHERE project_id = %s AND user_id = %s",
            (project_id, user_id),
        )
        return touched > 0
