"""Configs over HTTP: the lock in all its forms, stored bytes, revisions, rollback, replay."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import quote

import pytest


async def stored(world: Any, content: object = None, key: str = "a") -> tuple[str, str]:
    """A project with one config of ``content`` at version 1: its path, and the schema's id."""
    project, _, schema = await world.furnish()
    body = {"key": key, "schema_id": schema, "content": {} if content is None else content}
    answer = await world.ask("POST", f"/projects/{project}/configs", body, as_user="owner")
    assert answer.status == 201, answer.raw
    return f"/projects/{project}/configs/{key.replace('/', '%2F')}", schema


async def test_a_config_has_the_promised_shape(world: Any) -> None:
    path, schema = await stored(world, {"rate": 1}, "app/web")
    answer = await world.ask("GET", path, as_user="owner")
    assert answer.status == 200
    assert answer.json == {
        "project_id": path.split("/")[2],
        "key": "app/web",
        "schema_id": schema,
        "schema_version": 1,
        "version": 1,
        "revision": 3,
        "content": {"rate": 1},
        "updated_by": "user:owner",
        "updated_at": "2023-11-14T22:13:20.123Z",
    }
    assert answer.headers["ETag"] == '"1"'
    assert answer.headers["X-Guardian-Revision"] == "3"
    assert "X-Guardian-Staleness-Ms" not in answer.headers
    local = await world.ask("GET", path + "?consistency=local", as_user="owner")
    assert local.headers["X-Guardian-Staleness-Ms"] == "0"


async def test_content_keeps_the_order_and_spelling_of_its_members(world: Any) -> None:
    path, _ = await stored(world)
    sent = '{"expected_version": 1, "content": {"z": 1, "a" : [1.50, "\\u00e4/", true, null]}}'
    answer = await world.ask("PUT", path, data=sent.encode(), as_user="owner")
    assert answer.status == 200, answer.raw
    assert b'"content":{"z":1,"a":[1.50,"\\u00e4/",true,null]}' in answer.raw


@pytest.mark.parametrize("number", ["123456789012345678.5", "1.50", "1E2", "-0.0", "1.0"])
async def test_a_number_is_served_in_the_text_it_was_sent_in(world: Any, number: str) -> None:
    path, _ = await stored(world)
    sent = f'{{"expected_version":1,"\\u0063ontent" :\t{number} }}'
    answer = await world.ask("PUT", path, data=sent.encode(), as_user="owner")
    assert f'"content":{number},'.encode() in answer.raw
    again = await world.ask("GET", f"{path}/revisions/2", as_user="owner")
    assert f'"content":{number}}}'.encode() in again.raw
    digest = hashlib.sha256(number.encode()).hexdigest()
    assert again.json["content_digest"].endswith(digest)


async def test_content_may_be_any_json_value(world: Any) -> None:
    path, _ = await stored(world)
    contents: list[object] = [[], "x", 0, None, False, {"": {}}]
    for version, content in enumerate(contents, start=1):
        body = {"content": content, "expected_version": version}
        answer = await world.ask("PUT", path, body, as_user="owner")
        assert (answer.status, answer.json["content"]) == (200, content)
        assert answer.headers["ETag"] == f'"{version + 1}"'


async def test_a_stale_expected_version_is_409_with_the_current_one(world: Any) -> None:
    path, _ = await stored(world)
    await world.ask("PUT", path, {"content": 1, "expected_version": 1}, as_user="owner")
    for method, query, body in (
        ("PUT", "", {"content": 2, "expected_version": 1}),
        ("DELETE", "?expected_version=1", None),
        ("POST", "/rollback", {"to_version": 1, "expected_version": 1}),
    ):
        answer = await world.ask(method, path + query, body, as_user="owner")
        assert (answer.status, answer.code) == (409, "version_conflict")
        assert answer.json["current_version"] == 2


async def test_a_stale_if_match_is_412_with_the_current_one(world: Any) -> None:
    path, _ = await stored(world)
    await world.ask("PUT", path, {"content": 1, "expected_version": 1}, as_user="owner")
    for method, suffix, body in (
        ("PUT", "", {"content": 2}),
        ("PUT", "", {"content": 2, "expected_version": 1}),
        ("DELETE", "", None),
        ("POST", "/rollback", {"to_version": 1}),
    ):
        answer = await world.ask(
            method, path + suffix, body, as_user="owner", headers={"If-Match": '"1"'}
        )
        assert (answer.status, answer.code) == (412, "precondition_failed")
        assert answer.json["current_version"] == 2
    answer = await world.ask("DELETE", path, as_user="owner", headers={"If-Match": '"2"'})
    assert (answer.status, answer.raw) == (204, b"")
    assert int(answer.headers["X-Guardian-Revision"]) > 4


async def test_no_version_at_all_is_428(world: Any) -> None:
    path, _ = await stored(world)
    for method, suffix, body in (
        ("PUT", "", {"content": 2}),
        ("DELETE", "", None),
        ("POST", "/rollback", {"to_version": 1}),
    ):
        answer = await world.ask(method, path + suffix, body, as_user="owner")
        assert (answer.status, answer.code) == (428, "precondition_required")


@pytest.mark.parametrize(
    "tag", ["*", 'W/"1"', '"1", "2"', "1", '"x"', '"0"', '"-1"', '""', '"1', '"01"', '"9' * 9]
)
async def test_if_match_takes_one_strong_version(world: Any, tag: str) -> None:
    path, _ = await stored(world)
    answer = await world.ask(
        "PUT", path, {"content": 2}, as_user="owner", headers={"If-Match": tag}
    )
    assert (answer.status, answer.code) == (400, "invalid_etag")


async def test_two_different_expectations_are_a_contradiction(world: Any) -> None:
    path, _ = await stored(world)
    body = {"content": 2, "expected_version": 1}
    answer = await world.ask("PUT", path, body, as_user="owner", headers={"If-Match": '"2"'})
    assert (answer.status, answer.code) == (400, "malformed_request")


async def test_if_none_match_makes_a_read_conditional(world: Any) -> None:
    path, _ = await stored(world)
    for tag in ('"1"', 'W/"1"', '"0", "1"', "*"):
        answer = await world.ask("GET", path, as_user="owner", headers={"If-None-Match": tag})
        assert (answer.status, answer.raw, answer.headers["ETag"]) == (304, b"", '"1"')
    answer = await world.ask("GET", path, as_user="owner", headers={"If-None-Match": '"2"'})
    assert answer.status == 200
    answer = await world.ask("GET", path, as_user="owner", headers={"If-None-Match": "1"})
    assert (answer.status, answer.code) == (400, "invalid_etag")


async def test_put_never_creates(world: Any) -> None:
    path, schema = await stored(world)
    body = {"content": 1, "expected_version": 1, "schema_id": schema}
    answer = await world.ask("PUT", path + "x", body, as_user="owner")
    assert (answer.status, answer.code) == (404, "not_found")


async def test_versions_never_repeat(world: Any) -> None:
    path, schema = await stored(world)
    assert (await world.ask("DELETE", path + "?expected_version=1", as_user="owner")).status == 204
    body = {"key": "a", "schema_id": schema, "content": 1}
    again = await world.ask("POST", path.rpartition("/")[0], body, as_user="owner")
    assert (again.status, again.json["version"]) == (201, 3)
    twice = await world.ask("POST", path.rpartition("/")[0], body, as_user="owner")
    assert (twice.status, twice.code) == (409, "already_exists")
    items = (await world.ask("GET", path + "/revisions", as_user="owner")).json["items"]
    assert [(item["version"], item["kind"]) for item in items] == [
        (3, "create"),
        (2, "delete"),
        (1, "create"),
    ]
    assert set(items[0]) == {
        "version",
        "revision",
        "kind",
        "content_digest",
        "updated_by",
        "updated_at",
    }
    deleted = (await world.ask("GET", path + "/revisions/2", as_user="owner")).json
    assert (deleted["kind"], deleted["content"]) == ("delete", None)


async def test_rollback_is_a_new_version_with_the_old_content(world: Any) -> None:
    path, _ = await stored(world, {"rate": 1})
    await world.ask("PUT", path, {"content": {"rate": 2}, "expected_version": 1}, as_user="owner")
    body = {"to_version": 1, "expected_version": 2}
    answer = await world.ask("POST", path + "/rollback", body, as_user="owner")
    assert (answer.status, answer.json["version"]) == (200, 3)
    assert answer.json["content"] == {"rate": 1}
    missing = {"to_version": 9, "expected_version": 3}
    answer = await world.ask("POST", path + "/rollback", missing, as_user="owner")
    assert (answer.status, answer.code) == (404, "not_found")


async def test_a_misfit_names_each_fault_by_pointer(world: Any) -> None:
    path, _ = await stored(world)
    body = {"content": {"rate": "fast"}, "expected_version": 1}
    answer = await world.ask("PUT", path, body, as_user="owner")
    assert (answer.status, answer.code) == (422, "document_invalid")
    assert answer.json["errors"] == [{"pointer": "/rate", "message": "must be an integer"}]


@pytest.mark.parametrize("key", ["a//b", "a/", "/a", ".", "a/../b", "ä", "a b", "x" * 257, "{a}"])
async def test_an_ill_formed_key_is_404_in_a_path_and_422_in_a_body(world: Any, key: str) -> None:
    project, api_key, schema = await world.furnish()
    quoted = quote(key, safe="")
    for path in (f"/projects/{project}/configs/{quoted}", f"/read/{api_key}/{quoted}"):
        answer = await world.ask("GET", path, as_user="owner")
        assert (answer.status, answer.code) == (404, "not_found")
    body = {"key": key, "schema_id": schema, "content": {}}
    answer = await world.ask("POST", f"/projects/{project}/configs", body, as_user="owner")
    assert (answer.status, answer.code) == (422, "validation_failed")
    assert answer.json["errors"][0]["pointer"] == "/key"


async def test_a_replay_gives_the_first_answer_and_says_so(world: Any) -> None:
    path, _ = await stored(world)
    body = {"content": 1, "expected_version": 1}
    headers = {"Idempotency-Key": "k-1"}
    first = await world.ask("PUT", path, body, as_user="owner", headers=headers)
    second = await world.ask("PUT", path, body, as_user="owner", headers=headers)
    assert (first.status, second.status) == (200, 200)
    assert first.raw == second.raw
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    other = {"content": 2, "expected_version": 1}
    reused = await world.ask("PUT", path, other, as_user="owner", headers=headers)
    assert (reused.status, reused.code) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "ä"])
async def test_a_bad_idempotency_key_is_refused(world: Any, key: str) -> None:
    path, _ = await stored(world)
    answer = await world.ask(
        "PUT",
        path,
        {"content": 1, "expected_version": 1},
        as_user="owner",
        headers={"Idempotency-Key": key},
    )
    assert (answer.status, answer.code) == (400, "invalid_idempotency_key")


async def test_lists_go_on_by_cursor(world: Any) -> None:
    project, _, schema = await world.furnish()
    path = f"/projects/{project}/configs"
    for key in ("c", "a", "b"):
        body = {"key": key, "schema_id": schema, "content": {}}
        assert (await world.ask("POST", path, body, as_user="owner")).status == 201
    page = (await world.ask("GET", path + "?limit=2", as_user="owner")).json
    assert [item["key"] for item in page["items"]] == ["a", "b"]
    rest = await world.ask("GET", f"{path}?cursor={page['next_cursor']}", as_user="owner")
    assert [item["key"] for item in rest.json["items"]] == ["c"]
    assert rest.json["next_cursor"] is None
    forged = await world.ask("GET", f"/schemas?cursor={page['next_cursor']}", as_user="owner")
    assert (forged.status, forged.code) == (400, "invalid_cursor")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=1000000000",
        "limit=abc",
        "limit=1&limit=2",
        "limit=",
        "consistency=eventual",
        "consistency=lease",
        "min_revision=x",
        "min_revision=-1",
        "&".join(f"p{i}=1" for i in range(100)),
    ],
)
async def test_a_wrong_parameter_is_422(world: Any, query: str) -> None:
    project, _, _ = await world.furnish()
    answer = await world.ask("GET", f"/projects/{project}/configs?{query}", as_user="owner")
    assert (answer.status, answer.code) == (422, "invalid_parameter")


async def test_min_revision_waits_or_says_unavailable(world: Any) -> None:
    path, _ = await stored(world)
    assert (await world.ask("GET", path + "?min_revision=3", as_user="owner")).status == 200
    answer = await world.ask("GET", path + "?min_revision=999", as_user="owner")
    assert (answer.status, answer.code) == (503, "unavailable")
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("body", "code", "pointers"),
    [
        ({"content": 1, "expected_version": "1"}, "validation_failed", ["/expected_version"]),
        ({"content": 1, "expected_version": 0}, "validation_failed", ["/expected_version"]),
        ({"content": 1, "expected_version": True}, "validation_failed", ["/expected_version"]),
        ({"content": 1, "expected_version": None}, "validation_failed", ["/expected_version"]),
        ({"expected_version": 1}, "validation_failed", ["/content"]),
        ({"content": 1, "version": 2, "a/b~": 1}, "unknown_field", ["/version", "/a~1b~0"]),
        ([], "validation_failed", [""]),
        ("x", "validation_failed", [""]),
        (7, "validation_failed", [""]),
    ],
)
async def test_a_body_of_the_wrong_shape_is_422_with_pointers(
    world: Any, body: object, code: str, pointers: list[str]
) -> None:
    path, _ = await stored(world)
    answer = await world.ask("PUT", path, body, as_user="owner")
    assert (answer.status, answer.code) == (422, code)
    assert [error["pointer"] for error in answer.json["errors"]] == pointers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"content":1}x',
        b"\xef\xbb\xbf{}",
        b"/* */{}",
        b'{"content":1,"content":2}',
        b'{"content":{"a":{"b":1,"b":2}}}',
        b'{"content":NaN}',
        b'{"content":-Infinity}',
        b'{"content":1e999}',
        b'{"content":9007199254740992}',
        b'{"content":9007199254740993.0}',
        b'{"content":1e20}',
        b'{"content":1e-400}',
        b'{"content":' + b"1" * 5000 + b"}",
        b'{"content":"\\ud800"}',
        b'{"content":"\xff"}',
        '{"content":1}'.encode("utf-16"),
    ],
)
async def test_what_is_not_strict_json_is_400(world: Any, body: bytes) -> None:
    path, _ = await stored(world)
    answer = await world.ask("PUT", path, data=body, as_user="owner")
    assert (answer.status, answer.code) == (400, "invalid_json")


async def test_depth_and_breadth_have_limits(world: Any) -> None:
    path, _ = await stored(world)
    for content, status, code in (
        (b"[" * 100_000 + b"]" * 100_000, 400, "json_too_deep"),
        (b"[" * 65 + b"]" * 65, 422, "document_too_deep"),
        (b"[" + b"1," * 100_000 + b"1]", 422, "too_many_items"),
        (b"[" * 64 + b"]" * 64, 200, ""),
    ):
        body = b'{"expected_version":1,"content":' + content + b"}"
        answer = await world.ask("PUT", path, data=body, as_user="owner")
        assert answer.status == status, answer.raw
        if code:
            assert answer.code == code


async def test_names_of_javascript_and_python_are_plain_data(world: Any) -> None:
    path, _ = await stored(world)
    content = {"__proto__": {"x": 1}, "constructor": 2, "__class__": 3, "'; DROP TABLE x;--": 4}
    body = {"content": content, "expected_version": 1}
    answer = await world.ask("PUT", path, body, as_user="owner")
    assert (answer.status, answer.json["content"]) == (200, content)
