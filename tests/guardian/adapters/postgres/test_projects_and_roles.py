from __future__ import annotations

import pytest

from guardian.adapters.postgres.pool import Database
from guardian.adapters.postgres.projects import PostgresProjects
from guardian.adapters.postgres.roles import PostgresRoles
from guardian.domain.entities import Project, Role, RoleGrant
from guardian.domain.problems import Problem


@pytest.fixture
def projects(database: Database) -> PostgresProjects:
    return PostgresProjects(database)


@pytest.fixture
def roles(database: Database) -> PostgresRoles:
    return PostgresRoles(database)


async def test_a_project_shows_once_it_is_active(projects: PostgresProjects, add_user) -> None:
    await add_user("u1")
    project = Project("p1", "A project", "u1", 1_700_000_000_123)
    await projects.add_pending(project)
    assert await projects.get("p1") is None
    assert await projects.list_visible(None, None, "", 10) == []
    await projects.activate("p1")
    await projects.activate("p1")
    assert await projects.get("p1") == project
    await projects.remove("p1")
    await projects.remove("p1")
    assert await projects.get("p1") is None


async def test_the_owner_is_admin_of_the_project(
    projects: PostgresProjects, roles: PostgresRoles, add_user
) -> None:
    await add_user("u1")
    await projects.add_pending(Project("p1", "p", "u1", 1))
    assert await roles.role("p1", "u1") is Role.ADMIN


async def test_activating_what_is_not_there_is_refused(projects: PostgresProjects) -> None:
    with pytest.raises(Problem, match="not_found"):
        await projects.activate("p1")


async def test_a_project_of_nobody_is_refused(projects: PostgresProjects) -> None:
    with pytest.raises(Problem, match="unauthenticated"):
        await projects.add_pending(Project("p1", "p", "nobody", 1))


async def test_lists_hold_what_the_user_has_a_role_in(
    projects: PostgresProjects, roles: PostgresRoles, add_user
) -> None:
    for user_id in ("u1", "u2"):
        await add_user(user_id)
    for number, owner in ((1, "u1"), (2, "u2"), (3, "u1"), (4, "u2")):
        await projects.add_pending(Project(f"p{number}", "p", owner, 1))
        await projects.activate(f"p{number}")
    await roles.grant("p2", RoleGrant("u1", Role.VIEWER))

    async def ids(*question: str | None) -> list[str]:
        user_id, owner_id = question
        return [p.id for p in await projects.list_visible(user_id, owner_id, "", 10)]

    assert await ids("u1", None) == ["p1", "p2", "p3"]
    assert await ids("u1", "u2") == ["p2"]
    assert await ids(None, "u2") == ["p2", "p4"]
    assert await ids(None, None) == ["p1", "p2", "p3", "p4"]
    assert [p.id for p in await projects.list_visible("u1", None, "p1", 1)] == ["p2"]


async def test_roles_are_granted_changed_and_revoked(
    projects: PostgresProjects, roles: PostgresRoles, add_user
) -> None:
    for user_id in ("u1", "u2"):
        await add_user(user_id)
    await projects.add_pending(Project("p1", "p", "u1", 1))
    await roles.grant("p1", RoleGrant("u2", Role.VIEWER))
    await roles.grant("p1", RoleGrant("u2", Role.EDITOR))
    assert await roles.role("p1", "u2") is Role.EDITOR
    grants = [RoleGrant("u1", Role.ADMIN), RoleGrant("u2", Role.EDITOR)]
    assert await roles.list("p1", "", 10) == grants
    assert await roles.list("p1", "u1", 10) == grants[1:]
    assert await roles.roles(["p1", "p2"], "u2") == {"p1": Role.EDITOR}
    assert await roles.roles([], "u2") == {}
    assert await roles.revoke("p1", "u2")
    assert not await roles.revoke("p1", "u2")
    assert await roles.role("p1", "u2") is None


@pytest.mark.parametrize(("project_id", "user_id"), [("p1", "nobody"), ("nothing", "u1")])
async def test_a_grant_to_nobody_or_in_nothing_is_not_found(
    projects: PostgresProjects, roles: PostgresRoles, add_user, project_id: str, user_id: str
) -> None:
    await add_user("u1")
    await projects.add_pending(Project("p1", "p", "u1", 1))
    with pytest.raises(Problem, match="not_found"):
        await roles.grant(project_id, RoleGrant(user_id, Role.VIEWER))
