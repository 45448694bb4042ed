"""``guardian serve``: run one node until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
import sys
from pathlib import Path

import click

from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.adapters.postgres.errors import PostgresError
from guardian.adapters.security.secret_file import SecretFileError, load_or_create_secret
from guardian.app import FirstAdmin, Guardian
from guardian.cli.banner import show_first_admin, show_ready
from guardian.cli.loop import run_on_loop
from guardian.place import check_fits_cluster, check_may_start
from guardian.settings import (
    EXIT_CONFIGURATION,
    Settings,
    SettingsError,
    settings_options,
    unknown_variables,
)
from guardian.telemetry import configure_logging
from raftcore.core.errors import InvariantError
from raftcore.errors import BootstrapError, ExitCode, StateMachineError, StorageError, TlsError
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import LmdbLog, open_log

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 9.5


@click.command("serve")
@settings_options
def command(settings: Settings) -> None:
    """Run one node: the HTTP service, its place in the cluster, and a PostgreSQL of its own
    unless DATABASE_URL names one.

    Ctrl-C or SIGTERM finishes what is in flight, hands leadership over and ends with 0.
    """
    configure_logging(settings.log_level, settings.log_format)
    for name in unknown_variables():
        logger.warning("the environment variable %s is not a setting of Guardian", name)
    sys.exit(run(settings))


def run(settings: Settings) -> int:
    """Run a node to its end; the exit code."""
    try:
        directory = DataDirectory.open(settings.data_dir, settings.node_id)
    except StorageError as error:
        return _refuse(error.code, error, error.exit_code)
    postgres: EmbeddedPostgres | None = None
    storage: LmdbLog | None = None
    try:
        # Whatever speaks against this start is found before anything is made or touched.
        check_may_start(settings, directory)
        if directory.identity is not None:
            storage = open_log(directory)
            check_fits_cluster(settings, storage.configuration)
        _check_free(settings)
        # On the main thread: the server dies with the thread that started it.
        if settings.database_url is None:
            _say(settings, "starting PostgreSQL ...")
            postgres = EmbeddedPostgres(directory.path / "pg")
            postgres.start()
        return run_on_loop(_serve(settings, directory, storage, postgres))
    except KeyboardInterrupt:
        return 130
    except (StorageError, BootstrapError, StateMachineError, TlsError) as error:
        return _refuse(error.code, error, error.exit_code)
    except (InvariantError, AssertionError) as error:
        return _refuse("invariant", error, ExitCode.INVARIANT)
    except (PostgresError, SecretFileError) as error:
        return _refuse("postgres" if isinstance(error, PostgresError) else "secret", error, 1)
    except SettingsError as error:
        return _refuse("settings", error, EXIT_CONFIGURATION)
    except OSError as error:
        return _refuse("os_error", error, 1)
    finally:
        if postgres is not None:
            postgres.stop()
        if storage is not None:
            storage.close()
        directory.close()


def _check_free(settings: Settings) -> None:
    """Addresses that are taken are told now, not after a cluster was founded.

    Raises:
        OSError: naming the address and its variable.
    """
    for variable, address in (("GUARDIAN_HTTP", settings.http), ("GUARDIAN_RAFT", settings.raft)):
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            socket.create_server((address.host, address.port), family=family).close()
        except OSError as error:
            raise OSError(f"can not listen on {address} ({variable}): {error.strerror}") from error


def _refuse(code: str, error: BaseException, exit_code: int) -> int:
    """One line that names what is wrong."""
    print(f"guardian: {code}: {error}", file=sys.stderr, flush=True)
    return int(exit_code)


def _say(settings: Settings, text: str) -> None:
    """Progress for people; with JSON logs it would only be in the way."""
    if settings.log_format == "text":
        print(text, flush=True)


async def _serve(
    settings: Settings,
    directory: DataDirectory,
    storage: LmdbLog | None,
    postgres: EmbeddedPostgres | None,
) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    created: list[str] = []

    def on_admin_created(email: str, password: str) -> None:
        show_first_admin(settings, email, password)
        if settings.admin_password is None:
            created.append(password)

    database_url = settings.database_url or (postgres.dsn if postgres else "")
    guardian = Guardian(
        settings,
        directory,
        storage=storage,
        database_url=database_url,
        jwt_secret=_jwt_secret(settings, directory.path),
        first_admin=FirstAdmin(
            settings.admin_email,
            settings.admin_password or secrets.token_urlsafe(15),
            on_admin_created,
        ),
        postgres=postgres,
        on_progress=lambda text: _say(settings, text),
    )
    starting = asyncio.create_task(guardian.start())
    interrupted = asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return 0
    interrupted.cancel()
    await starting
    show_ready(settings, guardian, created[0] if created else None)
    return await _until_stopped(settings, guardian, stopping)


async def _until_stopped(settings: Settings, guardian: Guardian, stopping: asyncio.Event) -> int:
    told = asyncio.create_task(stopping.wait())
    failed = asyncio.create_task(guardian.wait())
    await asyncio.wait({told, failed}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    _say(settings, "stopping ...")
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await guardian.stop()
    except TimeoutError:
        logger.warning("not everything stopped within %.1f s", STOP_TIMEOUT_S)
    if failed.done():
        await failed  # raises what made the node fail
    failed.cancel()
    _say(settings, "stopped.")
    return 0


def _jwt_secret(settings: Settings, data_dir: Path) -> bytes:
    if settings.jwt_secret is not None:
        return settings.jwt_secret.encode()
    return load_or_create_secret(data_dir)
