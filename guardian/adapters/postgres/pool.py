"""Access to PostgreSQL for one node: pooled, bounded in every wait, and with Guardian's errors.

Nothing of the driver leaves this package. A statement that failed before COMMIT was sent changed
nothing and becomes ``unavailable`` (or the problem its constraint stands for); when the connection
breaks after COMMIT was sent nobody can tell, and it becomes ``outcome_unknown``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from guardian.domain.problems import Problem

log = logging.getLogger(__name__)

T = TypeVar("T")
Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Row = tuple[Any, ...]

#: What a violated constraint tells the client.
CONSTRAINTS: Mapping[str, str] = {
    "users_pkey": "already_exists",
    "users_email_key": "email_taken",
    "refresh_tokens_pkey": "already_exists",
    "refresh_tokens_user_id_fkey": "invalid_token",  # the user went meanwhile
    "projects_pkey": "already_exists",
    "projects_owner_id_fkey": "owns_projects",
    "project_roles_project_id_fkey": "not_found",
    "project_roles_user_id_fkey": "not_found",
    "config_schemas_pkey": "already_exists",
}

_ATTEMPTS = 3
_RETRY_PAUSE_S = 0.01
_RETRY_AFTER_S = 1.0
_DURABILITY_SETTINGS = ("fsync", "full_page_writes", "synchronous_commit")


class Database:
    """A pool of connections that opens lazily: the server may be away, now or later.

    Args:
        dsn: URL or conninfo of the database.
        max_size: connections at most.
        max_waiting: callers that may queue for one; more are refused as ``overloaded``.
        acquire_timeout_s: how long such a caller waits.
        statement_timeout_s: bound on one statement, enforced by the server.
    """

    def __init__(
        self,
        dsn: str,
        *,
        min_size: int = 1,
        max_size: int = 10,
        max_waiting: int = 256,
        acquire_timeout_s: float = 3.0,
        statement_timeout_s: float = 5.0,
    ) -> None:
        self._acquire_timeout_s = acquire_timeout_s
        self._statement_timeout_s = statement_timeout_s
        self._away = False
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            dsn,
            open=False,
            min_size=min_size,
            max_size=max_size,
            max_waiting=max_waiting,
            timeout=acquire_timeout_s,
            reconnect_timeout=30.0,
            kwargs={"autocommit": True, "connect_timeout": 5, "application_name": "guardian"},
            configure=self._configure,
            # without it, a restarted server costs one failed request per pooled connection
            check=AsyncConnectionPool.check_connection,
            name="guardian",
        )

    async def open(self) -> None:
        """Start connecting in the background; returns at once, whether or not the server is there.
        Call it inside the running loop."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close(timeout=5.0)

    async def ping(self) -> bool:
        """Whether the server answers now."""
        try:
            await self.fetch("SELECT 1")
        except Problem:
            return False
        return True

    def stats(self) -> dict[str, int]:
        """The pool's counters, by psycopg_pool's names."""
        return dict(self._pool.get_stats())

    async def durability_warnings(self) -> list[str]:
        """Settings of the server that let an acknowledged write be lost, one sentence each.

        Raises:
            Problem: ``unavailable``.
        """
        rows = await self.fetch(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s) AND setting = 'off'"
            " ORDER BY name",
            (list(_DURABILITY_SETTINGS),),
        )
        warnings = [
            f"PostgreSQL runs with {name} off: a crash of its machine can lose or damage users, "
            "projects and schemas that were acknowledged"
            for name, _ in rows
        ]
        for warning in warnings:
            log.warning(warning)
        return warnings

    async def fetch(self, query: str, values: Sequence[object] = ()) -> list[Row]:
        """Rows of one reading statement, in a transaction of its own.

        Raises:
            Problem: ``unavailable``, ``overloaded``, or ``invalid_string`` for text that
                PostgreSQL can not hold.
        """

        async def read() -> list[Row]:
            async with self._connection() as connection:
                cursor = await connection.execute(query.encode(), values)
                return await cursor.fetchall()

        return await self._guarded(read, CONSTRAINTS)

    async def write(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        constraints: Mapping[str, str] | None = None,
    ) -> T:
        """Run ``work`` in one transaction (read committed) and commit it.

        ``work`` is run again, at most three times in all, when the server aborted it for a
        deadlock or a serialization failure; so it does nothing but statements. An exception it
        raises rolls back.

        Args:
            constraints: problem codes by constraint name, before those of :data:`CONSTRAINTS`.

        Raises:
            Problem: as :meth:`fetch`; that of a violated constraint; ``outcome_unknown``.
        """

        async def run() -> T:
            async with self._connection() as connection:
                return await self._transact(connection, work)

        return await self._guarded(run, {**CONSTRAINTS, **(constraints or {})})

    async def execute(self, query: str, values: Sequence[object] = ()) -> int:
        """One writing statement in its own transaction; how many rows it touched.

        Raises:
            Problem: as :meth:`write`.
        """

        async def work(connection: Connection) -> int:
            return (await connection.execute(query.encode(), values)).rowcount

        return await self.write(work)

    async def _transact(
        self, connection: Connection, work: Callable[[Connection], Awaitable[T]]
    ) -> T:
        await connection.execute("BEGIN")
        try:
            result = await work(connection)
        except BaseException:
            # a broken connection has rolled back already; the pool throws it away
            with contextlib.suppress(psycopg.Error):
                await connection.execute("ROLLBACK")
            raise
        try:
            await connection.execute("COMMIT")
        except psycopg.Error as error:
            if _definitely_aborted(error):
                raise
            log.warning("connection lost during COMMIT", extra={"sqlstate": error.sqlstate})
            raise Problem("outcome_unknown") from error
        return result

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        # while the server is known to be away, callers do not queue for the full time
        timeout_s = min(0.25, self._acquire_timeout_s) if self._away else self._acquire_timeout_s
        async with self._pool.connection(timeout=timeout_s) as connection:
            self._away = False
            yield connection

    async def _guarded(
        self, action: Callable[[], Awaitable[T]], constraints: Mapping[str, str]
    ) -> T:
        """``action`` with retries, and psycopg's errors as problems."""
        attempt = 1
        while True:
            try:
                return await action()
            except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected) as error:
                if attempt == _ATTEMPTS:
                    raise _unavailable() from error
                await asyncio.sleep(_RETRY_PAUSE_S * attempt)
                attempt += 1
            except TooManyRequests as error:
                raise Problem("overloaded", retry_after_s=_RETRY_AFTER_S) from error
            except (PoolTimeout, PoolClosed) as error:
                self._away = True
                raise _unavailable() from error
            except psycopg.IntegrityError as error:
                raise _integrity_problem(error, constraints) from error
            except (psycopg.DataError, UnicodeEncodeError) as error:
                # NUL or a lone surrogate in text, or a number out of range
                raise Problem("invalid_string") from error
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                log.warning("PostgreSQL failed", extra={"sqlstate": error.sqlstate})
                raise _unavailable() from error
            except psycopg.Error as error:
                log.exception("statement refused by PostgreSQL", extra={"sqlstate": error.sqlstate})
                raise _unavailable() from error

    async def _configure(self, connection: Connection) -> None:
        timeout_ms = int(self._statement_timeout_s * 1000)
        await connection.execute(
            b"SELECT set_config('statement_timeout', %s, false),"
            b" set_config('lock_timeout', %s, false),"
            b" set_config('idle_in_transaction_session_timeout', %s, false)",
            (str(timeout_ms), str(timeout_ms), str(timeout_ms * 4)),
        )


def _definitely_aborted(error: psycopg.Error) -> bool:
    """Whether the server itself said that this COMMIT did not happen: a constraint checked at
    commit (class 23) or a rollback it chose (class 40, but 40003 says that it does not know)."""
    state = error.sqlstate or ""
    return state[:2] in ("23", "40") and state != "40003"


def _integrity_problem(error: psycopg.IntegrityError, constraints: Mapping[str, str]) -> Problem:
    code = constraints.get(error.diag.constraint_name or "")
    if code is not None:
        return Problem(code)
    log.error("constraint violated", extra={"constraint": error.diag.constraint_name})
    return _unavailable()


def _unavailable() -> Problem:
    return Problem("unavailable", retry_after_s=_RETRY_AFTER_S)
