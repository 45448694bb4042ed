"""Projects in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

from guardian.adapters.postgres.connection import Connection, Row
from guardian.adapters.postgres.pool import Database
from guardian.domain.entities import Project
from guardian.domain.problems import Problem

_COLUMNS = "p.id, p.name, p.owner_id, p.created_at_ms"


class PostgresProjects:
    """:class:`guardian.usecases.ports.Projects`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_pending(self, project: Project) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(
                "INSERT INTO projects (id, name, owner_id, state, created_at_ms)"
                " VALUES (%s, %s, %s, 'creating', %s)",
                (project.id, project.name, project.owner_id, project.created_at_ms),
            )
            await connection.execute(
                "INSERT INTO project_roles (project_id, user_id, role) VALUES (%s, %s, 'admin')",
                (project.id, project.owner_id),
            )

        # the owner went while this request was under way
        gone = {"projects_owner_id_fkey": "unauthenticated"}
        await self._database.write(work, constraints=gone)

    async def activate(self, project_id: str) -> None:
        """The log has it. Idempotent.

        Raises:
            Problem: ``not_found`` when there is no row.
        """
        touched = await self._database.execute(
            "UPDATE projects SET state = 'active', state_changed_at ="
            " CASE WHEN state = 'active' THEN state_changed_at ELSE now() END WHERE id = %s",
            (project_id,),
        )
        if touched == 0:
            raise Problem("not_found")

    async def remove(self, project_id: str) -> None:
        await self._database.execute("DELETE FROM projects WHERE id = %s", (project_id,))

    async def get(self, project_id: str) -> Project | None:
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM projects p"  # noqa: S608 - a constant
            " WHERE p.id = %s AND p.state = 'active'",
            (project_id,),
        )
        return _project(rows[0]) if rows else None

    async def list_visible(
        self, user_id: str | None, owner_id: str | None, after_id: str, limit: int
    ) -> list[Project]:
        query = f"SELECT {_COLUMNS} FROM projects p"  # noqa: S608 - constants
        conditions, values = ["p.state = 'active'", "p.id > %s"], [after_id]
        if user_id is not None:
            query += " JOIN project_roles r ON r.project_id = p.id"
            conditions.append("r.user_id = %s")
            values.append(user_id)
        if owner_id is not None:
            conditions.append("p.owner_id = %s")
            values.append(owner_id)
        query += f" WHERE {' AND '.join(conditions)} ORDER BY p.id LIMIT %s"
        return [_project(row) for row in await self._database.fetch(query, (*values, limit))]

    async def unsettled(self, older_than_s: float, limit: int) -> list[str]:
        """Ids of projects that have been ``creating`` for that long, by the database's clock."""
        rows = await self._database.fetch(
            "SELECT id FROM projects WHERE state = 'creating'"
            " AND state_changed_at < now() - make_interval(secs => %s)"
            " ORDER BY state_changed_at LIMIT %s",
            (older_than_s, limit),
        )
        return [row[0] for row in rows]

    async def remove_all(self, project_ids: Sequence[str]) -> int:
        """Remove the rows of those that have one; how many had."""
        return await self._database.execute(
            "DELETE FROM projects WHERE id = ANY(%s)", ([*project_ids],)
        )


def _project(row: Row) -> Project:
    return Project(id=row[0], name=row[1], owner_id=row[2], created_at_ms=row[3])
