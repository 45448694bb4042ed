"""An opened pool on the test's own database, and a few rows to start from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from guardian.adapters.postgres.pool import Database
from guardian.adapters.postgres.users import PostgresUsers
from guardian.domain.entities import User

AddUser = Callable[..., Awaitable[User]]


@pytest.fixture
async def database(postgres_dsn: str) -> AsyncIterator[Database]:
    database = Database(postgres_dsn)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def users(database: Database) -> PostgresUsers:
    return PostgresUsers(database)


@pytest.fixture
def add_user(users: PostgresUsers) -> AddUser:
    async def add(user_id: str, *, is_admin: bool = False) -> User:
        user = User(user_id, f"{user_id}@example.org", is_admin, created_at_ms=1)
        await users.add(user, "hash")
        return user

    return add
