"""Backups: nothing that was changed is restored, and a restore is always a new cluster."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftcore.errors import FormatTooNewError, LogCorruptError, RefusedError, StorageError
from raftcore.storage.closed import ClosedDirectory
from raftcore.storage.records import seal, unseal
from raftcore.tools.archive import (
    MAX_MANIFEST_BYTES,
    Archived,
    backup,
    backup_running,
    restore,
)
from raftcore.tools.rebuilding import NewMember
from raftcore.tools.verification import verify

Directories = Any  #: of the conftest above


def archived(directories: Directories, name: str = "n1", out: str = "b.tar") -> Archived:
    with ClosedDirectory.open(directories.path(name)) as directory:
        return backup(directory, directories.path(out))


def commands_in(path: Path) -> dict[int, tuple[str, bytes]]:
    with ClosedDirectory.open(path) as directory, directory.log() as log:
        return {e.index: (e.type.name, e.data) for e, _ in log.entries() if e.index > 1}


def leftovers(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.name.startswith(".raftcore-"))


@pytest.fixture
def source(three: Directories) -> Directories:
    three.snapshot("n1", 10, compact_to=6)
    return three


def test_what_is_restored_is_what_was_backed_up_in_a_new_cluster(source: Directories) -> None:
    before = source.fingerprint("n1")
    made = archived(source)
    assert source.fingerprint("n1") == before
    assert (made.last_index, made.identity.node_id) == (20, "n1")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    restored = restore(made.path, source.path("new"))
    assert restored.identity.cluster_id != made.identity.cluster_id == restored.old_cluster_id
    assert restored.identity.incarnation != made.identity.incarnation
    expected = {i: v for i, v in commands_in(source.path("n1")).items() if i > 10}
    assert commands_in(source.path("new")) == expected
    with ClosedDirectory.open(source.path("new")) as directory:
        origin = directory.record("ORIGIN")
        assert verify(directory).findings == ()
    assert origin is not None
    assert (origin["kind"], origin["details"]["manifest"]) == ("restored", made.digest)
    assert leftovers(source.root) == []


def test_a_backup_of_what_was_restored_keeps_its_history(source: Directories) -> None:
    restore(archived(source).path, source.path("new"), member=NewMember("x", "h:1"))
    restored = restore(archived(source, "new", "c.tar").path, source.path("newer"))
    assert (restored.epoch, restored.identity.node_id) == (2, "x")


def test_a_running_node_is_backed_up_by_its_snapshot(source: Directories) -> None:
    with source.log("n1") as log:
        made = backup_running(log, source.path("b.tar"))
    assert made.last_index == 10
    restore(made.path, source.path("new"))
    assert commands_in(source.path("new")) == {}
    with ClosedDirectory.open(source.path("new")) as directory:
        meta = directory.snapshots.verify(10, 2)
        assert len(list(directory.snapshots.records(meta))) == 10


def test_a_running_node_without_a_snapshot_has_nothing_to_back_up(three: Directories) -> None:
    with three.log("n1") as log, pytest.raises(RefusedError, match="no snapshot"):
        backup_running(log, three.path("b.tar"))


def test_a_snapshot_that_goes_away_meanwhile_leaves_no_archive(source: Directories) -> None:
    with source.log("n1") as log:
        log.read_snapshot_chunk = lambda *_: b""
        with pytest.raises(RefusedError, match="try again"):
            backup_running(log, source.path("b.tar"))
    assert not list(source.root.glob("b.tar*"))


def test_an_existing_file_is_never_replaced(source: Directories) -> None:
    source.path("b.tar").write_bytes(b"mine")
    with pytest.raises(RefusedError, match="exists"):
        archived(source)
    assert source.path("b.tar").read_bytes() == b"mine"
    with pytest.raises(RefusedError, match="not a directory"):
        archived(source, out="nowhere/b.tar")


def test_a_file_that_appears_meanwhile_is_not_replaced(source: Directories) -> None:
    out = source.path("b.tar")

    def meanwhile(what: str, *_: int) -> None:
        if what == "writing the archive":
            out.write_bytes(b"precious")

    with (
        ClosedDirectory.open(source.path("n1")) as directory,
        pytest.raises(RefusedError, match="exists"),
    ):
        backup(directory, out, on_progress=meanwhile)
    assert out.read_bytes() == b"precious"
    assert leftovers(source.root) == []


def test_a_file_system_without_links_takes_a_backup_too(
    source: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    made = archived(source)
    assert restore(made.path, source.path("new")).last_index == 20
    assert leftovers(source.root) == []


def test_a_file_of_somebody_else_beside_the_archive_is_left_alone(source: Directories) -> None:
    source.path("b.tar.tmp").write_bytes(b"mine")
    archived(source)
    assert source.path("b.tar.tmp").read_bytes() == b"mine"


def test_an_archive_is_not_made_in_the_directory_that_it_is_of(source: Directories) -> None:
    before = source.fingerprint("n1")
    with pytest.raises(RefusedError, match="never changed"):
        archived(source, out="n1/b.tar")
    assert source.fingerprint("n1") == before


@pytest.mark.parametrize("doubt", ["quarantine", "FLOOR"])
def test_a_directory_in_doubt_is_backed_up_only_when_that_is_said_and_says_so(
    source: Directories, doubt: str
) -> None:
    if doubt == "FLOOR":
        (source.path("n1") / "FLOOR").unlink()
    else:
        (source.path("n1") / "QUARANTINE").write_bytes(b"not a record, but there")
    with pytest.raises(RefusedError, match=doubt):
        archived(source)
    assert not source.path("b.tar").exists()
    with ClosedDirectory.open(source.path("n1")) as directory:
        made = backup(directory, source.path("b.tar"), despite_doubt=True)
    restore(made.path, source.path("new"))
    with ClosedDirectory.open(source.path("new")) as directory:
        origin = directory.record("ORIGIN")
    assert origin is not None
    assert doubt in origin["details"]["doubt"]


def test_a_damaged_directory_is_not_backed_up(source: Directories) -> None:
    source.damage("n1")
    with pytest.raises(LogCorruptError):
        archived(source)
    assert not list(source.root.glob("b.tar*"))
    assert leftovers(source.root) == []


# -- tampering -----------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_file_of_the_archive_is_refused(source: Directories) -> None:
    made = archived(source)
    with tarfile.open(made.path) as tar:
        members = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert [name for name, _, _ in members] == [
        "MANIFEST",
        "IDENTITY",
        "log/data.mdb",
        "snap/10-2.snap",
    ]
    for name, start, size in members:
        for offset in sorted({0, 1, size // 3, size // 2, size - 2, size - 1}):
            source.flip(made.path, start + offset)
            with pytest.raises(StorageError):
                restore(made.path, source.path("new"))
            assert not source.path("new").exists(), (name, offset)
            source.flip(made.path, start + offset)
    assert leftovers(source.root) == []
    restore(made.path, source.path("new"))


def test_a_flipped_bit_in_a_header_is_refused(source: Directories) -> None:
    made = archived(source)
    with tarfile.open(made.path) as tar:
        headers = [m.offset for m in tar.getmembers()]
    for header in headers:
        for offset in (0, 50, 101, 124, 130, 148, 156, 257):
            source.flip(made.path, header + offset)
            with pytest.raises(StorageError):
                restore(made.path, source.path("new"))
            source.flip(made.path, header + offset)


def test_an_archive_cut_short_anywhere_is_refused(source: Directories) -> None:
    made = archived(source)
    whole = made.path.read_bytes()
    with tarfile.open(made.path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + last.size
    for size in (*range(0, end, 1511), end - 1):
        made.path.write_bytes(whole[:size])
        with pytest.raises(StorageError):
            restore(made.path, source.path("new"))
    assert not source.path("new").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 5000, b"\0" * 10240, None])
def test_what_is_no_archive_is_called_that(source: Directories, content: bytes | None) -> None:
    """None: a tar of something else."""
    path = source.path("b.tar")
    if content is None:
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo("holiday.jpg"))
    else:
        path.write_bytes(content)
    with pytest.raises(LogCorruptError, match=r"b\.tar is not a raftcore archive"):
        restore(path, source.path("new"))
    assert not source.path("new").exists()
    assert leftovers(source.root) == []


def test_a_manifest_that_is_too_large_is_not_read(source: Directories) -> None:
    made = archived(source)

    def grow(parts: list[Any]) -> None:
        parts[0] = (parts[0][0], b" " * (MAX_MANIFEST_BYTES + 1))

    rewrite(made.path, grow)
    with pytest.raises(LogCorruptError, match="too many"):
        restore(made.path, source.path("new"))


def rewrite(path: Path, edit: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """Take an archive apart, change it, and put it together again properly."""
    with tarfile.open(path) as tar:
        parts = []
        for info in tar.getmembers():
            file = tar.extractfile(info)
            assert file is not None
            parts.append((info, file.read()))
    edit(parts)
    with tarfile.open(path, "w") as tar:
        for info, data in parts:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _add(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[list[Any]], None]:
    def edit(parts: list[Any]) -> None:
        info = tarfile.TarInfo(name)
        info.type = kind
        parts.append((info, b""))

    return edit


def _swap(parts: list[Any]) -> None:
    parts[0], parts[1] = parts[1], parts[0]


def _twice(parts: list[Any]) -> None:
    parts.append(parts[1])


def _link(parts: list[Any]) -> None:
    parts[1][0].type = tarfile.SYMTYPE
    parts[1][0].linkname = "/etc/passwd"
    parts[1] = (parts[1][0], b"")


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[list[Any]], None]:
    def edit(parts: list[Any]) -> None:
        body = unseal(parts[0][1])
        change(body)
        parts[0] = (parts[0][0], seal(body))

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        _add("snap/99-1.snap"),
        _add("../outside"),
        _swap,
        _twice,
        _link,
        list.clear,
        list.pop,
        _manifest(lambda body: body.pop("files")),
        _manifest(lambda body: body.update(files={})),
        _manifest(lambda body: body["files"].update({"../x": {"size_bytes": 0, "sha256": ""}})),
        _manifest(lambda body: body["files"].update({"ORIGIN": 7})),
        _manifest(lambda body: body.update(made_unix_s="now")),
        _manifest(lambda body: body.update(node_id="n2")),
        _manifest(lambda body: body["files"]["IDENTITY"].update(size_bytes=3)),
    ],
)
def test_an_archive_that_was_put_together_anew_is_refused(
    source: Directories, edit: Callable[[list[Any]], None]
) -> None:
    made = archived(source)
    rewrite(made.path, edit)
    with pytest.raises(LogCorruptError):
        restore(made.path, source.path("new"))
    assert not source.path("new").exists()
    assert not (source.root.parent / "outside").exists()


def test_only_the_digest_tells_a_backup_from_another_sound_one(source: Directories) -> None:
    made = archived(source)
    rewrite(made.path, _manifest(lambda body: body.update(made_unix_s=7)))
    with pytest.raises(LogCorruptError, match="digest"):
        restore(made.path, source.path("new"), digest=made.digest)
    restore(made.path, source.path("new"))


def test_a_newer_format_is_refused(source: Directories) -> None:
    made = archived(source)
    rewrite(made.path, _manifest(lambda body: body.update(format_version=9, min_reader_version=9)))
    with pytest.raises(FormatTooNewError):
        restore(made.path, source.path("new"))


def test_an_archive_with_neither_log_nor_snapshot_is_refused(source: Directories) -> None:
    made = archived(source)

    def strip(parts: list[Any]) -> None:
        del parts[2:]
        _manifest(lambda body: [body["files"].pop(n) for n in ("log/data.mdb", "snap/10-2.snap")])(
            parts
        )

    rewrite(made.path, strip)
    with pytest.raises(LogCorruptError, match="neither"):
        restore(made.path, source.path("new"))


def test_a_target_that_is_not_empty_is_refused(source: Directories) -> None:
    made, before = archived(source), source.fingerprint("n2")
    with pytest.raises(RefusedError):
        restore(made.path, source.path("n2"))
    assert source.fingerprint("n2") == before
    assert leftovers(source.root) == []


def test_a_target_that_is_not_empty_is_refused_before_anything_is_unpacked(
    source: Directories,
) -> None:
    with pytest.raises(RefusedError, match="not an empty"):
        restore(source.path("no such archive"), source.path("n2"))


def test_an_empty_target_that_is_there_is_where_the_archive_is_unpacked(
    source: Directories,
) -> None:
    """It may be a mount point below something read-only or small."""
    made, target = archived(source), source.path("new")
    target.mkdir()
    seen: set[str] = set()
    restore(
        made.path,
        target,
        on_progress=lambda *_: seen.update(leftovers(target), leftovers(source.root)),
    )
    assert len(seen) == 1
    assert leftovers(target) == []
    with ClosedDirectory.open(target) as directory:
        assert verify(directory).findings == ()


def test_a_place_to_unpack_can_be_given(source: Directories) -> None:
    made, staging = archived(source), source.path("staging")
    staging.mkdir()
    seen: list[str] = []
    restore(
        made.path,
        source.path("new"),
        staging=staging,
        on_progress=lambda *_: seen.extend(leftovers(staging)),
    )
    assert seen
    assert list(staging.iterdir()) == []


@pytest.mark.parametrize(
    "member",
    [
        NewMember(""),
        NewMember("x" * 256),
        NewMember("n1", "h" * 600 + ":1"),
        NewMember("n1", attributes=(("k", "v" * 5000),)),
        NewMember("n1", attributes=tuple((f"k{n}", "") for n in range(65))),
        NewMember("\udcff"),
    ],
)
def test_a_member_that_no_peer_would_take_is_refused(
    source: Directories, member: NewMember
) -> None:
    made = archived(source)
    with pytest.raises(RefusedError):
        restore(made.path, source.path("new"), member=member)
    assert not source.path("new").exists()


def test_a_sparse_member_is_refused(source: Directories) -> None:
    made = archived(source)
    raw = bytearray(made.path.read_bytes())
    with tarfile.open(made.path) as tar:
        info = tar.getmember("IDENTITY")
    header = raw[info.offset : info.offset + 512]
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    raw[info.offset : info.offset + 512] = header
    made.path.write_bytes(raw)
    with pytest.raises(LogCorruptError):
        restore(made.path, source.path("new"))
