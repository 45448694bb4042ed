"""QUARANTINE: this node has lost something that it had said was durable (D3, D4).

As long as the record is there the node neither votes nor campaigns, and counts for nothing. The
record also carries the exchange of a damaged log for what could be kept of it through a crash: the
new log is complete before the record names it, and the damaged one is moved aside, never removed.

A way out exists only where term and vote are ``vouched`` for, by a FLOOR that did not go back
itself. Without that the node may have voted in terms that it does not remember, and what a leader
of one of the terms before says proves nothing to it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raftcore.core.types import Position
from raftcore.errors import LogCorruptError
from raftcore.storage.files import Files
from raftcore.storage.floor import MAX_UNRECORDED_ENTRIES, Floor, floor_body, floor_of
from raftcore.storage.records import RecordError, check_format, seal, stamp, unseal

_log = logging.getLogger(__name__)

QUARANTINE_FILE = "QUARANTINE"
QUARANTINE_FORMAT = 2
DAMAGED_PREFIX = "log.damaged-"
#: Damaged logs are kept for whoever wants to look; one more than this needs somebody to look first.
MAX_DAMAGED_LOGS = 3
MAX_REASON_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Why, since when (Unix milliseconds, for people), and what the log held at least before.

    ``replaces`` is the name that the damaged log gets while ``log.new`` takes its place.
    ``vouched``: FLOOR vouches for term and vote. Records from before this was written down do not
    say so, and count as those for which nothing vouches.
    """

    reason: str
    since_ms: int
    floor: Floor | None
    replaces: str | None = None
    vouched: bool = False

    def explains(self, applied: Position | None) -> bool:
        """Whether the loss that FLOOR noticed is the one that a state machine shows which has
        applied more than the log holds. If that is beyond all that this FLOOR can have missed,
        FLOOR went back, too."""
        floor = self.floor
        if not self.vouched or floor is None or applied is None:
            return False
        unrecorded = applied.index - floor.last_index
        return applied.term <= floor.term and unrecorded < MAX_UNRECORDED_ENTRIES


class QuarantineFile:
    """The record of one directory."""

    def __init__(self, root: Path, files: Files) -> None:
        self._root = root
        self._path = root / QUARANTINE_FILE
        self._files = files

    def read(self) -> Quarantine | None:
        """The record, or None. One that does not read still says that there was one.

        Raises:
            FormatTooNewError: a newer release wrote it.
            OSError: it can not be read.
        """
        try:
            body = unseal(self._path.read_bytes())
            check_format(body, QUARANTINE_FILE)
            return _quarantine_of(body)
        except FileNotFoundError:
            return None
        except (RecordError, KeyError, TypeError, ValueError) as error:
            return Quarantine(f"the QUARANTINE record is damaged: {error}", 0, None)

    def write(self, quarantine: Quarantine) -> None:
        """Begin or change the quarantine; durable when this returns."""
        self._files.write_atomically(self._path, encode_quarantine(quarantine))

    def begin(
        self, reason: str, floor: Floor | None, replaces: str | None = None, *, vouched: bool
    ) -> Quarantine:
        """Begin it; one that is there already keeps its reason and floor, and is vouched for only
        as long as everything that came was."""
        found = self.read()
        if found is None:
            now_ms = time.time_ns() // 1_000_000
            found = Quarantine(reason[:MAX_REASON_LENGTH], now_ms, floor, vouched=vouched)
            _log.error("this node is in quarantine: %s", found.reason)
        else:
            _log.error("this node is still in quarantine: %s; then: %s", found.reason, reason)
        found = replace(found, replaces=replaces, vouched=found.vouched and vouched)
        self.write(found)
        self._files.reached("quarantine:begun")
        return found

    def end(self) -> None:
        """Remove the record; durable when this returns."""
        self._files.remove(self._path)
        self._files.reached("quarantine:ended")

    # -- the exchange of the log ----------------------------------------------------------------

    def free_name(self) -> str:
        """The name that the next damaged log gets.

        Raises:
            LogCorruptError: enough of them are kept.
        """
        taken = {path.name for path in self._root.glob(f"{DAMAGED_PREFIX}*")}
        if len(taken) >= MAX_DAMAGED_LOGS:
            raise LogCorruptError(
                f"{self._root} already keeps {len(taken)} damaged logs: find out why the disk "
                f"loses data, then move {DAMAGED_PREFIX}* away"
            )
        return next(
            name for n in range(1, len(taken) + 2) if (name := f"{DAMAGED_PREFIX}{n}") not in taken
        )

    def finish_exchange(self) -> Quarantine | None:
        """Complete an exchange that a crash cut off; returns the record as it then is."""
        found = self.read()
        if found is None or found.replaces is None:
            return found
        log, aside = self._root / "log", self._root / "log.new"
        if aside.exists():
            if log.exists():
                self._files.rename(log, self._root / found.replaces)
                self._files.reached("exchange:moved")
            self._files.rename(aside, log)
            self._files.reached("exchange:placed")
        found = replace(found, replaces=None)
        self.write(found)
        self._files.reached("exchange:done")
        return found


def encode_quarantine(quarantine: Quarantine) -> bytes:
    """The record's bytes."""
    floor = quarantine.floor
    body: dict[str, Any] = {
        "reason": quarantine.reason,
        "since_ms": quarantine.since_ms,
        "floor": floor and floor_body(floor),
        "replaces": quarantine.replaces,
        "vouched": quarantine.vouched,
    }
    return seal(stamp(body, QUARANTINE_FORMAT, QUARANTINE_FORMAT))


def _quarantine_of(body: dict[str, Any]) -> Quarantine:
    floor, replaces = body["floor"], body["replaces"]
    if replaces is not None and not str(replaces).startswith(DAMAGED_PREFIX):
        raise ValueError(f"{replaces!r} names no damaged log")
    return Quarantine(
        str(body["reason"]),
        int(body["since_ms"]),
        None if floor is None else floor_of(floor),
        replaces,
        body.get("vouched") is True,
    )
