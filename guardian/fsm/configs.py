"""Commands on configs.

Checks come in one order: project, existence, expected version, schema. So a proposer that is behind
on both learns of the version conflict, which its client must resolve, and not of the schema, which
it would resolve in vain.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from guardian.fsm.commands import (
    AnyResult,
    ConfigWritten,
    CreateConfig,
    DeleteConfig,
    Refusals,
    Refused,
    RollbackConfig,
    UpdateConfig,
)
from guardian.fsm.history import ChangeKind
from guardian.fsm.projects import project_lives
from guardian.fsm.records import (
    CONFIGS,
    CONTENTS,
    REVISIONS,
    TOMBSTONES,
    ConfigRecord,
    RevisionRecord,
    TombstoneRecord,
    joined,
    version_key,
)
from guardian.fsm.schemas import move_usage, stale
from guardian.fsm.transition import Transition


@dataclass(frozen=True, slots=True)
class _Version:
    """A version about to be written."""

    kind: str
    change: ChangeKind
    version: int
    schema_id: str
    schema_version: int
    content: bytes | None
    digest: bytes


def create_config(t: Transition, command: CreateConfig) -> AnyResult:
    """Version 1, or the one after the delete's when the key existed before."""
    if not project_lives(t, command.project_id):
        return t.refuse(Refusals.PROJECT_GONE)
    config_key = joined(command.project_id, command.key)
    config = CONFIGS.get(t.view, config_key)
    if config is not None:
        return t.refuse(Refusals.ALREADY_EXISTS, config.version)
    refusal = stale(t, command.schema_id, command.schema_version)
    if refusal is not None:
        return refusal
    tombstone = TOMBSTONES.get(t.view, config_key)
    if tombstone is not None:
        TOMBSTONES.delete(t.view, config_key)
    return _write(
        t,
        command.project_id,
        command.key,
        None,
        _Version(
            "create",
            ChangeKind.CONFIG_CREATED,
            1 if tombstone is None else tombstone.version + 1,
            command.schema_id,
            command.schema_version,
            command.content,
            hashlib.sha256(command.content).digest(),
        ),
    )


def update_config(t: Transition, command: UpdateConfig) -> AnyResult:
    config = _expected(t, command)
    if isinstance(config, Refused):
        return config
    refusal = stale(t, command.schema_id, command.schema_version)
    if refusal is not None:
        return refusal
    return _write(
        t,
        command.project_id,
        command.key,
        config,
        _Version(
            "update",
            ChangeKind.CONFIG_UPDATED,
            config.version + 1,
            command.schema_id,
            command.schema_version,
            command.content,
            hashlib.sha256(command.content).digest(),
        ),
    )


def rollback_config(t: Transition, command: RollbackConfig) -> AnyResult:
    """A new version with an old content. A version that is a delete has none to go back to."""
    config = _expected(t, command)
    if isinstance(config, Refused):
        return config
    config_key = joined(command.project_id, command.key)
    content = CONTENTS.get(t.view, version_key(config_key, command.to_version))
    if content is None:
        return t.refuse(Refusals.NOT_FOUND, config.version, "no such version to go back to")
    if command.to_version == config.version:
        return t.refuse(Refusals.NO_CHANGE, config.version)
    refusal = stale(t, command.schema_id, command.schema_version)
    if refusal is not None:
        return refusal
    return _write(
        t,
        command.project_id,
        command.key,
        config,
        _Version(
            "rollback",
            ChangeKind.CONFIG_ROLLED_BACK,
            config.version + 1,
            command.schema_id,
            command.schema_version,
            content,
            hashlib.sha256(content).digest(),
        ),
    )


def delete_config(t: Transition, command: DeleteConfig) -> AnyResult:
    """A version of kind delete, without content, from which counting goes on."""
    config = _expected(t, command)
    if isinstance(config, Refused):
        return config
    return _write(
        t,
        command.project_id,
        command.key,
        config,
        _Version(
            "delete",
            ChangeKind.CONFIG_DELETED,
            config.version + 1,
            config.schema_id,
            config.schema_version,
            None,
            b"",
        ),
    )


def _expected(
    t: Transition, command: UpdateConfig | DeleteConfig | RollbackConfig
) -> ConfigRecord | Refused:
    """The live config, if it has the version that the command expects."""
    if not project_lives(t, command.project_id):
        return t.refuse(Refusals.PROJECT_GONE)
    config = CONFIGS.get(t.view, joined(command.project_id, command.key))
    if config is None:
        return t.refuse(Refusals.NOT_FOUND)
    if config.version != command.expected_version:
        return t.refuse(Refusals.VERSION_CONFLICT, config.version)
    return config


def _write(
    t: Transition, project_id: str, key: str, before: ConfigRecord | None, new: _Version
) -> ConfigWritten:
    """Store ``new`` as revision and, unless it is a delete, as the live config; keep usage and
    history in step."""
    config_key = joined(project_id, key)
    new_key = version_key(config_key, new.version)
    REVISIONS.put(
        t.view,
        new_key,
        RevisionRecord(
            new.kind,
            t.revision,
            new.digest,
            t.actor,
            t.clock_ms,
            new.schema_id,
            new.schema_version,
        ),
    )
    if new.content is None:
        CONFIGS.delete(t.view, config_key)
        TOMBSTONES.put(t.view, config_key, TombstoneRecord(new.version))
    else:
        CONTENTS.put(t.view, new_key, new.content)
        CONFIGS.put(
            t.view,
            config_key,
            ConfigRecord(
                new.schema_id,
                new.schema_version,
                new.version,
                t.revision,
                new.digest,
                t.actor,
                t.clock_ms,
            ),
        )
    move_usage(
        t,
        project_id,
        key,
        old=None if before is None else before.schema_id,
        new=None if new.content is None else new.schema_id,
    )
    t.record(
        new.change,
        project_id=project_id,
        key=key,
        schema_id=new.schema_id,
        schema_version=new.schema_version,
        version=new.version,
        digest=new.digest,
    )
    return ConfigWritten(
        t.revision,
        project_id,
        key,
        new.schema_id,
        new.schema_version,
        new.version,
        new.digest,
        t.actor,
        t.clock_ms,
    )
