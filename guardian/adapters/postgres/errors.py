"""What can go wrong below the repositories, before there is a request to answer."""

from __future__ import annotations


class PostgresError(Exception):
    """PostgreSQL can not be used as it is; the message says what to do about it."""


class EmbeddedPostgresError(PostgresError):
    """The embedded server can not be set up, started or kept running."""


class PostgresAwayError(PostgresError):
    """The server can not be reached now, or broke off; trying again later may help."""


class MigrationError(PostgresError):
    """The database's schema is not one that this code can work with."""
