"""Users in PostgreSQL."""

from __future__ import annotations

import builtins

from guardian.adapters.postgres.connection import Connection, Row
from guardian.adapters.postgres.pool import Database
from guardian.domain.entities import Credentials, User
from guardian.domain.problems import Problem

# held by whatever decides over the set of administrators; "guarusrs"
_ADMINS_LOCK = 0x67756172_75737273
_COLUMNS = "id, email, is_admin, created_at_ms"
_INSERT = (
    "INSERT INTO users (id, email, password_hash, is_admin, created_at_ms)"
    " VALUES (%s, %s, %s, %s, %s)"
)


class PostgresUsers:
    """:class:`guardian.usecases.ports.Users`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, user: User, password_hash: str) -> None:
        await self._database.execute(_INSERT, _values(user, password_hash))

    async def get(self, user_id: str) -> User | None:
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM users WHERE id = %s",  # noqa: S608 - a constant
            (user_id,),
        )
        return _user(rows[0]) if rows else None

    async def credentials(self, email: str) -> Credentials | None:
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS}, password_hash FROM users"  # noqa: S608 - a constant
            ' WHERE lower(email COLLATE "C") = lower(%s COLLATE "C")',
            (email,),
        )
        return Credentials(_user(rows[0]), rows[0][4]) if rows else None

    async def set_password_hash(self, user_id: str, password_hash: str) -> None:
        await self._database.execute(
            "UPDATE users SET password_hash = %s WHERE id = %s", (password_hash, user_id)
        )

    async def list(self, after_id: str, limit: int) -> builtins.list[User]:
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM users WHERE id > %s ORDER BY id LIMIT %s",  # noqa: S608
            (after_id, limit),
        )
        return [_user(row) for row in rows]

    async def remove(self, user_id: str) -> bool:
        async def work(connection: Connection) -> bool:
            # two administrators who remove each other at once must not both succeed
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ADMINS_LOCK,))
            cursor = await connection.execute(
                "SELECT is_admin,"
                " EXISTS (SELECT FROM projects WHERE owner_id = users.id),"
                " EXISTS (SELECT FROM users other WHERE other.is_admin AND other.id <> users.id)"
                " FROM users WHERE id = %s",
                (user_id,),
            )
            row = await cursor.fetchone()
            if row is None:
                return False
            is_admin, owns_projects, other_admins = row
            if owns_projects:
                raise Problem("owns_projects")
            if is_admin and not other_admins:
                raise Problem("last_admin")
            # a project added meanwhile stops this by its foreign key, which is owns_projects too
            await connection.execute("DELETE FROM users WHERE id = %s", (user_id,))
            return True

        return await self._database.write(work)

    async def any(self) -> bool:
        return bool(await self._database.fetch("SELECT 1 FROM users LIMIT 1"))

    async def add_first_admin(self, user: User, password_hash: str) -> bool:
        async def work(connection: Connection) -> bool:
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ADMINS_LOCK,))
            cursor = await connection.execute("SELECT 1 FROM users LIMIT 1")
            if await cursor.fetchone() is not None:
                return False
            await connection.execute(_INSERT, _values(user, password_hash))
            return True

        return await self._database.write(work)


def _values(user: User, password_hash: str) -> tuple[object, ...]:
    return user.id, user.email, password_hash, user.is_admin, user.created_at_ms


def _user(row: Row) -> User:
    return User(id=row[0], email=row[1], is_admin=row[2], created_at_ms=row[3])
