"""The read by API key: stored bytes, no database, no secret on the way."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from guardian.domain.problems import Problem
from guardian.usecases.accounts import Accounts


async def stored(world: Any, content: str = '{"rate":1}') -> tuple[str, str]:
    """The API key, and the path of a project's configs, with a config under ``app/web``."""
    project, api_key, schema = await world.furnish()
    path = f"/projects/{project}/configs"
    data = f'{{"key":"app/web","schema_id":"{schema}","content":{content}}}'
    answer = await world.ask("POST", path, data=data.encode(), as_user="owner")
    assert answer.status == 201, answer.raw
    return api_key, path


async def test_stored_bytes_are_served(world: Any) -> None:
    api_key, _ = await stored(world, '{"z":1,"ä":[1.0,2]}')
    expected = '{"key":"app/web","version":1,"content":{"z":1,"ä":[1.0,2]}}'.encode()
    by_path = await world.ask("GET", f"/read/{api_key}/app%2Fweb")
    by_header = await world.ask("GET", "/read/app%2Fweb", headers={"X-API-Key": api_key})
    for answer in (by_path, by_header):
        assert (answer.status, answer.raw) == (200, expected)
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["ETag"] == '"1"'
        assert answer.headers["X-Guardian-Staleness-Ms"] == "0"
        assert answer.headers["X-Guardian-Revision"] == "3"
        assert answer.headers["Cache-Control"] == "private, no-cache"


async def test_if_none_match_gives_304(world: Any) -> None:
    api_key, _ = await stored(world)
    path = f"/read/{api_key}/app%2Fweb"
    answer = await world.ask("GET", path, headers={"If-None-Match": '"1"'})
    assert (answer.status, answer.raw, answer.headers["ETag"]) == (304, b"", '"1"')
    assert (await world.ask("GET", path, headers={"If-None-Match": '"2"'})).status == 200


async def test_head_has_the_headers_of_get_and_no_body(world: Any) -> None:
    api_key, _ = await stored(world)
    path = f"/read/{api_key}/app%2Fweb"
    get, head = await world.ask("GET", path), await world.ask("HEAD", path)
    assert (head.status, head.raw) == (200, b"")
    for name in ("ETag", "Content-Type", "Content-Length", "X-Guardian-Revision"):
        assert head.headers[name] == get.headers[name]


async def test_a_bad_key_is_401(world: Any) -> None:
    api_key, _ = await stored(world)
    wrong_checksum = api_key[:-1] + ("0" if api_key[-1] != "0" else "1")
    for key in (wrong_checksum, "cfg_", "x", "cfg_" + "a" * 36, "Bearer"):
        answer = await world.ask("GET", f"/read/{key}/app%2Fweb")
        assert (answer.status, answer.code) == (401, "invalid_api_key")
        assert "WWW-Authenticate" in answer.headers


async def test_a_key_in_the_query_is_not_accepted(world: Any) -> None:
    api_key, _ = await stored(world)
    for name in ("api_key", "apiKey", "X-API-Key", "key"):
        answer = await world.ask("GET", f"/read/app%2Fweb?{name}={api_key}")
        assert (answer.status, answer.code) == (401, "unauthenticated")


async def test_the_key_of_one_project_reads_no_other(world: Any) -> None:
    await stored(world)
    other = (await world.ask("POST", "/projects", {"name": "q"}, as_user="owner")).json["api_key"]
    answer = await world.ask("GET", f"/read/{other}/app%2Fweb")
    assert (answer.status, answer.code) == (404, "not_found")


async def test_the_keys_of_a_deleted_project_are_dead(world: Any) -> None:
    api_key, path = await stored(world)
    project = path.removesuffix("/configs")
    assert (await world.ask("DELETE", project, as_user="owner")).status == 204
    answer = await world.ask("GET", f"/read/{api_key}/app%2Fweb?consistency=linearizable")
    assert (answer.status, answer.code) == (401, "invalid_api_key")


async def test_reads_go_on_without_leader_unless_they_ask_for_one(world: Any) -> None:
    api_key, _ = await stored(world)
    world.log.trouble = Problem("no_leader")
    world.log.leader = False
    path = f"/read/{api_key}/app%2Fweb"
    local = await world.ask("GET", path)
    assert (local.status, local.headers["X-Guardian-Staleness-Ms"]) == (200, "17")
    strict = await world.ask("GET", path + "?consistency=linearizable")
    assert (strict.status, strict.code) == (503, "no_leader")
    assert strict.headers["Retry-After"] == "1"


async def test_the_read_asks_neither_accounts_nor_database(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    api_key, _ = await stored(world)

    def away(*_: object) -> None:
        raise AssertionError("the read route asked PostgreSQL")

    for repository in (world.users, world.roles):
        for name in ("get", "credentials", "role", "roles", "list"):
            monkeypatch.setattr(type(repository), name, away, raising=False)
    monkeypatch.setattr(Accounts, "authenticate", away)
    assert (await world.ask("GET", f"/read/{api_key}/app%2Fweb")).status == 200


@pytest.mark.parametrize("world", [{"rate_per_key": 2}], indirect=True)
async def test_a_key_that_asks_too_often_is_429(world: Any) -> None:
    api_key, _ = await stored(world)
    answers = [await world.ask("GET", f"/read/{api_key}/app%2Fweb") for _ in range(8)]
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert refused[0].code == "rate_limited"
    assert int(refused[0].headers["Retry-After"]) >= 1
    # another key is another client
    other = (await world.ask("POST", "/projects", {"name": "q"}, as_user="owner")).json["api_key"]
    assert (await world.ask("GET", f"/read/{other}/x")).status == 404


async def test_no_secret_reaches_log_or_metrics(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api_key, _ = await stored(world)
    body = {"email": "root@example.org", "password": "correct horse battery"}
    tokens = (await world.ask("POST", "/auth/login", body)).json
    refresh = {"refresh_token": tokens["refresh_token"]}
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    for path in (f"/read/{api_key}/app%2Fweb", f"/read/{api_key}/none", f"/read/{api_key}x/a"):
        await world.ask("GET", path)
    await world.ask("GET", f"/nothing/{api_key}?key={api_key}", headers=bearer)
    await world.ask("POST", "/auth/refresh", refresh)
    await world.ask("POST", "/auth/refresh", refresh)
    await world.ask("POST", "/auth/login", {**body, "password": "a wrong password"})
    metrics = (await world.ask("GET", "//metrics")).raw.decode()
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "/api/v1/read/{api_key}/{key}" in logged
    assert 'route="/api/v1/read/{api_key}/{key}"' in metrics
    secrets = (api_key, api_key[4:20], body["password"], "a wrong password", *tokens.values())
    for secret in secrets:
        if isinstance(secret, str) and secret != "Bearer":
            assert secret not in logged
            assert secret not in metrics
