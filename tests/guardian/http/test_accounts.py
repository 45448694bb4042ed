"""Accounts, sessions, users, projects, keys, roles and schemas over HTTP."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest

PASSWORD = "correct horse battery"
SECRET = "0123456789abcdef0123456789abcdef"


async def login(world: Any, email: str = "root@example.org", password: str = PASSWORD) -> Any:
    return await world.ask("POST", "/auth/login", {"email": email, "password": password})


async def test_login_gives_tokens_that_work(world: Any) -> None:
    answer = await login(world)
    assert answer.status == 200
    assert set(answer.json) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (answer.json["token_type"], answer.json["expires_in"]) == ("Bearer", 900)
    assert answer.headers["Cache-Control"] == "no-store"
    bearer = {"Authorization": f"Bearer {answer.json['access_token']}"}
    me = await world.ask("GET", "/users/me", headers=bearer)
    assert me.json == {
        "id": "root",
        "email": "root@example.org",
        "is_admin": True,
        "created_at": "2023-11-14T22:13:20.123Z",
    }


async def test_a_spent_refresh_token_revokes_its_family(world: Any) -> None:
    first = (await login(world)).json["refresh_token"]
    second = await world.ask("POST", "/auth/refresh", {"refresh_token": first})
    assert second.status == 200
    reused = await world.ask("POST", "/auth/refresh", {"refresh_token": first})
    assert (reused.status, reused.code) == (401, "refresh_reused")
    child = {"refresh_token": second.json["refresh_token"]}
    revoked = await world.ask("POST", "/auth/refresh", child)
    assert (revoked.status, revoked.code) == (401, "invalid_token")


async def test_logout_ends_the_family(world: Any) -> None:
    token = {"refresh_token": (await login(world)).json["refresh_token"]}
    answer = await world.ask("POST", "/auth/logout", token)
    assert (answer.status, answer.raw) == (204, b"")
    assert (await world.ask("POST", "/auth/refresh", token)).status == 401


async def test_unknown_users_and_wrong_passwords_get_the_same_answer(world: Any) -> None:
    headers = {"X-Request-ID": "r"}
    answers = []
    for email in ("root@example.org", "nobody@example.org"):
        body = {"email": email, "password": "wrong password"}
        answers.append(await world.ask("POST", "/auth/login", body, headers=headers))
    assert {(a.status, a.raw) for a in answers} == {(401, answers[0].raw)}
    assert answers[0].code == "invalid_credentials"


async def test_the_eleventh_failed_login_is_429(world: Any) -> None:
    for _ in range(10):
        assert (await login(world, password="wrong password")).status == 401
    answer = await login(world)
    assert (answer.status, answer.code) == (429, "rate_limited")
    assert int(answer.headers["Retry-After"]) > 1


async def test_registration_is_closed_unless_it_is_opened(world: Any) -> None:
    body = {"email": "a@example.org", "password": PASSWORD}
    answer = await world.ask("POST", "/auth/register", body)
    assert (answer.status, answer.code) == (403, "registration_closed")


@pytest.mark.parametrize("world", [{"registration": "open"}], indirect=True)
async def test_registration_can_be_open(world: Any) -> None:
    body = {"email": "a@example.org", "password": PASSWORD}
    answer = await world.ask("POST", "/auth/register", body)
    assert (answer.status, answer.json["is_admin"]) == (201, False)
    again = await world.ask("POST", "/auth/register", body)
    assert (again.status, again.code) == (409, "email_taken")
    promoted = await world.ask("POST", "/auth/register", {**body, "is_admin": True})
    assert (promoted.status, promoted.code) == (422, "unknown_field")
    short = await world.ask("POST", "/auth/register", {"email": "b@x.org", "password": "short"})
    assert (short.status, short.code) == (422, "validation_failed")
    assert short.json["errors"][0]["pointer"] == "/password"


def forged(claims: dict[str, Any], header: dict[str, Any], key: str = SECRET) -> str:
    return jwt.encode(claims, key, algorithm="HS256", headers=header)


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer ",
        "Bearer  two",
        "Basic dXNlcjpwYXNz",
        "Bearer " + "x" * 5000,
        "Bearer a b",
        "Bearer ä",
        "bearer ..",
        "Token x",
    ],
)
async def test_a_malformed_authorization_is_401(world: Any, value: str) -> None:
    answer = await world.ask("GET", "/users", headers={"Authorization": value})
    assert (answer.status, answer.code) == (401, "invalid_token")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer error=")


async def test_forged_tokens_are_401(world: Any) -> None:
    good = world.token("root")
    head, payload, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))

    def unsigned(algorithm: str) -> str:
        raw = json.dumps({"alg": algorithm, "typ": "JWT", "kid": "1"}).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode() + f".{payload}."

    tokens = [
        unsigned("none"),
        unsigned("nOnE"),
        f"{head}.{payload}.",
        f"{head}.{payload}.{signature[:-2]}",
        forged(claims, {"kid": "1"}, "f" * 32),
        forged(claims, {"kid": "../../etc/passwd"}),
        forged(claims, {"kid": "1", "jku": "http://127.0.0.1:1/"}),
        forged(claims, {"kid": "1", "crit": ["x"], "x": 1}),
        forged({**claims, "aud": ["guardian-api", "other"]}, {"kid": "1"}),
        forged({**claims, "iss": "guard"}, {"kid": "1"}),
        forged({**claims, "typ": "refresh"}, {"kid": "1"}),
        forged({k: v for k, v in claims.items() if k != "exp"}, {"kid": "1"}),
    ]
    for token in tokens:
        answer = await world.ask("GET", "/users", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status, answer.code) == (401, "invalid_token"), token
    old = forged({**claims, "exp": 1_000_000_000, "iat": 999_999_000}, {"kid": "1"})
    answer = await world.ask("GET", "/users", headers={"Authorization": f"Bearer {old}"})
    assert (answer.status, answer.code) == (401, "token_expired")
    fine = await world.ask("GET", "/users", headers={"Authorization": f"bEaReR {good}"})
    assert fine.status == 200


async def test_admins_create_list_and_delete_users(world: Any) -> None:
    body = {"email": "new@example.org", "password": PASSWORD, "is_admin": False}
    created = await world.ask("POST", "/users", body, as_user="root")
    assert created.status == 201
    user_id = created.json["id"]
    listed = (await world.ask("GET", "/users", as_user="root")).json["items"]
    assert {user["id"] for user in listed} == {"root", user_id}
    assert all("password" not in name for user in listed for name in user)
    assert (await world.ask("DELETE", f"/users/{user_id}", as_user="root")).status == 204
    gone = await world.ask("GET", f"/users/{user_id}", as_user="root")
    assert (gone.status, gone.code) == (404, "not_found")
    last = await world.ask("DELETE", "/users/root", as_user="root")
    assert (last.status, last.code) == (409, "last_admin")


async def test_a_project_shows_its_key_once(world: Any) -> None:
    await world.add_user("owner")
    created = await world.ask("POST", "/projects", {"name": "shop"}, as_user="owner")
    assert created.status == 201
    assert set(created.json) == {"id", "name", "owner_id", "created_at", "api_key"}
    assert created.json["api_key"].startswith("cfg_")
    shown = await world.ask("GET", f"/projects/{created.json['id']}", as_user="owner")
    assert set(shown.json) == {"id", "name", "owner_id", "created_at"}
    mine = await world.ask("GET", "/projects?owner=owner", as_user="owner")
    assert [project["name"] for project in mine.json["items"]] == ["shop"]
    others = await world.ask("GET", "/projects?owner=root", as_user="owner")
    assert others.json == {"items": [], "next_cursor": None}


async def test_a_replayed_creation_does_not_show_the_key_again(world: Any) -> None:
    await world.add_user("owner")
    headers = {"Idempotency-Key": "once"}
    body = {"name": "shop"}
    first = await world.ask("POST", "/projects", body, as_user="owner", headers=headers)
    second = await world.ask("POST", "/projects", body, as_user="owner", headers=headers)
    assert (second.status, second.headers["Idempotency-Replayed"]) == (201, "true")
    assert second.json == {**first.json, "api_key": None}


async def test_keys_are_created_listed_and_revoked(world: Any) -> None:
    project, _, _ = await world.furnish()
    path = f"/projects/{project}/keys"
    created = await world.ask("POST", path, {"name": "ci"}, as_user="owner")
    assert created.status == 201
    listed = (await world.ask("GET", path, as_user="owner")).json["items"]
    assert len(listed) == 2
    assert all("api_key" not in key for key in listed)
    revoked = await world.ask("DELETE", f"{path}/{created.json['id']}", as_user="owner")
    assert revoked.status == 204
    answer = await world.ask("GET", f"/read/{created.json['api_key']}/a")
    assert (answer.status, answer.code) == (401, "invalid_api_key")


async def test_roles_are_granted_listed_and_revoked(world: Any) -> None:
    project, _, _ = await world.furnish()
    await world.add_user("friend")
    path = f"/projects/{project}/roles"
    body = {"user_id": "friend", "role": "viewer"}
    granted = await world.ask("POST", path, body, as_user="owner")
    assert (granted.status, granted.json) == (200, body)
    listed = (await world.ask("GET", path, as_user="owner")).json["items"]
    assert body in listed
    assert (await world.ask("GET", f"/projects/{project}", as_user="friend")).status == 200
    assert (await world.ask("DELETE", f"{path}/friend", as_user="owner")).status == 204
    assert (await world.ask("GET", f"/projects/{project}", as_user="friend")).status == 404
    wrong = await world.ask("POST", path, {**body, "role": "owner"}, as_user="owner")
    assert (wrong.status, wrong.json["errors"][0]["pointer"]) == (422, "/role")


async def test_schemas_have_versions_and_users(world: Any) -> None:
    project, _, schema = await world.furnish()
    shown = await world.ask("GET", f"/schemas/{schema}", as_user="owner")
    assert set(shown.json) == {"id", "name", "version", "schema", "created_by", "created_at"}
    body = {"key": "a", "schema_id": schema, "content": {"rate": 1}}
    await world.ask("POST", f"/projects/{project}/configs", body, as_user="owner")
    (listed,) = (await world.ask("GET", "/schemas", as_user="owner")).json["items"]
    assert listed["usage_count"] == 1
    used = await world.ask("DELETE", f"/schemas/{schema}", as_user="owner")
    assert (used.status, used.code) == (409, "schema_in_use")
    change = {"schema": {"title": "rate"}, "expected_version": 1}
    changed = await world.ask("PUT", f"/schemas/{schema}", change, as_user="owner")
    assert (changed.status, changed.json["version"]) == (200, 2)
    assert changed.json["schema"] == {"title": "rate"}
    stale = await world.ask("PUT", f"/schemas/{schema}", change, as_user="owner")
    assert (stale.status, stale.code, stale.json["current_version"]) == (
        409,
        "version_conflict",
        2,
    )


async def test_the_cluster_has_the_promised_shape(world: Any) -> None:
    await world.add_user("anyone")
    answer = await world.ask("GET", "/cluster", as_user="anyone")
    assert set(answer.json) == {
        "node_id",
        "role",
        "term",
        "leader_id",
        "commit_index",
        "applied_index",
        "members",
        "members_version",
        "stage",
        "waits_for",
        "joiners",
        "conditions",
    }
    assert answer.json["members"] == [
        {
            "id": "node1",
            "raft_address": "127.0.0.1:7000",
            "http_address": "127.0.0.1:8080",
            "voter": True,
            "healthy": True,
        }
    ]


async def test_a_deleted_user_can_do_nothing_from_then_on(world: Any) -> None:
    await world.add_user("second", is_admin=True)
    token = {"Authorization": f"Bearer {world.token('second')}"}
    body = {"name": "s", "schema": {}}
    assert (await world.ask("POST", "/schemas", body, headers=token)).status == 201
    assert (await world.ask("DELETE", "/users/second", as_user="root")).status == 204
    for method, path, sent in (
        ("POST", "/schemas", body),
        ("GET", "/users", None),
        ("GET", "/users/me", None),
    ):
        answer = await world.ask(method, path, sent, headers=token)
        assert (answer.status, answer.code) == (401, "invalid_token"), path


async def test_requests_within_the_cache_cost_no_query(world: Any) -> None:
    project, _, _ = await world.furnish()
    before = world.users.asked
    for _ in range(20):
        assert (await world.ask("GET", f"/projects/{project}", as_user="owner")).status == 200
    assert world.users.asked == before


async def test_without_postgres_a_token_opens_nothing_but_the_clusters_picture(world: Any) -> None:
    _, api_key, _ = await world.furnish()
    world.users.away = True
    world.services.accounts._known.forget("root")
    for method, path, body in (
        ("POST", "/schemas", {"name": "s", "schema": {}}),
        ("GET", "/users", None),
        ("GET", "/projects/p/configs", None),
    ):
        answer = await world.ask(method, path, body, as_user="root")
        assert (answer.status, answer.code) == (503, "unavailable"), path
    assert (await world.ask("GET", "/cluster", as_user="root")).status == 200
    assert (await world.ask("GET", f"/read/{api_key}/absent")).status == 404
