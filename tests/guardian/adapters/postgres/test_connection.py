"""A server that is frozen: it keeps its connections and answers nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from guardian.adapters.postgres.connection import Connection, Probe
from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.adapters.postgres.pool import Database
from guardian.domain.problems import Problem

Freeze = Callable[[EmbeddedPostgres], contextlib.AbstractContextManager[None]]
pytestmark = pytest.mark.skipif(os.uname().sysname != "Linux", reason="finds processes in /proc")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, to be frozen."""
    directory = Path(tempfile.mkdtemp(prefix="guardian-pg-"))
    try:
        with EmbeddedPostgres(directory, fsync=False) as server:
            yield server
    finally:
        shutil.rmtree(directory)


@pytest.fixture
async def open_database(server: EmbeddedPostgres) -> AsyncIterator[Database]:
    # waits for what a test before has abandoned
    with psycopg.connect(server.dsn) as connection:
        connection.execute("DROP TABLE IF EXISTS t")
        connection.execute("CREATE TABLE t (x int)")
    database = Database(server.dsn, statement_timeout_s=0.2)
    await database.open()
    yield database
    await database.close()


async def _refused(database: Database) -> str:
    with pytest.raises(Problem) as caught:
        await database.fetch("SELECT 1")
    return caught.value.code


async def test_while_a_ping_is_unanswered_nobody_waits_for_the_server(
    server: EmbeddedPostgres, open_database: Database, frozen: Freeze
) -> None:
    assert await open_database.ping()
    with frozen(server):
        assert not await open_database.ping()
        assert not open_database.available
        before = open_database.stats().get("requests_num")
        assert await _refused(open_database) == "unavailable"
        assert open_database.stats().get("requests_num") == before, "the pool was not even asked"
    assert await open_database.ping()
    assert open_database.available
    assert await open_database.fetch("SELECT 1") == [(1,)]


async def test_a_server_that_is_not_pinged_any_more_is_tried_again(
    server: EmbeddedPostgres,
    open_database: Database,
    frozen: Freeze,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("guardian.adapters.postgres.pool._CIRCUIT_S", 0.0)
    with frozen(server):
        assert not await open_database.ping()
    assert await open_database.fetch("SELECT 1") == [(1,)]


async def test_a_pooled_connection_that_gives_no_sign_of_life_costs_a_bounded_wait(
    server: EmbeddedPostgres, open_database: Database, frozen: Freeze
) -> None:
    with frozen(server):
        assert await _refused(open_database) == "unavailable"
    assert await open_database.fetch("SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    ("statements", "code"), [(b"SELECT 1", "unavailable"), (b"", "outcome_unknown")]
)
async def test_an_answer_that_does_not_come_is_a_problem(
    server: EmbeddedPostgres, open_database: Database, frozen: Freeze, statements: bytes, code: str
) -> None:
    """Without a statement it is COMMIT that has no answer."""
    with contextlib.ExitStack() as cleanup:

        async def work(connection: Connection) -> None:
            await connection.execute(b"INSERT INTO t VALUES (1)")
            cleanup.enter_context(frozen(server))
            if statements:
                await connection.execute(statements)

        with pytest.raises(Problem) as caught:
            await open_database.write(work)
    assert caught.value.code == code


async def test_a_request_that_gives_up_does_not_wait_for_a_frozen_server_to_cancel(
    server: EmbeddedPostgres, open_database: Database, frozen: Freeze
) -> None:
    asking = asyncio.Event()

    async def work(connection: Connection) -> None:
        await connection.execute(b"INSERT INTO t VALUES (1)")
        asking.set()
        await connection.execute(b"SELECT pg_sleep(60)")

    task = asyncio.create_task(open_database.write(work, statement_timeout_s=60))
    await asking.wait()
    with frozen(server):
        task.cancel()
        for _ in range(100):  # turns of the loop, which take no time when nothing is waited for
            await asyncio.sleep(0)
        assert task.cancelled()
    assert await open_database.fetch("SELECT count(*) FROM t") == [(0,)]


async def test_an_abandoned_statement_ends_on_the_server(
    server: EmbeddedPostgres, open_database: Database, frozen: Freeze
) -> None:
    asking = asyncio.Event()

    async def work(connection: Connection) -> None:
        asking.set()
        await connection.execute(b"SELECT pg_sleep(3600)")

    task = asyncio.create_task(open_database.write(work, statement_timeout_s=3600))
    await asking.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(3600)%%'"
    async with asyncio.timeout(60):
        while await open_database.fetch(query) != [(0,)]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_pool_that_is_busy_is_not_a_server_that_is_away(server: EmbeddedPostgres) -> None:
    database = Database(server.dsn, max_size=1)
    await database.open()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def occupy(_: Connection) -> None:
        entered.set()
        await leave.wait()

    busy = asyncio.create_task(database.write(occupy))
    await entered.wait()
    assert await database.ping()
    leave.set()
    await busy
    await database.close()


async def test_a_probe_outlives_the_end_of_its_session(
    server: EmbeddedPostgres, open_database: Database, frozen: Freeze
) -> None:
    probe = Probe(server.dsn)
    assert await probe.answers()
    await open_database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    )
    assert await probe.answers()
    await probe.close()
