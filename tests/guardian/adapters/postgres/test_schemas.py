from __future__ import annotations

import hashlib

import pytest

from guardian.adapters.postgres.pool import Database
from guardian.adapters.postgres.schemas import PostgresSchemas
from guardian.domain.entities import Schema
from guardian.domain.problems import Problem


@pytest.fixture
def schemas(database: Database) -> PostgresSchemas:
    return PostgresSchemas(database)


def _schema(schema_id: str = "s1", version: int = 1, body: bytes = b"{}", by: str = "u1") -> Schema:
    digest = hashlib.sha256(body).digest()
    return Schema(schema_id, f"name of {schema_id}", version, body, digest, by, 1_700_000_000_123)


async def test_a_pending_body_is_found_by_its_digest(schemas: PostgresSchemas) -> None:
    schema = _schema(body=b'{"pattern":"\\u0000"}')
    await schemas.add_pending(schema, "try1")
    assert await schemas.by_digest("s1", 1, schema.digest) == schema
    assert await schemas.by_digest("s1", 1, b"other") is None
    assert await schemas.by_digest("s1", 2, schema.digest) is None
    assert await schemas.list("", 10) == []
    assert await schemas.creator("s1") == "u1"


async def test_the_attempt_that_won_is_the_versions_only_row(
    schemas: PostgresSchemas, database: Database
) -> None:
    won, lost = _schema(body=b"1"), _schema(body=b"2")
    await schemas.add_pending(won, "try1")
    await schemas.add_pending(lost, "try2")
    await schemas.activate("s1", 1, "try1")
    await schemas.activate("s1", 1, "try1")
    assert await schemas.by_digest("s1", 1, lost.digest) is None
    assert await schemas.list("", 10) == [won]
    assert await database.fetch("SELECT count(*) FROM config_schemas") == [(1,)]


async def test_activating_an_attempt_that_is_not_there_changes_nothing(
    schemas: PostgresSchemas,
) -> None:
    schema = _schema()
    await schemas.add_pending(schema, "try1")
    with pytest.raises(Problem, match="not_found"):
        await schemas.activate("s1", 1, "try2")
    assert await schemas.by_digest("s1", 1, schema.digest) == schema


async def test_equal_bodies_of_two_attempts_do_not_get_in_each_others_way(
    schemas: PostgresSchemas,
) -> None:
    await schemas.add_pending(_schema(), "try1")
    await schemas.add_pending(_schema(), "try2")
    await schemas.activate("s1", 1, "try2")
    assert await schemas.list("", 10) == [_schema()]


async def test_dropping_an_attempt_spares_what_is_active(schemas: PostgresSchemas) -> None:
    await schemas.add_pending(_schema(), "try1")
    await schemas.activate("s1", 1, "try1")
    await schemas.add_pending(_schema(version=2, body=b"2"), "try2")
    await schemas.drop_attempt("s1", "try1")
    await schemas.drop_attempt("s1", "try2")
    assert await schemas.list("", 10) == [_schema()]
    assert await schemas.by_digest("s1", 2, _schema(body=b"2").digest) is None


async def test_lists_hold_the_newest_active_version_of_each(schemas: PostgresSchemas) -> None:
    for schema_id in ("b", "a"):
        for version in (1, 2, 10):
            schema = _schema(schema_id, version, str(version).encode(), by=f"u{version}")
            await schemas.add_pending(schema, f"try{version}")
            if version < 10:
                await schemas.activate(schema_id, version, f"try{version}")
    found = await schemas.list("", 10)
    assert [(item.id, item.version) for item in found] == [("a", 2), ("b", 2)]
    assert [item.id for item in await schemas.list("a", 10)] == ["b"]
    assert [item.id for item in await schemas.list("", 1)] == ["a"]
    assert await schemas.creator("a") == "u1"


async def test_removal_takes_all_versions(schemas: PostgresSchemas) -> None:
    await schemas.add_pending(_schema(), "try1")
    await schemas.activate("s1", 1, "try1")
    await schemas.add_pending(_schema(version=2), "try2")
    await schemas.remove("s1")
    assert await schemas.creator("s1") is None


async def test_the_same_attempt_twice_is_refused(schemas: PostgresSchemas) -> None:
    await schemas.add_pending(_schema(), "try1")
    with pytest.raises(Problem, match="already_exists"):
        await schemas.add_pending(_schema(), "try1")
