"""Bringing a database's schema to the version of this code, and back.

Every file runs in one transaction together with its row in ``schema_migrations``, so a migration
is either there or not. All of it happens under one advisory lock, so several nodes may start at
once. A database that knows a migration this code does not know is refused, and so is one whose
applied migration differs from the file of that number: both mean that the code is not the one that
wrote the database.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources

import psycopg

from guardian.adapters.postgres.errors import MigrationError, PostgresAwayError

log = logging.getLogger(__name__)

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.(up|down)\.sql")
_LOCK_KEY = 0x67756172_6D696772  # "guarmigr"
_LOCK_TIMEOUT_S = 60
_CONNECT_TIMEOUT_S = 5
_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    sha256     text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    up: str
    down: str

    @property
    def sha256(self) -> str:
        """Of the way up; the way down may be improved later."""
        return hashlib.sha256(self.up.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """``applied`` is false for one that is still to come."""

    version: int
    name: str
    applied: bool


def packaged_migrations() -> tuple[Migration, ...]:
    """What ships with this code, in order.

    Raises:
        MigrationError: a number is missing, repeated, or has only one direction.
    """
    found: dict[tuple[int, str], dict[str, str]] = {}
    for file in resources.files("guardian.adapters.postgres.migrations").iterdir():
        match = _FILE.fullmatch(file.name)
        if match is not None:
            key = (int(match.group(1)), match.group(2))
            found.setdefault(key, {})[match.group(3)] = file.read_text(encoding="utf-8")
    migrations = []
    for position, ((version, name), ways) in enumerate(sorted(found.items()), start=1):
        if version != position or set(ways) != {"up", "down"}:
            raise MigrationError(f"migration {version:04} {name} is out of order or one-way")
        migrations.append(Migration(version, name, ways["up"], ways["down"]))
    return tuple(migrations)


class Migrator:
    """Migrations of one database. Blocking; run it in a thread once an event loop is there.

    Args:
        dsn: of the database.
        migrations: for tests; by default what ships with this code.
    """

    def __init__(self, dsn: str, migrations: Sequence[Migration] | None = None) -> None:
        self._dsn = dsn
        self._migrations = tuple(packaged_migrations() if migrations is None else migrations)

    def up(self) -> list[int]:
        """Apply what is missing; the versions applied.

        Raises:
            MigrationError: the database is of other or newer code, or a migration failed.
            PostgresAwayError: the server is away.
        """
        with self._locked() as connection:
            done = len(self._checked(connection))
            return [self._apply(connection, item) for item in self._migrations[done:]]

    def down(self, to_version: int) -> list[int]:
        """Undo everything above ``to_version``, newest first; the versions undone. Loses data.

        Raises:
            MigrationError, PostgresAwayError: as :meth:`up`.
        """
        with self._locked() as connection:
            applied = self._checked(connection)
            doomed = [
                item for item in self._migrations[: len(applied)] if item.version > to_version
            ]
            return [self._undo(connection, item) for item in reversed(doomed)]

    def status(self) -> list[MigrationStatus]:
        """Of every known migration.

        Raises:
            MigrationError, PostgresAwayError: as :meth:`up`.
        """
        with self._connected() as connection:
            row = connection.execute("SELECT to_regclass('schema_migrations')").fetchone()
            assert row is not None
            done = 0 if row[0] is None else len(self._checked(connection))
        return [
            MigrationStatus(item.version, item.name, item.version <= done)
            for item in self._migrations
        ]

    def require_current(self) -> None:
        """For a node that was told not to migrate.

        Raises:
            MigrationError: the database is older, newer or different.
            PostgresAwayError: the server is away.
        """
        missing = [item.version for item in self.status() if not item.applied]
        if missing:
            raise MigrationError(
                f"the database misses {len(missing)} migration(s), from {missing[0]:04} on; run "
                "'guardian db migrate' or start with --migrate auto"
            )

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection]:
        try:
            with psycopg.connect(
                self._dsn, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S
            ) as connection:
                yield connection
        except psycopg.OperationalError as error:
            raise PostgresAwayError(f"PostgreSQL can not be reached: {error}") from error
        except psycopg.Error as error:
            raise MigrationError(f"the schema can not be looked after: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[psycopg.Connection]:
        with self._connected() as connection:
            connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT_S}s'")
            try:
                connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK_KEY,))
            except psycopg.errors.LockNotAvailable as error:
                raise MigrationError(
                    f"another node has been migrating for {_LOCK_TIMEOUT_S} s"
                ) from error
            # the lock goes with the connection
            connection.execute(_TABLE)
            yield connection

    def _checked(self, connection: psycopg.Connection) -> list[int]:
        """Versions applied, after making sure that they are the first ones of ours."""
        rows: list[tuple[int, str, str]] = connection.execute(
            "SELECT version, name, sha256 FROM schema_migrations ORDER BY version"
        ).fetchall()
        if len(rows) > len(self._migrations):
            raise MigrationError(
                f"the database is at migration {rows[-1][0]:04}, newer than this code "
                f"({len(self._migrations):04}); use the newer version of Guardian"
            )
        for (version, name, sha256), ours in zip(rows, self._migrations, strict=False):
            if (version, sha256) != (ours.version, ours.sha256):
                raise MigrationError(
                    f"migration {version:04} {name} of the database is not the one in this code"
                )
        return [version for version, _, _ in rows]

    def _apply(self, connection: psycopg.Connection, item: Migration) -> int:
        self._run(
            connection,
            item,
            item.up,
            "INSERT INTO schema_migrations (version, name, sha256) VALUES (%s, %s, %s)",
            (item.version, item.name, item.sha256),
        )
        log.info("migration applied", extra={"version": item.version, "migration": item.name})
        return item.version

    def _undo(self, connection: psycopg.Connection, item: Migration) -> int:
        self._run(
            connection,
            item,
            item.down,
            "DELETE FROM schema_migrations WHERE version = %s",
            (item.version,),
        )
        log.warning("migration undone", extra={"version": item.version, "migration": item.name})
        return item.version

    def _run(
        self,
        connection: psycopg.Connection,
        item: Migration,
        script: str,
        record: str,
        values: tuple[object, ...],
    ) -> None:
        try:
            with connection.transaction():
                connection.execute(script.encode())
                connection.execute(record.encode(), values)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            raise MigrationError(
                f"migration {item.version:04} {item.name} failed: {error}"
            ) from error
