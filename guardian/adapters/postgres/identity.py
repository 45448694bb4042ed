"""As whom the embedded server runs.

PostgreSQL refuses to run as root. An ordinary user runs it as themself; for root there are three
ways, tried in this order, none of which creates a user or touches the mode of a directory that is
not ours:

``setuid``
    The server runs as ``nobody``. Needs every directory above its files to be open to others.
``user_namespace``
    The server sees itself as ``nobody`` in a user namespace of its own while its files stay
    root's. Works below closed directories; containers often forbid it.
``capability``
    The server runs as ``nobody`` with the one capability to pass closed directories. Works below
    closed directories in a container, too.

All of it happens in the child between fork and exec, through functions resolved before the fork.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from guardian.adapters.postgres.binaries import PostgresBinaries, stage
from guardian.adapters.postgres.errors import EmbeddedPostgresError

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CLONE_NEWUSER = 0x10000000
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522
_PROBE_TIMEOUT_S = 20.0

_LINUX = os.uname().sysname == "Linux"
_libc = ctypes.CDLL(None, use_errno=True)


class Way(StrEnum):
    SELF = "self"
    SETUID = "setuid"
    USER_NAMESPACE = "user_namespace"
    CAPABILITY = "capability"


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """A way to run the server, and the owner its files have as seen from this process."""

    way: Way
    file_uid: int
    file_gid: int
    run_uid: int
    run_gid: int

    def popen(
        self, command: Sequence[str], *, cwd: Path, log_fd: int, die_with_parent: bool
    ) -> subprocess.Popen[bytes]:
        """Start ``command`` as this identity in a session of its own.

        Args:
            log_fd: takes its standard output and error.
            die_with_parent: SIGINT to it (PostgreSQL: fast shutdown) when the calling *thread*
                ends, so call from the main thread (prctl(2), PR_SET_PDEATHSIG).

        Raises:
            OSError, subprocess.SubprocessError: it could not be started that way.
        """
        return subprocess.Popen(  # noqa: S603 - a program that was found, no shell
            list(command),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            env=_environment(),
            start_new_session=True,
            preexec_fn=self._entry(  # noqa: PLW1509 - only functions resolved before the fork
                os.getpid(), die_with_parent=die_with_parent
            ),
        )

    def works(self, program: Path) -> bool:
        """Whether ``program --version`` runs as this identity."""
        try:
            done = subprocess.run(  # noqa: S603 - a program that was found, no shell
                [str(program), "--version"],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_PROBE_TIMEOUT_S,
                check=False,
                preexec_fn=self._entry(os.getpid(), die_with_parent=False),
            )
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0

    def own(self, path: Path) -> None:
        """Give ``path`` and all below to the server's user. Only root has anything to do here."""
        if os.geteuid() != 0 or path.lstat().st_uid == self.file_uid:
            return
        for directory, names, files in os.walk(path):
            for name in (*names, *files):
                os.lchown(os.path.join(directory, name), self.file_uid, self.file_gid)
        # the top last: it is what tells whether an earlier, interrupted run came through
        os.lchown(path, self.file_uid, self.file_gid)

    def _entry(self, parent: int, *, die_with_parent: bool) -> Callable[[], None]:
        """What the child does between fork and exec."""

        def enter() -> None:
            os.umask(0o077)
            if self.way is Way.SETUID:
                _set_user(self.run_uid, self.run_gid)
            elif self.way is Way.USER_NAMESPACE:
                _enter_user_namespace(self.run_uid, self.run_gid)
            elif self.way is Way.CAPABILITY:
                _keep_one_capability(self.run_uid, self.run_gid)
            if die_with_parent and _LINUX:
                # after the change of user, which clears it
                _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0))
                if os.getppid() != parent:  # it died before the request was in place
                    os._exit(1)

        return enter


def choose_identity(
    directory: Path, binaries: PostgresBinaries
) -> tuple[Identity, PostgresBinaries]:
    """The way to run a server whose files live in ``directory``, and the programs to run that way
    (a copy below ``directory`` if the originals are out of reach).

    Raises:
        EmbeddedPostgresError: running as root, and no way works here.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0:
        return Identity(Way.SELF, uid, gid, uid, gid), binaries
    nobody, nogroup = _nobody()
    if reachable(directory.parent, nobody):
        as_nobody = Identity(Way.SETUID, nobody, nogroup, nobody, nogroup)
        if as_nobody.works(binaries.initdb):
            return as_nobody, binaries
        staged = stage(binaries, directory)
        if staged is not None and as_nobody.works(staged.initdb):
            return as_nobody, staged
    if _LINUX:
        for identity in (
            Identity(Way.USER_NAMESPACE, 0, 0, nobody, nogroup),
            Identity(Way.CAPABILITY, nobody, nogroup, nobody, nogroup),
        ):
            if identity.works(binaries.initdb):
                return identity, binaries
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root, and the user 'nobody' can not reach its files: start as "
        "an ordinary user, put the data directory below directories that others may enter, or "
        "point DATABASE_URL at a PostgreSQL of yours (Debian, Ubuntu: apt-get install postgresql)"
    )


def reachable(path: Path, uid: int) -> bool:
    """Whether a user without groups may enter ``path`` and all directories above it."""
    for directory in (path.resolve(), *path.resolve().parents):
        found = directory.stat()
        needed = stat.S_IXUSR if found.st_uid == uid else stat.S_IXOTH
        if not found.st_mode & needed:
            return False
    return True


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return entry.pw_uid, entry.pw_gid


def _environment() -> dict[str, str]:
    """Nothing of ours but what finds programs: no PG* variable, no locale, no secret."""
    kept = {name: os.environ[name] for name in ("PATH", "TZDIR", "TMPDIR") if name in os.environ}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C", "TZ": "UTC"}


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _set_user(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _enter_user_namespace(uid: int, gid: int) -> None:
    _checked(_libc.unshare(_CLONE_NEWUSER))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} 0 1"),
        ("gid_map", f"{gid} 0 1"),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(fd, text.encode())
        os.close(fd)


def _keep_one_capability(uid: int, gid: int) -> None:
    _checked(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    _set_user(uid, gid)
    mask = 1 << _CAP_DAC_OVERRIDE
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    sets = (_CapabilitySets * 2)(_CapabilitySets(mask, mask, mask), _CapabilitySets(0, 0, 0))
    _checked(_libc.capset(ctypes.byref(header), sets))
    _checked(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0))
