"""What the handlers of commands work on: one write transaction, one entry after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from guardian.fsm.commands import Refused
from guardian.fsm.history import next_chain
from guardian.fsm.records import (
    CORE,
    CORE_KEY,
    HISTORY,
    PROJECTS,
    SCHEMAS,
    CoreRecord,
    HistoryRecord,
    Table,
    history_key,
    joined,
)

if TYPE_CHECKING:
    from guardian.fsm.history import ChangeKind
    from guardian.fsm.tables import WriteView
    from raftcore.core.types import Entry
    from raftcore.statemachine import AppliedPosition

#: A leader's stamp is a u64 that nobody checked; beyond this it could not be added to.
MAX_CLOCK_MS: Final = 2**53 - 1


R = TypeVar("R", bound=msgspec.Struct)


class Hot(Generic[R]):
    """A table whose records most commands of a batch share: read and written once per batch."""

    __slots__ = ("_changed", "_records", "_table", "_view")

    def __init__(self, view: WriteView, table: Table[R]) -> None:
        self._view = view
        self._table = table
        self._records: dict[str, R | None] = {}
        self._changed: dict[str, R] = {}

    def get(self, name: str) -> R | None:
        """The record of ``name``, or None."""
        if name not in self._records:
            self._records[name] = self._table.get(self._view, joined(name))
        return self._records[name]

    def must(self, name: str) -> R:
        """A record that another record promises."""
        return self.get(name) or self._table.must(self._view, joined(name))

    def put(self, name: str, record: R) -> None:
        self._records[name] = self._changed[name] = record

    def flush(self) -> None:
        """Write what changed; the transaction ends after this."""
        for name, record in self._changed.items():
            self._table.put(self._view, joined(name), record)


class Transition:
    """The state in change.

    The only clock is the replicated one: the highest leader's stamp in the log so far, which
    never goes back, whatever the leaders' clocks do.
    """

    __slots__ = (
        "actor",
        "base",
        "chain",
        "clock_ms",
        "index",
        "ordinal",
        "projects",
        "revision",
        "schemas",
        "view",
    )

    def __init__(self, view: WriteView, core: CoreRecord) -> None:
        self.view = view
        self.projects = Hot(view, PROJECTS)
        self.schemas = Hot(view, SCHEMAS)
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
        self.projects.flush()
        self.schemas.flush()
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
