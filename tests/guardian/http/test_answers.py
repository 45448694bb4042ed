"""What all answers have in common: replays, the revision they saw, bodies that may be left out."""

from __future__ import annotations

import asyncio
from typing import Any

from guardian.adapters.security.api_keys import ApiKeys
from guardian.domain.entities import Role
from guardian.http.endpoints import ENDPOINTS


async def stored(world: Any) -> tuple[str, str]:
    """A project with a config at version 1: its path, and the schema's id."""
    project, _, schema = await world.furnish()
    body = {"key": "a", "schema_id": schema, "content": {}}
    answer = await world.ask("POST", f"/projects/{project}/configs", body, as_user="owner")
    assert answer.status == 201, answer.raw
    return f"/projects/{project}/configs/a", schema


async def test_a_replayed_refusal_says_so(world: Any) -> None:
    path, _ = await stored(world)
    body = {"content": 1, "expected_version": 9}
    headers = {"Idempotency-Key": "k-1"}
    first = await world.ask("PUT", path, body, as_user="owner", headers=headers)
    second = await world.ask("PUT", path, body, as_user="owner", headers=headers)
    assert (first.code, second.code) == ("version_conflict", "version_conflict")
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert first.headers["X-Guardian-Revision"] == second.headers["X-Guardian-Revision"]


async def test_a_key_whose_first_request_is_under_way_is_409_with_retry_after(world: Any) -> None:
    path, _ = await stored(world)
    body = {"content": 1, "expected_version": 1}
    headers = {"Idempotency-Key": "k-1"}
    world.log.stuck = asyncio.Event()
    before = len(world.log.executed)
    world.log.entered = asyncio.Event()
    first = asyncio.create_task(world.ask("PUT", path, body, as_user="owner", headers=headers))
    await world.log.entered.wait()
    second = await world.ask("PUT", path, body, as_user="owner", headers=headers)
    assert (second.status, second.code) == (409, "idempotency_in_progress")
    assert int(second.headers["Retry-After"]) >= 1
    world.log.stuck.set()
    assert (await first).status == 200
    third = await world.ask("PUT", path, body, as_user="owner", headers=headers)
    assert (third.status, third.headers["Idempotency-Replayed"]) == (200, "true")
    assert len(world.log.executed) == before + 2


REFUSALS = [
    # who, method, path, body, code: all of them decided after a look at the log
    ("owner", "GET", "/projects/absent", None, "not_found"),
    ("stranger", "GET", "/projects/{p}", None, "not_found"),
    ("viewer", "GET", "/projects/{p}/keys", None, "forbidden"),
    ("owner", "GET", "/projects/{p}/configs/absent", None, "not_found"),
    ("owner", "GET", "/projects/{p}/configs/a%2F%2Fb", None, "not_found"),
    ("owner", "GET", "/projects/{p}/configs/absent/revisions", None, "not_found"),
    ("owner", "GET", "/projects/{p}/configs/k/revisions/9", None, "not_found"),
    ("owner", "GET", "/schemas/absent", None, "not_found"),
    (None, "GET", "/read/{a}/absent", None, "not_found"),
    (None, "GET", "/read/{u}/k?consistency=linearizable", None, "invalid_api_key"),
    ("owner", "PUT", "/projects/{p}/configs/k", {"content": {"rate": "x"}, "expected_version": 1},
     "document_invalid"),
    ("owner", "PUT", "/projects/{p}/configs/absent", {"content": 1, "expected_version": 1},
     "not_found"),
    ("owner", "POST", "/projects/{p}/configs/k/rollback", {"to_version": 9, "expected_version": 1},
     "not_found"),
    ("owner", "POST", "/projects/{p}/configs", {"key": "n", "schema_id": "absent", "content": 1},
     "validation_failed"),
    ("owner", "PUT", "/schemas/{s}", {"schema": {"type": "object", "not": {"rate": 1}},
     "expected_version": 9}, "version_conflict"),
    ("stranger", "DELETE", "/schemas/{s}", None, "forbidden"),
    ("owner", "POST", "/projects/{p}/roles", {"user_id": "nobody", "role": "viewer"},
     "validation_failed"),
    ("owner", "DELETE", "/projects/{p}/roles/nobody", None, "not_found"),
    ("owner", "DELETE", "/projects/{p}/keys/absent", None, "not_found"),
]  # fmt: skip


async def test_refusals_that_saw_the_log_say_at_which_revision(world: Any) -> None:
    project, api_key, schema = await world.furnish()
    await world.add_user("stranger")
    await world.add_user("viewer")
    world.roles.rows[project, "viewer"] = Role.VIEWER
    config = {"key": "k", "schema_id": schema, "content": {}}
    await world.ask("POST", f"/projects/{project}/configs", config, as_user="owner")
    unknown = ApiKeys().generate()[0]
    for who, method, template, body, code in REFUSALS:
        path = template.format(p=project, s=schema, a=api_key, u=unknown)
        answer = await world.ask(method, path, body, as_user=who)
        assert answer.code == code, (method, path, answer.raw)
        assert answer.headers["X-Guardian-Revision"] == str(world.log.machine.state.revision())


async def test_a_refusal_that_saw_no_log_names_no_revision(world: Any) -> None:
    path, _ = await stored(world)
    for method, body, code in (
        ("GET", None, "unauthenticated"),
        ("PUT", {"content": 1}, "precondition_required"),
        ("PUT", {"nonsense": 1}, "unknown_field"),
    ):
        answer = await world.ask(
            method, path, body, as_user=None if code == "unauthenticated" else "owner"
        )
        assert answer.code == code
        assert "X-Guardian-Revision" not in answer.headers


async def test_changes_of_roles_say_the_revision_they_saw(world: Any) -> None:
    project, _, _ = await world.furnish()
    await world.add_user("guest")
    body = {"user_id": "guest", "role": "viewer"}
    granted = await world.ask("POST", f"/projects/{project}/roles", body, as_user="owner")
    revoked = await world.ask("DELETE", f"/projects/{project}/roles/guest", as_user="owner")
    for answer in (granted, revoked):
        assert answer.status in (200, 204)
        assert answer.headers["X-Guardian-Revision"] == str(world.log.machine.state.revision())


async def test_a_replay_of_what_was_deleted_since_is_still_the_success_it_was(world: Any) -> None:
    project, _, schema = await world.furnish()
    asked = [
        ("POST", "/schemas", {"name": "t", "schema": {"a": 1.0}}, 201),
        ("PUT", f"/schemas/{schema}", {"schema": {"b": 1}, "expected_version": 1}, 200),
        ("POST", "/projects", {"name": "q"}, 201),
        ("POST", f"/projects/{project}/keys", {"name": "n"}, 201),
    ]
    firsts = []
    for number, (method, path, body, status) in enumerate(asked):
        headers = {"Idempotency-Key": f"k-{number}"}
        firsts.append(await world.ask(method, path, body, as_user="owner", headers=headers))
        assert firsts[-1].status == status, firsts[-1].raw
    for path in (
        f"/schemas/{firsts[0].json['id']}",
        f"/schemas/{schema}",
        f"/projects/{firsts[2].json['id']}",
        f"/projects/{project}/keys/{firsts[3].json['id']}",
    ):
        assert (await world.ask("DELETE", path, as_user="owner")).status == 204
    for number, (method, path, body, status) in enumerate(asked):
        headers = {"Idempotency-Key": f"k-{number}"}
        again = await world.ask(method, path, body, as_user="owner", headers=headers)
        assert (again.status, again.headers["Idempotency-Replayed"]) == (status, "true"), again.raw
        kept = {name: value for name, value in again.json.items() if value is not None}
        assert kept.items() <= firsts[number].json.items()
        assert {"id"} < set(kept)
        assert set(firsts[number].json) - set(kept) <= {
            "name",
            "created_by",
            "created_at",
            "api_key",
        }


async def test_a_key_is_created_without_a_body(world: Any) -> None:
    project, _, _ = await world.furnish()
    path = f"/projects/{project}/keys"
    bare = await world.ask("POST", path, as_user="owner")
    empty = await world.ask("POST", path, data=b"", as_user="owner")
    as_before = await world.ask("POST", path, {"name": "n"}, as_user="owner")
    assert [answer.status for answer in (bare, empty, as_before)] == [201, 201, 201]
    assert [answer.json["name"] for answer in (bare, empty, as_before)] == ["", "", "n"]
    text = {"Content-Type": "text/plain"}
    wrong = await world.ask("POST", path, data=b"{}", as_user="owner", headers=text)
    assert (wrong.status, wrong.code) == (415, "unsupported_media_type")
    broken = await world.ask("POST", path, data=b"{", as_user="owner")
    assert (broken.status, broken.code) == (400, "invalid_json")


async def test_a_bad_idempotency_key_is_refused_by_every_write(world: Any) -> None:
    accepted = []
    for endpoint in ENDPOINTS:
        if not endpoint.is_write:
            continue
        names = ("project_id", "schema_id", "key", "version", "user_id", "key_id")
        path = "/" + endpoint.path.format(**dict.fromkeys(names, "x"))
        headers = {"Idempotency-Key": "x" * 300}
        answer = await world.ask(endpoint.method, path, {}, as_user="root", headers=headers)
        if (answer.status, answer.json["code"]) != (400, "invalid_idempotency_key"):
            accepted.append((endpoint.operation, answer.raw))
    assert accepted == []
