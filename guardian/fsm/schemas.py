"""Commands on schemas, and the count of who uses them."""

from __future__ import annotations

import msgspec

from guardian.fsm.commands import (
    AbortSchemaAttempt,
    AnyResult,
    DeleteSchema,
    Done,
    PutSchema,
    Refusals,
    Refused,
)
from guardian.fsm.history import ChangeKind
from guardian.fsm.records import (
    ATTEMPTS,
    PRESENT,
    USAGES,
    AttemptRecord,
    SchemaRecord,
    joined,
)
from guardian.fsm.transition import Transition


def put_schema(t: Transition, command: PutSchema) -> AnyResult:
    """A new version, if the attempt may still win and nothing moved since its check."""
    attempt_key = joined(command.schema_id, command.attempt_id)
    attempt = ATTEMPTS.get(t.view, attempt_key)
    if attempt is not None and not attempt.won:
        return t.refuse(Refusals.ATTEMPT_ABORTED)
    if attempt is not None:
        # The same attempt under another command id: it happened, once.
        return Done(attempt.revision, count=1, subject=command.schema_id)
    schema = t.schemas.get(command.schema_id)
    refusal = _why_not_put(t, command, schema)
    if refusal is not None:
        return refusal
    if schema is None:
        schema = SchemaRecord(1, command.body_digest)
    else:
        schema = msgspec.structs.replace(
            schema, version=schema.version + 1, body_digest=command.body_digest
        )
    t.schemas.put(command.schema_id, schema)
    ATTEMPTS.put(t.view, attempt_key, AttemptRecord(True, t.revision, schema.version))
    t.record(
        ChangeKind.SCHEMA_PUT,
        schema_id=command.schema_id,
        schema_version=schema.version,
        version=schema.version,
        digest=command.body_digest,
        name=command.attempt_id,
    )
    return Done(t.revision, count=1, subject=command.schema_id)


def _why_not_put(t: Transition, command: PutSchema, schema: SchemaRecord | None) -> Refused | None:
    if schema is None:
        return None if command.expected_version == 0 else t.refuse(Refusals.NOT_FOUND)
    if schema.deleted:
        return t.refuse(Refusals.NOT_FOUND, detail="the schema is deleted; its id never returns")
    if command.expected_version != schema.version:
        return t.refuse(Refusals.VERSION_CONFLICT, schema.version)
    if command.usage_seen != schema.usage_counter:
        return t.refuse(Refusals.SCHEMA_USAGE_CHANGED, schema.version)
    return None


def delete_schema(t: Transition, command: DeleteSchema) -> AnyResult:
    """The id stays, deleted, for ever."""
    schema = t.schemas.get(command.schema_id)
    if schema is None or schema.deleted:
        return t.refuse(Refusals.NOT_FOUND)
    if schema.usage_count > 0:
        return t.refuse(Refusals.SCHEMA_IN_USE, schema.version)
    t.schemas.put(command.schema_id, msgspec.structs.replace(schema, deleted=True))
    t.record(ChangeKind.SCHEMA_DELETED, schema_id=command.schema_id, version=schema.version)
    return Done(t.revision, count=1, subject=command.schema_id)


def abort_schema_attempt(t: Transition, command: AbortSchemaAttempt) -> AnyResult:
    """``count`` 0 when the attempt had won before; 1 when it never will."""
    attempt_key = joined(command.schema_id, command.attempt_id)
    attempt = ATTEMPTS.get(t.view, attempt_key)
    if attempt is None:
        ATTEMPTS.put(t.view, attempt_key, AttemptRecord(False, t.revision, 0))
        t.record(
            ChangeKind.SCHEMA_ATTEMPT_ABORTED,
            schema_id=command.schema_id,
            name=command.attempt_id,
        )
    aborted = attempt is None or not attempt.won
    return Done(t.revision, count=int(aborted), subject=command.schema_id)


def stale(t: Transition, schema_id: str, schema_version: int) -> Refused | None:
    """The refusal of a config command that was not validated against the current version."""
    schema = t.schemas.get(schema_id)
    current = 0 if schema is None or schema.deleted else schema.version
    if schema_version == current != 0:
        return None
    return t.refuse(Refusals.SCHEMA_STALE, current)


def move_usage(
    t: Transition, project_id: str, key: str, *, old: str | None, new: str | None
) -> None:
    """Config (``project_id``, ``key``) used schema ``old`` and is now written under ``new``.

    Both counters move, also when they are one schema and the config is only rewritten: a check of
    all users that ran meanwhile has not seen this content.
    """
    if old is not None and old != new:
        USAGES.delete(t.view, joined(old, project_id, key))
        _count(t, old, -1)
    if new is not None:
        if old != new:
            USAGES.put(t.view, joined(new, project_id, key), PRESENT)
        _count(t, new, 0 if old == new else 1)


def _count(t: Transition, schema_id: str, step: int) -> None:
    schema = t.schemas.must(schema_id)
    assert schema.usage_count + step >= 0, "a schema is used by no fewer than no configs"
    moved = msgspec.structs.replace(
        schema, usage_count=schema.usage_count + step, usage_counter=schema.usage_counter + 1
    )
    t.schemas.put(schema_id, moved)
