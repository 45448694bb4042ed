"""Durable file operations, and the one seam through which tests make them fail.

Everything the store does to files goes through :class:`Files`, so that a test can fail any fsync
or crash between any two steps. The default does what it says and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from raftcore.errors import NoSpaceError, StorageError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


def storage_error(error: Exception, doing: str) -> StorageError:
    """The typed error for what the operating system or LMDB raised while ``doing``.

    LMDB's errors carry the errno in ``code``, Python's in ``errno``.
    """
    if isinstance(error, StorageError):
        return error
    number = getattr(error, "code", None) or getattr(error, "errno", None)
    kind = NoSpaceError if number in _NO_SPACE else StorageError
    return kind(f"{doing}: {error}")


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn an :class:`OSError` of the block into the :class:`StorageError` it stands for."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, doing) from error


class Files:
    """File operations with their durability spelled out (rules O5, O7)."""

    def reached(self, step: str) -> None:
        """A named place between two steps of a multi-step change; tests crash here."""

    def fsync(self, fd: int) -> None:
        """Flush data and metadata of an open file."""
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        """Flush the data of an open file whose size does not change."""
        os.fdatasync(fd)

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written

    def fsync_path(self, path: Path) -> None:
        """Flush a file that somebody else wrote."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.fsync(fd)
        finally:
            os.close(fd)

    def fsync_directory(self, path: Path) -> None:
        """Make creations, renames and removals in ``path`` durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fsync(fd)
        finally:
            os.close(fd)

    def make_directory(self, path: Path) -> None:
        """Create ``path`` (parents too) for the owner only; durable when this returns (O7)."""
        if path.is_dir():
            return
        if not path.parent.is_dir():
            self.make_directory(path.parent)
        path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        self.fsync_directory(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        """Rename within one file system and make it durable."""
        source.rename(target)
        self.fsync_directory(target.parent)

    def remove(self, path: Path) -> None:
        """Unlink, if it is there, and make it durable."""
        try:
            path.unlink()
        except FileNotFoundError:
            return
        self.fsync_directory(path.parent)

    def write_atomically(self, path: Path, content: bytes) -> None:
        """Replace ``path`` so that a crash leaves the old file or the new, never a mixture."""
        temporary = path.with_name(path.name + ".tmp")
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode=FILE_MODE
        )
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            self.fsync(fd)
        finally:
            os.close(fd)
        self.reached(f"written:{path.name}")
        self.rename(temporary, path)
        self.reached(f"renamed:{path.name}")
