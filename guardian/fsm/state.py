"""Reading the local replicated state: what the use cases, the read route and the projector ask.

Every method reads in one short transaction, so it sees one applied revision; it costs a few tens of
microseconds and is meant to be called on the event loop. Nothing here waits for a write.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from guardian.domain.entities import ApiKeyInfo, Config, Revision, SchemaState, Served
from guardian.fsm.commands import Remembered
from guardian.fsm.environment import StateEnvironment
from guardian.fsm.history import Change, change_of, verify_history
from guardian.fsm.records import (
    API_KEYS,
    ATTEMPTS,
    CONFIGS,
    CONTENTS,
    CORE,
    CORE_KEY,
    HISTORY,
    IDEMPOTENCY,
    PROJECT_KEYS,
    PROJECTS,
    PURGES,
    REVISIONS,
    SCHEMAS,
    USAGES,
    ConfigRecord,
    CoreRecord,
    RevisionRecord,
    SchemaRecord,
    below,
    history_key,
    history_place,
    idempotency_id,
    joined,
    nameable,
    split,
    version_key,
    version_of,
)
from guardian.fsm.snapshots import state_digest
from guardian.fsm.tables import View
from raftcore.statemachine import AppliedPosition

#: A page of changes ends after about this much content, however many were asked for.
CHANGES_SIZE_BYTES = 2 * 2**20


@dataclass(frozen=True, slots=True)
class ProjectState:
    """A project as the state machine knows it, dead ones too. ``existed`` is False for an id that
    was deleted before it was created; ``revision``, ``actor`` and ``at_ms`` are of the last
    change."""

    project_id: str
    alive: bool
    existed: bool
    revision: int
    actor: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class AttemptState:
    """How an attempt to put a schema ended."""

    won: bool
    version: int


class StateReader:
    """Implements ``guardian.usecases.ports.State``, and what the projector and the reconciler need.

    Every method raises :class:`~raftcore.errors.StorageError` when the state is closed, or when a
    record fails its checksum; the latter is final for the process.
    """

    def __init__(self, environment: StateEnvironment) -> None:
        self._environment = environment

    # -- the whole -------------------------------------------------------------------------------

    def _core(self) -> CoreRecord:
        with self._environment.read() as view:
            return _core(view)

    def revision(self) -> int:
        """Revision of the last applied entry."""
        return self._core().revision

    def applied(self) -> AppliedPosition:
        """Log position of the last applied entry."""
        core = self._core()
        return AppliedPosition(core.index, core.term, core.log_chain)

    def chain_head(self) -> bytes:
        """The hash chain of history after the last change; 32 zero bytes before the first."""
        return self._core().history_chain

    def verify_chain(self) -> int:
        """Walk the whole history and check its chain and all contents; how many changes there are.

        Takes as long as it takes: not for the event loop.

        Raises:
            StateCorruptError: something was rewritten, dropped or added.
        """
        pinned = self._environment.pin()
        try:
            return verify_history(pinned)
        finally:
            pinned.close()

    def state_hash(self) -> bytes:
        """SHA-256 of the whole logical state, equal on every node after equal logs.

        Reads everything: not for the event loop.
        """
        pinned = self._environment.pin()
        try:
            return state_digest(pinned)
        finally:
            pinned.close()

    # -- the read route --------------------------------------------------------------------------

    def serving_bytes(self, key_digest: bytes, key: str) -> Served | None:
        """A config's document by API key, or None when the key is not a live key of a live project.

        Args:
            key_digest: SHA-256 of the API key.
            key: the config's key.
        """
        with self._environment.read() as view:
            project_id = _project_of_key(view, key_digest)
            if project_id is None:
                return None
            if not nameable(key):
                key = ""  # no config has it
            seen = _core(view).revision
            config_key = joined(project_id, key)
            config = CONFIGS.get(view, config_key)
            if config is None:
                return Served(project_id, 0, 0, None, seen)
            content = CONTENTS.must(view, version_key(config_key, config.version))
            return Served(project_id, config.version, config.revision, content, seen)

    # -- projects and keys -----------------------------------------------------------------------

    def project_exists(self, project_id: str) -> bool:
        """Created and not deleted."""
        if not nameable(project_id):
            return False
        with self._environment.read() as view:
            return _lives(view, project_id)

    def projects(self, after: str, limit: int) -> list[ProjectState]:
        """In id order, ids greater than ``after``; dead ones too."""
        if not nameable(after):
            return []
        with self._environment.read() as view:
            page = itertools.islice(view.scan(PROJECTS.number, after.encode() + b"\0"), limit)
            records = [(key.decode(), PROJECTS.decode(payload)) for key, payload in page]
        return [
            ProjectState(key, row.alive, row.existed, row.revision, row.actor, row.at_ms)
            for key, row in records
        ]

    def deleted_projects_needing_purge(self, limit: int) -> list[str]:
        """Deleted projects that still have records, in id order."""
        with self._environment.read() as view:
            page = itertools.islice(view.scan(PURGES.number, b""), limit)
            return [key.decode() for key, _ in page]

    def api_key_project(self, key_digest: bytes) -> str | None:
        """Project of a live key of a live project."""
        with self._environment.read() as view:
            return _project_of_key(view, key_digest)

    def api_keys(self, project_id: str, after_id: str, limit: int) -> list[ApiKeyInfo]:
        """Live keys of a live project, in id order, ids greater than ``after_id``."""
        if not nameable(project_id, after_id):
            return []
        with self._environment.read() as view:
            if not _lives(view, project_id):
                return []
            prefix = below(project_id)
            start = joined(project_id, after_id) + b"\0" if after_id else prefix
            page = itertools.islice(view.scan(PROJECT_KEYS.number, start, prefix), limit)
            rows = [(split(key)[1], PROJECT_KEYS.decode(payload)) for key, payload in page]
        return [
            ApiKeyInfo(key_id, project_id, row.name, row.created_by, row.created_at_ms)
            for key_id, row in rows
        ]

    # -- configs ---------------------------------------------------------------------------------

    def config(self, project_id: str, key: str) -> Config | None:
        """The current document of a live project's config."""
        if not nameable(project_id, key):
            return None
        with self._environment.read() as view:
            if not _lives(view, project_id):
                return None
            config_key = joined(project_id, key)
            record = CONFIGS.get(view, config_key)
            return None if record is None else _config(view, config_key, record)

    def configs(self, project_id: str, after_key: str, limit: int) -> list[Config]:
        """In key order (bytewise), keys greater than ``after_key``."""
        if not nameable(project_id, after_key):
            return []
        with self._environment.read() as view:
            if not _lives(view, project_id):
                return []
            prefix = below(project_id)
            start = joined(project_id, after_key) + b"\0" if after_key else prefix
            page = itertools.islice(view.scan(CONFIGS.number, start, prefix), limit)
            return [_config(view, key, CONFIGS.decode(payload)) for key, payload in page]

    def revisions(
        self, project_id: str, key: str, before_version: int | None, limit: int
    ) -> list[Revision]:
        """Newest first, without content; versions below ``before_version`` if given.

        Also of a deleted config, as long as its project lives.
        """
        if not nameable(project_id, key):
            return []
        config_key = joined(project_id, key)
        prefix = config_key + b"\0"
        before = config_key + b"\1"
        if before_version is not None:
            before = version_key(config_key, min(max(before_version, 0), 2**63))
        with self._environment.read() as view:
            if not _lives(view, project_id):
                return []
            page = itertools.islice(view.scan_back(REVISIONS.number, before, prefix), limit)
            return [
                _revision(version_of(found), REVISIONS.decode(payload), None)
                for found, payload in page
            ]

    def revision_of(self, project_id: str, key: str, version: int) -> Revision | None:
        """One version, with content."""
        if not nameable(project_id, key) or not 0 < version < 2**63:
            return None
        with self._environment.read() as view:
            if not _lives(view, project_id):
                return None
            key_of_version = version_key(joined(project_id, key), version)
            record = REVISIONS.get(view, key_of_version)
            if record is None:
                return None
            return _revision(version, record, CONTENTS.get(view, key_of_version))

    # -- schemas ---------------------------------------------------------------------------------

    def schema(self, schema_id: str) -> SchemaState | None:
        """What is known of a schema, also of a deleted one."""
        if not nameable(schema_id):
            return None
        with self._environment.read() as view:
            record = SCHEMAS.get(view, joined(schema_id))
        return None if record is None else _schema(schema_id, record)

    def schemas(self, after: str, limit: int) -> list[SchemaState]:
        """In id order, ids greater than ``after``; deleted ones too."""
        if not nameable(after):
            return []
        with self._environment.read() as view:
            page = itertools.islice(view.scan(SCHEMAS.number, after.encode() + b"\0"), limit)
            return [_schema(key.decode(), SCHEMAS.decode(payload)) for key, payload in page]

    def schema_users(
        self, schema_id: str, after: tuple[str, str], limit: int
    ) -> list[tuple[str, str]]:
        """(project id, key) of configs that use the schema, in order, greater than ``after``."""
        if not nameable(schema_id, *after):
            return []
        prefix = below(schema_id)
        start = joined(schema_id, *after) + b"\0" if any(after) else prefix
        with self._environment.read() as view:
            page = itertools.islice(view.scan(USAGES.number, start, prefix), limit)
            users = [split(key) for key, _ in page]
        return [(project_id, key) for _, project_id, key in users]

    def schema_attempt(self, schema_id: str, attempt_id: str) -> AttemptState | None:
        """How an attempt to put the schema ended; None when the log has not decided it."""
        if not nameable(schema_id, attempt_id):
            return None
        with self._environment.read() as view:
            record = ATTEMPTS.get(view, joined(schema_id, attempt_id))
        return None if record is None else AttemptState(record.won, record.version)

    # -- exactly-once ----------------------------------------------------------------------------

    def remembered(self, actor: str, idempotency_key: str) -> Remembered | None:
        """What is kept under that Idempotency-Key of that actor."""
        key = idempotency_id(actor, idempotency_key)
        with self._environment.read() as view:
            record = IDEMPOTENCY.get(view, key)
        return None if record is None else Remembered(record.fingerprint, record.result)

    # -- history ---------------------------------------------------------------------------------

    def changes(self, after: tuple[int, int], limit: int) -> list[Change]:
        """Changes in order, those after place ``after`` (revision, ordinal); (0, 0) is before all.

        Fewer than ``limit`` may come although there are more, when contents are large; at least one
        comes if there is any.
        """
        revision, ordinal = after
        found: list[Change] = []
        size = 0
        with self._environment.read() as view:
            for key, payload in view.scan(HISTORY.number, history_key(revision, ordinal + 1)):
                if len(found) >= limit or size >= CHANGES_SIZE_BYTES:
                    break
                change = change_of(view, key, HISTORY.decode(payload))
                size += len(change.content or b"")
                found.append(change)
        return found

    def first_change(self) -> tuple[int, int] | None:
        """Place of the oldest change that is kept, or None when there is none."""
        with self._environment.read() as view:
            key = view.first_key(HISTORY.number)
        return None if key is None else history_place(key)


def _core(view: View) -> CoreRecord:
    return CORE.get(view, CORE_KEY) or CoreRecord()


def _lives(view: View, project_id: str) -> bool:
    project = PROJECTS.get(view, joined(project_id))
    return project is not None and project.alive


def _project_of_key(view: View, key_digest: bytes) -> str | None:
    record = API_KEYS.get(view, key_digest)
    if record is None or not record.alive or not _lives(view, record.project_id):
        return None
    return record.project_id


def _config(view: View, config_key: bytes, record: ConfigRecord) -> Config:
    content = CONTENTS.must(view, version_key(config_key, record.version))
    project_id, key = split(config_key)
    return Config(
        project_id=project_id,
        key=key,
        schema_id=record.schema_id,
        schema_version=record.schema_version,
        version=record.version,
        revision=record.revision,
        content=content,
        updated_by=record.updated_by,
        updated_at_ms=record.updated_at_ms,
    )


def _revision(version: int, record: RevisionRecord, content: bytes | None) -> Revision:
    return Revision(
        version=version,
        revision=record.revision,
        kind=record.kind,
        content_digest=record.content_digest.hex(),
        updated_by=record.updated_by,
        updated_at_ms=record.updated_at_ms,
        schema_id=record.schema_id,
        schema_version=record.schema_version,
        content=content,
    )


def _schema(schema_id: str, record: SchemaRecord) -> SchemaState:
    return SchemaState(
        schema_id=schema_id,
        version=record.version,
        body_digest=record.body_digest,
        deleted=record.deleted,
        usage_count=record.usage_count,
        usage_counter=record.usage_counter,
    )
