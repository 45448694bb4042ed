"""One connection to PostgreSQL whose every wait is bounded on this side.

``statement_timeout`` is kept by the server, and a server that is frozen, or behind a line that
swallows packets, keeps nothing. So each answer is waited for here, too, and a connection whose
answer did not come, or is no longer wanted, is closed at once. psycopg would first ask the server
to cancel the statement and wait for that, which is another ten seconds of a frozen server; ours
notices by itself that the line is closed (see ``client_connection_check_interval``).
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen

Row = tuple[Any, ...]
T = TypeVar("T")

#: How long a living server takes at most for something that is no work.
SIGN_OF_LIFE_S = 2.0
_POLL_S = 0.1

#: Keyword arguments of every connection. Keepalives end the wait on a machine that vanished; they
#: mean nothing to a Unix socket.
OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "connect_timeout": 5,
    "application_name": "guardian",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


class Connection(psycopg.AsyncConnection[Row]):
    """A connection that gives up waiting.

    Attributes:
        answer_timeout_s: bound on the answer to one statement; None while there is none.
    """

    answer_timeout_s: float | None = None

    async def wait(
        self, gen: PQGen[T], interval: float = _POLL_S, timeout: float | None = None
    ) -> T:
        """As psycopg's, but closes the connection when its answer does not come or the waiting
        task is cancelled; the pool replaces a closed connection.

        Raises:
            psycopg.OperationalError: there was no answer within ``answer_timeout_s``.
        """
        try:
            async with asyncio.timeout(self.answer_timeout_s):
                return await waiting.wait_async(
                    gen, self.pgconn.socket, interval=interval, timeout=timeout
                )
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise
        except TimeoutError as error:
            self.pgconn.finish()
            raise psycopg.OperationalError("the server does not answer") from error


class Probe:
    """Asks whether the server is alive, on a connection of its own: a pool whose connections are
    all busy is not a server that is away.

    Args:
        dsn: URL or conninfo of the database.
        timeout_s: bound on the answer, with connecting.
    """

    def __init__(self, dsn: str, *, timeout_s: float = SIGN_OF_LIFE_S) -> None:
        self._dsn = dsn
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()

    async def answers(self) -> bool:
        """Whether the server answers within the bound."""
        async with self._lock:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._asked_before() or await self._asked_anew()
            except (TimeoutError, psycopg.Error):
                await self._close()
                return False

    async def close(self) -> None:
        async with self._lock:
            await self._close()

    async def _asked_before(self) -> bool:
        """On the connection of last time; that it is broken says nothing of the server now."""
        if self._connection is None:
            return False
        try:
            await self._connection.execute(b"SELECT 1")
        except psycopg.Error:
            await self._close()
            return False
        return True

    async def _asked_anew(self) -> bool:
        self._connection = await Connection.connect(self._dsn, **OPTIONS)
        await self._connection.execute(b"SELECT 1")
        return True

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
