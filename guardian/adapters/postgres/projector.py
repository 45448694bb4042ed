"""The mirror of the replicated state in PostgreSQL, for people who ask questions in SQL.

It is never the truth and nothing in Guardian reads it back. The leader's projector fills it from
the state machine's history, by revision, so neither log compaction nor an installed snapshot nor a
PostgreSQL restored from an older backup leaves a gap: the position is in the same database as the
rows, and goes back with them.

Each batch is one transaction that moves the position from exactly where the batch began. If
somebody else has moved it, the batch is void: a former leader that has not noticed yet, or a reset.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from guardian.adapters.postgres.connection import Connection
from guardian.adapters.postgres.pool import Database
from guardian.adapters.postgres.schemas import activate_attempt
from guardian.domain.problems import Problem
from guardian.fsm.history import CONFIG_KINDS, Change, ChangeKind

log = logging.getLogger(__name__)

Place = tuple[int, int]
ORIGIN: Place = (0, 0)

_BATCH_LIMIT = 256
#: one deleted project may have a million rows
_STATEMENT_TIMEOUT_S = 600.0
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_POLL_S = 5.0
#: how long the loser of a race leaves the field to the winner before it looks again
_LOST_PAUSE_S = 2.0

#: kinds of revisions, by the names that the API has for them
_KINDS = {
    ChangeKind.CONFIG_CREATED: "create",
    ChangeKind.CONFIG_UPDATED: "update",
    ChangeKind.CONFIG_ROLLED_BACK: "rollback",
    ChangeKind.CONFIG_DELETED: "delete",
}
assert set(_KINDS) == CONFIG_KINDS

_UPSERT_CONFIG = """
INSERT INTO configs (project_id, key, schema_id, schema_version, version, revision, content,
                     content_json, digest, updated_by, updated_at_ms)
VALUES (%(project_id)s, %(key)s, %(schema_id)s, %(schema_version)s, %(version)s, %(revision)s,
        %(content)s, guardian_jsonb(%(content)s), %(digest)s, %(actor)s, %(at_ms)s)
ON CONFLICT (project_id, key) DO UPDATE SET
    schema_id = excluded.schema_id, schema_version = excluded.schema_version,
    version = excluded.version, revision = excluded.revision, content = excluded.content,
    content_json = excluded.content_json, digest = excluded.digest,
    updated_by = excluded.updated_by, updated_at_ms = excluded.updated_at_ms
WHERE configs.revision <= excluded.revision
"""
_DELETE_CONFIG = """
DELETE FROM configs
WHERE project_id = %(project_id)s AND key = %(key)s AND revision <= %(revision)s
"""
_UPSERT_REVISION = """
INSERT INTO config_revisions (project_id, key, version, revision, kind, schema_id, schema_version,
                              content, content_json, digest, updated_by, updated_at_ms)
VALUES (%(project_id)s, %(key)s, %(version)s, %(revision)s, %(kind)s, %(schema_id)s,
        %(schema_version)s, %(content)s, guardian_jsonb(%(content)s), %(digest)s, %(actor)s,
        %(at_ms)s)
ON CONFLICT (project_id, key, version) DO UPDATE SET
    revision = excluded.revision, kind = excluded.kind, schema_id = excluded.schema_id,
    schema_version = excluded.schema_version, content = excluded.content,
    content_json = excluded.content_json, digest = excluded.digest,
    updated_by = excluded.updated_by, updated_at_ms = excluded.updated_at_ms
"""
_MOVE = """
UPDATE projection_position SET revision = %s, ordinal = %s
WHERE cluster_id = %s AND revision = %s AND ordinal = %s
"""


class ChangeFeed(Protocol):
    """The state machine's history, as the local node has applied it."""

    def changes(self, after: Place, limit: int) -> Sequence[Change]:
        """Changes in order, those after place ``after``; bounded in number and in bytes."""
        ...


class LostRaceError(Exception):
    """The position was not where the batch began; nothing was written."""


class Projector:
    """Keeps the mirror up to date while this node leads.

    Args:
        database: shared with the repositories.
        feed: the local state machine.
        cluster_id: whose history it is; one database mirrors one cluster at a time.
        is_leader: asked before every batch.
    """

    def __init__(
        self,
        database: Database,
        feed: ChangeFeed,
        cluster_id: str,
        is_leader: Callable[[], bool],
        *,
        batch_limit: int = _BATCH_LIMIT,
        poll_s: float = _POLL_S,
        lost_pause_s: float = _LOST_PAUSE_S,
    ) -> None:
        self._database = database
        self._feed = feed
        self._cluster_id = cluster_id
        self._is_leader = is_leader
        self._batch_limit = batch_limit
        self._poll_s = poll_s
        self._lost_pause_s = lost_pause_s
        self._wake = asyncio.Event()
        #: the last place written by this projector, for metrics
        self.position: Place = ORIGIN

    def notify(self) -> None:
        """Something was applied. Cheap; call it on the event loop after every batch."""
        self._wake.set()

    async def run(self) -> None:
        """Mirror until this node no longer leads. PostgreSQL being away is waited out."""
        failures = 0
        place: Place | None = None
        while self._is_leader():
            self._wake.clear()
            try:
                if place is None:
                    place = await self.load_position()
                following = await self.step(place)
            except LostRaceError:
                log.info("the mirror's position was moved by somebody else")
                place = None
                await asyncio.sleep(self._lost_pause_s)
            except Problem as problem:
                # after outcome_unknown the position in the database tells what happened
                place = None
                pause_s = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
                failures += 1
                log.warning("mirroring waits", extra={"code": problem.code, "pause_s": pause_s})
                await asyncio.sleep(pause_s)
            else:
                failures = 0
                idle = following == place and not await self._notified()
                # nothing to write for a while: look whether the mirror was emptied, or went back
                # with its database, which otherwise only the next write would find out
                place = None if idle else following

    async def _notified(self) -> bool:
        """Whether something was applied before it is time for a slow look around."""
        try:
            await asyncio.wait_for(self._wake.wait(), self._poll_s)
        except TimeoutError:
            return False
        return True

    async def load_position(self) -> Place:
        """How far the mirror is. For a cluster that the database does not know, the mirror is
        emptied first: it was another cluster's.

        Raises:
            Problem: ``unavailable`` or ``outcome_unknown``.
        """

        async def work(connection: Connection) -> Place:
            cursor = await connection.execute(
                "SELECT revision, ordinal FROM projection_position WHERE cluster_id = %s",
                (self._cluster_id,),
            )
            row = await cursor.fetchone()
            if row is not None:
                return row[0], row[1]
            # waits for a projector at work, and keeps others out until this is done
            await connection.execute("LOCK TABLE projection_position IN EXCLUSIVE MODE")
            others = await connection.execute(
                "DELETE FROM projection_position WHERE cluster_id <> %s RETURNING cluster_id",
                (self._cluster_id,),
            )
            strangers = [stranger for (stranger,) in await others.fetchall()]
            if strangers:
                log.warning(
                    "the database mirrored cluster %s and now starts anew with cluster %s; two "
                    "clusters on one database destroy each other's mirror for ever",
                    ", ".join(strangers),
                    self._cluster_id,
                )
                await connection.execute("TRUNCATE configs, config_revisions")
            await connection.execute(
                "INSERT INTO projection_position (cluster_id, revision, ordinal)"
                " VALUES (%s, 0, 0) ON CONFLICT (cluster_id) DO NOTHING",
                (self._cluster_id,),
            )
            return ORIGIN

        self.position = await self._database.write(work)
        return self.position

    async def step(self, place: Place) -> Place:
        """Mirror one batch after ``place``; the place reached, ``place`` itself if there is
        nothing new.

        Raises:
            LostRaceError: the position is not ``place``; nothing was written.
            Problem: ``unavailable`` (nothing was written) or ``outcome_unknown``.
        """
        batch = self._feed.changes(place, self._batch_limit)
        if not batch:
            return place
        reached = batch[-1].place

        async def work(connection: Connection) -> None:
            moved = await connection.execute(_MOVE.encode(), (*reached, self._cluster_id, *place))
            # first, so that its row lock keeps a second projector out of the tables
            if moved.rowcount != 1:
                raise LostRaceError
            await _mirror(connection, batch)

        heavy = any(change.kind is ChangeKind.PROJECT_DELETED for change in batch)
        timeout_s = _STATEMENT_TIMEOUT_S if heavy else None
        await self._database.write(work, statement_timeout_s=timeout_s)
        self.position = reached
        return reached


async def reset_projection(database: Database) -> None:
    """Empty the mirror, whosever it is; the leader's projector notices and fills it again.

    Raises:
        Problem: ``unavailable`` or ``outcome_unknown``.
    """

    async def work(connection: Connection) -> None:
        await connection.execute("UPDATE projection_position SET revision = 0, ordinal = 0")
        await connection.execute("TRUNCATE configs, config_revisions")

    await database.write(work, statement_timeout_s=_STATEMENT_TIMEOUT_S)


@dataclass(slots=True)
class _Pending:
    """Rows gathered from consecutive changes, written together."""

    revisions: list[dict[str, object]] = field(default_factory=list)
    #: the last change of each config: only it is worth writing
    heads: dict[tuple[str, str], dict[str, object]] = field(default_factory=dict)

    def add(self, change: Change) -> None:
        if change.content is None and change.kind is not ChangeKind.CONFIG_DELETED:
            return  # purged since, with its project, whose deletion comes later in history
        values = _values(change)
        self.revisions.append(values)
        self.heads[(change.project_id, change.key)] = values

    async def flush(self, connection: Connection) -> None:
        # One statement at a time: in a pipeline the server's time-outs do not see a client that was
        # paused half-way, and its lock on the position would keep every other projector out.
        for values in self.revisions:
            await connection.execute(_UPSERT_REVISION.encode(), values)
        for values in self.heads.values():
            statement = _DELETE_CONFIG if values["content"] is None else _UPSERT_CONFIG
            await connection.execute(statement.encode(), values)
        self.revisions.clear()
        self.heads.clear()


async def _mirror(connection: Connection, batch: Sequence[Change]) -> None:
    pending = _Pending()
    for change in batch:
        if change.kind in CONFIG_KINDS:
            pending.add(change)
            continue
        await pending.flush(connection)
        await _mirror_other(connection, change)
    await pending.flush(connection)


async def _mirror_other(connection: Connection, change: Change) -> None:
    """What the log decided about rows that use cases wrote: they may have died before they could
    finish it."""
    match change.kind:
        case ChangeKind.PROJECT_CREATED:
            await connection.execute(
                "UPDATE projects SET state = 'active', state_changed_at = now()"
                " WHERE id = %s AND state = 'creating'",
                (change.project_id,),
            )
        case ChangeKind.PROJECT_DELETED:
            for statement in (
                b"DELETE FROM projects WHERE id = %s",
                b"DELETE FROM configs WHERE project_id = %s",
                b"DELETE FROM config_revisions WHERE project_id = %s",
            ):
                await connection.execute(statement, (change.project_id,))
        case ChangeKind.SCHEMA_PUT:
            place = (change.schema_id, change.schema_version, change.name)
            if not await activate_attempt(connection, *place):
                log.debug("the row of a schema's version is gone", extra={"schema": place[0]})
        case ChangeKind.SCHEMA_DELETED:
            await connection.execute(
                "DELETE FROM config_schemas WHERE id = %s", (change.schema_id,)
            )
        case ChangeKind.SCHEMA_ATTEMPT_ABORTED:
            await connection.execute(
                "DELETE FROM config_schemas"
                " WHERE id = %s AND attempt_id = %s AND state = 'pending'",
                (change.schema_id, change.name),
            )
        case _:
            # keys are the log's alone; a purge removes what the deletion removed here
            pass


def _values(change: Change) -> dict[str, object]:
    return {
        "project_id": change.project_id,
        "key": change.key,
        "version": change.version,
        "revision": change.revision,
        "kind": _KINDS[change.kind],
        "schema_id": change.schema_id,
        "schema_version": change.schema_version,
        "content": None if change.content is None else _text(change.content),
        "digest": change.digest,
        "actor": change.actor,
        "at_ms": change.at_ms,
    }


def _text(content: bytes) -> str:
    """Content as PostgreSQL can hold it. What was written through Guardian is UTF-8 without NUL;
    the mirror must get past anything else, too."""
    return content.decode("utf-8", "replace").replace("\0", "\ufffd")
