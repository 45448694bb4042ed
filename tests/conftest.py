"""Fixtures for everybody: a real PostgreSQL, and a fresh database in it per test.

``postgres_dsn`` (also as ``database_url``) is a migrated, empty database of the test's own;
``empty_postgres_dsn`` one without any table. The server starts when the first test asks and runs
without fsync. ``GUARDIAN_PG_BIN`` chooses another server version.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql

from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.adapters.postgres.migrate import Migrator

# Loaded by name: with CI set in the environment Hypothesis would otherwise try the same examples in
# every run for ever. GUARDIAN_HYPOTHESIS=deep explores for longer.
settings.register_profile(
    "fast",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("deep", settings.get_profile("fast"), max_examples=2000)
settings.load_profile(os.environ.get("GUARDIAN_HYPOTHESIS", "fast"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: whatever starts several processes goes to the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


_TEMPLATE = "template_guardian"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A running server for the session."""
    # not below pytest's own directory, which is closed to the user that the server runs as
    directory = Path(tempfile.mkdtemp(prefix="guardian-pg-"))
    try:
        with EmbeddedPostgres(directory, fsync=False) as server:
            yield server
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def postgres_template(postgres_server: EmbeddedPostgres) -> str:
    """Name of a migrated database to copy."""
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_TEMPLATE)))
    Migrator(postgres_server.dsn_of(_TEMPLATE)).up()
    return _TEMPLATE


def _database(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        yield server.dsn_of(name)
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        connection.execute(drop.format(sql.Identifier(name)))


@pytest.fixture
def postgres_dsn(postgres_server: EmbeddedPostgres, postgres_template: str) -> Iterator[str]:
    """URL of a migrated database that is this test's alone."""
    yield from _database(postgres_server, postgres_template)


@pytest.fixture
def database_url(postgres_dsn: str) -> str:
    return postgres_dsn


@pytest.fixture
def empty_postgres_dsn(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """URL of a database without tables that is this test's alone."""
    yield from _database(postgres_server, "template0")
