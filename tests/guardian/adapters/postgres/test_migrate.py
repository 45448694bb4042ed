"""Migrations against a real server."""

from __future__ import annotations

import threading

import psycopg
import pytest

from guardian.adapters.postgres.errors import MigrationError, PostgresAwayError
from guardian.adapters.postgres.migrate import Migration, Migrator, packaged_migrations

_ALL = [item.version for item in packaged_migrations()]
_CATALOGUE = """
SELECT 'column', table_name, column_name, data_type || is_nullable || coalesce(column_default, '')
  FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL
SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
  FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT 'function', proname, '', '' FROM pg_proc WHERE pronamespace = 'public'::regnamespace
ORDER BY 1, 2, 3
"""


def _catalogue(dsn: str) -> list[tuple[str, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(_CATALOGUE).fetchall()


def test_up_applies_everything_once(empty_postgres_dsn: str) -> None:
    assert Migrator(empty_postgres_dsn).up() == _ALL
    assert Migrator(empty_postgres_dsn).up() == []


def test_down_undoes_everything_and_up_brings_the_same_schema_back(empty_postgres_dsn: str) -> None:
    migrator = Migrator(empty_postgres_dsn)
    migrator.up()
    first = _catalogue(empty_postgres_dsn)
    assert migrator.down(0) == _ALL[::-1]
    assert {row[1] for row in _catalogue(empty_postgres_dsn)} == {"schema_migrations"}
    assert migrator.up() == _ALL
    assert _catalogue(empty_postgres_dsn) == first


@pytest.mark.parametrize("version", _ALL)
def test_each_step_can_be_taken_back_alone(empty_postgres_dsn: str, version: int) -> None:
    below = Migrator(empty_postgres_dsn, packaged_migrations()[: version - 1])
    below.up()
    before = _catalogue(empty_postgres_dsn)
    with_it = Migrator(empty_postgres_dsn, packaged_migrations()[:version])
    assert with_it.up() == [version]
    assert with_it.down(version - 1) == [version]
    assert _catalogue(empty_postgres_dsn) == before


def test_status_tells_what_is_applied(empty_postgres_dsn: str) -> None:
    assert {item.applied for item in Migrator(empty_postgres_dsn).status()} == {False}
    Migrator(empty_postgres_dsn, packaged_migrations()[:2]).up()
    assert [item.applied for item in Migrator(empty_postgres_dsn).status()][:3] == [
        True,
        True,
        False,
    ]


def test_a_changed_migration_is_refused(postgres_dsn: str) -> None:
    first, *others = packaged_migrations()
    changed = Migration(first.version, first.name, first.up + "-- later thought", first.down)
    with pytest.raises(MigrationError, match="not the one in this code"):
        Migrator(postgres_dsn, [changed, *others]).up()


def test_a_database_of_newer_code_is_refused(postgres_dsn: str) -> None:
    older = packaged_migrations()[:-1]
    for call in (Migrator(postgres_dsn, older).up, Migrator(postgres_dsn, older).status):
        with pytest.raises(MigrationError, match="newer than this code"):
            call()


def test_a_failing_migration_leaves_nothing(postgres_dsn: str) -> None:
    before = _catalogue(postgres_dsn)
    bad = Migration(len(_ALL) + 1, "bad", "CREATE TABLE half (x int); SELECT 1/0", "")
    migrator = Migrator(postgres_dsn, [*packaged_migrations(), bad])
    with pytest.raises(MigrationError, match="bad failed"):
        migrator.up()
    assert _catalogue(postgres_dsn) == before
    assert not migrator.status()[-1].applied


def test_nodes_that_start_at_once_migrate_once(empty_postgres_dsn: str) -> None:
    results: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: results.append(Migrator(empty_postgres_dsn).up()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [[], [], [], _ALL]


def test_a_node_that_may_not_migrate_refuses_an_old_schema(empty_postgres_dsn: str) -> None:
    with pytest.raises(MigrationError, match="misses"):
        Migrator(empty_postgres_dsn).require_current()
    Migrator(empty_postgres_dsn).up()
    Migrator(empty_postgres_dsn).require_current()


def test_a_server_that_is_away_is_told_from_a_wrong_schema() -> None:
    migrator = Migrator("postgresql://u@127.0.0.1:1/none")
    for call in (migrator.up, migrator.status, migrator.require_current):
        with pytest.raises(PostgresAwayError, match="can not be reached"):
            call()


def test_a_database_that_takes_no_tables_is_not_taken_to_be_away(
    empty_postgres_dsn: str,
) -> None:
    with psycopg.connect(empty_postgres_dsn, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET default_transaction_read_only = on"
        )
    with pytest.raises(MigrationError, match="read-only"):
        Migrator(empty_postgres_dsn).up()


def test_emails_differing_in_case_only_are_the_same(postgres_dsn: str) -> None:
    insert = "INSERT INTO users VALUES (%s, %s, 'x', false, 1)"
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute(insert, ("a", "Ian@example.org"))
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            connection.execute(insert, ("b", "iAN@EXAMPLE.org"))
    assert caught.value.diag.constraint_name == "users_email_key"
