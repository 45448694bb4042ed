"""A real PostgreSQL that belongs to this process and its data directory.

The server runs in the foreground as our child. It has a session of its own, so that Ctrl-C in the
terminal reaches only us and we stop it last; and it asks the kernel to be told when we die, so
that killing us leaves no server behind.

Layout of the directory::

    supervisor.lock   held while a supervisor is here
    data/             PostgreSQL's own
    run/              the socket, for our user alone
    postgres.log      what the server says
    tcp-password      only if TCP was ever asked for
    install-*/        a copy of the programs, only if the server's user can not reach the originals
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from guardian.adapters.postgres.binaries import PostgresBinaries, find_binaries
from guardian.adapters.postgres.errors import EmbeddedPostgresError
from guardian.adapters.postgres.identity import Identity, choose_identity, reachable
from guardian.adapters.postgres.processes import clear_away

log = logging.getLogger(__name__)

SUPERUSER = "guardian"
_PORT = 5432  # without TCP nothing listens on it, it only names the socket file
_SOCKET_PATH_BYTES = 100  # sun_path is 104 to 108 bytes, depending on the system
_LOG_BYTES = 8 * 1024 * 1024
_POLL_S = 0.02
_ORPHAN_TIMEOUT_S = 30.0
_INITDB_TIMEOUT_S = 120.0
#: a server that was up for this long starts a new series of restarts
_STEADY_AFTER_S = 60.0
_BACKOFF_S = (0.1, 0.5, 2.0, 5.0, 10.0)


class EmbeddedPostgres:
    """Supervisor of one embedded server.

    ``start`` and ``stop`` block and are meant for the main thread before and after the event loop;
    :meth:`supervise` restarts a server that dies in between.

    Args:
        directory: everything of the server is in here; created if missing.
        fsync: False for tests only: a crash of the machine destroys the data.
        tcp: (host, port) to listen on besides the socket, with a password; port 0 takes a free one.
        database: created at the first start.
        max_connections: of the server.
        start_timeout_s: includes the recovery after a crash.
        stop_timeout_s: for a fast shutdown, before an immediate one.
        max_restarts: of a server that keeps dying, before :meth:`supervise` gives up.
    """

    def __init__(
        self,
        directory: Path,
        *,
        fsync: bool = True,
        tcp: tuple[str, int] | None = None,
        database: str = "guardian",
        max_connections: int = 100,
        start_timeout_s: float = 120.0,
        stop_timeout_s: float = 15.0,
        max_restarts: int = 5,
    ) -> None:
        self._directory = directory.absolute()
        self._fsync = fsync
        self._tcp = tcp
        self._database = database
        self._max_connections = max_connections
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._max_restarts = max_restarts
        self._lock_fd: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._binaries: PostgresBinaries | None = None
        self._identity: Identity | None = None
        self._socket_dir: Path | None = None
        self._password = ""
        self._stopping = threading.Event()

    # -- what it is -----------------------------------------------------------------------------

    @property
    def data_dir(self) -> Path:
        return self._directory / "data"

    @property
    def pid(self) -> int | None:
        """Of the server, None when it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def major(self) -> int:
        """PostgreSQL's major version, once started."""
        return self._need_binaries().major

    @property
    def way(self) -> str:
        """As whom the server runs, once started; see :mod:`guardian.adapters.postgres.identity`."""
        return self._need_identity().way.value

    @property
    def dsn(self) -> str:
        """URL of the database through the socket; only for this user (and root), no password."""
        return self.dsn_of(self._database)

    def dsn_of(self, database: str) -> str:
        """URL of another database on the same server."""
        if self._socket_dir is None:
            raise EmbeddedPostgresError("the embedded PostgreSQL has not been started")
        where = quote(str(self._socket_dir), safe="")
        return f"postgresql://{SUPERUSER}@/{quote(database)}?host={where}&port={self._port}"

    @property
    def tcp_dsn(self) -> str:
        """URL of the database through TCP, with the password in it."""
        if self._tcp is None or not self._password:
            raise EmbeddedPostgresError("the embedded PostgreSQL does not listen on TCP")
        host, port = self._tcp
        name = f"[{host}]" if ":" in host else host
        return f"postgresql://{SUPERUSER}:{self._password}@{name}:{port}/{quote(self._database)}"

    # -- start and stop -------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Set up what is missing, start the server and return when it answers.

        Raises:
            EmbeddedPostgresError: another guardian has the directory, no usable programs, no
                way to run them, or the server did not come up; the message says which.
        """
        assert self._process is None, "started twice"
        self._stopping.clear()
        try:
            self._prepare()
            self._spawn()
            self._wait_ready()
            self._finish_setup()
        except BaseException:
            self.stop()
            raise
        log.info(
            "embedded PostgreSQL is up",
            extra={"pg_pid": self.pid, "pg_major": self.major, "pg_way": self.way},
        )

    def stop(self) -> None:
        """Shut down, fast and then immediately; returns when the server is gone. Idempotent."""
        self._stopping.set()
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            self._shut_down(process)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _shut_down(self, process: subprocess.Popen[bytes]) -> None:
        for number, timeout_s in (
            (signal.SIGINT, self._stop_timeout_s),  # fast: ends sessions, writes a checkpoint
            (signal.SIGQUIT, 5.0),  # immediate: recovers at the next start
        ):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout_s)
                return
        log.error("embedded PostgreSQL did not stop and is killed", extra={"pg_pid": process.pid})
        process.kill()
        process.wait()

    # -- supervision ----------------------------------------------------------------------------

    async def supervise(self, on_exit: Callable[[int], None] | None = None) -> None:
        """Restart the server whenever it dies by itself; cancel to end. Run it on the main thread.

        Args:
            on_exit: told the exit status of each server that died.

        Raises:
            EmbeddedPostgresError: it died more than ``max_restarts`` times in a row.
        """
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            status = await self._wait_exit()
            if self._stopping.is_set():
                return
            failures = 0 if time.monotonic() - began > _STEADY_AFTER_S else failures
            log.error("embedded PostgreSQL died", extra={"status": status, "failures": failures})
            if on_exit is not None:
                on_exit(status)
            failures = await self._restart(failures)

    async def _restart(self, failures: int) -> int:
        """Until it is up again; the number of failures in a row so far."""
        while True:
            if failures >= self._max_restarts:
                raise EmbeddedPostgresError(
                    f"the embedded PostgreSQL keeps dying ({failures + 1} times in a row): "
                    f"{self._last_log()}"
                )
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1
            try:
                # a postmaster that was killed leaves backends, which leave when they notice
                await asyncio.to_thread(clear_away, self.data_dir, timeout_s=_ORPHAN_TIMEOUT_S)
                self._spawn()  # on this thread: the server is told when the thread ends
                await asyncio.to_thread(self._wait_ready)
            except EmbeddedPostgresError as error:
                log.warning("embedded PostgreSQL did not come back", extra={"error": str(error)})
                await asyncio.to_thread(self._reap)
            else:
                log.info("embedded PostgreSQL is back", extra={"pg_pid": self.pid})
                return failures

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            self._shut_down(process)

    async def _wait_exit(self) -> int:
        process = self._process
        assert process is not None, "supervised before started"
        if not hasattr(os, "pidfd_open"):
            return await asyncio.to_thread(process.wait)
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as cleanup:
            try:
                fd = os.pidfd_open(process.pid)
            except ProcessLookupError:  # gone and already waited for
                return process.wait()
            cleanup.callback(os.close, fd)
            gone = asyncio.Event()
            loop.add_reader(fd, gone.set)
            cleanup.callback(loop.remove_reader, fd)
            await gone.wait()
        return process.wait()

    # -- set-up ---------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._directory.parent.mkdir(parents=True, exist_ok=True)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._take_lock()
        version = self._data_version()
        self._identity, self._binaries = choose_identity(self._directory, find_binaries(version))
        # others may pass, not look: the server's user has to get to what is its own in here
        self._directory.chmod(0o711 if self._identity.file_uid != os.geteuid() else 0o700)
        clear_away(self.data_dir, timeout_s=_ORPHAN_TIMEOUT_S)
        self._rotate_log()
        if version is None:
            self._initialise()
        else:
            self._check_owner()
            self._identity.own(self.data_dir)
        self._socket_dir = self._make_socket_dir()
        if self._tcp is not None:
            host, port = self._tcp
            self._tcp = (host, port or _free_port(host))
            self._password = self._load_password()

    def _take_lock(self) -> None:
        fd = os.open(self._directory / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise EmbeddedPostgresError(
                "another guardian has the embedded PostgreSQL of this data directory"
            ) from None
        self._lock_fd = fd

    def _data_version(self) -> int | None:
        try:
            return int((self.data_dir / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise EmbeddedPostgresError(
                f"the data directory of the embedded PostgreSQL can not be read: {error}"
            ) from error

    def _check_owner(self) -> None:
        owner = self.data_dir.stat().st_uid
        if os.geteuid() not in (0, owner):
            raise EmbeddedPostgresError(
                f"the data directory belongs to user {owner}: it was used as root before; start as "
                "root again or change its owner"
            )

    def _initialise(self) -> None:
        """``initdb`` beside the final place, so that an interrupted one leaves nothing half."""
        binaries, identity = self._need_binaries(), self._need_identity()
        scratch = self._directory / "data.new"
        if scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir(mode=0o700)
        identity.own(scratch)
        command = [
            str(binaries.initdb),
            f"--pgdata={scratch}",
            f"--username={SUPERUSER}",
            "--encoding=UTF8",
            "--auth-local=trust",  # the directory of the socket decides who may connect
            "--auth-host=scram-sha-256",
            "--data-checksums",
            # byte order, the same with every version and on every system
            "--locale=C",
            *(() if self._fsync else ("--no-sync",)),
        ]
        if binaries.major >= 17:
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        with self._log_file() as log_fd:
            try:
                child = identity.popen(command, cwd=scratch, log_fd=log_fd, die_with_parent=True)
                status = child.wait(_INITDB_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait()
        if status != 0:
            raise EmbeddedPostgresError(f"initdb failed ({status}): {self._last_log()}")
        scratch.rename(self.data_dir)
        if self._fsync:
            _fsync_directory(self._directory)

    def _make_socket_dir(self) -> Path:
        identity = self._need_identity()
        path = self._directory / "run"
        if len(os.fsencode(path / ".s.PGSQL.65535")) > _SOCKET_PATH_BYTES:
            name = hashlib.sha256(os.fsencode(self._directory)).hexdigest()[:16]
            parent = Path(tempfile.gettempdir())
            if len(os.fsencode(parent)) > 50 or not reachable(parent, identity.run_uid):
                raise EmbeddedPostgresError(
                    "the data directory's path is too long for a socket, and the directory for "
                    "temporary files can not take it either: set TMPDIR or use a shorter path"
                )
            path = parent / f"guardian-pg-{name}"
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        ours = (os.geteuid(), identity.file_uid, identity.run_uid)
        # in a directory that all may write to, somebody else may have been there first
        if path.is_symlink() or found.st_uid not in ours:
            raise EmbeddedPostgresError("the directory for the socket belongs to somebody else")
        path.chmod(0o700)
        identity.own(path)
        return path

    def _load_password(self) -> str:
        path = self._directory / "tcp-password"
        with contextlib.suppress(FileExistsError):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(secrets.token_hex(24))
        password = path.read_text().strip()
        if not password:  # made by a run that was cut off
            path.unlink()
            return self._load_password()
        return password

    # -- the server -----------------------------------------------------------------------------

    def _spawn(self) -> None:
        # PR_SET_PDEATHSIG fires when the thread that forked ends, not the process
        assert threading.current_thread() is threading.main_thread(), "not the main thread"
        settings = {
            "listen_addresses": "" if self._tcp is None else self._tcp[0],
            "port": str(self._port),
            "unix_socket_directories": str(self._socket_dir),
            "unix_socket_permissions": "0700",
            "max_connections": str(self._max_connections),
            "shared_buffers": "32MB",
            "fsync": "on" if self._fsync else "off",
            "full_page_writes": "on" if self._fsync else "off",
            "synchronous_commit": "on" if self._fsync else "off",
            "timezone": "UTC",
            # the server's own story, not every refused statement: those hold users' data
            "log_min_messages": "log",
            "log_min_error_statement": "panic",
            "log_checkpoints": "off",
            "log_line_prefix": "%m [%p] ",
        }
        command = [str(self._need_binaries().postgres), "-D", str(self.data_dir)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self._log_file() as log_fd:
            try:
                self._process = self._need_identity().popen(
                    command, cwd=self.data_dir, log_fd=log_fd, die_with_parent=True
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise EmbeddedPostgresError(f"PostgreSQL could not be run: {error}") from error

    def _wait_ready(self) -> None:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            try:
                with psycopg.connect(self._admin_dsn(), connect_timeout=5):
                    return
            except psycopg.OperationalError as error:
                status = process.poll()
                if status is not None:
                    raise EmbeddedPostgresError(
                        f"PostgreSQL ended at once ({status}): {self._last_log()}"
                    ) from error
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(
                        f"PostgreSQL did not answer within {self._start_timeout_s:.0f} s: "
                        f"{self._last_log()}"
                    ) from error
            time.sleep(_POLL_S)

    def _finish_setup(self) -> None:
        """The database, and the password if there is TCP."""
        with psycopg.connect(self._admin_dsn(), autocommit=True) as connection:
            row = connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", (self._database,)
            ).fetchone()
            if row is None:
                connection.execute(
                    sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self._database))
                )
            if self._tcp is not None:
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                        sql.Identifier(SUPERUSER), sql.Literal(self._password)
                    )
                )

    def _admin_dsn(self) -> str:
        return self.dsn_of("postgres")

    @property
    def _port(self) -> int:
        return _PORT if self._tcp is None else self._tcp[1]

    # -- its log --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _log_file(self) -> Iterator[int]:
        fd = os.open(
            self._directory / "postgres.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        try:
            yield fd
        finally:
            os.close(fd)

    def _rotate_log(self) -> None:
        path = self._directory / "postgres.log"
        if path.exists() and path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))

    def _last_log(self) -> str:
        path = self._directory / "postgres.log"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2000))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return " | ".join(lines[-5:])

    def _need_binaries(self) -> PostgresBinaries:
        if self._binaries is None:
            raise EmbeddedPostgresError("the embedded PostgreSQL has not been started")
        return self._binaries

    def _need_identity(self) -> Identity:
        if self._identity is None:
            raise EmbeddedPostgresError("the embedded PostgreSQL has not been started")
        return self._identity


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
