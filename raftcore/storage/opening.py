"""The open order of D1: nothing is believed before it is verified, or changed before it is decided.

Everything up to :meth:`Opener._settle` only reads; but the mark of a clean stop goes before the log
is mapped. A start that is refused leaves every other file as it was; a start that finds something
lost goes on in quarantine where other voters can tell what it was (D3, D4), with the damaged log
kept beside the new one.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import lmdb

from raftcore.core.membership import ConfigurationStack
from raftcore.core.types import Configuration, SnapshotMeta
from raftcore.errors import IdentityError, LogCorruptError
from raftcore.storage.base import Identity, Recovered
from raftcore.storage.directory import DataDirectory, clear_directories
from raftcore.storage.environment import (
    FLOOR,
    FORMAT,
    HARD_STATE,
    LOG_FORMAT,
    META_KEYS,
    RUNS,
    Environment,
    MetaRecords,
    format_body,
    hard_state_body,
    read_meta,
    reader_of,
)
from raftcore.storage.files import storage_error, storage_errors
from raftcore.storage.floor import (
    FLOOR_FILE,
    Floor,
    FloorFile,
    FloorKeeper,
    count_other_voters,
    restored,
    went_back,
)
from raftcore.storage.plan import Link, Shape
from raftcore.storage.quarantine import Quarantine, QuarantineFile
from raftcore.storage.records import RecordError, check_format, seal
from raftcore.storage.recovery import (
    VerifiedLog,
    check_file,
    check_snapshot_fits,
    choose_snapshot,
    is_clean,
    remove_clean_mark,
    verify_entries,
)
from raftcore.storage.salvage import Remains, build_log, survey
from raftcore.storage.snapshots import SnapshotDirectory
from raftcore.storage.transactions import Transactions

_log = logging.getLogger(__name__)

#: What the meta table of a log of format 1 held before its upgrade.
META_BACKUP = "meta-format-1.bak"

_NOT_OUR_LOG = (
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.CorruptedError,
    lmdb.NotFoundError,
    lmdb.PageNotFoundError,
)
#: What is said of a file whose content does not come into it.
_NOT_THE_FILE = (
    lmdb.DiskError,
    lmdb.LockError,
    lmdb.MemoryError,
    lmdb.ReadersFullError,
    lmdb.TlsFullError,
    lmdb.MapResizedError,
)
_SYSTEM_FAULTS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """See :func:`raftcore.storage.lmdb_log.open_log`."""

    map_size_bytes: int
    map_limit_bytes: int
    verify_limit_bytes: int
    accept_loss: bool
    clock_ns: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened log and everything known of it."""

    transactions: Transactions
    snapshots: SnapshotDirectory
    shape: Shape
    recovered: Recovered
    configurations: ConfigurationStack
    floor: FloorKeeper
    floor_file: FloorFile
    quarantine: Quarantine | None
    format: dict[str, Any]
    runs: int


@dataclass(frozen=True, slots=True)
class _Examined:
    """What a sound log holds. ``lost`` says what FLOOR misses; ``adopt``: FLOOR does not count."""

    records: MetaRecords
    chosen: SnapshotMeta | None  #: the snapshot in force
    unusable_pointer: bool
    verified: VerifiedLog
    lost: str
    adopt: bool


def judge_floor(floor: Floor | None, records: MetaRecords) -> tuple[str, bool]:
    """What FLOOR says is lost, and whether it is to be made from the log instead.

    The latter where there never was one, and where a program that does not know it (release 0.1)
    ran last: it may have cut the log below a FLOOR that it left alone.
    """
    known = records.floor_runs
    if floor is None:
        return ("", True) if known is None else ("FLOOR is missing or damaged", False)
    if known != records.runs and floor.runs <= records.runs:
        return "", True
    lost = went_back(floor, records.shape.hard_state, records.shape.last_index)
    return (f"the log went back: {lost}" if lost else ""), False


class Opener:
    """Opens the log of one directory, once."""

    def __init__(self, directory: DataDirectory, identity: Identity, options: OpenOptions) -> None:
        self._directory = directory
        self._identity = identity
        self._options = options
        self._files = directory.files
        self._path = directory.log_path
        self._snapshots = SnapshotDirectory(directory.snapshot_path, directory.files)
        self._record = QuarantineFile(directory.path, directory.files)
        self._floor_file = FloorFile(
            directory.path / FLOOR_FILE, identity.incarnation, directory.files
        )
        self._floor: Floor | None = None
        self._quarantine: Quarantine | None = None

    def open(self) -> Opened:
        """Open it; a damaged log is exchanged for what can be kept of it, and that is opened."""
        found = self._open(exchanged=False) or self._open(exchanged=True)
        assert found is not None, "an exchanged log opens or is refused"
        return found

    def _open(self, *, exchanged: bool) -> Opened | None:
        """None after an exchange."""
        with storage_errors(f"opening {self._path}"):
            self._quarantine = self._record.finish_exchange()
            self._floor = self._floor_file.read()
            if not self._path.is_dir():
                raise LogCorruptError(f"{self._path} is missing")
            clean = is_clean(self._path)
            limit_bytes = self._options.verify_limit_bytes
            check_file(self._path, self._files, clean=clean, verify_limit_bytes=limit_bytes)
            # Pages may have rotted since that stop, and mapping them kill this process. The start
            # after that one must look.
            remove_clean_mark(self._path, self._files)
        transactions = self._map()
        try:
            with transactions.final("opening the log"):
                examined = self._examine_or_exchange(transactions, exchanged=exchanged)
                if examined is not None:
                    return self._settle(transactions, examined)
        except BaseException:
            transactions.abandon()
            self._floor_file.close()
            raise
        transactions.abandon()
        return None

    def _map(self) -> Transactions:
        options = self._options
        try:
            environment = Environment.open(self._path, options.map_size_bytes)
        except _NOT_OUR_LOG as error:
            raise LogCorruptError(f"{self._path}: {error}") from error
        except lmdb.Error as error:
            raise storage_error(error, f"opening {self._path}") from error
        environment.env.reader_check()
        return Transactions(environment, options.map_limit_bytes, self._files, options.clock_ns)

    # -- looking ----------------------------------------------------------------------------------

    def _examine_or_exchange(
        self, transactions: Transactions, *, exchanged: bool
    ) -> _Examined | None:
        try:
            with _corruption():
                return self._examine(transactions.environment)
        except LogCorruptError as damage:
            if exchanged:
                raise
            self._exchange(transactions.environment, damage)
            return None

    def _examine(self, environment: Environment) -> _Examined:
        records = read_meta(environment)
        check_owner(records.format, self._identity)
        shape, pointer = records.shape, records.pointer
        snapshot = choose_snapshot(self._snapshots, pointer, shape)
        candidates = {index for index, _ in self._snapshots.positions()}
        verified = verify_entries(environment, shape, candidates)
        if snapshot is not None:
            check_snapshot_fits(snapshot, verified.links.get(snapshot.index))
        unusable = pointer is not None and (snapshot is None or snapshot.digest != pointer.digest)
        not_it = (pointer.index, pointer.term) if pointer is not None and unusable else None
        newer = self._orphan(verified.links, snapshot, not_it)
        lost, adopt = judge_floor(self._floor, records)
        return _Examined(records, newer or snapshot, unusable, verified, lost, adopt)

    def _orphan(
        self, links: dict[int, Link], chosen: SnapshotMeta | None, not_it: tuple[int, int] | None
    ) -> SnapshotMeta | None:
        """A finished snapshot that a crash left without a pointer, if it is of this very log."""
        for index, term in self._snapshots.positions():
            if chosen is not None and index <= chosen.index:
                return None
            if (index, term) == not_it:
                continue
            meta, link = self._snapshots.verified_or_none(index, term), links.get(index)
            if meta is not None and link == Link(index, term, meta.chain):
                return meta
        return None

    # -- quarantine -------------------------------------------------------------------------------

    def _check_not_alone(self, newest: Configuration | None, damage: LogCorruptError) -> None:
        """Only other voters can say what was lost; without any, the start is refused."""
        others = self._floor.other_voters if self._floor is not None else None
        if others is None and newest is not None:
            others = count_other_voters(newest, self._identity.node_id)
        if not others:
            raise damage

    def _exchange(self, environment: Environment, damage: LogCorruptError) -> None:
        """Put what verifies in the place of a damaged log, and begin the quarantine."""
        try:
            body = _format_of(environment)
            check_owner(body, self._identity)
            remains = survey(environment, self._identity.cluster_id, self._snapshots, self._floor)
        except LogCorruptError as error:
            raise LogCorruptError(f"{damage}; {error}") from damage
        self._check_not_alone(remains.configuration, damage)
        name = self._record.free_name()
        _log.error("the log is damaged: %s; %s", damage, _describe(remains))
        aside = self._directory.path / "log.new"
        clear_directories(self._files, aside)
        limits = self._options.map_size_bytes, self._options.map_limit_bytes
        build_log(aside, environment, self._identity, remains, limits, self._files)
        self._set_aside_beyond(remains.shape.snapshot_index)
        reason = f"{damage.code}: {damage}"
        self._record.begin(reason, self._floor, replaces=name, vouched=remains.vouched)

    def _set_aside_beyond(self, index: int) -> None:
        for position in self._snapshots.positions():
            if position[0] > index:
                self._snapshots.set_aside(*position)

    # -- settling ---------------------------------------------------------------------------------

    def _settle(self, transactions: Transactions, examined: _Examined) -> Opened:
        """The first changes of this run, the durable commit among them (D1, step 7)."""
        records, lost = examined.records, examined.lost
        if lost:
            self._begin_quarantine(examined)
        self._settle_files(examined)
        shape = replace(records.shape, snapshot=examined.chosen)
        if not examined.adopt:
            hard_state = restored(self._floor, shape.hard_state)
            assert hard_state is not None, "the log itself says one"
            shape = replace(shape, hard_state=hard_state)
        stack = self._configurations(examined)
        runs = records.runs + 1
        floor = floor_of_shape(shape, stack, self._identity.node_id, runs)
        if self._floor is None:
            self._floor_file.create(floor)
        elif examined.adopt:
            self._floor_file.write(floor)
        body = self._upgraded(transactions.environment, records, stack)
        self._commit_run(transactions, examined, shape, body, runs)
        if lost and self._floor is not None:
            self._floor_file.write(floor)
        fresh = self._floor is None or examined.adopt or bool(lost)
        recorded = floor if fresh else self._floor
        assert recorded is not None, "made above"
        keeper = FloorKeeper(self._floor_file, recorded, self._options.clock_ns)
        self._snapshots.remove(
            [p for p in self._snapshots.positions() if p[0] > shape.snapshot_index]
        )
        return Opened(
            transactions,
            self._snapshots,
            shape,
            self._recovered(shape, examined.verified),
            stack,
            keeper,
            self._floor_file,
            self._quarantine,
            body,
            runs,
        )

    def _begin_quarantine(self, examined: _Examined) -> None:
        """Before the log is touched, so that no crash can leave a node that forgot why."""
        vouched = self._floor is not None
        if self._quarantine is not None and (vouched or not self._quarantine.vouched):
            return  # it began earlier, and this FLOOR is from before it
        try:
            damage = LogCorruptError(f"{self._path}: {examined.lost}")
            self._check_not_alone(self._configurations(examined).current, damage)
        except LogCorruptError:
            if not self._options.accept_loss:
                raise
            _log.error("going on as told, although %s", examined.lost)
            return
        self._quarantine = self._record.begin(examined.lost, self._floor, vouched=vouched)

    def _configurations(self, examined: _Examined) -> ConfigurationStack:
        chosen = examined.chosen
        start = 0 if chosen is None else chosen.index
        nobody = Configuration(self._identity.cluster_id, ())
        stack = ConfigurationStack(start, nobody if chosen is None else chosen.configuration)
        for index, configuration in examined.verified.configurations:
            if index > start:
                stack.push(index, configuration)
        return stack

    def _upgraded(
        self, environment: Environment, records: MetaRecords, stack: ConfigurationStack
    ) -> dict[str, Any]:
        """The format record of this run; a backup of all records comes before it changes."""
        body = records.format
        quarantined = LOG_FORMAT if self._quarantine is not None else 0
        reader = max(body["min_reader_version"], reader_of(stack.current), quarantined)
        if body["format_version"] < LOG_FORMAT:
            backup_meta(environment, self._directory, self._path.name)
            return format_body(self._identity, reader)
        return body | {"min_reader_version": reader}

    def _commit_run(
        self,
        transactions: Transactions,
        examined: _Examined,
        shape: Shape,
        body: dict[str, Any],
        runs: int,
    ) -> None:
        environment, records = transactions.environment, examined.records
        pointer, chosen = records.pointer, examined.chosen

        def fill(txn: lmdb.Transaction[bytes]) -> None:
            environment.put_record(txn, RUNS, {"count": runs})
            environment.put_record(txn, FLOOR, {"runs": runs})
            if body != records.format:
                environment.put_record(txn, FORMAT, body)
            if shape.hard_state != records.shape.hard_state:
                environment.put_record(txn, HARD_STATE, hard_state_body(shape))
            if (pointer and pointer.digest) != (chosen and chosen.digest):
                environment.put_pointer(txn, chosen)

        transactions.durable(fill)

    def _settle_files(self, examined: _Examined) -> None:
        """What a crash left unfinished goes; a snapshot that is damaged is kept for a look."""
        self._snapshots.prepare()
        pointer = examined.records.pointer
        if pointer is not None and examined.unusable_pointer:
            self._snapshots.set_aside(pointer.index, pointer.term)

    def _recovered(self, shape: Shape, verified: VerifiedLog) -> Recovered:
        return Recovered(
            hard_state=shape.hard_state,
            first_index=shape.first_index,
            last_index=shape.last_index,
            terms=tuple(verified.terms),
            snapshot=shape.snapshot,
            configurations=tuple(c for c in verified.configurations if c[0] > shape.snapshot_index),
            commit_hint=shape.commit_hint,
            before_first=shape.before.position,
            quarantine=None if self._quarantine is None else self._quarantine.reason,
            quarantine_final=self._quarantine is not None and not self._quarantine.vouched,
        )


@contextlib.contextmanager
def _corruption() -> Iterator[None]:
    """What LMDB finds wrong while the content is read is damage, not a failing disk.

    It has many words for it: a page that rotted can look like an argument, a transaction or a size
    that cannot be. What only the system can be to blame for stays what it is.
    """
    try:
        yield
    except lmdb.Error as error:
        if isinstance(error, _NOT_THE_FILE) or getattr(error, "code", None) in _SYSTEM_FAULTS:
            raise
        raise LogCorruptError(f"the log does not read: {error}") from error


def check_owner(body: dict[str, Any], identity: Identity) -> None:
    """The log belongs to this directory.

    Raises:
        IdentityError: it was made for another one.
    """
    own = format_body(identity)
    if any(body.get(key) != own[key] for key in ("cluster_id", "node_id")):
        raise IdentityError("the log was made for another node or cluster")
    if body.get("incarnation") != own["incarnation"]:
        raise IdentityError("the log was made for another incarnation of this node")


def _format_of(environment: Environment) -> dict[str, Any]:
    with environment.env.begin() as txn:
        body = environment.get_record(txn, FORMAT)
    if body is None:
        raise LogCorruptError("nothing says whose log it is")
    try:
        check_format(body, "the log")
    except RecordError as error:
        raise LogCorruptError(f"nothing says whose log it is: {error}") from error
    return body


def floor_of_shape(
    shape: Shape, configurations: ConfigurationStack, node_id: str, runs: int
) -> Floor:
    """The floor that a log of this shape allows."""
    return Floor(
        shape.hard_state.term,
        shape.hard_state.vote,
        shape.tip.index,
        shape.tip.term,
        count_other_voters(configurations.current, node_id),
        runs,
    )


def backup_meta(environment: Environment, directory: DataDirectory, log_name: str) -> None:
    """A copy of every record of the meta table, beside the log's file, before an upgrade."""
    with environment.env.begin() as txn:
        raws = {key: txn.get(key, db=environment.meta) for key in META_KEYS}
    body = {key.decode(): raw.decode() for key, raw in raws.items() if raw is not None}
    directory.files.write_atomically(directory.path / log_name / META_BACKUP, seal(body))


def _describe(remains: Remains) -> str:
    shape = remains.shape
    if shape.last_index == 0:
        return "nothing of it can be kept"
    return f"kept are entries {shape.first_index} to {shape.last_index}" + (
        f" and the snapshot at {shape.snapshot_index}" if shape.snapshot else ""
    )
