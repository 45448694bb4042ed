"""The durable image of a directory tree, kept while a traced program works on it.

The tracer reports each change *before* it happens and again when it has; what was not synced can
then be taken back (:meth:`Images.lose_power`), which leaves the tree as a power loss would on a
disk that keeps its promises and drops everything else.

What is modelled and how strictly:

* bytes and size of a file: durable after fsync or fdatasync, or at once through ``O_DSYNC``;
  ``msync`` and ``sync_file_range`` make nothing durable, nor does ``sync`` (POSIX lets it return
  early);
* directory entries: durable after fsync of the directory, see :mod:`.names`;
* files that exist when tracing starts are durable as they are;
* modes, owners, times and extended attributes are not modelled;
* a shared writable mapping changes bytes without system calls: it is a fault of the run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from jepsen_like.durability.file_image import Change, FileImage
from jepsen_like.durability.names import Key, Names

#: Never looked at: LMDB's lock table is volatile by design and mapped shared and writable.
ALWAYS_EXEMPT = ("lock.mdb", "*/lock.mdb")

#: Beyond this many followed files, those with nothing pending are let go.
MAX_OPEN_FILES = 64

#: Called with the image and the ranges of it that became durable just now.
DurableCallback = Callable[[FileImage, Sequence[tuple[int, int]]], None]

_DELETED = " (deleted)"


@dataclass(slots=True)
class Loss:
    """What a power loss took."""

    bytes_in_doubt: dict[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()


class Images:
    """The durable image of everything under ``root``.

    Args:
        root: the watched directory; it need not exist yet.
        keep: an existing directory outside ``root`` but on its file system, for removed files.
        exempt: globs on paths relative to ``root`` (``*`` matches ``/`` too) that are let alone.
    """

    def __init__(self, root: Path, keep: Path, exempt: Sequence[str] = ()) -> None:
        self.root = os.path.realpath(root)
        self._exempt = (*ALWAYS_EXEMPT, *exempt)
        self._files: dict[Key, FileImage] = {}
        self._observers: list[DurableCallback] = []
        self.names = Names(keep)
        #: What the model cannot follow; a run with such faults proves nothing.
        self.faults: list[str] = []

    def observe(self, callback: DurableCallback) -> None:
        """Have ``callback`` told of every range that becomes durable."""
        self._observers.append(callback)

    def covers(self, path: str) -> bool:
        """Changes at ``path`` (absolute, without symbolic links) are followed."""
        path = path.removesuffix(_DELETED)
        if path == self.root:
            return True
        if not path.startswith(self.root + "/"):
            return False
        relative = path[len(self.root) + 1 :]
        return not any(fnmatch(relative, glob) for glob in self._exempt)

    def relative(self, path: str) -> str:
        return os.path.relpath(path.removesuffix(_DELETED), self.root)

    # -- bytes --------------------------------------------------------------------------------

    def open(self, path: str, link: str | None = None) -> FileImage | None:
        """The image of the regular file at ``path``; None if it is something else.

        Args:
            path: absolute; only for reports when ``link`` is given.
            link: a ``/proc/<tid>/fd/<n>`` link that leads to the very file.
        """
        via = link or path
        try:
            found = os.stat(via)
        except FileNotFoundError:
            return None
        if not _is_regular(found.st_mode):
            return None
        key = (found.st_dev, found.st_ino)
        image = self._files.get(key)
        if image is None:
            if len(self._files) >= MAX_OPEN_FILES:
                self._forget_clean()
            image = FileImage(self.relative(path), os.open(via, os.O_RDWR | os.O_CLOEXEC))
            self._files[key] = image
        elif not path.endswith(_DELETED):
            image.path = self.relative(path)  # it may have been renamed
        return image

    def begin_change(self, image: FileImage, start: int, end: int) -> Change:
        return image.begin_change(start, end)

    def end_change(self, image: FileImage, change: Change, written: int, durable: bool) -> None:
        """See :meth:`FileImage.end_change`; ``written`` negative means that the call failed."""
        self._settle(image, image.end_change(change, written, durable))

    def begin_sync(self, image: FileImage) -> int:
        return image.begin_sync()

    def end_sync(self, image: FileImage, number: int, succeeded: bool) -> None:
        self._settle(image, image.end_sync(number, succeeded))

    def _settle(self, image: FileImage, ranges: list[tuple[int, int]]) -> None:
        if ranges:
            for observer in self._observers:
                observer(image, ranges)

    def _forget_clean(self) -> None:
        """Let go of files that nothing is pending for, to bound open descriptors."""
        for key, image in list(self._files.items()):
            if image.clean:
                image.close()
                del self._files[key]

    # -- power loss ---------------------------------------------------------------------------

    def lose_power(self) -> Loss:
        """Rewrite the tree to its durable image. No process may be using it any more."""
        loss = Loss()
        for image in self._files.values():
            in_doubt = image.lose()
            if in_doubt:
                loss.bytes_in_doubt[image.path] = in_doubt
        loss.names = self.names.lose()
        self.close()
        return loss

    def close(self) -> None:
        for image in self._files.values():
            image.close()
        self._files.clear()


def _is_regular(mode: int) -> bool:
    return stat.S_ISREG(mode)
