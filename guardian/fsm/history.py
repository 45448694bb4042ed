"""The history of all changes: what changed, and the hash chain that proves it was not rewritten.

The chain after a change is ``SHA-256(chain before | canonical bytes of the change)``; before the
first change it is 32 zero bytes. The canonical bytes are a fixed header of numbers, the content
digest and the texts joined by NUL, which no text may contain; so no two changes share them.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from dataclasses import dataclass
from enum import StrEnum

from guardian.fsm.handle import PinnedView
from guardian.fsm.records import (
    CONTENTS,
    CORE,
    CORE_KEY,
    HISTORY,
    CoreRecord,
    HistoryRecord,
    history_key,
    history_place,
    joined,
    version_key,
)
from guardian.fsm.tables import StateCorruptError, View

GENESIS_CHAIN = bytes(32)

_HEADER = struct.Struct(">BQIQQQB")
_CANONICAL_FORMAT = 1

#: Changes verified in one step of a pinned view, between which the view can be ended.
_VERIFY_STEP = 256


class ChangeKind(StrEnum):
    """What a record of history says happened. The values are stored; they never change."""

    PROJECT_CREATED = "project_created"
    PROJECT_DELETED = "project_deleted"
    PROJECT_PURGED = "project_purged"  #: ``version`` is how many records went
    KEY_CREATED = "key_created"
    KEY_REVOKED = "key_revoked"
    SCHEMA_PUT = "schema_put"
    SCHEMA_DELETED = "schema_deleted"
    SCHEMA_ATTEMPT_ABORTED = "schema_attempt_aborted"
    CONFIG_CREATED = "config_created"
    CONFIG_UPDATED = "config_updated"
    CONFIG_DELETED = "config_deleted"
    CONFIG_ROLLED_BACK = "config_rolled_back"


#: Changes that wrote a version of a config.
CONFIG_KINDS = frozenset(
    {
        ChangeKind.CONFIG_CREATED,
        ChangeKind.CONFIG_UPDATED,
        ChangeKind.CONFIG_DELETED,
        ChangeKind.CONFIG_ROLLED_BACK,
    }
)


@dataclass(frozen=True, slots=True)
class Change:
    """One change, with all that a mirror of the state needs.

    ``version`` is that of the config or schema written; ``digest`` the SHA-256 of a config's
    content, of a schema's body or of an API key; ``name`` an API key's name or a schema's attempt.
    ``content`` is a config's document, and None for a delete, for what is not a config and for a
    config whose project has been purged since.
    """

    revision: int
    ordinal: int
    kind: ChangeKind
    actor: str
    at_ms: int
    project_id: str
    key: str
    key_id: str
    name: str
    schema_id: str
    schema_version: int
    version: int
    digest: bytes
    content: bytes | None
    chain: bytes

    @property
    def place(self) -> tuple[int, int]:
        """(revision, ordinal), by which changes are ordered."""
        return self.revision, self.ordinal


def next_chain(previous: bytes, revision: int, ordinal: int, record: HistoryRecord) -> bytes:
    """The chain after ``record``; the record's own ``chain`` plays no part."""
    texts = "\0".join(
        (
            record.kind,
            record.project_id,
            record.key,
            record.key_id,
            record.schema_id,
            record.name,
            record.actor,
        )
    )
    header = _HEADER.pack(
        _CANONICAL_FORMAT,
        revision,
        ordinal,
        record.at_ms,
        record.version,
        record.schema_version,
        len(record.digest),
    )
    return hashlib.sha256(previous + header + record.digest + texts.encode()).digest()


def change_of(view: View, key: bytes, record: HistoryRecord) -> Change:
    """The change that a record of history stands for, with its content looked up."""
    revision, ordinal = history_place(key)
    kind = ChangeKind(record.kind)
    content = None
    if kind in CONFIG_KINDS:
        content = CONTENTS.get(
            view, version_key(joined(record.project_id, record.key), record.version)
        )
    return Change(
        revision=revision,
        ordinal=ordinal,
        kind=kind,
        actor=record.actor,
        at_ms=record.at_ms,
        project_id=record.project_id,
        key=record.key,
        key_id=record.key_id,
        name=record.name,
        schema_id=record.schema_id,
        schema_version=record.schema_version,
        version=record.version,
        digest=record.digest,
        content=content,
        chain=record.chain,
    )


def verify_history(pinned: PinnedView) -> int:
    """Walk the whole history; how many changes it holds.

    Every link must follow from the one before, the last must be the one that the state records,
    and every config content that still exists must have the digest that history recorded for it.

    Raises:
        StateCorruptError: something was rewritten, dropped or added.
        SnapshotAbortedError: the view was ended.
    """
    chain, count, start = GENESIS_CHAIN, 0, history_key(0, 0)
    while True:
        with pinned.step() as view:
            page = list(itertools.islice(view.scan(HISTORY.number, start), _VERIFY_STEP))
            for key, payload in page:
                chain = _verify_change(view, chain, key, HISTORY.decode(payload))
            if not page:
                core = CORE.get(view, CORE_KEY) or CoreRecord()
                break
        count += len(page)
        start = page[-1][0] + b"\0"  # the lowest key after it
    if chain != core.history_chain:
        raise StateCorruptError("history does not end in the chain that the state records")
    return count


def _verify_change(view: View, chain: bytes, key: bytes, record: HistoryRecord) -> bytes:
    revision, ordinal = history_place(key)
    chain = next_chain(chain, revision, ordinal, record)
    if chain != record.chain:
        raise StateCorruptError(f"history does not chain at {revision}.{ordinal}")
    content = change_of(view, key, record).content
    if content is not None and hashlib.sha256(content).digest() != record.digest:
        raise StateCorruptError(f"content is not what history recorded at {revision}.{ordinal}")
    return chain
