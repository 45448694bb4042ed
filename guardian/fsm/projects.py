"""Commands on projects and their API keys."""

from __future__ import annotations

import itertools

from guardian.fsm.commands import (
    AnyResult,
    CreateKey,
    CreateProject,
    DeleteProject,
    Done,
    PurgeProject,
    Refusals,
    RevokeKey,
)
from guardian.fsm.history import ChangeKind
from guardian.fsm.records import (
    API_KEYS,
    CONFIGS,
    CONTENTS,
    PRESENT,
    PROJECT_KEYS,
    PURGES,
    REVISIONS,
    TOMBSTONES,
    ApiKeyRecord,
    ProjectKeyRecord,
    ProjectRecord,
    below,
    joined,
    split,
)
from guardian.fsm.schemas import move_usage
from guardian.fsm.transition import Transition

#: A purge step removes no more records than this, whatever the command asks for: one entry must
#: not hold up the ones behind it.
PURGE_LIMIT = 1000


def project_lives(t: Transition, project_id: str) -> bool:
    """Created and not deleted."""
    project = t.projects.get(project_id)
    return project is not None and project.alive


def create_project(t: Transition, command: CreateProject) -> AnyResult:
    """The project and its first API key; an id is created at most once, ever."""
    project = t.projects.get(command.project_id)
    if project is not None:
        return t.refuse(Refusals.ALREADY_EXISTS if project.alive else Refusals.PROJECT_GONE)
    if API_KEYS.get(t.view, command.key_digest) is not None:
        return t.refuse(Refusals.KEY_TAKEN)
    t.projects.put(command.project_id, ProjectRecord(True, True, t.revision, t.actor, t.clock_ms))
    t.record(ChangeKind.PROJECT_CREATED, project_id=command.project_id)
    _add_key(t, command)
    return Done(t.revision, count=1, subject=command.project_id)


def create_key(t: Transition, command: CreateKey) -> AnyResult:
    """Refused ``key_taken`` when the digest was ever used, or the id is in use."""
    if not project_lives(t, command.project_id):
        return t.refuse(Refusals.PROJECT_GONE)
    by_id = PROJECT_KEYS.get(t.view, joined(command.project_id, command.key_id))
    if by_id is not None or API_KEYS.get(t.view, command.key_digest) is not None:
        return t.refuse(Refusals.KEY_TAKEN)
    _add_key(t, command)
    return Done(t.revision, count=1, subject=command.key_id)


def _add_key(t: Transition, command: CreateProject | CreateKey) -> None:
    API_KEYS.put(t.view, command.key_digest, ApiKeyRecord(command.project_id, command.key_id, True))
    PROJECT_KEYS.put(
        t.view,
        joined(command.project_id, command.key_id),
        ProjectKeyRecord(command.key_digest, command.key_name, t.actor, t.clock_ms),
    )
    t.record(
        ChangeKind.KEY_CREATED,
        project_id=command.project_id,
        key_id=command.key_id,
        name=command.key_name,
        digest=command.key_digest,
    )


def revoke_key(t: Transition, command: RevokeKey) -> AnyResult:
    if not project_lives(t, command.project_id):
        return t.refuse(Refusals.PROJECT_GONE)
    row_key = joined(command.project_id, command.key_id)
    row = PROJECT_KEYS.get(t.view, row_key)
    if row is None:
        return t.refuse(Refusals.NOT_FOUND)
    _kill_key(t, command.project_id, command.key_id, row_key, row)
    t.record(
        ChangeKind.KEY_REVOKED,
        project_id=command.project_id,
        key_id=command.key_id,
        digest=row.digest,
    )
    return Done(t.revision, count=1, subject=command.key_id)


def _kill_key(
    t: Transition, project_id: str, key_id: str, row_key: bytes, row: ProjectKeyRecord
) -> None:
    PROJECT_KEYS.delete(t.view, row_key)
    API_KEYS.put(t.view, row.digest, ApiKeyRecord(project_id, key_id, False))


def delete_project(t: Transition, command: DeleteProject) -> AnyResult:
    """The project and with it all its keys are dead, in constant time: a key lives only while its
    project does. What it leaves behind is removed by :func:`purge_project`, step by step."""
    project = t.projects.get(command.project_id)
    if project is not None and not project.alive:
        if project.existed:
            return t.refuse(Refusals.NOT_FOUND)
        return Done(t.revision, count=0, subject=command.project_id)
    existed = project is not None
    t.projects.put(
        command.project_id, ProjectRecord(False, existed, t.revision, t.actor, t.clock_ms)
    )
    if existed:
        PURGES.put(t.view, joined(command.project_id), PRESENT)
    t.record(ChangeKind.PROJECT_DELETED, project_id=command.project_id)
    return Done(t.revision, count=int(existed), subject=command.project_id)


def purge_project(t: Transition, command: PurgeProject) -> AnyResult:
    """``count`` is how many records went: keys, configs, tombstones and revisions (with
    their content) each count one.

    History stays. The project leaves the list of those to purge with the step that finds fewer
    records than it may remove.
    """
    project_key = joined(command.project_id)
    if PURGES.get(t.view, project_key) is None:
        project = t.projects.get(command.project_id)
        if project is None or project.alive:
            return t.refuse(Refusals.NOT_FOUND, detail="not a deleted project")
        return Done(t.revision, count=0, subject=command.project_id)
    limit = min(command.limit, PURGE_LIMIT)
    removed = _purge_keys(t, command.project_id, limit)
    removed += _purge_configs(t, command.project_id, limit - removed)
    removed += _purge_table(t, TOMBSTONES.number, command.project_id, limit - removed)
    removed += _purge_revisions(t, command.project_id, limit - removed)
    if removed < limit:
        PURGES.delete(t.view, project_key)
    if removed:
        t.record(ChangeKind.PROJECT_PURGED, project_id=command.project_id, version=removed)
    return Done(t.revision, count=removed, subject=command.project_id)


def _keys(t: Transition, table: int, project_id: str, limit: int) -> list[bytes]:
    """Up to ``limit`` keys of the project in ``table``; a list, because they are deleted next."""
    prefix = below(project_id)
    return [key for key, _ in itertools.islice(t.view.scan(table, prefix, prefix), limit)]


def _purge_table(t: Transition, table: int, project_id: str, limit: int) -> int:
    keys = _keys(t, table, project_id, limit)
    for key in keys:
        t.view.delete(table, key)
    return len(keys)


def _purge_revisions(t: Transition, project_id: str, limit: int) -> int:
    keys = _keys(t, REVISIONS.number, project_id, limit)
    for key in keys:
        REVISIONS.delete(t.view, key)
        CONTENTS.delete(t.view, key)
    return len(keys)


def _purge_keys(t: Transition, project_id: str, limit: int) -> int:
    keys = _keys(t, PROJECT_KEYS.number, project_id, limit)
    for key in keys:
        _kill_key(t, project_id, split(key)[1], key, PROJECT_KEYS.must(t.view, key))
    return len(keys)


def _purge_configs(t: Transition, project_id: str, limit: int) -> int:
    keys = _keys(t, CONFIGS.number, project_id, limit)
    for key in keys:
        config = CONFIGS.must(t.view, key)
        move_usage(t, project_id, split(key)[1], old=config.schema_id, new=None)
        CONFIGS.delete(t.view, key)
    return len(keys)
