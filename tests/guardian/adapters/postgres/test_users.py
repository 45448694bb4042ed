from __future__ import annotations

import asyncio

import pytest

from guardian.adapters.postgres.pool import Database
from guardian.adapters.postgres.projects import PostgresProjects
from guardian.adapters.postgres.refresh_tokens import PostgresRefreshTokens
from guardian.adapters.postgres.roles import PostgresRoles
from guardian.adapters.postgres.users import PostgresUsers
from guardian.domain.entities import Project, Role, RoleGrant, User
from guardian.domain.problems import Problem


async def test_a_user_is_found_by_id_and_by_email_in_any_case(users: PostgresUsers) -> None:
    user = User("u1", "Ann@Example.org", is_admin=True, created_at_ms=1_700_000_000_123)
    await users.add(user, "the-hash")
    assert await users.get("u1") == user
    found = await users.credentials("aNN@eXAMPLE.ORG")
    assert found is not None
    assert (found.user, found.password_hash) == (user, "the-hash")
    assert await users.get("u2") is None
    assert await users.credentials("bob@example.org") is None


async def test_an_email_is_taken_in_any_case(users: PostgresUsers) -> None:
    await users.add(User("u1", "ann@example.org", False, 1), "h")
    with pytest.raises(Problem, match="email_taken"):
        await users.add(User("u2", "ANN@example.org", False, 1), "h")
    assert await users.get("u2") is None


async def test_of_racing_registrations_of_one_email_one_wins(users: PostgresUsers) -> None:
    results = await asyncio.gather(
        *(users.add(User(f"u{n}", "ann@example.org", False, 1), "h") for n in range(8)),
        return_exceptions=True,
    )
    refused = [result for result in results if result is not None]
    assert len(refused) == 7
    assert {error.code for error in refused if isinstance(error, Problem)} == {"email_taken"}


async def test_users_are_listed_in_byte_order_by_pages(users: PostgresUsers) -> None:
    for number, user_id in enumerate(("b", "A", "a", "B", "_")):
        await users.add(User(user_id, f"u{number}@example.org", False, 1), "h")
    first = await users.list("", 3)
    second = await users.list(first[-1].id, 3)
    assert [user.id for user in (*first, *second)] == ["A", "B", "_", "a", "b"]


async def test_a_password_hash_is_replaced(users: PostgresUsers, add_user) -> None:
    user = await add_user("u1")
    await users.set_password_hash("u1", "new")
    found = await users.credentials(user.email)
    assert found is not None
    assert found.password_hash == "new"


async def test_removing_a_user_takes_grants_and_refresh_tokens(
    database: Database, users: PostgresUsers, add_user
) -> None:
    await add_user("owner")
    await add_user("guest")
    await PostgresProjects(database).add_pending(Project("p1", "p", "owner", 1))
    roles, tokens = PostgresRoles(database), PostgresRefreshTokens(database)
    await roles.grant("p1", RoleGrant("guest", Role.VIEWER))
    await tokens.add(b"d", "family", "guest", 10_000)
    assert await users.remove("guest")
    assert await roles.role("p1", "guest") is None
    with pytest.raises(Problem, match="invalid_token"):
        await tokens.rotate(b"d", b"e", 10_000, 1)
    assert not await users.remove("guest")


async def test_an_owner_of_projects_can_not_go(
    database: Database, users: PostgresUsers, add_user
) -> None:
    await add_user("u1")
    await PostgresProjects(database).add_pending(Project("p1", "p", "u1", 1))
    with pytest.raises(Problem, match="owns_projects"):
        await users.remove("u1")
    assert await users.get("u1") is not None


async def test_a_project_added_while_its_owner_is_removed_never_dangles(
    database: Database, users: PostgresUsers, add_user
) -> None:
    projects = PostgresProjects(database)
    for number in range(10):
        await add_user(f"u{number}")
        removed, added = await asyncio.gather(
            users.remove(f"u{number}"),
            projects.add_pending(Project(f"p{number}", "p", f"u{number}", 1)),
            return_exceptions=True,
        )
        if removed is True:
            assert isinstance(added, Problem)
            assert added.code == "unauthenticated"
        else:
            assert isinstance(removed, Problem)
            assert removed.code == "owns_projects"
            assert added is None


async def test_the_last_admin_can_not_go(users: PostgresUsers, add_user) -> None:
    await add_user("a1", is_admin=True)
    await add_user("u1")
    with pytest.raises(Problem, match="last_admin"):
        await users.remove("a1")
    await add_user("a2", is_admin=True)
    assert await users.remove("a1")


async def test_admins_who_remove_each_other_at_once_leave_one(
    users: PostgresUsers, add_user
) -> None:
    admins = [f"a{number}" for number in range(6)]
    for admin in admins:
        await add_user(admin, is_admin=True)
    results = await asyncio.gather(*map(users.remove, admins), return_exceptions=True)
    refused = [result for result in results if result is not True]
    assert len(refused) == 1
    assert isinstance(refused[0], Problem)
    assert refused[0].code == "last_admin"
    assert len(await users.list("", 10)) == 1


async def test_the_first_admin_is_created_once(users: PostgresUsers) -> None:
    assert not await users.any()
    created = await asyncio.gather(
        *(users.add_first_admin(User(f"a{n}", f"a{n}@example.org", True, 1), "h") for n in range(6))
    )
    assert sorted(created) == [False] * 5 + [True]
    assert len(await users.list("", 10)) == 1
    assert await users.any()
