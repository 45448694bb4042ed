"""Everything about a directory that can be verified while no node runs on it.

A start of the node stops at the first thing that is wrong. This goes on, so that one report says
how much of the directory is sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from raftcore.core.membership import decode_configuration
from raftcore.core.types import Configuration, Entry, EntryType, SnapshotMeta
from raftcore.encoding import chain_next
from raftcore.errors import (
    ExitCode,
    IdentityError,
    LogCorruptError,
    StorageError,
)
from raftcore.storage.base import Identity
from raftcore.storage.closed import ORIGIN_FILE, ClosedDirectory, ClosedLog
from raftcore.storage.environment import checked_entry, format_body
from raftcore.storage.floor import FLOOR_FILE
from raftcore.storage.plan import Link, split_value
from raftcore.storage.quarantine import DAMAGED_PREFIX, QUARANTINE_FILE
from raftcore.storage.snapshots import KEPT_SNAPSHOTS
from raftcore.tools.progress import Progress, silent

#: So many findings are listed; the rest are counted.
MAX_FINDINGS = 100
_TELL_EVERY = 512

_KNOWN = {
    "LOCK", "IDENTITY", FLOOR_FILE, QUARANTINE_FILE, ORIGIN_FILE, "snap",
    "state", "state.new", "pg", "jwt-secret",
}  # fmt: skip


class Severity(Enum):
    """How bad a finding is."""

    DAMAGE = "damage"  #: a node refuses to start on it, or goes on in quarantine
    WARNING = "warning"  #: a node copes with it, somebody should know
    NOTE = "note"  #: the ordinary trace of a crash or an operator


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be; ``code`` is stable, ``where`` a file or an index."""

    severity: Severity
    code: str
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`verify` found; ``omitted`` findings beyond the bound are only counted."""

    path: Path
    identity: Identity | None
    entries: int
    snapshots: int
    findings: tuple[Finding, ...]
    omitted: int
    exit_code: ExitCode

    @property
    def sound(self) -> bool:
        return self.exit_code is ExitCode.OK


def verify(directory: ClosedDirectory, *, on_progress: Progress = silent) -> Report:
    """Verify structure, every entry, every snapshot, and that all of them fit together."""
    verifier = _Verifier(directory, on_progress)
    verifier.run()
    return verifier.report()


class _Verifier:
    def __init__(self, directory: ClosedDirectory, on_progress: Progress) -> None:
        self._directory = directory
        self._on_progress = on_progress
        self._identity: Identity | None = None
        self._findings: list[Finding] = []
        self._omitted = 0
        self._entries = 0
        self._snapshots: list[SnapshotMeta] = []
        self._links: dict[int, Link] = {}
        self._exit_code = ExitCode.OK

    def report(self) -> Report:
        return Report(
            path=self._directory.path,
            identity=self._identity,
            entries=self._entries,
            snapshots=len(self._snapshots),
            findings=tuple(self._findings),
            omitted=self._omitted,
            exit_code=self._exit_code,
        )

    def run(self) -> None:
        directory = self._directory
        if not directory.locked:
            self._add(Severity.NOTE, "no_lock", "LOCK", "missing: nothing keeps a node away now")
        try:
            self._identity = directory.identity()
        except StorageError as error:
            self._failed(error, "IDENTITY")
            if not directory.log_path.exists():
                return
        self._check_snapshots()
        self._check_quarantine()
        try:
            with directory.log() as log:
                self._check_owner(log)
                self._check_entries(log)
                self._check_meta(log)
                self._check_agreement(log)
                self._check_floor(log)
        except StorageError as error:
            self._failed(error, "log")
        self._check_leftovers()

    # -- findings -------------------------------------------------------------------------------

    def _add(self, severity: Severity, code: str, where: str, detail: str) -> None:
        if len(self._findings) >= MAX_FINDINGS:
            self._omitted += 1
            return
        self._findings.append(Finding(severity, code, where, detail))

    def _damage(self, code: str, where: str, detail: str) -> None:
        self._add(Severity.DAMAGE, code, where, detail)
        self._exit_code = ExitCode.LOG_CORRUPT

    def _failed(self, error: StorageError, where: str) -> None:
        """What a start would have ended with. Damage outranks what is merely not ours to read."""
        self._add(Severity.DAMAGE, error.code, where, str(error))
        if self._exit_code is not ExitCode.LOG_CORRUPT:
            self._exit_code = error.exit_code

    # -- the log --------------------------------------------------------------------------------

    def _check_owner(self, log: ClosedLog) -> None:
        if self._identity is None:
            return
        body, found = format_body(self._identity), log.records.format
        wrong = [k for k in ("cluster_id", "node_id", "incarnation") if found.get(k) != body[k]]
        if wrong:
            self._failed(IdentityError(f"the log has another {', '.join(wrong)}"), "log")

    def _check_floor(self, log: ClosedLog) -> None:
        if self._identity is None:
            return  # FLOOR belongs to an incarnation
        lost = log.lost(self._directory.floor())
        if lost:
            self._damage("floor_missed", "FLOOR", lost)

    def _check_quarantine(self) -> None:
        quarantine = self._directory.quarantine()
        if quarantine is not None:
            self._add(Severity.WARNING, "quarantine", "QUARANTINE", quarantine.reason)

    def _check_entries(self, log: ClosedLog) -> None:
        """Like a start, but past what is damaged: the link before it is then not known."""
        shape = log.records.shape
        previous: Link | None = shape.before
        expected, term = shape.before.index + 1, shape.before.term
        wanted = {meta.index for meta in self._snapshots}
        self._links[shape.before.index] = shape.before
        total = shape.tip.index - shape.before.index
        for index, value in log.raw_entries():
            if index != expected:
                self._damage("entry_missing", str(expected), f"the next one found is {index}")
                previous = None
            expected = index + 1
            try:
                entry, chain = checked_entry(index, value)
            except LogCorruptError as error:
                self._damage("entry_damaged", str(index), str(error))
                previous = None
                continue
            if previous is not None and chain != chain_next(previous.chain, split_value(value)[0]):
                self._damage("chain_broken", str(index), "not what follows the entry before")
            if entry.term < term:
                self._damage("term_falls", str(index), f"term {entry.term} follows {term}")
            if entry.type is EntryType.CONFIGURATION:
                self._check_configuration_entry(entry)
            term, previous = entry.term, Link(index, entry.term, chain)
            if index in wanted:
                self._links[index] = previous
            self._entries += 1
            if self._entries % _TELL_EVERY == 0:
                self._on_progress("verifying entries", self._entries, total)
        if expected - 1 != shape.tip.index or (previous is not None and previous != shape.tip):
            self._damage(
                "tip_differs",
                "log",
                f"the log ends at {expected - 1}, its meta record says {shape.tip.index}",
            )

    def _check_configuration_entry(self, entry: Entry) -> None:
        try:
            configuration = decode_configuration(entry.data)
        except ValueError as error:
            self._damage("configuration_damaged", str(entry.index), str(error))
        else:
            self._check_configuration(configuration, str(entry.index))

    def _check_configuration(self, configuration: Configuration, where: str) -> None:
        identity = self._identity
        if identity is not None and configuration.cluster_id != identity.cluster_id:
            self._damage(
                "foreign_configuration", where, f"it is of cluster {configuration.cluster_id}"
            )

    def _check_meta(self, log: ClosedLog) -> None:
        shape = log.records.shape
        if shape.commit_hint > shape.tip.index:
            self._damage(
                "commit_beyond_log", "log", f"commit hint {shape.commit_hint} > {shape.tip.index}"
            )
        if shape.tip.term > shape.hard_state.term:
            self._damage(
                "term_below_log",
                "log",
                f"term {shape.hard_state.term}, but the last entry is of {shape.tip.term}",
            )

    # -- snapshots ------------------------------------------------------------------------------

    def _check_snapshots(self) -> None:
        positions = self._directory.snapshots.positions()
        for number, (index, term) in enumerate(positions):
            self._on_progress("verifying snapshots", number, len(positions))
            name = self._directory.snapshots.file_of(index, term).name
            try:
                meta = self._directory.snapshots.verify(index, term)
            except StorageError as error:
                self._add(Severity.WARNING, "snapshot_damaged", name, str(error))
            else:
                self._snapshots.append(meta)
                self._check_configuration(meta.configuration, name)

    def _check_agreement(self, log: ClosedLog) -> None:
        """The snapshot in force is there, is of this history, and the log goes on from it."""
        for meta in self._snapshots:
            link = self._links.get(meta.index)
            if link is not None and (link.term, link.chain) != (meta.term, meta.chain):
                self._damage(
                    "snapshot_of_another_history",
                    f"{meta.index}-{meta.term}.snap",
                    "the log holds another entry at that place",
                )
        pointer, first = log.records.pointer, log.records.shape.first_index
        good = {(m.index, m.term): m for m in self._snapshots}
        start = 0
        if pointer is not None:
            chosen = good.get((pointer.index, pointer.term))
            if chosen is None or chosen.digest != pointer.digest:
                name = f"{pointer.index}-{pointer.term}.snap"
                self._add(
                    Severity.WARNING, "snapshot_in_force_unusable", name, "missing or damaged"
                )
                older = (m for m in self._snapshots if m.index < pointer.index)
                chosen = next((m for m in older if first <= m.index + 1), None)
            start = 0 if chosen is None else chosen.index
        if first > start + 1:
            what = f"snapshot {start}" if start else "no snapshot"
            self._damage("E_GAP", "log", f"the log begins at {first}, {what} comes before it")
        elif pointer is not None and max(log.records.shape.tip.index, start) < pointer.index:
            self._damage("E_GAP", "log", f"the log ends below its snapshot {pointer.index}")
        self._note_unpointed(0 if pointer is None else pointer.index)

    def _note_unpointed(self, in_force: int) -> None:
        for meta in self._snapshots:
            if meta.index > in_force:
                name = f"{meta.index}-{meta.term}.snap"
                self._add(Severity.NOTE, "snapshot_unpointed", name, "the next start settles it")
        older = [m for m in self._snapshots if m.index < in_force]
        for meta in older[KEPT_SNAPSHOTS - 1 :]:
            name = f"{meta.index}-{meta.term}.snap"
            self._add(Severity.NOTE, "snapshot_surplus", name, "the next start removes it")

    # -- the rest -------------------------------------------------------------------------------

    def _check_leftovers(self) -> None:
        for path in self._strangers():
            name = str(path.relative_to(self._directory.path))
            if path.suffix in {".tmp", ".recv"} or name in {"log", "log.new", "FOUNDING"}:
                self._add(Severity.NOTE, "unfinished", name, "the next start settles it")
            elif path.suffix == ".bad" or name.startswith(DAMAGED_PREFIX):
                self._add(Severity.WARNING, "set_aside", name, "was found damaged by a start")
            else:
                self._add(Severity.NOTE, "unknown_file", name, "not one of ours; left alone")

    def _strangers(self) -> Iterator[Path]:
        root = self._directory.path
        for path in sorted(root.iterdir()):
            if path != self._directory.log_path and path.name not in _KNOWN:
                yield path
        snapshots = self._directory.snapshots
        known = {snapshots.file_of(*position) for position in snapshots.positions()}
        if snapshots.path.is_dir():
            yield from (path for path in sorted(snapshots.path.iterdir()) if path not in known)
