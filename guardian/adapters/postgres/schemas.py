"""Bodies of schemas in PostgreSQL, by version and attempt."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import dataclass

from guardian.adapters.postgres.connection import Connection, Row
from guardian.adapters.postgres.pool import Database
from guardian.domain.entities import Schema
from guardian.domain.problems import Problem

_COLUMNS = "id, name, version, body, digest, created_by, created_at_ms"


@dataclass(frozen=True, slots=True)
class PendingAttempt:
    """An attempt that nobody has settled."""

    schema_id: str
    version: int
    attempt_id: str


class PostgresSchemas:
    """:class:`guardian.usecases.ports.Schemas`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_pending(self, schema: Schema, attempt_id: str) -> None:
        await self._database.execute(
            f"INSERT INTO config_schemas ({_COLUMNS}, attempt_id, state)"  # noqa: S608 - a constant
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 'pending')",
            (
                schema.id,
                schema.name,
                schema.version,
                schema.body,
                schema.digest,
                schema.created_by,
                schema.created_at_ms,
                attempt_id,
            ),
        )

    async def activate(self, schema_id: str, version: int, attempt_id: str) -> None:
        """Idempotent.

        Raises:
            Problem: ``not_found`` when there is no row of that attempt; nothing changed.
        """

        async def work(connection: Connection) -> None:
            if not await activate_attempt(connection, schema_id, version, attempt_id):
                raise Problem("not_found")

        await self._database.write(work)

    async def drop_attempt(self, schema_id: str, attempt_id: str) -> None:
        await self._database.execute(
            "DELETE FROM config_schemas WHERE id = %s AND attempt_id = %s AND state = 'pending'",
            (schema_id, attempt_id),
        )

    async def remove(self, schema_id: str) -> None:
        await self._database.execute("DELETE FROM config_schemas WHERE id = %s", (schema_id,))

    async def by_digest(self, schema_id: str, version: int, digest: bytes) -> Schema | None:
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM config_schemas"  # noqa: S608 - a constant
            " WHERE id = %s AND version = %s AND digest = %s ORDER BY state LIMIT 1",
            (schema_id, version, digest),
        )
        return _schema(rows[0]) if rows else None

    async def list(self, after_id: str, limit: int) -> builtins.list[Schema]:
        rows = await self._database.fetch(
            f"SELECT DISTINCT ON (id) {_COLUMNS} FROM config_schemas"  # noqa: S608 - a constant
            " WHERE state = 'active' AND id > %s ORDER BY id, version DESC LIMIT %s",
            (after_id, limit),
        )
        return [_schema(row) for row in rows]

    async def creator(self, schema_id: str) -> str | None:
        """Who wrote the first version, also while that is still pending."""
        rows = await self._database.fetch(
            "SELECT created_by FROM config_schemas WHERE id = %s ORDER BY version, state LIMIT 1",
            (schema_id,),
        )
        return rows[0][0] if rows else None

    async def unsettled(self, older_than_s: float, limit: int) -> builtins.list[PendingAttempt]:
        """Attempts that have been pending for that long, by the database's clock."""
        rows = await self._database.fetch(
            "SELECT id, version, attempt_id FROM config_schemas WHERE state = 'pending'"
            " AND state_changed_at < now() - make_interval(secs => %s)"
            " ORDER BY state_changed_at LIMIT %s",
            (older_than_s, limit),
        )
        return [PendingAttempt(*row) for row in rows]

    async def remove_all(self, schema_ids: Sequence[str]) -> int:
        """Remove all rows of those schemas; how many there were."""
        return await self._database.execute(
            "DELETE FROM config_schemas WHERE id = ANY(%s)", ([*schema_ids],)
        )


async def activate_attempt(
    connection: Connection, schema_id: str, version: int, attempt_id: str
) -> bool:
    """Make the attempt's row the only one of its version; False when there is no such row."""
    place = (schema_id, version, attempt_id)
    cursor = await connection.execute(
        "SELECT 1 FROM config_schemas WHERE id = %s AND version = %s AND attempt_id = %s"
        " FOR UPDATE",
        place,
    )
    if await cursor.fetchone() is None:
        return False
    await connection.execute(
        "DELETE FROM config_schemas WHERE id = %s AND version = %s AND attempt_id <> %s", place
    )
    await connection.execute(
        "UPDATE config_schemas SET state = 'active', state_changed_at = now()"
        " WHERE id = %s AND version = %s AND attempt_id = %s AND state = 'pending'",
        place,
    )
    return True


def _schema(row: Row) -> Schema:
    return Schema(
        id=row[0],
        name=row[1],
        version=row[2],
        body=bytes(row[3]),
        digest=bytes(row[4]),
        created_by=row[5],
        created_at_ms=row[6],
    )
