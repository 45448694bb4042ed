"""Signing in and out, users, and who may do what in whose project."""

from __future__ import annotations

from typing import Any

import pytest

PASSWORD = "correct horse battery"


def sign_in(node: Any, email: str) -> Any:
    body = {"email": email, "password": PASSWORD}
    return node.must(200, "POST", "/auth/login", body, as_user=None).json


def refresh(node: Any, token: str) -> Any:
    return node.ask("POST", "/auth/refresh", {"refresh_token": token}, as_user=None)


def test_the_first_administrator_was_created_once(node: Any) -> None:
    assert node.created == [("admin@example.com", PASSWORD)]
    me = node.must(200, "GET", "/users/me").json
    assert (me["email"], me["is_admin"]) == ("admin@example.com", True)


def test_a_refresh_token_is_spent_once_and_its_reuse_ends_the_family(node: Any) -> None:
    email, user_id = node.user()
    first = sign_in(node, email)
    assert (first["token_type"], first["expires_in"]) == ("Bearer", 900)
    second = refresh(node, first["refresh_token"])
    assert second.status == 200
    bearer = {"Authorization": f"Bearer {second.json['access_token']}"}
    assert node.must(200, "GET", "/users/me", as_user=None, **bearer).json["id"] == user_id
    reused = refresh(node, first["refresh_token"])
    assert (reused.status, reused.json["code"]) == (401, "refresh_reused")
    # the thief and the owner can not be told apart, so nobody goes on
    assert refresh(node, second.json["refresh_token"]).status == 401
    node.must(200, "GET", "/users/me", as_user=None, **bearer)  # access tokens live out their time


def test_logging_out_ends_the_family(node: Any) -> None:
    email, _ = node.user()
    tokens = sign_in(node, email)
    body = {"refresh_token": tokens["refresh_token"]}
    node.must(204, "POST", "/auth/logout", body, as_user=None)
    assert refresh(node, tokens["refresh_token"]).status == 401


def test_wrong_and_forged_credentials_are_refused(node: Any) -> None:
    email, _ = node.user()
    for wrong in (
        {"email": email, "password": "x" * 12},
        {"email": "no@b.c", "password": "x" * 12},
    ):
        node.refused(401, "invalid_credentials", "POST", "/auth/login", wrong, as_user=None)
    node.refused(401, "unauthenticated", "GET", "/users/me", as_user=None)
    head, body, signature = node.token(email).split(".")
    forged = f"Bearer {head}.{body}.{signature[::-1]}"
    node.refused(401, "invalid_token", "GET", "/users/me", as_user=None, Authorization=forged)


def test_registration_is_closed_unless_it_is_opened(node: Any, make_server: Any) -> None:
    body = {"email": "new@example.com", "password": PASSWORD}
    node.refused(403, "registration_closed", "POST", "/auth/register", body, as_user=None)
    opened = make_server(registration="open")
    opened.start()
    user = opened.must(201, "POST", "/auth/register", body, as_user=None).json
    assert (user["email"], user["is_admin"]) == ("new@example.com", False)
    opened.refused(409, "email_taken", "POST", "/auth/register", body, as_user=None)
    assert opened.must(200, "GET", "/users/me", as_user="new@example.com").json == user
    opened.stop()


def test_users_are_made_listed_and_deleted_by_administrators(node: Any) -> None:
    email, user_id = node.user()
    made = node.must(200, "GET", f"/users/{user_id}").json
    assert set(made) == {"id", "email", "is_admin", "created_at"}
    assert made in node.must(200, "GET", "/users?limit=1000").json["items"]
    for method, path in (("GET", "/users"), ("DELETE", f"/users/{user_id}")):
        node.refused(403, "forbidden", method, path, as_user=email)
    project, _ = node.project(as_user=email)
    node.refused(409, "owns_projects", "DELETE", f"/users/{user_id}")
    node.must(204, "DELETE", project)
    node.must(204, "DELETE", f"/users/{user_id}")
    node.refused(404, "not_found", "GET", f"/users/{user_id}")
    me = node.must(200, "GET", "/users/me").json["id"]
    others = [u for u in node.must(200, "GET", "/users?limit=1000").json["items"] if u["is_admin"]]
    assert [u["id"] for u in others] == [me]
    node.refused(409, "last_admin", "DELETE", f"/users/{me}")


def test_too_many_failed_logins_are_stopped(make_server: Any) -> None:
    server = make_server(login_failures_per_account="3")
    server.start()
    body = {"email": "admin@example.com", "password": "wrong wrong wrong"}
    for _ in range(3):
        server.refused(401, "invalid_credentials", "POST", "/auth/login", body, as_user=None)
    answer = server.must(429, "POST", "/auth/login", body, as_user=None)
    assert int(answer.headers["Retry-After"]) >= 1
    server.stop()


#: What each role gets: nobody at all learns that the project exists.
MATRIX = {
    None: (404, 404, 404, 404),
    "viewer": (200, 403, 403, 403),
    "editor": (200, 201, 403, 403),
    "admin": (200, 201, 200, 204),
}


@pytest.mark.parametrize("role", MATRIX)
def test_roles_open_doors_one_by_one(node: Any, role: str | None) -> None:
    project, _ = node.project()
    schema = node.schema()
    email, user_id = node.user()
    if role is not None:
        grant = {"user_id": user_id, "role": role}
        assert node.must(200, "POST", f"{project}/roles", grant).json == grant
        assert grant in node.must(200, "GET", f"{project}/roles").json["items"]
    body = {"key": "a", "schema_id": schema, "content": {}}
    asked = (
        ("GET", f"{project}/configs", None),
        ("POST", f"{project}/configs", body),
        ("GET", f"{project}/keys", None),
        ("DELETE", project, None),
    )
    got = [node.ask(method, path, sent, as_user=email).status for method, path, sent in asked]
    assert tuple(got) == MATRIX[role]
    listed = node.must(200, "GET", "/projects", as_user=email).json["items"]
    assert len(listed) == (1 if role in ("viewer", "editor") else 0)


def test_a_revoked_role_is_gone_at_once(node: Any) -> None:
    project, _ = node.project()
    email, user_id = node.user()
    node.must(200, "POST", f"{project}/roles", {"user_id": user_id, "role": "viewer"})
    node.must(200, "GET", f"{project}/configs", as_user=email)
    node.must(204, "DELETE", f"{project}/roles/{user_id}")
    node.refused(404, "not_found", "GET", f"{project}/configs", as_user=email)
