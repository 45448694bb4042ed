"""Which directory entries would survive if the power went out now.

A name that was made, replaced or removed is durable after an fsync of its directory that began
later. Strictly read, POSIX promises no more: syncing a new file does not make its name durable,
though some file systems do that too. A rename across directories is durable with the directory it
moved into.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Identity of a file or directory: device and inode.
Key = tuple[int, int]


def key_of(path: str) -> Key | None:
    """The identity of what stands at ``path`` (a symbolic link itself), None if nothing does."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


@dataclass(frozen=True, slots=True)
class NameChange:
    """One change of a directory entry that is not durable yet."""

    sequence: int
    directory: Key
    path: str
    description: str
    undo: Callable[[], None]
    forget: Callable[[], None]


class Names:
    """The directory changes that are not durable yet, oldest first.

    Args:
        keep: a directory, on the same file system, where removed files stay reachable until their
            removal is durable.
    """

    def __init__(self, keep: Path) -> None:
        self._keep = keep
        self._changes: list[NameChange] = []
        self._sequence = 0

    @property
    def pending(self) -> tuple[str, ...]:
        return tuple(change.description for change in self._changes)

    @property
    def sequence(self) -> int:
        """Grows with every change; what a sync that begins now will cover."""
        return self._sequence

    def synced(self, directory: Key, sequence: int) -> None:
        """An fsync of ``directory`` that began at ``sequence`` has succeeded."""
        for change in self._changes:
            if change.directory == directory and change.sequence <= sequence:
                change.forget()
        self._changes = [
            change
            for change in self._changes
            if change.directory != directory or change.sequence > sequence
        ]

    def is_pending(self, path: str) -> bool:
        """The entry at ``path``, or a directory above it, was made and that is not durable."""
        return any(
            path == change.path or path.startswith(change.path + "/") for change in self._changes
        )

    # -- changes, once they have happened ------------------------------------------------------

    def created(self, path: str) -> None:
        """A file or directory, or another link to a file, appeared at ``path``."""
        key = key_of(path)
        self._add(path, f"create {path}", lambda: _remove(path, key))

    def removed(self, path: str, saved: str | None, succeeded: bool = True) -> None:
        """The file at ``path`` went; ``saved`` is from :meth:`save`, None for a directory."""
        if not succeeded:
            _discard(saved)
            return

        def undo() -> None:
            if saved is None:
                os.mkdir(path, 0o700)
            else:
                os.rename(saved, path)

        self._add(path, f"remove {path}", undo, saved)

    def renamed(self, source: str, target: str, saved: str | None, succeeded: bool = True) -> None:
        """``source`` became ``target``; ``saved`` is what it replaced, from :meth:`save`."""
        if not succeeded:
            _discard(saved)
            return
        key = key_of(target)

        def undo() -> None:
            if key_of(target) == key:
                os.rename(target, source)
            if saved is not None:
                os.rename(saved, target)

        self._add(target, f"rename {source} {target}", undo, saved)

    def save(self, path: str) -> str | None:
        """Keep the file at ``path`` reachable; None if there is none. Call before it goes."""
        key = key_of(path)
        if key is None or os.path.isdir(path):
            return None
        self._sequence += 1
        saved = str(self._keep / f"removed-{self._sequence}")
        os.link(path, saved, follow_symlinks=False)
        return saved

    def lose(self) -> tuple[str, ...]:
        """Undo everything that is not durable, newest first; returns what that was."""
        lost = self.pending
        for change in reversed(self._changes):
            # A parent that is gone took this entry with it.
            with contextlib.suppress(FileNotFoundError):
                change.undo()
        self._changes.clear()
        return lost

    def _add(
        self, path: str, description: str, undo: Callable[[], None], saved: str | None = None
    ) -> None:
        directory = key_of(os.path.dirname(path))
        if directory is None:
            return  # its directory is already gone again
        self._sequence += 1
        self._changes.append(
            NameChange(self._sequence, directory, path, description, undo, lambda: _discard(saved))
        )


def _discard(saved: str | None) -> None:
    if saved is not None:
        os.unlink(saved)


def _remove(path: str, key: Key | None) -> None:
    """Remove what was created, unless something else has taken its name."""
    if key is None or key_of(path) != key:
        return
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
