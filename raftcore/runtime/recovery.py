"""What a node does between opening its stores and taking part: bring log and state together.

The state machine's store is disposable (D5): whatever does not fit the log is thrown away and
rebuilt from the newest snapshot. The log is not: a state machine *ahead* of the durable log means
that the log went back, and the node goes on in quarantine (D5.3).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from raftcore.core.raft import RecoveredState
from raftcore.core.types import Configuration
from raftcore.errors import GapError
from raftcore.statemachine import AppliedPosition, StateMachine
from raftcore.storage.base import LogStorage, Recovered

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Where log and state machine stand. ``rebuilt``: the state was thrown away or was empty, so
    until it has caught up it is older than what this node has shown before (D5.6).
    ``quarantine`` says why this node is in quarantine (D3), or None."""

    state: RecoveredState
    rebuilt: bool
    quarantine: str | None = None


def recover(storage: LogStorage, machine: StateMachine) -> Recovery:
    """Load the log, settle the state machine with it, and say where both stand.

    Raises:
        LogCorruptError: the state machine has applied what the log no longer holds, and no other
            voter could tell what that was.
        GapError: neither snapshot nor log can bring the state machine up to the log.
    """
    recovered = storage.load()
    applied = machine.last_applied()
    if applied.index > recovered.last_index:
        lost = (
            f"the state machine has applied {applied.index}, but the log ends at "
            f"{recovered.last_index}: the log went back"
        )
        storage.enter_quarantine(lost)
        recovered = replace(recovered, quarantine=recovered.quarantine or lost)
        # What it shows may have been decided otherwise meanwhile, for all that is known here.
        machine.discard()
        applied = machine.last_applied()
    rebuilt = applied.index == 0
    if applied.index > 0 and not _fits(storage, recovered, applied):
        logger.warning("the state at index %d does not fit the log; it is rebuilt", applied.index)
        machine.discard()
        rebuilt = True
        applied = machine.last_applied()
    if applied.index + 1 < recovered.first_index:
        applied = _install(storage, recovered, machine)
    return Recovery(_recovered_state(storage, recovered, applied), rebuilt, recovered.quarantine)


def _fits(storage: LogStorage, recovered: Recovered, applied: AppliedPosition) -> bool:
    """Whether the log holds the very entry that the state machine applied last."""
    if applied.index + 1 < recovered.first_index:
        return False  # nothing left to compare with; the snapshot is newer anyway
    return storage.chain_at(applied.index) == applied.chain


def _install(storage: LogStorage, recovered: Recovered, machine: StateMachine) -> AppliedPosition:
    meta = recovered.snapshot
    if meta is None:
        raise GapError(f"the log begins at {recovered.first_index} and there is no snapshot")
    position = AppliedPosition(meta.index, meta.term, meta.chain)
    machine.install_snapshot(storage.snapshot_records(meta), position)
    return position


def _recovered_state(
    storage: LogStorage, recovered: Recovered, applied: AppliedPosition
) -> RecoveredState:
    meta = recovered.snapshot
    base = meta.configuration if meta else Configuration(storage.identity.cluster_id, ())
    return RecoveredState(
        hard_state=recovered.hard_state,
        first_index=recovered.first_index,
        last_index=recovered.last_index,
        terms=recovered.terms,
        before_first=recovered.before_first,
        snapshot=meta,
        base_index=meta.index if meta else 0,
        base_configuration=base,
        configurations=recovered.configurations,
        commit_hint=recovered.commit_hint,
        applied=applied.index,
        quarantined=recovered.quarantine is not None,
    )
