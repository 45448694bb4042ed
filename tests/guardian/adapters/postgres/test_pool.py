"""Errors of PostgreSQL as problems, against a real server and a broken line to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg
import pytest

from guardian.adapters.postgres.connection import Connection
from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.adapters.postgres.pool import Database
from guardian.domain.problems import Problem


@contextlib.asynccontextmanager
async def _opened(dsn: str, **options: float) -> AsyncIterator[Database]:
    database = Database(dsn, **options)  # type: ignore[arg-type]
    await database.open()
    try:
        yield database
    finally:
        await database.close()


class _Line:
    """A TCP line to the server's socket that can be cut when COMMIT passes."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        query = parse_qs(parts.query)
        self._socket = f"{unquote(query['host'][0])}/.s.PGSQL.{query['port'][0]}"
        self._rest = f"{parts.username}@127.0.0.1"
        self._database = parts.path
        self.cut_on: bytes | None = None
        self.deliver = False
        self.dsn = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> _Line:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.dsn = f"postgresql://{self._rest}:{port}{self._database}?sslmode=disable"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # known from the first moment on: one that is accepted last must be closed, too
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _closing(writer):
            above_reader, above_writer = await asyncio.open_unix_connection(self._socket)
            async with _closing(above_writer), asyncio.TaskGroup() as group:
                back = group.create_task(self._copy(above_reader, writer))
                while data := await reader.read(65536):
                    if self.cut_on is not None and self.cut_on in data:
                        if self.deliver:
                            back.cancel()
                            above_writer.write(data)
                            await above_writer.drain()
                            await above_reader.read(1)  # the server has answered
                        break
                    above_writer.write(data)
                    await above_writer.drain()
                back.cancel()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Leaves no transport behind, however often the task that waits here is cancelled."""
    try:
        yield
    finally:
        writer.transport.abort()


async def _insert(connection: Connection) -> None:
    await connection.execute("INSERT INTO users VALUES ('u', 'u@example.org', 'h', false, 1)")


async def _code(database: Database, query: str, values: tuple[object, ...] = ()) -> str:
    with pytest.raises(Problem) as caught:
        await database.execute(query, values)
    return caught.value.code


async def test_opening_does_not_need_the_server() -> None:
    async with _opened("postgresql://u@127.0.0.1:1/none", acquire_timeout_s=0.2) as database:
        assert not await database.ping()
        with pytest.raises(Problem) as caught:
            await database.fetch("SELECT 1")
    assert caught.value.code == "unavailable"
    assert caught.value.retry_after_s


async def test_sessions_ended_by_the_server_cost_no_request(database: Database) -> None:
    await database.fetch("SELECT 1")
    with contextlib.suppress(Problem):
        await database.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database()"
        )
    assert await database.fetch("SELECT 1") == [(1,)]


async def test_a_line_cut_at_commit_is_an_unknown_outcome(postgres_dsn: str) -> None:
    for deliver, happened in ((False, 0), (True, 1)):
        async with _Line(postgres_dsn) as line, _opened(line.dsn) as database:
            await database.fetch("SELECT 1")
            line.cut_on, line.deliver = b"COMMIT", deliver
            with pytest.raises(Problem) as caught:
                await database.write(_insert)
            assert caught.value.code == "outcome_unknown"
        with psycopg.connect(postgres_dsn) as connection:
            row = connection.execute("SELECT count(*) FROM users").fetchone()
        assert row == (happened,)


async def test_a_line_cut_before_commit_changed_nothing(postgres_dsn: str) -> None:
    async with _Line(postgres_dsn) as line, _opened(line.dsn) as database:
        await database.fetch("SELECT 1")
        line.cut_on, line.deliver = b"INSERT", True
        with pytest.raises(Problem) as caught:
            await database.write(_insert)
        assert caught.value.code == "unavailable"
    with psycopg.connect(postgres_dsn) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)


async def test_a_statement_that_takes_too_long_is_unavailable(postgres_dsn: str) -> None:
    async with _opened(postgres_dsn, statement_timeout_s=0.5) as database:
        assert await _code(database, "SELECT pg_sleep(60)") == "unavailable"
        assert await database.ping()


async def test_more_callers_than_may_wait_are_refused(postgres_dsn: str) -> None:
    async with _opened(postgres_dsn, max_size=1, max_waiting=1) as database:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def occupy(connection: Connection) -> None:
            await connection.execute("SELECT 1")
            entered.set()
            await leave.wait()

        busy = asyncio.create_task(database.write(occupy))
        await entered.wait()
        waiting = [asyncio.create_task(database.fetch("SELECT 1")) for _ in range(3)]
        finished, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        refused = [task.exception() for task in finished]
        leave.set()
        await asyncio.gather(busy, *waiting, return_exceptions=True)
    assert refused
    assert all(isinstance(error, Problem) and error.code == "overloaded" for error in refused)


async def test_a_deadlock_is_retried(database: Database) -> None:
    await database.execute("CREATE TABLE t AS SELECT * FROM (VALUES (1, 0), (2, 0)) v (id, n)")
    both = asyncio.Barrier(2)
    attempts = 0

    async def add(connection: Connection, first: int, second: int) -> None:
        nonlocal attempts
        attempts += 1
        await connection.execute("UPDATE t SET n = n + 1 WHERE id = %s", (first,))
        if attempts <= 2:
            await both.wait()
        await connection.execute("UPDATE t SET n = n + 1 WHERE id = %s", (second,))

    await asyncio.gather(
        database.write(lambda connection: add(connection, 1, 2)),
        database.write(lambda connection: add(connection, 2, 1)),
    )
    assert attempts == 3
    assert await database.fetch("SELECT n FROM t") == [(2,), (2,)]


async def test_retries_end(database: Database) -> None:
    attempts = 0

    async def conflict(_: Connection) -> None:
        nonlocal attempts
        attempts += 1
        raise psycopg.errors.SerializationFailure

    with pytest.raises(Problem) as caught:
        await database.write(conflict)
    assert caught.value.code == "unavailable"
    assert attempts == 3


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
async def test_text_that_can_not_be_stored_is_the_callers_mistake(
    database: Database, text: str
) -> None:
    insert = "INSERT INTO users VALUES ('u', %s, 'h', false, 1)"
    assert await _code(database, insert, (text,)) == "invalid_string"
    assert await database.fetch("SELECT count(*) FROM users") == [(0,)]


@pytest.mark.parametrize("query", ["SELECT nonsense", "INSERT INTO projects VALUES (NULL)"])
async def test_nothing_of_the_driver_leaks(database: Database, query: str) -> None:
    with pytest.raises(Problem) as caught:
        await database.execute(query)
    assert caught.value.code == "unavailable"
    assert "nonsense" not in caught.value.detail


async def test_an_error_of_the_work_rolls_back(database: Database) -> None:
    async def work(connection: Connection) -> None:
        await _insert(connection)
        raise Problem("last_admin")

    with pytest.raises(Problem, match="last_admin"):
        await database.write(work)
    assert await database.fetch("SELECT count(*) FROM users") == [(0,)]


async def test_a_cancelled_transaction_leaves_nothing_and_the_pool_works(
    database: Database,
) -> None:
    entered = asyncio.Event()

    async def work(connection: Connection) -> None:
        await _insert(connection)
        entered.set()
        await connection.execute("SELECT pg_sleep(60)")

    task = asyncio.create_task(database.write(work))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await database.fetch("SELECT count(*) FROM users") == [(0,)]


async def test_settings_that_lose_writes_are_named(
    database: Database, postgres_server: EmbeddedPostgres
) -> None:
    assert postgres_server.major >= 14
    warnings = await database.durability_warnings()
    assert [warning.split()[3] for warning in warnings] == [
        "fsync",
        "full_page_writes",
        "synchronous_commit",
    ]
