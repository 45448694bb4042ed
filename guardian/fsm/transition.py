"""What the handlers of commands work on: one write transaction, one entry after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from guardian.fsm.commands import Refused
from guardian.fsm.history import next_chain
from guardian.fsm.records import CORE, CORE_KEY, HISTORY, CoreRecord, HistoryRecord, history_key

if TYPE_CHECKING:
    from guardian.fsm.history import ChangeKind
    from guardian.fsm.tables import WriteView
    from raftcore.core.types import Entry
    from raftcore.statemachine import AppliedPosition

#: A leader's stamp is a u64 that nobody checked; beyond this it could not be added to.
MAX_CLOCK_MS: Final = 2**53 - 1


class Transition:
    """The state in change.

    The only clock is the replicated one: the highest leader's stamp in the log so far, which
    never goes back, whatever the leaders' clocks do.
    """

    __slots__ = ("actor", "base", "chain", "clock_ms", "index", "ordinal", "revision", "view")

    def __init__(self, view: WriteView, core: CoreRecord) -> None:
        self.view = view
        self.base = core.revision_base
        self.clock_ms = core.clock_ms
        self.chain = core.history_chain
        self.index = core.index
        self.revision = core.revision
        self.ordinal = 0
        self.actor = ""

    def enter(self, entry: Entry) -> None:
        """Go on to ``entry``: its revision, its time."""
        assert entry.index == self.index + 1, "entries are applied in order, each once"
        self.index = entry.index
        self.revision = entry.index + self.base
        self.ordinal = 0
        self.clock_ms = max(self.clock_ms, min(entry.timestamp_ms, MAX_CLOCK_MS))

    def record(
        self,
        kind: ChangeKind,
        *,
        project_id: str = "",
        key: str = "",
        key_id: str = "",
        name: str = "",
        schema_id: str = "",
        schema_version: int = 0,
        version: int = 0,
        digest: bytes = b"",
    ) -> None:
        """Add a change of the current entry, by the current actor, to history and its chain."""
        change = HistoryRecord(
            kind.value,
            self.actor,
            self.clock_ms,
            b"",
            project_id,
            key,
            key_id,
            name,
            schema_id,
            schema_version,
            version,
            digest,
        )
        self.chain = next_chain(self.chain, self.revision, self.ordinal, change)
        change = msgspec.structs.replace(change, chain=self.chain)
        HISTORY.put(self.view, history_key(self.revision, self.ordinal), change)
        self.ordinal += 1

    def refuse(self, code: str, current_version: int = 0, detail: str = "") -> Refused:
        """Nothing changed, and why."""
        return Refused(self.revision, code, current_version, detail)

    def finish(self, position: AppliedPosition) -> CoreRecord:
        """Record where the state stands now, in the same transaction as the data (D5.3)."""
        assert position.index == self.index, "the position is that of the last entry"
        core = CoreRecord(
            revision_base=self.base,
            clock_ms=self.clock_ms,
            index=position.index,
            term=position.term,
            log_chain=position.chain,
            history_chain=self.chain,
        )
        CORE.put(self.view, CORE_KEY, core)
        return core
