"""What one file would hold if the power went out now.

The page cache shows every write at once; a disk only holds what was synced. A :class:`FileImage`
keeps, beside the file, the bytes that un-synced writes have covered up. These come in
*generations*: an fsync in flight covers what was written before it began, so writes that begin
meanwhile go to a new generation, and success drops only the generations that are older.

The rules are POSIX's, read strictly: what was written and not synced is gone after a power loss.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from jepsen_like.durability.ranges import Piece, RangeMap

#: Un-synced original bytes kept for one file; beyond it a test is asking for something else.
MAX_KEPT_BYTES = 1 << 30


class ImageTooLargeError(RuntimeError):
    """More un-synced bytes than can be kept in memory."""


@dataclass(slots=True)
class Generation:
    """Writes between two syncs: the size before them, and the bytes that they covered up."""

    number: int
    size_bytes: int
    covered: RangeMap = field(default_factory=RangeMap)


@dataclass(slots=True, eq=False)
class Change:
    """A change of bytes that has begun. ``size_before`` is the file's size at that moment."""

    start: int
    end: int
    size_before: int


class FileImage:
    """The durable image of one open file.

    Args:
        path: where the file was found, relative to the watched directory; for reports.
        descriptor: a descriptor for reading and writing, owned by the image from now on.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self._generations: list[Generation] = []
        self._in_flight: list[Change] = []
        self._next_number = 0

    def close(self) -> None:
        os.close(self.descriptor)

    # -- what it holds ------------------------------------------------------------------------

    @property
    def clean(self) -> bool:
        """Nothing is waiting to be synced and nothing is being written."""
        return not self._generations and not self._in_flight

    @property
    def current_size_bytes(self) -> int:
        return os.fstat(self.descriptor).st_size

    @property
    def durable_size_bytes(self) -> int:
        return self._generations[0].size_bytes if self._generations else self.current_size_bytes

    def pending(self) -> list[tuple[int, int]]:
        """The ranges that would be lost, in no particular order, possibly overlapping."""
        return [(p.start, p.end) for generation in self._generations for p in generation.covered]

    def read_durable(self, start: int, end: int) -> bytes:
        """The bytes ``[start, end)`` of the durable image; short at its end."""
        data = bytearray(end - start)
        current = os.pread(self.descriptor, end - start, start)
        data[: len(current)] = current
        for generation in reversed(self._generations):
            for piece in generation.covered.overlapping(start, end):
                part = piece.cut(start, end)
                if part.data is not None:
                    data[part.start - start : part.end - start] = part.data
            beyond = max(0, generation.size_bytes - start)
            if beyond < len(data):
                data[beyond:] = bytes(len(data) - beyond)
        return bytes(data[: max(0, self.durable_size_bytes - start)])

    # -- changes ------------------------------------------------------------------------------

    def begin_change(self, start: int, end: int) -> Change:
        """Bytes ``[start, end)`` are about to change, or be cut off. Nothing has happened yet."""
        generation = self._open_generation()
        known = min(end, generation.size_bytes)
        for gap_start, gap_end in generation.covered.gaps(start, end):
            middle = max(gap_start, min(gap_end, known))
            if middle > gap_start:
                data = os.pread(self.descriptor, middle - gap_start, gap_start)
                data += bytes(middle - gap_start - len(data))
                generation.covered.add(Piece(gap_start, middle, data))
            generation.covered.add(Piece(middle, gap_end, None))
        if generation.covered.size_bytes > MAX_KEPT_BYTES:
            raise ImageTooLargeError(f"{self.path}: over {MAX_KEPT_BYTES} un-synced bytes")
        change = Change(start, end, self.current_size_bytes)
        self._in_flight.append(change)
        return change

    def end_change(self, change: Change, written: int, durable: bool) -> list[tuple[int, int]]:
        """The change has returned; ``written`` bytes of it took place.

        With ``durable`` (``O_DSYNC``, ``RWF_DSYNC``) these bytes are on the disk by now, whatever
        else of the file is not. Returns the ranges that became durable.
        """
        self._in_flight.remove(change)
        if not durable or written <= 0:
            return []
        start, end = change.start, change.start + written
        for generation in self._generations:
            generation.covered.carve(start, end)
            if generation.size_bytes < end:
                # The size is durable too. What others wrote below, past the old end, is not.
                for gap_start, gap_end in [
                    (p.start, p.end)
                    for p in generation.covered.overlapping(generation.size_bytes, start)
                    if p.data is None
                ]:
                    generation.covered.carve(gap_start, gap_end)
                    lost = bytes(gap_end - gap_start)
                    generation.covered.add(Piece(gap_start, gap_end, lost))
                generation.size_bytes = end
        self._drop_empty()
        return [(start, end)]

    # -- syncs --------------------------------------------------------------------------------

    def begin_sync(self) -> int:
        """A sync begins; what was written so far is what it will cover. Returns its number."""
        if not self._generations:
            return self._next_number - 1
        sealed = self._generations[-1]
        if self._in_flight:
            # A write that has not returned may reach the cache after the sync has passed: it is
            # not covered. Its old bytes move on to the next generation.
            following = self._append_generation()
            for change in self._in_flight:
                if change.end > change.size_before:
                    following.size_bytes = min(following.size_bytes, change.size_before)
                for piece in sealed.covered.overlapping(change.start, change.end):
                    part = piece.cut(change.start, change.end)
                    for start, end in following.covered.gaps(part.start, part.end):
                        following.covered.add(part.cut(start, end))
        else:
            self._next_number = sealed.number + 1
        return sealed.number

    def end_sync(self, number: int, succeeded: bool) -> list[tuple[int, int]]:
        """The sync has returned. Returns the ranges that became durable.

        After a failure nothing is durable: pages may even be marked clean and lost, so a later
        success of another sync would prove nothing (the node must stop there anyway).
        """
        if not succeeded:
            return []
        ranges: list[tuple[int, int]] = []
        while self._generations and self._generations[0].number <= number:
            done = self._generations.pop(0)
            ranges += [(piece.start, piece.end) for piece in done.covered]
        return ranges

    # -- power loss ---------------------------------------------------------------------------

    def lose(self) -> int:
        """Put the file back to its durable image; returns how many bytes were in doubt."""
        in_doubt = sum(end - start for start, end in self.pending())
        for generation in reversed(self._generations):
            for piece in generation.covered:
                if piece.data is not None:
                    os.pwrite(self.descriptor, piece.data, piece.start)
            os.ftruncate(self.descriptor, generation.size_bytes)
        self._generations.clear()
        self._in_flight.clear()
        return in_doubt

    # -- generations --------------------------------------------------------------------------

    def _open_generation(self) -> Generation:
        if not self._generations or self._generations[-1].number < self._next_number:
            return self._append_generation()
        return self._generations[-1]

    def _append_generation(self) -> Generation:
        last = self._generations[-1].number if self._generations else -1
        number = max(self._next_number, last + 1)
        generation = Generation(number, self.current_size_bytes)
        self._generations.append(generation)
        self._next_number = number
        return generation

    def _drop_empty(self) -> None:
        size = self.current_size_bytes
        if not self._in_flight and all(
            not len(generation.covered) and generation.size_bytes == size
            for generation in self._generations
        ):
            self._generations.clear()
