"""Access to PostgreSQL for one node: pooled, bounded in every wait, and with Guardian's errors.

Nothing of the driver leaves this package. A statement that failed before COMMIT was sent changed
nothing and becomes ``unavailable`` (or the problem its constraint stands for); when the connection
breaks after COMMIT was sent nobody can tell, and it becomes ``outcome_unknown``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from guardian.adapters.postgres.connection import OPTIONS, SIGN_OF_LIFE_S, Connection, Probe, Row
from guardian.domain.problems import Problem

log = logging.getLogger(__name__)

T = TypeVar("T")

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
#: What the server's own bounds get before ours strikes.
_MARGIN_S = 1.0
#: psycopg_pool doubles its pauses up to this; longer ones would outlast the server's absence.
_RECONNECT_S = 3.0
#: How long a server that gave no sign of life is left alone, unless it gives one before.
_CIRCUIT_S = 5.0
#: What connecting at the moment gets to finish, before it is cancelled.
_CLOSE_S = 2.0
_DURABILITY_SETTINGS = ("fsync", "full_page_writes", "synchronous_commit")


class Database:
    """A pool of connections that opens lazily: the server may be away, now or later.

    Args:
        dsn: URL or conninfo of the database.
        max_size: connections at most.
        max_waiting: callers that may queue for one; more are refused as ``overloaded``.
        acquire_timeout_s: how long such a caller waits.
        statement_timeout_s: bound on one statement, enforced by the server, and shortly after by
            this side in case the server is frozen.
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
        self._statement_timeout_s = statement_timeout_s
        self._away_until = 0.0
        self._probe = Probe(dsn)
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            dsn,
            open=False,
            min_size=min_size,
            max_size=max_size,
            max_waiting=max_waiting,
            timeout=acquire_timeout_s,
            reconnect_timeout=_RECONNECT_S,
            connection_class=Connection,
            kwargs=OPTIONS,
            configure=self._configure,
            # without it, a restarted server costs one failed request per pooled connection
            check=_check,
            name="guardian",
        )

    async def open(self) -> None:
        """Start connecting in the background; returns at once, whether or not the server is there.
        Call it inside the running loop."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close(timeout=_CLOSE_S)
        await self._probe.close()

    async def ping(self) -> bool:
        """Whether the server gives a sign of life within two seconds.

        If not, everything here is refused as ``unavailable`` at once until a later ping succeeds,
        so that requests do not queue up behind a server that is away. Somebody has to go on
        asking; in case nobody does, it is tried again after five seconds all the same.
        """
        up = await self._probe.answers()
        self._away_until = 0.0 if up else time.monotonic() + _CIRCUIT_S
        return up

    @property
    def available(self) -> bool:
        """False while the server is taken to be away."""
        return time.monotonic() >= self._away_until

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
        statement_timeout_s: float | None = None,
    ) -> T:
        """Run ``work`` in one transaction (read committed) and commit it.

        ``work`` is run again, at most three times in all, when the server aborted it for a
        deadlock or a serialization failure; so it does nothing but statements. An exception it
        raises rolls back.

        Args:
            constraints: problem codes by constraint name, before those of :data:`CONSTRAINTS`.
            statement_timeout_s: bound on each of its statements, if not the usual one.

        Raises:
            Problem: as :meth:`fetch`; that of a violated constraint; ``outcome_unknown``.
        """

        async def run() -> T:
            async with self._connection() as connection:
                if statement_timeout_s is None:
                    return await self._transact(connection, work)
                connection.answer_timeout_s = statement_timeout_s + _MARGIN_S
                try:
                    return await self._transact(connection, _within(work, statement_timeout_s))
                finally:
                    connection.answer_timeout_s = self._statement_timeout_s + _MARGIN_S

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
        if not self.available:
            raise _unavailable()
        async with self._pool.connection() as connection:
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
        connection.answer_timeout_s = self._statement_timeout_s + _MARGIN_S
        # a statement whose client has gone ends soon; not every server can tell
        with contextlib.suppress(psycopg.errors.InvalidParameterValue):
            await connection.execute(
                b"SELECT set_config(name, '1000', false) FROM pg_settings"
                b" WHERE name = 'client_connection_check_interval'"
            )
        timeout_ms = int(self._statement_timeout_s * 1000)
        await connection.execute(
            b"SELECT set_config('statement_timeout', %s, false),"
            b" set_config('lock_timeout', %s, false),"
            b" set_config('idle_in_transaction_session_timeout', %s, false)",
            (str(timeout_ms), str(timeout_ms), str(timeout_ms * 4)),
        )


async def _check(connection: Connection) -> None:
    async with asyncio.timeout(SIGN_OF_LIFE_S):
        await AsyncConnectionPool.check_connection(connection)


def _within(
    work: Callable[[Connection], Awaitable[T]], statement_timeout_s: float
) -> Callable[[Connection], Awaitable[T]]:
    """``work`` with a bound of its own on the server, for its transaction."""

    async def bounded(connection: Connection) -> T:
        await connection.execute(
            b"SELECT set_config('statement_timeout', %s, true)",
            (str(int(statement_timeout_s * 1000)),),
        )
        return await work(connection)

    return bounded


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
