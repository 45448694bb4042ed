"""The data directory: its lock, its identity, and how it comes into being (D1).

Layout::

    LOCK        flock for the life of the process
    FOUNDING    only while the directory is still forming: node id, incarnation, and what for
    IDENTITY    who the directory belongs to; written once
    FLOOR       the least that the log must hold
    QUARANTINE  only while this node lacks something that it had said was durable
    log/        the log's LMDB environment
    log.damaged-1 ...  logs that were found damaged, kept for whoever wants to look
    snap/       snapshot files

Beside the directory, ``.<name>.raft-cluster`` says that a cluster once lived there.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftcore.core.membership import decode_configuration, encode_configuration
from raftcore.core.types import Configuration
from raftcore.errors import (
    BootstrapError,
    ForkedError,
    IdentityError,
    LockedError,
    LogCorruptError,
    StorageError,
)
from raftcore.naming import check_node_id
from raftcore.storage.base import Identity
from raftcore.storage.environment import create_log
from raftcore.storage.files import FILE_MODE, Files, storage_errors
from raftcore.storage.filesystem import check_filesystem, read_mountinfo
from raftcore.storage.latch import Latch
from raftcore.storage.records import RecordError, check_format, seal, stamp, unseal

_log = logging.getLogger(__name__)

INCARNATION_SIZE = 16
MARKER_SUFFIX = ".raft-cluster"

#: The LMDB engine that writes the log: format 1 of the 0.9 line (``lib_version=0``).
ENGINE = "lmdb-0.9"

#: What a directory without IDENTITY and FOUNDING cannot hold unless something was lost.
_NEEDS_IDENTITY = ("log", "log.new", "snap", "FLOOR", "QUARANTINE")

_open_directories: weakref.WeakSet[DataDirectory] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Marker:
    """What the marker beside a directory says about the cluster that lived in it."""

    cluster_id: str
    node_id: str
    members: tuple[str, ...]


class DataDirectory:
    """A locked data directory of one node. Made by :meth:`open`; released by :meth:`close`."""

    def __init__(self, path: Path, node_id: str, files: Files, lock_fd: int) -> None:
        self.path = path
        self.node_id = node_id
        self.files = files
        self._lock_fd = lock_fd
        self._latch = Latch()
        self._founding: dict[str, Any] | None = None
        self._identity: Identity | None = None

    # -- opening --------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        node_id: str,
        *,
        allow_unsupported_fs: bool = False,
        files: Files | None = None,
        mountinfo: str | None = None,
    ) -> DataDirectory:
        """Create the directory if need be, check its file system, lock it, read its identity.

        ``mountinfo`` replaces the text of the system's mount table, for tests.

        Raises:
            UnsupportedFilesystemError: see :func:`check_filesystem`.
            LockedError: another process, or this one, has it open.
            IdentityError: it belongs to another node, a record is damaged, or the directory is
                empty and no node may be called that (see ``raftcore.naming``).
            FormatTooNewError: a newer release wrote it; nothing has been touched.
            StorageError: the operating system refused.
        """
        files = files or Files()
        root = Path(path).absolute()
        _check_name(root, node_id)
        with storage_errors(f"opening the data directory {root}"):
            files.make_directory(root)
            root = root.resolve()
            table = read_mountinfo() if mountinfo is None else mountinfo
            check_filesystem(root, mountinfo=table, allow_unsupported=allow_unsupported_fs)
            directory = cls(root, node_id, files, _lock(root / "LOCK"))
            try:
                directory._read_records()
                directory._write_lock_owner()
                directory._finish_creation()
            except BaseException:
                directory.close()
                raise
        _open_directories.add(directory)
        return directory

    def _read_records(self) -> None:
        self._founding = self._read("FOUNDING")
        body = self._read("IDENTITY")
        if body is not None:
            self._identity = _identity_of(body, self.node_id)
        if self._founding is not None:
            _check_founding(self._founding, self.node_id, self._identity)
        elif self._identity is None:
            found = [name for name in _NEEDS_IDENTITY if (self.path / name).exists()]
            if found:
                raise IdentityError(f"{self.path} holds {', '.join(found)} but no IDENTITY")

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            raw = (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        try:
            body = unseal(raw)
            check_format(body, name)
        except RecordError as error:
            raise IdentityError(f"{name} in {self.path} is damaged: {error}") from error
        return body

    def _write_lock_owner(self) -> None:
        """Say who holds the lock, for the message of whoever is refused; not a lock by itself."""
        owner = f"pid {os.getpid()} since {int(time.time())}\n".encode()
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, owner, 0)

    def _finish_creation(self) -> None:
        """Complete a creation that a crash cut off after IDENTITY was there."""
        for name in ("IDENTITY.tmp", "FOUNDING.tmp", "FLOOR.tmp", "QUARANTINE.tmp"):
            self.files.remove(self.path / name)
        if self._identity is None or self._founding is None:
            return
        raw = self._founding.get("configuration")
        if raw is not None:
            members = decode_configuration(raw.encode()).members
            self._write_marker(self._identity, [member.node_id for member in members])
        elif "joining" in self._founding:
            self._write_marker(self._identity, ())
        self._remove_founding()

    # -- what is known --------------------------------------------------------------------------

    @property
    def identity(self) -> Identity | None:
        """Who the directory belongs to; None while it is empty or still forming."""
        self._check_usable()
        return self._identity

    @property
    def log_path(self) -> Path:
        return self.path / "log"

    @property
    def snapshot_path(self) -> Path:
        return self.path / "snap"

    @property
    def marker_path(self) -> Path:
        return self.path.parent / f".{self.path.name}{MARKER_SUFFIX}"

    def marker(self) -> Marker | None:
        """What is known of a cluster that lived here before, or None.

        Raises:
            IdentityError: there is a marker but it cannot be read: somebody must look.
        """
        self._check_usable()
        try:
            body = unseal(self.marker_path.read_bytes())
            return Marker(body["cluster_id"], body["node_id"], tuple(body["members"]))
        except FileNotFoundError:
            return None
        except (RecordError, KeyError, TypeError) as error:
            raise IdentityError(f"{self.marker_path} is damaged: {error}") from error
        except OSError as error:
            raise StorageError(f"reading {self.marker_path}: {error}") from error

    # -- creation -------------------------------------------------------------------------------

    def founding_incarnation(self) -> bytes:
        """This directory's incarnation, drawn and made durable at the first call.

        Must be called before the first contact with peers, so that a crash in the middle of
        founding or joining never shows them two incarnations of one directory.
        """
        self._check_usable()
        if self._identity is not None:
            return self._identity.incarnation
        if self._founding is None:
            self._write_founding(secrets.token_bytes(INCARNATION_SIZE), {})
        assert self._founding is not None
        return bytes.fromhex(self._founding["incarnation"])

    def bootstrap(self, configuration: Configuration) -> Identity:
        """Create the log with ``configuration`` as entry 1, then IDENTITY, then the marker.

        Every founder that is given the same configuration writes the same entry. A crash at any
        step leaves a directory that is still forming (call it again) or a finished one.

        Raises:
            BootstrapError: there is an identity already, or the configuration does not hold this
                node with this directory's incarnation.
            StorageError: the disk failed.
        """
        self._check_empty()
        incarnation = self.founding_incarnation()
        member = configuration.member(self.node_id)
        if member is None or member.incarnation != incarnation:
            raise BootstrapError(
                f"the bootstrap configuration does not hold {self.node_id} as it is here"
            )
        identity = Identity(configuration.cluster_id, self.node_id, incarnation)
        self._create(identity, configuration)
        _log.info("bootstrapped %s of cluster %s", self.node_id, configuration.cluster_id)
        return identity

    def join(self, cluster_id: str) -> Identity:
        """Create an empty log for a node that joins a cluster which others founded.

        The log holds nothing, not even a configuration: everything comes from the leader. A crash
        at any step leaves a directory that is still forming (call it again) or a finished one.

        Raises:
            BootstrapError: there is an identity already.
            StorageError: the disk failed.
        """
        self._check_empty()
        identity = Identity(cluster_id, self.node_id, self.founding_incarnation())
        self._create(identity, None)
        _log.info("%s is to join cluster %s", self.node_id, cluster_id)
        return identity

    def _check_empty(self) -> None:
        self._check_usable()
        if self._identity is not None:
            raise BootstrapError(f"{self.path} belongs to cluster {self._identity.cluster_id}")

    def _create(self, identity: Identity, configuration: Configuration | None) -> None:
        """FOUNDING says what for, then the log, then IDENTITY, then the marker."""
        if configuration is None:
            purpose, members = {"joining": identity.cluster_id}, []
        else:
            purpose = {"configuration": encode_configuration(configuration).decode()}
            members = [member.node_id for member in configuration.members]
        with self._final(f"creating {self.path}"):
            self._write_founding(identity.incarnation, purpose)
            self._create_log(identity, configuration)
            self._write_identity(identity)
            self._identity = identity
            self._write_marker(identity, members)
            self._remove_founding()

    def adopt_log(self, configuration: Configuration, incarnation: bytes) -> Identity:
        """Give a directory whose log and snapshots were just built in it its IDENTITY, then marker.

        For recovery and restore. IDENTITY is what makes the directory one that may be opened: a
        crash before leaves a log without it, which every start refuses.

        Raises:
            BootstrapError: there is an identity already.
            StorageError: the disk failed.
        """
        self._check_usable()
        if self._identity is not None or self._founding is not None:
            raise BootstrapError(f"{self.path} is not an empty directory")
        identity = Identity(configuration.cluster_id, self.node_id, incarnation)
        with self._final(f"finishing {self.path}"):
            self.files.fsync_directory(self.path)
            self._write_identity(identity)
            self._identity = identity
            self._write_marker(identity, [member.node_id for member in configuration.members])
        return identity

    def _write_founding(self, incarnation: bytes, purpose: dict[str, str]) -> None:
        body = stamp({"node_id": self.node_id, "incarnation": incarnation.hex(), **purpose})
        with self._final("writing FOUNDING"):
            self.files.write_atomically(self.path / "FOUNDING", seal(body))
        self._founding = body

    def _create_log(self, identity: Identity, configuration: Configuration | None) -> None:
        """Build the log aside and move it into place; what a cut-off try left is removed."""
        aside = self.path / "log.new"
        clear_directories(self.files, aside, self.log_path)
        self.files.reached("log:cleared")
        self.files.make_directory(aside)
        create_log(aside, identity, configuration)
        self.files.reached("log:filled")
        self.files.fsync_path(aside / "data.mdb")
        self.files.fsync_directory(aside)
        self.files.reached("log:synced")
        self.files.rename(aside, self.log_path)
        self.files.reached("log:renamed")

    def _write_identity(self, identity: Identity) -> None:
        self.files.write_atomically(self.path / "IDENTITY", identity_record(identity))

    def _write_marker(self, identity: Identity, members: Sequence[str]) -> None:
        """Best effort by nature: the parent may belong to somebody else, be another file system
        (a mount point), be read-only, or be full. Nothing of this directory depends on it."""
        body = stamp(
            {
                "cluster_id": identity.cluster_id,
                "node_id": self.node_id,
                "members": list(members),
            }
        )
        try:
            self.files.write_atomically(self.marker_path, seal(body))
        except OSError as error:
            _log.warning("no marker beside %s: %s", self.path, error)
            with contextlib.suppress(OSError):  # what is left of the attempt, if anything
                self.marker_path.with_name(self.marker_path.name + ".tmp").unlink()

    def _remove_founding(self) -> None:
        self.files.remove(self.path / "FOUNDING")
        self._founding = None
        self.files.reached("founding:removed")

    # -- life -----------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        self._latch.check()

    @contextlib.contextmanager
    def _final(self, doing: str) -> Iterator[None]:
        """A failed write is final here too: what reached the disk is only known after a restart."""
        try:
            with storage_errors(doing):
                yield
        except StorageError as error:
            self._latch.trip(error)
            raise

    def close(self) -> None:
        """Release the lock. Harmless when repeated."""
        if self._lock_fd >= 0:
            self._latch.trip(StorageError(f"{self.path} is closed"))
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _after_fork_in_child(self) -> None:
        """Drop the child's copy of the lock: held by it, the lock would outlive the parent."""
        self._latch.poison(ForkedError(f"{self.path} was opened before fork()"))
        self.close()


def _check_name(root: Path, node_id: str) -> None:
    """A directory that a node has already keeps its name, whatever the rule was then."""
    if any((root / name).exists() for name in ("IDENTITY", "FOUNDING")):
        return
    try:
        check_node_id(node_id)
    except ValueError as error:
        raise IdentityError(str(error)) from error


def clear_directories(files: Files, *paths: Path) -> None:
    """Remove those trees, as far as they are there; durable when this returns."""
    for path in paths:
        if path.exists():
            shutil.rmtree(path)
    for parent in {path.parent for path in paths}:
        files.fsync_directory(parent)


def _lock(path: Path) -> int:
    """Take the lock, or raise :class:`LockedError` at once.

    ``flock`` belongs to the open file, so a second open in this same process is refused too, and
    the lock dies with the process however it dies.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode=FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(fd, 100, 0).decode(errors="replace").strip()
        os.close(fd)
        raise LockedError(f"{path.parent} is in use ({owner or 'holder unknown'})") from error
    except OSError:
        os.close(fd)
        raise
    return fd


def identity_record(identity: Identity) -> bytes:
    """The content of the file IDENTITY."""
    body = {
        "cluster_id": identity.cluster_id,
        "node_id": identity.node_id,
        "incarnation": identity.incarnation.hex(),
        "engine": ENGINE,
    }
    return seal(stamp(body))


def _identity_of(body: dict[str, Any], node_id: str) -> Identity:
    try:
        identity = Identity(body["cluster_id"], body["node_id"], bytes.fromhex(body["incarnation"]))
        engine = body["engine"]
    except (KeyError, TypeError, ValueError) as error:
        raise IdentityError(f"IDENTITY is incomplete: {error!r}") from error
    if identity.node_id != node_id:
        raise IdentityError(f"the directory belongs to {identity.node_id}, this is {node_id}")
    if engine != ENGINE:
        raise LogCorruptError(f"the log was written by engine {engine}, this is {ENGINE}")
    return identity


def _check_founding(body: dict[str, Any], node_id: str, identity: Identity | None) -> None:
    try:
        incarnation = bytes.fromhex(body["incarnation"])
        owner = body["node_id"]
    except (KeyError, TypeError, ValueError) as error:
        raise IdentityError(f"FOUNDING is incomplete: {error!r}") from error
    if owner != node_id:
        raise IdentityError(f"the directory was begun by {owner}, this is {node_id}")
    if identity is not None and identity.incarnation != incarnation:
        raise IdentityError("FOUNDING and IDENTITY name different incarnations")


def _after_fork_in_child() -> None:
    for directory in tuple(_open_directories):
        directory._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
