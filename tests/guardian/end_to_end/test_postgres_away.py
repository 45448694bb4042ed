"""A node whose PostgreSQL comes and goes, or has a schema that is not ours."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.adapters.postgres.errors import MigrationError

WAIT_S = 60.0
FROM_THE_FUTURE = "INSERT INTO schema_migrations (version, name, sha256) VALUES (9999, 'x', 'x')"


@pytest.fixture
def postgres() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, stopped; its address stays the same."""
    directory = Path(tempfile.mkdtemp(prefix="guardian-pg-"))
    try:
        with EmbeddedPostgres(directory, fsync=False) as server:
            server.stop()
            yield server
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def away(make_server: Callable[..., Any], postgres: EmbeddedPostgres) -> Any:
    """A node, not started, whose PostgreSQL is stopped."""
    server = make_server()
    server.database_url = postgres.dsn
    return server


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _degraded(server: Any) -> list[str]:
    """What it says that is away, once it is ready: a member that comes back has no leader yet."""
    _until(lambda: server.ask("GET", "!/ready", as_user=None).status == 200)
    answer = server.must(200, "GET", "!/ready", as_user=None).json
    return list(answer.get("degraded", []))


def test_a_node_starts_and_serves_reads_while_postgres_is_away(
    away: Any, postgres: EmbeddedPostgres
) -> None:
    away.start()
    assert _degraded(away) == ["postgres"]
    postgres.start()
    _until(lambda: not _degraded(away))
    assert len(away.created) == 1, "the first administrator is made when PostgreSQL comes"
    _, api_key = away.config({"rate": 7})
    away.stop()
    postgres.stop()

    away.start()
    assert _degraded(away) == ["postgres"]
    read = away.must(200, "GET", f"/read/{api_key}/app%2Fweb", as_user=None)
    assert read.json["content"] == {"rate": 7}
    away.refused(503, "unavailable", "GET", "/users")
    login = {"email": "admin@example.com", "password": "correct horse battery"}
    away.refused(503, "unavailable", "POST", "/auth/login", login, as_user=None)
    postgres.start()
    _until(lambda: not _degraded(away))
    away.must(200, "GET", "/users")
    away.stop()


def test_a_running_node_survives_a_schema_that_a_starting_one_refuses(
    away: Any, postgres: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    postgres.start()
    away.start()
    away.stop()
    with psycopg.connect(postgres.dsn) as connection:
        connection.execute(FROM_THE_FUTURE)
    with pytest.raises(MigrationError, match="newer"):
        away.start()
    away.failure = None

    postgres.stop()
    away.start()
    postgres.start()
    _until(lambda: "PostgreSQL can not be used" in caplog.text)
    assert _degraded(away) == ["postgres"]
    with psycopg.connect(postgres.dsn) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE version = 9999")
    _until(lambda: not _degraded(away))
    away.must(200, "GET", "/users")
    away.stop()


def test_a_frozen_postgres_is_named_and_requests_are_refused_at_once(
    away: Any, postgres: EmbeddedPostgres, frozen: Callable[..., Any]
) -> None:
    postgres.start()
    away.start()
    _, api_key = away.config({"rate": 7})
    with frozen(postgres):
        _until(lambda: _degraded(away) == ["postgres"])
        away.refused(503, "unavailable", "GET", "/users")
        away.must(200, "GET", f"/read/{api_key}/app%2Fweb", as_user=None)
    _until(lambda: not _degraded(away))
    away.must(200, "GET", "/users")
    away.stop()


def test_requests_under_way_when_postgres_freezes_are_answered_in_time(
    away: Any, postgres: EmbeddedPostgres, frozen: Callable[..., Any]
) -> None:
    postgres.start()
    away.start()
    away.token("admin@example.com")
    with frozen(postgres), ThreadPoolExecutor(8) as threads:
        body = {"name": "late"}
        asked = [threads.submit(away.ask, "POST", "/projects", body) for _ in range(8)]
        # cut off by the request's deadline, they would be outcome_unknown
        assert {answer.result().json["code"] for answer in asked} == {"unavailable"}
    away.stop()
