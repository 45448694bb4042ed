"""The matrix of routes, roles and methods, generated from the endpoint table."""

from __future__ import annotations

from typing import Any

from guardian.domain.entities import Role
from guardian.http import bodies
from guardian.http.endpoints import ENDPOINTS, Auth, Endpoint, Right

BODIES: dict[type[bodies.Body], dict[str, object]] = {
    bodies.CreateUser: {"email": "new@example.org", "password": "a long password"},
    bodies.CreateProject: {"name": "x"},
    bodies.CreateKey: {"name": "x"},
    bodies.GrantRole: {"user_id": "viewer", "role": "viewer"},
    bodies.CreateSchema: {"name": "x", "schema": {}},
    bodies.UpdateSchema: {"schema": {}, "expected_version": 1},
    bodies.CreateConfig: {"key": "other", "schema_id": "absent", "content": {}},
    bodies.UpdateConfig: {"content": {}, "expected_version": 1},
    bodies.Rollback: {"to_version": 1, "expected_version": 1},
    bodies.ChangeMembers: {"members": [{"id": "node1"}], "expected_version": 1},
    bodies.TransferLeadership: {},
}
#: who passes the check of rights; the others get the status said, or 404 where they see nothing
PASSES = {
    Right.SIGNED_IN: {"root", "owner", "admin", "editor", "viewer", "stranger"},
    Right.SELF: {"root"},
    Right.IS_ADMIN: {"root"},
    Right.VIEWER: {"root", "owner", "admin", "editor", "viewer"},
    Right.EDITOR: {"root", "owner", "admin", "editor"},
    Right.ADMIN: {"root", "owner", "admin"},
    Right.CREATOR: {"root", "owner"},
}
CALLERS = ("root", "owner", "admin", "editor", "viewer", "stranger")


def refusal_of(endpoint: Endpoint, caller: str) -> int | None:
    """The status of a refusal for want of rights, None where the caller passes."""
    if caller in PASSES[endpoint.right]:
        return None
    if endpoint.right is Right.SELF:
        return 404  # whether another user exists is not theirs to know
    if "{project_id}" in endpoint.path and caller == "stranger":
        return 404  # nor whether the project does
    return 403


async def members(world: Any) -> tuple[str, str, str]:
    project, api_key, schema = await world.furnish()
    for name, role in (("admin", Role.ADMIN), ("editor", Role.EDITOR), ("viewer", Role.VIEWER)):
        await world.add_user(name)
        world.roles.rows[project, name] = role
    await world.add_user("stranger")
    created = await world.ask(
        "POST",
        f"/projects/{project}/configs",
        {"key": "a", "schema_id": schema, "content": {}},
        as_user="owner",
    )
    assert created.status == 201
    return project, api_key, schema


def path_of(endpoint: Endpoint, project: str, schema: str) -> str:
    names = {
        "project_id": project,
        "schema_id": schema,
        "key": "a",
        "version": "1",
        "user_id": "nobody" if endpoint.method == "DELETE" else "root",
        "key_id": "absent",
    }
    return "/" + endpoint.path.format(**names)


async def test_each_cell_of_the_matrix_is_as_the_table_says(world: Any) -> None:
    project, _, schema = await members(world)
    # deletions last and the innermost first, so that what the others ask for still exists
    table = sorted(
        (e for e in ENDPOINTS if e.auth is Auth.USER),
        key=lambda e: (e.method == "DELETE", -len(e.path) if e.method == "DELETE" else 0),
    )
    wrong = []
    # those who must be refused come first: what they try must not have happened
    for endpoint in table:
        for caller in sorted(CALLERS, key=lambda c: refusal_of(endpoint, c) is None):
            body = BODIES[endpoint.body] if endpoint.body is not None else None
            path = path_of(endpoint, project, schema)
            if endpoint.operation == "delete_config":
                path += "?expected_version=1"
            elif endpoint.operation in {"delete_project", "delete_schema"} and caller in {
                "owner",
                "admin",
            }:
                continue  # it can go once only, and root comes first
            answer = await world.ask(endpoint.method, path, body, as_user=caller)
            refused = refusal_of(endpoint, caller)
            if refused is None:
                fine = answer.status != 403 and answer.status < 500
            else:
                fine = answer.status == refused
            if not fine:
                wrong.append((endpoint.operation, caller, answer.status, answer.raw))
    assert wrong == []


async def test_without_a_token_every_route_of_users_is_401(world: Any) -> None:
    for endpoint in ENDPOINTS:
        if endpoint.auth is not Auth.USER:
            continue
        # no body and no media type: the token is asked for before either is looked at
        answer = await world.ask(endpoint.method, path_of(endpoint, "p", "s"))
        assert (answer.status, answer.code) == (401, "unauthenticated"), endpoint.operation
        assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_other_methods_are_405_with_allow_on_every_route(world: Any) -> None:
    paths: dict[str, set[str]] = {}
    for endpoint in ENDPOINTS:
        methods = paths.setdefault(path_of_any(endpoint), {"OPTIONS"})
        methods |= {"GET", "HEAD"} if endpoint.method == "GET" else {endpoint.method}
    # /users/me is also a user of that name for the methods it lacks
    paths["//api/v1/users/me"] |= {"DELETE"}
    for path, methods in paths.items():
        for method in ("PATCH", "TRACE", "POST", "PUT", "DELETE", "GET"):
            if method in methods:
                continue
            answer = await world.ask(method, path)
            assert (answer.status, answer.code) == (405, "method_not_allowed"), (method, path)
            assert set(answer.headers["Allow"].split(", ")) == methods, path
        answer = await world.ask("OPTIONS", path, headers={"Origin": "https://elsewhere.example"})
        assert answer.status == 204
        assert set(answer.headers["Allow"].split(", ")) == methods
        assert "Access-Control-Allow-Origin" not in answer.headers


def path_of_any(endpoint: Endpoint) -> str:
    names = dict.fromkeys(
        ("project_id", "schema_id", "key", "version", "user_id", "key_id", "api_key"), "x"
    )
    return "/" + endpoint.path.format(**names)


async def test_overriding_the_method_is_ignored(world: Any) -> None:
    project, _, _ = await world.furnish()
    for path in (f"/projects/{project}", f"/projects/{project}?_method=DELETE"):
        answer = await world.ask(
            "GET", path, as_user="owner", headers={"X-HTTP-Method-Override": "DELETE"}
        )
        assert answer.status == 200


async def test_tricks_with_paths_lead_nowhere(world: Any) -> None:
    await world.furnish()
    for path in (
        "///api/v1/users",
        "//api/v1//users",
        "//api/v1/users/",
        "//api/v1/users/.",
        "//API/v1/users",
        "//api/v1/projects/..;/users",
        "//api/v1/projects/../users",
        "//api/v1/users%2f",
        "//api/v1/users%00",
        "//api/v0/users",
    ):
        answer = await world.ask("GET", path, as_user="owner")
        assert (answer.status, answer.code) == (404, "not_found"), path
    # an encoded letter is the same path, under the same right
    answer = await world.ask("GET", "//api/v1/%75sers", as_user="owner")
    assert (answer.status, answer.code) == (403, "forbidden")
