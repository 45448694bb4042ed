"""Documents: the lock in all its forms, history, schemas that hold, keys that read, replays."""

from __future__ import annotations

import threading
from typing import Any

import pytest


def put(node: Any, path: str, content: object, expected: int, **more: Any) -> Any:
    body = {"content": content, "expected_version": expected}
    return node.ask("PUT", path, body, **more)


# -- the lock -------------------------------------------------------------------------------------


def test_an_update_counts_up_from_the_version_it_expects_and_from_no_other(node: Any) -> None:
    path, _ = node.config({"rate": 1})
    second = put(node, path, {"rate": 2}, 1)
    assert (second.status, second.json["version"], second.headers["ETag"]) == (200, 2, '"2"')
    conflict = node.refused(
        409, "version_conflict", "PUT", path, {"content": {}, "expected_version": 1}
    )
    assert conflict["current_version"] == 2
    third = node.must(200, "PUT", path, {"content": {"rate": 3}}, If_Match='"2"')
    assert third.json["version"] == 3
    failed = node.refused(412, "precondition_failed", "PUT", path, {"content": {}}, If_Match='"2"')
    assert failed["current_version"] == 3
    node.refused(428, "precondition_required", "PUT", path, {"content": {}})
    assert node.must(200, "GET", path).json["content"] == {"rate": 3}


def test_put_never_creates_and_post_never_overwrites(node: Any) -> None:
    path, _ = node.config({"rate": 1})
    absent = path.rsplit("/", 1)[0] + "/absent"
    node.refused(404, "not_found", "PUT", absent, {"content": {}, "expected_version": 1})
    schema = node.must(200, "GET", path).json["schema_id"]
    body = {"key": "app/web", "schema_id": schema, "content": {}}
    node.refused(409, "already_exists", "POST", path.rsplit("/", 1)[0], body)


def test_a_config_that_is_unchanged_is_not_sent_again(node: Any) -> None:
    path, _ = node.config({"rate": 1})
    tag = node.must(200, "GET", path).headers["ETag"]
    unchanged = node.must(304, "GET", path, If_None_Match=tag)
    assert unchanged.raw == b""
    put(node, path, {"rate": 2}, 1)
    assert node.must(200, "GET", path, If_None_Match=tag).headers["ETag"] == '"2"'


def test_of_clients_that_race_one_wins_each_version(node: Any) -> None:
    path, _ = node.config({"rate": 0})
    answers: list[Any] = []

    def write(number: int) -> None:
        answers.append(put(node, path, {"rate": number}, 1))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a.status for a in answers) == [200] + [409] * 11
    assert {a.json["current_version"] for a in answers if a.status == 409} == {2}


# -- history --------------------------------------------------------------------------------------


def test_rollback_makes_a_new_version_of_old_content_and_nothing_is_forgotten(node: Any) -> None:
    path, _ = node.config({"rate": 1})
    put(node, path, {"rate": 2}, 1)
    rollback = {"to_version": 1, "expected_version": 1}
    node.refused(409, "version_conflict", "POST", f"{path}/rollback", rollback)
    rolled = node.must(200, "POST", f"{path}/rollback", rollback | {"expected_version": 2}).json
    assert (rolled["version"], rolled["content"]) == (3, {"rate": 1})
    gone = {"to_version": 99, "expected_version": 3}
    node.refused(404, "not_found", "POST", f"{path}/rollback", gone)
    node.must(204, "DELETE", f"{path}?expected_version=3")
    node.refused(404, "not_found", "GET", path)
    again = {
        "key": "app/web", "schema_id": rolled["schema_id"], "content": {"rate": 9},
    }  # fmt: skip
    created = node.must(201, "POST", path.rsplit("/", 1)[0], again).json
    assert created["version"] == 5, "a key created again goes on counting"
    items = node.must(200, "GET", f"{path}/revisions").json["items"]
    assert [(i["version"], i["kind"]) for i in items] == [
        (5, "create"), (4, "delete"), (3, "rollback"), (2, "update"), (1, "create"),
    ]  # fmt: skip
    revisions = [i["revision"] for i in items]
    assert revisions == sorted(revisions, reverse=True)
    old = node.must(200, "GET", f"{path}/revisions/2").json
    assert old["content"] == {"rate": 2}
    assert items[2]["content_digest"] == items[4]["content_digest"]


@pytest.mark.parametrize("query", ["", "?expected_version=7"])
def test_a_delete_needs_the_current_version(node: Any, query: str) -> None:
    path, _ = node.config({})
    answer = node.ask("DELETE", path + query)
    assert answer.status == (409 if query else 428)
    node.must(412, "DELETE", path, If_Match='"7"')
    node.must(204, "DELETE", path, If_Match='"1"')


# -- schemas --------------------------------------------------------------------------------------


def test_a_document_that_does_not_fit_is_refused_with_each_fault_by_pointer(node: Any) -> None:
    path, _ = node.config({"rate": 1})
    body = {"content": {"rate": -1, "name": 5}, "expected_version": 1}
    problem = node.refused(422, "document_invalid", "PUT", path, body)
    assert {fault["pointer"] for fault in problem["errors"]} == {"/rate", "/name"}
    assert node.must(200, "GET", path).json["version"] == 1


def test_a_schema_changes_only_with_all_who_use_it(node: Any) -> None:
    path, _ = node.config({"rate": 5})
    schema = node.must(200, "GET", path).json["schema_id"]
    strict = {"type": "object", "properties": {"rate": {"maximum": 3}}}
    body = {"schema": strict, "expected_version": 1}
    problem = node.refused(409, "schema_breaks_configs", "PUT", f"/schemas/{schema}", body)
    assert problem["configs_count"] == 1
    assert problem["configs"][0]["key"] == "app/web"
    put(node, path, {"rate": 2}, 1)
    assert node.must(200, "PUT", f"/schemas/{schema}", body).json["version"] == 2
    node.refused(409, "version_conflict", "PUT", f"/schemas/{schema}", body)
    written = put(node, path, {"rate": 3}, 2).json
    assert written["schema_version"] == 2
    too_much = {"content": {"rate": 4}, "expected_version": 3}
    node.refused(422, "document_invalid", "PUT", path, too_much)
    node.refused(409, "schema_in_use", "DELETE", f"/schemas/{schema}")
    listed = node.must(200, "GET", "/schemas?limit=1000").json["items"]
    assert next(s for s in listed if s["id"] == schema)["usage_count"] == 1
    node.must(204, "DELETE", f"{path}?expected_version=3")
    node.must(204, "DELETE", f"/schemas/{schema}")
    node.refused(404, "not_found", "GET", f"/schemas/{schema}")


@pytest.mark.parametrize(
    ("schema", "code"),
    [
        ({"type": "nothing"}, "invalid_schema"),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "unsupported_draft"),
        ({"$ref": "https://example.com/other.json"}, "remote_ref_forbidden"),
    ],
)
def test_a_schema_that_can_not_be_used_is_refused(node: Any, schema: object, code: str) -> None:
    node.refused(422, code, "POST", "/schemas", {"name": "bad", "schema": schema})


@pytest.mark.parametrize(
    "draft",
    [
        "http://json-schema.org/draft-04/schema#",
        "http://json-schema.org/draft-06/schema#",
        "http://json-schema.org/draft-07/schema#",
        "https://json-schema.org/draft/2019-09/schema",
        "https://json-schema.org/draft/2020-12/schema",
    ],
)
def test_every_supported_draft_is_enforced(node: Any, draft: str) -> None:
    project, _ = node.project()
    schema = node.schema({"$schema": draft, "required": ["rate"]})
    body = {"key": "a", "schema_id": schema, "content": {}}
    node.refused(422, "document_invalid", "POST", f"{project}/configs", body)
    node.must(201, "POST", f"{project}/configs", body | {"content": {"rate": 1}})


def test_only_its_creator_and_administrators_change_a_schema(node: Any) -> None:
    creator, _ = node.user()
    stranger, _ = node.user()
    schema = node.schema(as_user=creator)
    body = {"schema": {}, "expected_version": 1}
    node.must(200, "GET", f"/schemas/{schema}", as_user=stranger)
    node.refused(403, "forbidden", "PUT", f"/schemas/{schema}", body, as_user=stranger)
    node.must(200, "PUT", f"/schemas/{schema}", body, as_user=creator)
    node.must(204, "DELETE", f"/schemas/{schema}")


# -- replays --------------------------------------------------------------------------------------


def test_a_retry_under_its_key_gives_the_first_answer_and_changes_nothing(node: Any) -> None:
    path, _ = node.config({"rate": 1})
    first = put(node, path, {"rate": 2}, 1, Idempotency_Key="once")
    again = put(node, path, {"rate": 2}, 1, Idempotency_Key="once")
    assert (first.status, again.status) == (200, 200)
    assert again.json == first.json
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    other = {"content": {"rate": 3}, "expected_version": 1}
    node.refused(422, "idempotency_key_reused", "PUT", path, other, Idempotency_Key="once")
    assert node.must(200, "GET", path).json["version"] == 2


def test_a_project_is_not_created_twice_under_one_key(node: Any) -> None:
    first = node.must(201, "POST", "/projects", {"name": "only"}, Idempotency_Key="p1")
    again = node.must(201, "POST", "/projects", {"name": "only"}, Idempotency_Key="p1")
    assert again.json["id"] == first.json["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    listed = node.must(200, "GET", "/projects?limit=1000").json["items"]
    assert [p["name"] for p in listed].count("only") == 1


# -- reading --------------------------------------------------------------------------------------


def test_an_api_key_reads_what_was_stored_until_it_is_revoked(node: Any) -> None:
    project, first_key = node.project()
    raw = b'{"key": "odd/order", "schema_id": "%s", "content": {"b": 1.5, "a": [true,  null]}}'
    node.must(201, "POST", f"{project}/configs", raw=raw % node.schema({}).encode())
    made = node.must(201, "POST", f"{project}/keys", {"name": "ci"}).json
    listed = node.must(200, "GET", f"{project}/keys").json["items"]
    assert made["id"] in {k["id"] for k in listed}
    assert all("api_key" not in k for k in listed)
    for key in (first_key, made["api_key"]):
        assert key.startswith("cfg_")
        assert len(key) == 40
        by_path = node.must(200, "GET", f"/read/{key}/odd%2Forder", as_user=None)
        by_header = node.must(200, "GET", "/read/odd%2Forder", as_user=None, X_API_Key=key)
        assert by_path.raw == by_header.raw
        assert b'"content":{"b":1.5,"a":[true,null]}' in by_path.raw
        assert by_path.headers["ETag"] == '"1"'
        assert int(by_path.headers["X-Guardian-Staleness-Ms"]) >= 0
        node.must(304, "GET", f"/read/{key}/odd%2Forder", as_user=None, If_None_Match='"1"')
    node.must(204, "DELETE", f"{project}/keys/{made['id']}")
    path = f"/read/{made['api_key']}/odd%2Forder?consistency=linearizable"
    node.refused(401, "invalid_api_key", "GET", path, as_user=None)
    node.refused(404, "not_found", "GET", f"/read/{first_key}/absent", as_user=None)
    node.must(204, "DELETE", project)
    path = f"/read/{first_key}/odd%2Forder?consistency=linearizable"
    node.refused(401, "invalid_api_key", "GET", path, as_user=None)


def test_reads_say_what_they_saw_and_wait_for_what_they_must_see(node: Any) -> None:
    path, _ = node.config({"rate": 1})
    written = put(node, path, {"rate": 2}, 1)
    seen = node.must(200, "GET", f"{path}?consistency=local&min_revision={written.revision}")
    assert seen.json["version"] == 2
    assert seen.revision >= written.revision == written.json["revision"]
    for wrong in ("consistency=eventual", "min_revision=-1", "consistency=lease"):
        node.refused(422, "invalid_parameter", "GET", f"{path}?{wrong}")


def test_lists_come_in_pages_that_miss_and_repeat_nothing(node: Any) -> None:
    project, _ = node.project()
    schema = node.schema()
    keys = sorted(f"k/{n}" for n in range(7))
    for key in keys:
        body = {"key": key, "schema_id": schema, "content": {}}
        node.must(201, "POST", f"{project}/configs", body)
    seen: list[str] = []
    cursor = ""
    while True:
        page = node.must(200, "GET", f"{project}/configs?limit=3{cursor}").json
        seen += [item["key"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == keys
    node.refused(400, "invalid_cursor", "GET", f"{project}/configs?cursor=nonsense")
    node.refused(422, "invalid_parameter", "GET", f"{project}/configs?limit=0")


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"content": {}, "content": {}, "expected_version": 1}', 400, "invalid_json"),
        (b'{"content": {"a": 1, "a": 2}, "expected_version": 1}', 400, "invalid_json"),
        (b'{"content": NaN, "expected_version": 1}', 400, "invalid_json"),
        (b'{"content": 9007199254740993, "expected_version": 1}', 400, "invalid_json"),
        (b'{"content": {}, "expected_version": 1, "extra": 1}', 422, "unknown_field"),
        (b'{"content": {}, "expected_version": "1"}', 422, "validation_failed"),
        (b'{"expected_version": 1}', 422, "validation_failed"),
        (b"[" * 100_000, 400, "json_too_deep"),
        (b'{"content": ' + b"[" * 100 + b"]" * 100 + b', "expected_version": 1}', 422,
         "document_too_deep"),
        (b'{"content": "' + b"x" * 2**20 + b'", "expected_version": 1}', 413, "payload_too_large"),
    ],
)  # fmt: skip
def test_bad_bodies_are_refused_and_change_nothing(
    node: Any, raw: bytes, status: int, code: str
) -> None:
    path, _ = node.config({"rate": 1})
    answer = node.must(status, "PUT", path, raw=raw)
    assert answer.json["code"] == code, answer.json
    assert node.must(200, "GET", path).json["version"] == 1
