"""``guardian db``: the schema of the database, and the projection in it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.adapters.postgres.errors import PostgresError
from guardian.adapters.postgres.migrate import Migrator
from guardian.adapters.postgres.pool import Database
from guardian.adapters.postgres.projector import reset_projection
from guardian.domain.problems import Problem


@click.group("db")
@click.option(
    "--database-url", envvar="DATABASE_URL", default=None,
    help="PostgreSQL to work on [DATABASE_URL]; without it the embedded one of --data-dir.",
)  # fmt: skip
@click.option(
    "--data-dir", envvar="GUARDIAN_DATA_DIR", default="./guardian-data", show_default=True,
    help="Data directory of a stopped node, for its embedded PostgreSQL [GUARDIAN_DATA_DIR].",
)  # fmt: skip
@click.pass_context
def command(context: click.Context, database_url: str | None, data_dir: str) -> None:
    """The database: schema migrations, and the projection of configs into it."""
    context.obj = (database_url, Path(data_dir))


def _with_database(context: click.Context, work: Callable[[str], None]) -> None:
    """Run ``work`` with a DSN, starting the embedded server for it if need be."""
    database_url, data_dir = context.obj
    try:
        if database_url is not None:
            work(database_url)
        elif not (data_dir / "pg").is_dir():
            raise click.ClickException(f"no embedded PostgreSQL in {data_dir}, and no DATABASE_URL")
        else:
            with EmbeddedPostgres(data_dir / "pg") as postgres:
                work(postgres.dsn)
    except (PostgresError, Problem, OSError) as error:
        print(f"guardian: {error}", file=sys.stderr)
        sys.exit(1)


@command.command("migrate")
@click.pass_context
def migrate(context: click.Context) -> None:
    """Bring the schema up to this program's version."""

    def work(dsn: str) -> None:
        done = Migrator(dsn).up()
        click.echo(f"applied {', '.join(map(str, done))}" if done else "nothing to do")

    _with_database(context, work)


@command.command("rollback")
@click.argument("version", type=click.IntRange(min=0))
@click.confirmation_option(prompt="This drops tables and what is in them. Go on?")
@click.pass_context
def rollback(context: click.Context, version: int) -> None:
    """Undo every migration above VERSION (0 undoes all)."""

    def work(dsn: str) -> None:
        done = Migrator(dsn).down(version)
        click.echo(f"undid {', '.join(map(str, done))}" if done else "nothing to do")

    _with_database(context, work)


@command.command("status")
@click.pass_context
def status(context: click.Context) -> None:
    """Show each migration and when it was applied."""

    def work(dsn: str) -> None:
        for step in Migrator(dsn).status():
            state = "applied" if step.applied else "not applied"
            click.echo(f"{step.version:04d}  {step.name:<24} {state}")

    _with_database(context, work)


@command.command("rebuild-projection")
@click.pass_context
def rebuild_projection(context: click.Context) -> None:
    """Empty the mirror of configs and revisions; the leader fills it again from the log's state.

    Safe while the cluster runs: the mirror is never the truth.
    """

    def work(dsn: str) -> None:
        Migrator(dsn).require_current()
        _run(_reset(dsn))
        click.echo("the projection is empty; the leader fills it again")

    _with_database(context, work)


async def _reset(dsn: str) -> None:
    database = Database(dsn)
    await database.open()
    try:
        await reset_projection(database)
    finally:
        await database.close()


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)
