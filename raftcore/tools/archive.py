"""Backups: one file that holds what a directory held, and the new cluster that is made from it.

An archive is an uncompressed tar. First MANIFEST, a sealed record that names every other file with
its size and SHA-256; then those files. Of a stopped node: IDENTITY, a compact copy of the log, the
snapshot in force and the older ones. Of a running node: IDENTITY and its newest snapshot.

A restore always makes a *new cluster*. A restored copy has forgotten what its node acknowledged and
whom it voted for after the backup; in the old cluster it could vote twice in one term and make
committed entries disappear. So there is no way to restore into the old cluster: a member that lost
its directory is removed and joins again, empty, with a new incarnation, and is sent the data by the
leader.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from raftcore.core.types import HardState, SnapshotMeta
from raftcore.errors import LogCorruptError, RefusedError
from raftcore.storage.base import Identity, LogStorage
from raftcore.storage.closed import ORIGIN_FILE, ClosedDirectory
from raftcore.storage.directory import identity_record
from raftcore.storage.environment import DATA_FILE
from raftcore.storage.files import FILE_MODE, Files, storage_errors
from raftcore.storage.plan import Link, Shape
from raftcore.storage.records import RecordError, check_format, seal, stamp, unseal
from raftcore.tools.progress import Progress, silent
from raftcore.tools.rebuilding import (
    AS_BEFORE,
    NewMember,
    Rebuilt,
    Source,
    check_empty,
    check_outside,
    rebuild,
    verified_source,
)

MANIFEST = "MANIFEST"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 64
_COPY_BYTES = 1 << 20
_LOG_NAME = f"log/{DATA_FILE}"
#: What a backup may hold, so that no name leads out of the directory it is unpacked into.
_NAME = re.compile(r"IDENTITY|ORIGIN|log/data\.mdb|snap/\d{1,19}-\d{1,19}\.snap")


@dataclass(frozen=True, slots=True)
class Archived:
    """A backup that was made. ``digest`` is the SHA-256 of its MANIFEST: whoever keeps it apart
    from the archive can tell later that nobody has replaced it."""

    path: Path
    identity: Identity
    last_index: int
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Part:
    """One file to be archived; ``open`` gives its content."""

    name: str
    size_bytes: int
    sha256: str
    open: Callable[[], IO[bytes]]


# -- making one ----------------------------------------------------------------------------------


def backup(
    directory: ClosedDirectory,
    out: str | os.PathLike[str],
    *,
    despite_doubt: bool = False,
    on_progress: Progress = silent,
) -> Archived:
    """Archive the directory of a stopped node into the new file ``out``.

    Everything is verified first: a backup that could not be restored is worse than none. A log that
    needs a snapshot other than the newest, because that is damaged, is archived with what it needs.
    ``despite_doubt``: also a directory that may lack what its node acknowledged (it is in
    quarantine, or below its FLOOR); the archive, and what is restored from it, says so.

    Raises:
        RefusedError: ``out`` exists or is in the directory, or that is in doubt.
        IdentityError, LogCorruptError, GapError: the directory is not sound.
        StorageError: reading or writing failed.
    """
    path, files = Path(out).absolute(), Files()
    _check_new(path)
    check_outside(path, [directory.path])
    with directory.log() as log, _staging(path.parent) as aside:
        on_progress("verifying", 0, 0)
        source, doubt = verified_source(directory, log), directory.doubt(log)
        if doubt is not None and not despite_doubt:
            raise RefusedError(f"{directory.path} may lack what was acknowledged: {doubt}")
        on_progress("copying the log", 0, source.size_bytes)
        log.copy_to(aside)
        parts = [_part_of("IDENTITY", directory.path / "IDENTITY")]
        if source.origin is not None:
            parts.append(_part_of(ORIGIN_FILE, directory.path / ORIGIN_FILE))
        parts.append(_part_of(_LOG_NAME, aside / DATA_FILE))
        for position in directory.snapshots.positions():
            if directory.snapshots.verified_or_none(*position) is not None:
                file = directory.snapshots.file_of(*position)
                parts.append(_part_of(f"snap/{file.name}", file))
        tip = source.shape.tip
        body = _manifest_body("stopped", source.identity, tip.index, tip.term, parts, doubt)
        return _write_archive(path, body, parts, files, on_progress)


def backup_running(
    storage: LogStorage, out: str | os.PathLike[str], *, on_progress: Progress = silent
) -> Archived:
    """Archive the newest snapshot of a node that runs, into the new file ``out``.

    Raises:
        RefusedError: ``out`` exists, there is no snapshot yet, or newer ones replaced it meanwhile
            (try again).
        StorageError: reading or writing failed.
    """
    path = Path(out).absolute()
    _check_new(path)
    meta = storage.newest_snapshot()
    if meta is None:
        raise RefusedError("there is no snapshot to back up yet")
    parts = [
        _part_with("IDENTITY", identity_record(storage.identity)),
        _Part(
            f"snap/{meta.index}-{meta.term}.snap",
            meta.size_bytes,
            meta.digest.hex(),
            lambda: io.BufferedReader(_SnapshotReader(storage, meta), _COPY_BYTES),
        ),
    ]
    body = _manifest_body("running", storage.identity, meta.index, meta.term, parts)
    return _write_archive(path, body, parts, Files(), on_progress)


def _check_new(path: Path) -> None:
    with storage_errors(f"looking at {path}"):
        if path.exists():
            raise RefusedError(f"{path} exists")
        if not path.parent.is_dir():
            raise RefusedError(f"{path.parent} is not a directory")


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A directory of our own on the same file system, gone afterwards."""
    with storage_errors(f"working in {parent}"):
        made = tempfile.mkdtemp(prefix=".raftcore-", dir=parent)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made)


def _part_of(name: str, path: Path) -> _Part:
    with storage_errors(f"reading {path}"), path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
        return _Part(name, source.tell(), digest, lambda: path.open("rb"))


def _part_with(name: str, data: bytes) -> _Part:
    return _Part(name, len(data), _sha256(data), lambda: io.BytesIO(data))


class _SnapshotReader(io.RawIOBase):
    """Reads a snapshot of a running node in the chunks that its store gives."""

    def __init__(self, storage: LogStorage, meta: SnapshotMeta) -> None:
        super().__init__()
        self._storage = storage
        self._meta = meta
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._offset == self._meta.size_bytes:
            return 0
        data = self._storage.read_snapshot_chunk(self._meta, self._offset, len(buffer))
        if not data:
            raise RefusedError(f"snapshot {self._meta.index} was replaced by newer ones; try again")
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _manifest_body(
    kind: str,
    identity: Identity,
    last_index: int,
    last_term: int,
    parts: Sequence[_Part],
    doubt: str | None = None,
) -> dict[str, Any]:
    return stamp(
        {
            "kind": kind,
            "made_unix_s": int(time.time()),
            "cluster_id": identity.cluster_id,
            "node_id": identity.node_id,
            "incarnation": identity.incarnation.hex(),
            "last_index": last_index,
            "last_term": last_term,
            "files": {p.name: {"size_bytes": p.size_bytes, "sha256": p.sha256} for p in parts},
            **({} if doubt is None else {"doubt": doubt}),
        }
    )


def _write_archive(
    path: Path,
    body: dict[str, Any],
    parts: Sequence[_Part],
    files: Files,
    on_progress: Progress,
) -> Archived:
    """Under a name of our own until it is complete and synced."""
    manifest = seal(body)
    with storage_errors(f"writing {path}"):
        fd, name = tempfile.mkstemp(prefix=".raftcore-", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with storage_errors(f"writing {path}"):
            with os.fdopen(fd, "wb") as sink:
                _write_tar(sink, manifest, parts, on_progress)
                sink.flush()
                files.fsync(sink.fileno())
                size_bytes = sink.tell()
            _publish(temporary, path, files)
    finally:
        temporary.unlink(missing_ok=True)
    identity = Identity(body["cluster_id"], body["node_id"], bytes.fromhex(body["incarnation"]))
    return Archived(path, identity, body["last_index"], size_bytes, _sha256(manifest))


def _publish(temporary: Path, path: Path, files: Files) -> None:
    """Give the file its name, which a rename alone would take from one that came meanwhile."""
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # no links on this file system: claim the name first
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
            files.rename(temporary, path)
            return
    except FileExistsError as error:
        raise RefusedError(f"{path} exists") from error
    files.remove(temporary)


def _write_tar(
    sink: IO[bytes], manifest: bytes, parts: Sequence[_Part], on_progress: Progress
) -> None:
    first = _part_with(MANIFEST, manifest)
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number, part in enumerate((first, *parts)):
            on_progress("writing the archive", number, len(parts) + 1)
            info = tarfile.TarInfo(part.name)
            info.size, info.mode, info.mtime = part.size_bytes, FILE_MODE, int(time.time())
            with part.open() as content:
                tar.addfile(info, content)


# -- restoring one -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Backup:
    """An archive whose every byte matched its manifest, unpacked for the time of a restore."""

    manifest: dict[str, Any]
    digest: str
    source: Source
    staging: Path


@contextlib.contextmanager
def open_backup(
    archive: str | os.PathLike[str], *, aside: Path, digest: str | None = None
) -> Iterator[Backup]:
    """Unpack ``archive`` into a directory of its own below ``aside`` and verify everything in it.

    ``digest`` is that of the MANIFEST, as :func:`backup` returned it, if it is known.

    Raises:
        LogCorruptError: a byte is not what it was, something is missing or does not belong.
        FormatTooNewError: a newer release wrote it.
        StorageError: reading or writing failed.
    """
    with contextlib.ExitStack() as held:
        place = held.enter_context(_staging(aside))
        manifest, found = _unpack(Path(archive), place, digest)
        directory = held.enter_context(ClosedDirectory.open(place))
        identity = directory.identity()
        named = [manifest.get(key) for key in ("cluster_id", "node_id", "incarnation")]
        if named != [identity.cluster_id, identity.node_id, identity.incarnation.hex()]:
            raise LogCorruptError("MANIFEST and IDENTITY name different nodes")
        if (place / _LOG_NAME).exists():
            source = verified_source(directory, held.enter_context(directory.log()))
        else:
            source = _snapshot_source(directory, identity)
        yield Backup(manifest, found, source, place)


def restore(
    archive: str | os.PathLike[str],
    into: str | os.PathLike[str],
    *,
    member: NewMember = AS_BEFORE,
    digest: str | None = None,
    staging: str | os.PathLike[str] | None = None,
    allow_unsupported_fs: bool = False,
    on_progress: Progress = silent,
) -> Rebuilt:
    """Make the new directory ``into`` a new cluster of one with what ``archive`` holds.

    ``member`` is who it is to be; by default the node that was backed up, at its address then. The
    archive is unpacked below ``staging``: by default ``into`` itself if it is there (a mount point
    has the space, what it is mounted on perhaps not), else the directory it will be in.

    Raises:
        RefusedError: ``into`` is not empty, or see
            :meth:`~raftcore.tools.rebuilding.NewMember.resolve`.
        LogCorruptError, FormatTooNewError, StorageError: see :func:`open_backup`.
    """
    target = Path(into).absolute()
    check_empty(target)
    aside = target if target.is_dir() else target.parent
    if staging is not None:
        aside = Path(staging).absolute()
    Files().make_directory(aside)
    with open_backup(archive, aside=aside, digest=digest) as found:
        manifest = found.manifest
        details: dict[str, Any] = {"manifest": found.digest}
        details |= {key: manifest[key] for key in ("made_unix_s", "doubt") if key in manifest}
        return rebuild(
            found.source,
            target,
            member,
            kind="restored",
            details=details,
            allow_unsupported_fs=allow_unsupported_fs,
            staging=found.staging.name if found.staging.parent == target else "",
            on_progress=on_progress,
        )


def _snapshot_source(directory: ClosedDirectory, identity: Identity) -> Source:
    """The backup of a running node: a snapshot is all there is."""
    positions = directory.snapshots.positions()
    if not positions:
        raise LogCorruptError("the archive holds neither a log nor a snapshot")
    meta = directory.snapshots.verify(*positions[0])
    link = Link(meta.index, meta.term, meta.chain)
    return Source(
        identity=identity,
        shape=Shape(HardState(meta.term, None), meta.index, before=link, tip=link, snapshot=meta),
        configurations=((meta.index, meta.configuration),),
        origin=None,
        size_bytes=0,
        records=lambda: directory.snapshots.records(meta),
        entries=lambda: iter(()),
    )


def _unpack(archive: Path, place: Path, digest: str | None) -> tuple[dict[str, Any], str]:
    """The manifest and its digest, once every file is in ``place`` and matches it."""
    try:
        with storage_errors(f"reading {archive}"), _open_tar(archive) as tar:
            raw = _read_manifest(tar, archive)
            if digest is not None and _sha256(raw) != digest:
                raise LogCorruptError(f"{archive} is not the backup with digest {digest}")
            manifest = _check_manifest(raw)
            wanted = dict(manifest["files"])
            while (info := tar.next()) is not None:
                expected = wanted.pop(info.name, None)
                # A sparse member could stand for more bytes than the archive has.
                if expected is None or info.type != tarfile.REGTYPE or info.issparse():
                    raise LogCorruptError(f"{info.name!r} does not belong into {archive}")
                _unpack_file(tar, info, place / info.name, expected)
    except (tarfile.TarError, EOFError) as error:
        raise LogCorruptError(f"{archive}: {error}") from error
    if wanted:
        raise LogCorruptError(f"{archive} lacks {', '.join(sorted(wanted))}")
    return manifest, _sha256(raw)


def _open_tar(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive, "r:")
    except (tarfile.TarError, EOFError) as error:
        raise LogCorruptError(f"{archive} is not a raftcore archive: no tar") from error


def _read_manifest(tar: tarfile.TarFile, archive: Path) -> bytes:
    info = tar.next()
    if info is None or info.name != MANIFEST or info.issparse():
        raise LogCorruptError(
            f"{archive} is not a raftcore archive: it does not begin with a MANIFEST"
        )
    if info.size > MAX_MANIFEST_BYTES:
        raise LogCorruptError(f"the MANIFEST of {archive} has {info.size} bytes, too many")
    file = tar.extractfile(info)
    raw = b"" if file is None else file.read()
    if len(raw) != info.size:
        raise LogCorruptError("the archive ends inside its MANIFEST")
    return raw


def _check_manifest(raw: bytes) -> dict[str, Any]:
    try:
        body = unseal(raw)
        check_format(body, MANIFEST)
        files = body["files"]
        sound = type(body["made_unix_s"]) is int and 0 < len(files) <= MAX_FILES
        sound &= isinstance(body.get("doubt", ""), str)
        for name, facts in files.items():
            size_bytes, sha256 = facts["size_bytes"], facts["sha256"]
            sound &= _NAME.fullmatch(name) is not None and type(size_bytes) is int
            sound &= isinstance(sha256, str)
    except (RecordError, KeyError, TypeError, AttributeError) as error:
        raise LogCorruptError(f"MANIFEST does not read: {error!r}") from error
    if not sound:
        raise LogCorruptError("MANIFEST names what no backup holds")
    return body


def _unpack_file(
    tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path, expected: dict[str, Any]
) -> None:
    file = tar.extractfile(info)
    if file is None or info.size != expected["size_bytes"]:
        raise LogCorruptError(f"{info.name} has {info.size} bytes, not {expected['size_bytes']}")
    path.parent.mkdir(exist_ok=True)
    digest = hashlib.sha256()
    with path.open("xb") as sink:
        while data := file.read(_COPY_BYTES):
            digest.update(data)
            sink.write(data)
    if digest.hexdigest() != expected["sha256"]:
        raise LogCorruptError(f"{info.name} is not what was backed up")
