"""``guardian db`` says what to do instead of showing a traceback."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from guardian.cli.main import main

DEAD = "postgresql://u@127.0.0.1:1/none"


def _db(database_url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["db", "--database-url", database_url, *arguments])


@pytest.mark.parametrize(
    "arguments", [("migrate",), ("rollback", "0", "--yes"), ("status",), ("rebuild-projection",)]
)
def test_a_server_that_is_away_is_one_line(arguments: tuple[str, ...]) -> None:
    result = _db(DEAD, *arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("guardian: PostgreSQL can not be reached: ")
    assert "Traceback" not in result.output


def test_rebuilding_before_migrating_names_the_command_to_run(empty_postgres_dsn: str) -> None:
    result = _db(empty_postgres_dsn, "rebuild-projection")
    assert result.exit_code == 1
    assert "guardian db migrate" in result.stderr
    assert "unavailable" not in result.output


def test_rebuilding_works_once_migrated(empty_postgres_dsn: str) -> None:
    assert _db(empty_postgres_dsn, "migrate").exit_code == 0
    result = _db(empty_postgres_dsn, "rebuild-projection")
    assert result.exit_code == 0, result.output
    assert "the leader fills it again" in result.output
