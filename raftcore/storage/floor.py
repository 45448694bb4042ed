"""FLOOR: the least that the log must hold, kept outside of it (D3).

Damage to LMDB's newest meta page makes an older transaction current without a word, and with it an
older vote or an older end of the log. FLOOR is a second file with a lower bound of what the log
already holds: it is written after the commit and before anything is said that rests on it, and
lowered, durably, before the log may become shorter than it says.

Two slots at offsets 0 and 4096 are written in turn, so that a torn write leaves the older one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from raftcore.core.types import Configuration, HardState, NodeId
from raftcore.errors import LogCorruptError
from raftcore.storage.files import FILE_MODE, Files
from raftcore.storage.records import RecordError, check_format, seal, stamp, unseal

FLOOR_FILE = "FLOOR"
SLOT_SIZE_BYTES = 4096
SLOTS = 2
FLOOR_FORMAT = 2

#: FLOOR is brought up to date after so many entries, or so long after the first it does not cover.
MAX_UNRECORDED_ENTRIES = 1000
MAX_UNRECORDED_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Floor:
    """What the log holds at least.

    ``other_voters`` counts the voters beside this node, by the newest configuration: whoever has
    lost something needs to know whether anybody else can tell what it was. None: not known.
    ``runs`` is the run of the log that wrote this.
    """

    term: int
    vote: NodeId | None
    last_index: int
    last_term: int
    other_voters: int | None
    runs: int

    @property
    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote)


def count_other_voters(configuration: Configuration, node_id: NodeId) -> int:
    """How many voters there are beside ``node_id``.

    A node that knows no member at all has been added by somebody else, who is there.
    """
    if not configuration.members:
        return 1
    return len({*configuration.voters, *configuration.old_voters} - {node_id})


def went_back(floor: Floor, hard_state: HardState, last_index: int) -> str:
    """What of ``floor`` the log has lost, in words; empty if nothing."""
    if hard_state.term < floor.term:
        return f"its term is {hard_state.term}, it was {floor.term}"
    if hard_state.term == floor.term and floor.vote not in (None, hard_state.vote):
        return f"its vote in term {floor.term} is {hard_state.vote}, it was {floor.vote}"
    if last_index < floor.last_index:
        return f"it ends at {last_index}, it went to {floor.last_index}"
    return ""


def restored(floor: Floor | None, hard_state: HardState | None) -> HardState | None:
    """Term and vote that this node has certainly not gone beyond; None if nothing says.

    FLOOR is written before anything is said of a term or a vote, so either of the two may be ahead
    by one that nobody heard of, and neither can be behind by one that somebody did.
    """
    if floor is None or hard_state is None:
        return hard_state if floor is None else floor.hard_state
    if hard_state.term > floor.term:
        return hard_state
    if hard_state.term == floor.term and floor.vote is None:
        return hard_state
    return floor.hard_state


class FloorStore(Protocol):
    """Where a floor is kept."""

    def write(self, floor: Floor) -> None:
        """Replace the older of the two kept; durable when this returns."""
        ...


class FloorKeeper:
    """Decides when FLOOR is written. Used on the writer thread."""

    def __init__(self, store: FloorStore, recorded: Floor, clock_ns: Callable[[], int]) -> None:
        self._store = store
        self._clock_ns = clock_ns
        self._unrecorded_since_ns: int | None = None
        self.recorded = recorded
        self.writes = 0

    def before_truncation(self, last_index: int, last_term: int) -> None:
        """The log is about to end at ``last_index`` for a moment: say no more than that first."""
        if last_index < self.recorded.last_index:
            self._write(replace(self.recorded, last_index=last_index, last_term=last_term))

    def committed(self, now: Floor) -> None:
        """The log durably holds ``now``: record it if the rule says so."""
        if now == self.recorded:
            self._unrecorded_since_ns = None
            return
        if self._unrecorded_since_ns is None:
            self._unrecorded_since_ns = self._clock_ns()
        if self._must_not_wait(now) or self._waited_long():
            self._write(now)

    def _must_not_wait(self, now: Floor) -> bool:
        """A term, a vote and a configuration are recorded before anybody hears of them."""
        old = self.recorded
        if (now.term, now.vote, now.other_voters) != (old.term, old.vote, old.other_voters):
            return True
        return now.last_index - old.last_index >= MAX_UNRECORDED_ENTRIES

    def _waited_long(self) -> bool:
        since_ns = self._unrecorded_since_ns
        return since_ns is not None and self._clock_ns() - since_ns >= MAX_UNRECORDED_NS

    def flush(self, now: Floor) -> None:
        """Record ``now`` whatever the rule says."""
        if now != self.recorded:
            self._write(now)

    def _write(self, floor: Floor) -> None:
        self._store.write(floor)
        self.recorded = floor
        self.writes += 1
        self._unrecorded_since_ns = None


class FloorFile:
    """The file. It belongs to one incarnation: another directory's is as good as none."""

    def __init__(self, path: Path, incarnation: bytes, files: Files) -> None:
        self.path = path
        self._incarnation = incarnation
        self._files = files
        self._sequence = 0
        self._fd = -1

    def read(self) -> Floor | None:
        """The newest whole slot; None when there is no file or no slot of it is whole.

        Raises:
            FormatTooNewError: a newer release wrote it.
            OSError: it can not be read.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        found: Floor | None = None
        for offset in range(0, SLOTS * SLOT_SIZE_BYTES, SLOT_SIZE_BYTES):
            try:
                body = unseal(raw[offset : offset + SLOT_SIZE_BYTES].rstrip(b"\0"))
                check_format(body, FLOOR_FILE)
                if body["incarnation"] == self._incarnation.hex() and (
                    found is None or body["sequence"] > self._sequence
                ):
                    found, self._sequence = floor_of(body), int(body["sequence"])
            except (RecordError, KeyError, TypeError, ValueError):
                continue  # torn, never written, or damaged: the other slot decides
        return found

    def create(self, floor: Floor) -> None:
        """Make the file anew, with ``floor`` in one slot and nothing in the other."""
        self.close()
        self._sequence += 1
        slots = [bytes(SLOT_SIZE_BYTES)] * SLOTS
        slots[self._sequence % SLOTS] = self._slot(floor)
        self._files.write_atomically(self.path, b"".join(slots))

    def write(self, floor: Floor) -> None:
        """See :meth:`FloorStore.write`."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC, mode=FILE_MODE)
        sequence = self._sequence + 1
        self._files.reached("floor:begun")
        self._files.pwrite(
            self._fd, self._slot(floor, sequence), sequence % SLOTS * SLOT_SIZE_BYTES
        )
        self._files.reached("floor:written")
        self._files.fdatasync(self._fd)
        self._files.reached("floor:synced")
        self._sequence = sequence

    def _slot(self, floor: Floor, sequence: int | None = None) -> bytes:
        body = floor_body(floor) | {
            "sequence": self._sequence if sequence is None else sequence,
            "incarnation": self._incarnation.hex(),
        }
        raw = seal(stamp(body, FLOOR_FORMAT, FLOOR_FORMAT))
        if len(raw) > SLOT_SIZE_BYTES:
            raise LogCorruptError(f"a floor of {len(raw)} bytes does not fit its slot")
        return raw.ljust(SLOT_SIZE_BYTES, b"\0")

    def close(self) -> None:
        """Harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def floor_body(floor: Floor) -> dict[str, Any]:
    """A floor as a record holds it."""
    return {
        "term": floor.term,
        "vote": floor.vote,
        "last_index": floor.last_index,
        "last_term": floor.last_term,
        "other_voters": floor.other_voters,
        "runs": floor.runs,
    }


def floor_of(body: dict[str, Any]) -> Floor:
    """The floor in a record's body; KeyError, TypeError or ValueError if it is none."""
    others = body["other_voters"]
    return Floor(
        int(body["term"]),
        body["vote"],
        int(body["last_index"]),
        int(body["last_term"]),
        None if others is None else int(others),
        int(body["runs"]),
    )
