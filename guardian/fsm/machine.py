"""The replicated state machine of Guardian: entries in, state and results out.

Equal entries give equal state and equal results on every node, however they are batched: nothing
here reads a clock, draws a random number or walks a collection without an order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb

from guardian.fsm import commands
from guardian.fsm.commands import (
    AnyCommand,
    AnyResult,
    Refusals,
    UndecodableError,
    decode_command,
)
from guardian.fsm.configs import create_config, delete_config, rollback_config, update_config
from guardian.fsm.deduplication import Deduplication
from guardian.fsm.environment import (
    DEFAULT_MAP_LIMIT_BYTES,
    DEFAULT_MAP_SIZE_BYTES,
    DEFAULT_SNAPSHOT_WAIT_S,
    StateEnvironment,
)
from guardian.fsm.handle import Handle
from guardian.fsm.projects import (
    create_key,
    create_project,
    delete_project,
    purge_project,
    revoke_key,
)
from guardian.fsm.records import CORE, CORE_KEY, STATE_FORMAT, CoreRecord
from guardian.fsm.schemas import abort_schema_attempt, delete_schema, put_schema
from guardian.fsm.shape import is_well_formed
from guardian.fsm.snapshots import Installer, StateSnapshot
from guardian.fsm.state import StateReader
from guardian.fsm.tables import StateCorruptError
from guardian.fsm.transition import Transition
from raftcore.core.types import Entry, EntryType
from raftcore.statemachine import AppliedPosition
from raftcore.storage.files import Files

_log = logging.getLogger(__name__)

_HANDLERS: Final[dict[type[AnyCommand], Callable[[Transition, Any], AnyResult]]] = {
    commands.CreateProject: create_project,
    commands.DeleteProject: delete_project,
    commands.PurgeProject: purge_project,
    commands.CreateKey: create_key,
    commands.RevokeKey: revoke_key,
    commands.PutSchema: put_schema,
    commands.DeleteSchema: delete_schema,
    commands.AbortSchemaAttempt: abort_schema_attempt,
    commands.CreateConfig: create_config,
    commands.UpdateConfig: update_config,
    commands.DeleteConfig: delete_config,
    commands.RollbackConfig: rollback_config,
}


class GuardianMachine:
    """Implements :class:`raftcore.statemachine.StateMachine`.

    Every method is called on the apply thread, except :meth:`sync`, which is called off it, and
    what :attr:`state` offers, which any thread may use.
    """

    def __init__(self, environment: StateEnvironment) -> None:
        self._environment = environment
        self._listeners: list[Callable[[int], None]] = []
        self._core = self._load()
        self.state = StateReader(environment)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        cluster_id: str,
        incarnation: bytes,
        map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES,
        map_limit_bytes: int = DEFAULT_MAP_LIMIT_BYTES,
        snapshot_wait_s: float = DEFAULT_SNAPSHOT_WAIT_S,
        files: Files | None = None,
    ) -> GuardianMachine:
        """Open the state in ``path`` (``<data dir>/state``), or begin with an empty one.

        What is found there is used only if it can be trusted, see :mod:`guardian.fsm.mark`; else it
        is discarded and :meth:`last_applied` says index 0, so that the node rebuilds it.

        Args:
            path: the directory; its parent is created if need be.
            cluster_id: whom the state belongs to, with
            incarnation: 16 random bytes of this node's data directory.
            map_size_bytes: of LMDB's memory map at first; it doubles when needed up to
            map_limit_bytes: beyond which applying fails for want of space.
            snapshot_wait_s: how long growth waits for a snapshot being read before ending it.
            files: the seam through which tests make file operations fail.

        Raises:
            StorageError: the directory can not be read or written.
        """

        def environment() -> StateEnvironment:
            return StateEnvironment(
                path,
                cluster_id=cluster_id,
                incarnation=incarnation,
                map_size_bytes=map_size_bytes,
                map_limit_bytes=map_limit_bytes,
                snapshot_wait_s=snapshot_wait_s,
                files=files,
            )

        found = environment()
        try:
            return cls(found)
        except StateCorruptError as error:
            # The mark went with the failure, so what opens now is an empty state.
            _log.warning("the state in %s is discarded: %s", path, error)
            found.close()
            return cls(environment())

    def _load(self) -> CoreRecord:
        with self._environment.read() as view:
            core = CORE.get(view, CORE_KEY) or CoreRecord()
        if core.format != STATE_FORMAT:
            raise self._environment.fail(
                StateCorruptError(f"the state has format {core.format}"), "load"
            )
        return core

    def on_applied(self, callback: Callable[[int], None]) -> None:
        """Have ``callback(revision)`` called on the apply thread after each change of the state.

        It must not raise and must not block.
        """
        self._listeners.append(callback)

    def last_applied(self) -> AppliedPosition:
        return AppliedPosition(self._core.index, self._core.term, self._core.log_chain)

    # -- applying --------------------------------------------------------------------------------

    def apply(
        self, entries: Sequence[Entry], position: AppliedPosition
    ) -> Sequence[AnyResult | None]:
        """Execute ``entries`` in one transaction that also records ``position``.

        Returns one result per command, and None for entries of other types.

        Raises:
            StorageError: final; the state is rebuilt at the next start.
        """
        self._environment.grow_ahead()
        try:
            results, core = self._transact(entries, position)
        except lmdb.MapFullError:
            # Nothing of the batch is there; with a larger map it is repeated, once.
            self._environment.grow(sum(entry.size_bytes for entry in entries))
            try:
                results, core = self._transact(entries, position)
            except lmdb.MapFullError as error:
                raise self._environment.fail(error, "apply after growing") from error
        self._core = core
        self._announce()
        return results

    def _transact(
        self, entries: Sequence[Entry], position: AppliedPosition
    ) -> tuple[list[AnyResult | None], CoreRecord]:
        with self._environment.write() as view:
            transition = Transition(view, self._core)
            memory = Deduplication(transition)
            results: list[AnyResult | None] = []
            for entry in entries:
                transition.enter(entry)
                memory.forget()
                if entry.type is EntryType.COMMAND:
                    results.append(_execute(transition, memory, entry.data))
                else:
                    results.append(None)
            return results, transition.finish(position)

    def _announce(self) -> None:
        for callback in self._listeners:
            callback(self._core.revision)

    # -- snapshots -------------------------------------------------------------------------------

    def open_snapshot(self) -> StateSnapshot:
        self._environment.grow_ahead()
        return StateSnapshot(self._environment.pin(), self.last_applied())

    def install_snapshot(self, records: Iterable[bytes], position: AppliedPosition) -> None:
        """Replace the whole state, durably; readers see the old state or the new.

        Raises:
            StateCorruptError: not a whole snapshot of ``position``; the state is as it was.
            FormatTooNewError: a newer release wrote it; the state is as it was.
            StorageError: final.
        """
        self._environment.replace(Installer(records, position).build)
        self._core = self._load()
        self._announce()

    def discard(self) -> None:
        """Begin again with an empty state."""
        self._environment.replace(_nothing)
        self._core = self._load()

    # -- durability ------------------------------------------------------------------------------

    def sync(self) -> None:
        """Flush the state to the disk; call it every 5 to 30 s, off the apply thread.

        Raises:
            StorageError: final.
        """
        self._environment.sync()

    def close(self) -> None:
        """Sync and close, so that the next start finds a clean state.

        Raises:
            StorageError: the sync failed; the next start rebuilds.
        """
        self._environment.close()


def _nothing(handle: Handle) -> None:
    """Builds an empty state."""


def _execute(transition: Transition, memory: Deduplication, raw: bytes) -> AnyResult:
    try:
        command = decode_command(raw)
    except UndecodableError:
        return transition.refuse(Refusals.MALFORMED, detail="not a command")
    if not is_well_formed(command):
        return transition.refuse(Refusals.MALFORMED, detail="a field is out of bounds")
    earlier = memory.earlier_result(command)
    if earlier is not None:
        return earlier
    transition.actor = command.head.actor
    result = _HANDLERS[type(command)](transition, command)
    memory.keep(command, result)
    return result
