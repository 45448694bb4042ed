"""Whether LMDB's list of free pages lies within its file; plain reads only, nothing is mapped.

No reader comes by the free list, but the first write transaction does: were one of its pages cut
off, that would be a SIGBUS in the node. The structures are those of LMDB 0.9 on a 64-bit host.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from raftcore.errors import LogCorruptError, TruncatedFileError

_META = struct.Struct("=16x4x4x8x8xI36xQ48x8xQ")  # page size, root of the free list, transaction
_PAGE = struct.Struct("=QHHHH")  # own number, unused, flags, lower and upper bound of the gap
_NODE = struct.Struct("=HHHH")  # low and high half of the size or child, flags, key size
_POINTER = struct.Struct("=H")
_NUMBER = struct.Struct("=Q")

_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_BIG_DATA = 0x01
_NO_PAGE = 2**64 - 1
#: LMDB's own bound on the depth of a tree.
_MAX_DEPTH = 32


def check_free_list(path: Path) -> int:
    """Reach every page of the free list in the file ``path``; returns their number.

    Raises:
        TruncatedFileError: one lies beyond the end of the file.
        LogCorruptError: one is none.
        OSError: the file cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        page_size = _META.unpack(_read(fd, path, 0, _META.size))[0]
        metas = [_META.unpack(_read(fd, path, n * page_size, _META.size)) for n in (0, 1)]
        root = max(metas, key=lambda meta: meta[2])[1]
        tree = _Tree(fd, path, page_size)
        if root != _NO_PAGE:
            tree.reach(root, 0)
        return len(tree.seen)
    except struct.error as error:
        raise LogCorruptError(f"{path}: the free list does not read: {error}") from error
    finally:
        os.close(fd)


def _read(fd: int, path: Path, offset: int, size: int) -> bytes:
    # A page number that rotted may be beyond what the system call takes.
    raw = os.pread(fd, size, offset) if offset < 2**62 else b""
    if len(raw) < size:
        raise TruncatedFileError(f"{path} ends before its free list")
    return raw


class _Tree:
    """The pages reached so far."""

    def __init__(self, fd: int, path: Path, page_size: int) -> None:
        self._fd = fd
        self._path = path
        self._page_size = page_size
        self.seen: set[int] = set()

    def reach(self, number: int, depth: int) -> None:
        """The page ``number`` and everything below it."""
        page, kind = self._page(number, _BRANCH | _LEAF)
        if depth >= _MAX_DEPTH:
            raise LogCorruptError(f"{self._path}: the free list is too deep")
        lower = _PAGE.unpack_from(page)[3]
        for place in range(_PAGE.size, lower, _POINTER.size):
            (offset,) = _POINTER.unpack_from(page, place)
            low, high, flags, key_size = _NODE.unpack_from(page, offset)
            if kind == _BRANCH:
                self.reach(low | high << 16 | flags << 32, depth + 1)
            elif flags & _BIG_DATA:
                (first,) = _NUMBER.unpack_from(page, offset + _NODE.size + key_size)
                self._run(first, low | high << 16)

    def _run(self, first: int, size_bytes: int) -> None:
        """The pages of one long value: a header, then the value."""
        self._page(first, _OVERFLOW)
        count = (_PAGE.size + size_bytes - 1) // self._page_size + 1
        for number in range(first + 1, first + count):
            _read(self._fd, self._path, number * self._page_size, self._page_size)
            self._once(number)

    def _page(self, number: int, kinds: int) -> tuple[bytes, int]:
        page = _read(self._fd, self._path, number * self._page_size, self._page_size)
        own, _, flags, _, _ = _PAGE.unpack_from(page)
        if own != number or flags not in (_BRANCH & kinds, _LEAF & kinds, _OVERFLOW & kinds):
            raise LogCorruptError(f"{self._path}: page {number} is none of the free list")
        self._once(number)
        return page, flags

    def _once(self, number: int) -> None:
        if number in self.seen:
            raise LogCorruptError(f"{self._path}: page {number} is twice in the free list")
        self.seen.add(number)
