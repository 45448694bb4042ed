"""What a node does between opening its stores and taking part: bring log and state together.

The state machine's store is disposable (D5): whatever does not fit the log is thrown away and
rebuilt from the newest snapshot. The log is not: a state machine *ahead* of the durable log means
that the log went back, and so does one whose last entry is of a later term than the log's there:
the node goes on in quarantine (D5.3). Term and vote may have gone back, too, and nothing shows how
far: unless FLOOR had noticed this very loss, that quarantine has no end.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from raftcore.core.raft import RecoveredState
from raftcore.core.types import Configuration, HardState, Position
from raftcore.errors import GapError
from raftcore.statemachine import AppliedPosition, StateMachine
from raftcore.storage.base import LogStorage, Recovered

logger = logging.getLogger(__name__)

#: What to do about a quarantine without an end.
NO_WAY_OUT = "nothing vouches for how this node voted: remove it and let it join again"


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
    lost = _what_is_lost(recovered, applied)
    if lost:
        final = storage.enter_quarantine(lost, Position(applied.term, applied.index))
        recovered = replace(
            recovered,
            quarantine=recovered.quarantine or lost,
            quarantine_final=final,
            hard_state=_at_least(recovered.hard_state, applied.term),
        )
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
    return Recovery(_recovered_state(storage, recovered, applied), rebuilt, _why(recovered))


def _what_is_lost(recovered: Recovered, applied: AppliedPosition) -> str:
    """How the state machine shows that the log went back; empty if it does not.

    What is applied was committed: no log that held it may hold an entry of an earlier term there,
    nor end before it.
    """
    if applied.index > recovered.last_index:
        return (
            f"the state machine has applied {applied.index}, but the log ends at "
            f"{recovered.last_index}: the log went back"
        )
    term = recovered.before_first.term
    for first, run in recovered.terms:
        if first <= applied.index:
            term = run
    if applied.term > term:
        return (
            f"the state machine has applied {applied.index} of term {applied.term}, but the log "
            f"has term {term} there: the log went back"
        )
    return ""


def _at_least(hard_state: HardState, term: int) -> HardState:
    """This node was in ``term`` once: it applied an entry of it."""
    return hard_state if hard_state.term >= term else HardState(term)


def _why(recovered: Recovered) -> str | None:
    if recovered.quarantine is None or not recovered.quarantine_final:
        return recovered.quarantine
    return f"{recovered.quarantine}; {NO_WAY_OUT}"


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
        quarantine_final=recovered.quarantine_final,
    )
