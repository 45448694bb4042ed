"""Byte ranges of a file with the bytes that once stood there."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """``[start, end)`` and the bytes to put back there; None where the file had no bytes yet."""

    start: int
    end: int
    data: bytes | None

    def cut(self, start: int, end: int) -> Piece:
        """The part of this piece inside ``[start, end)``, which must overlap it."""
        start, end = max(start, self.start), min(end, self.end)
        if self.data is None:
            return Piece(start, end, None)
        return Piece(start, end, self.data[start - self.start : end - self.start])


class RangeMap:
    """Pieces in ascending order that never overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[Piece] = []

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def size_bytes(self) -> int:
        """How many bytes are kept."""
        return sum(len(piece.data) for piece in self._pieces if piece.data is not None)

    def overlapping(self, start: int, end: int) -> list[Piece]:
        """The pieces that share a byte with ``[start, end)``, whole."""
        first = bisect.bisect_right(self._starts, start) - 1
        if first < 0 or self._pieces[first].end <= start:
            first += 1
        last = bisect.bisect_left(self._starts, end)
        return self._pieces[first:last]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of ``[start, end)`` that no piece covers."""
        gaps: list[tuple[int, int]] = []
        at = start
        for piece in self.overlapping(start, end):
            if piece.start > at:
                gaps.append((at, piece.start))
            at = max(at, piece.end)
        if at < end:
            gaps.append((at, end))
        return gaps

    def add(self, piece: Piece) -> None:
        """Put a piece into a gap."""
        if piece.start == piece.end:
            return
        assert not self.overlapping(piece.start, piece.end), "pieces must not overlap"
        at = bisect.bisect_left(self._starts, piece.start)
        self._starts.insert(at, piece.start)
        self._pieces.insert(at, piece)

    def carve(self, start: int, end: int) -> None:
        """Forget ``[start, end)``, keeping what sticks out on either side."""
        for piece in self.overlapping(start, end):
            at = bisect.bisect_left(self._starts, piece.start)
            del self._starts[at], self._pieces[at]
            if piece.start < start:
                self.add(piece.cut(piece.start, start))
            if piece.end > end:
                self.add(piece.cut(end, piece.end))
