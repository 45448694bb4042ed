"""Finishing or undoing what crosses the log and PostgreSQL.

Use cases write a row first (``creating``, ``pending``), then let the log decide, then settle the
row; a deletion enters the log first, then the row goes. Whoever dies in between leaves a row that
does not say what the log says. The leader's reconciler settles it, also when that node stays dead.

Why the grace period makes it safe: a creation proposes its CreateProject within its request's
deadline from writing the row, and gives up after that. When the row is older than ``grace_s``,
which is longer, no CreateProject of it is still to come from the request; one that is stuck
somewhere meets the tombstone and is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from guardian.adapters.postgres.projects import PostgresProjects
from guardian.adapters.postgres.refresh_tokens import PostgresRefreshTokens
from guardian.adapters.postgres.schemas import PendingAttempt, PostgresSchemas
from guardian.domain.problems import Problem
from guardian.fsm.commands import (
    AbortSchemaAttempt,
    AnyCommand,
    AnyResult,
    DeleteProject,
    Done,
    Envelope,
    PurgeProject,
    Refusals,
    Refused,
)

log = logging.getLogger(__name__)

#: the longest a request may take (10 s by default) with a wide margin
GRACE_S = 60.0
_INTERVAL_S = 30.0
_CALL_TIMEOUT_S = 10.0
_PAGE = 200
_PURGE_STEP = 200
_PURGE_STEPS = 50
_EXPIRED_LIMIT = 1000


class ReconcilerLog(Protocol):
    """What it needs of :class:`guardian.usecases.ports.Log`."""

    async def execute(self, command: AnyCommand, *, timeout_s: float) -> AnyResult: ...

    async def barrier(self, *, timeout_s: float) -> None: ...

    def is_leader(self) -> bool: ...


class ProjectFate(Protocol):
    """A project as the state machine knows it, dead ones too."""

    @property
    def project_id(self) -> str: ...

    @property
    def alive(self) -> bool: ...


class SchemaFate(Protocol):
    @property
    def schema_id(self) -> str: ...

    @property
    def deleted(self) -> bool: ...


class ReconcilerState(Protocol):
    """What it needs of the local replicated state."""

    def project_exists(self, project_id: str) -> bool: ...

    def projects(self, after: str, limit: int) -> Sequence[ProjectFate]: ...

    def deleted_projects_needing_purge(self, limit: int) -> Sequence[str]: ...

    def schemas(self, after: str, limit: int) -> Sequence[SchemaFate]: ...


@dataclass(slots=True)
class Reconciled:
    """What one round did."""

    projects_activated: int = 0
    projects_removed: int = 0
    projects_purged: int = 0
    schemas_activated: int = 0
    schemas_dropped: int = 0
    tokens_forgotten: int = 0


class Reconciler:
    """Rounds of reconciliation while this node leads.

    Args:
        grace_s: how old a row must be before it is anybody's business but its request's. Must be
            longer than the longest request deadline.
        interval_s: between rounds.
        now_ms: wall clock, for the expiry of tokens.
    """

    def __init__(
        self,
        replicated_log: ReconcilerLog,
        state: ReconcilerState,
        projects: PostgresProjects,
        schemas: PostgresSchemas,
        refresh_tokens: PostgresRefreshTokens,
        *,
        grace_s: float = GRACE_S,
        interval_s: float = _INTERVAL_S,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._log = replicated_log
        self._state = state
        self._projects = projects
        self._schemas = schemas
        self._refresh_tokens = refresh_tokens
        self._grace_s = grace_s
        self._interval_s = interval_s
        self._now_ms = now_ms
        # where the slow walks over everything that is dead in the log go on
        self._project_cursor = ""
        self._schema_cursor = ""

    async def run(self) -> None:
        """Rounds, the first at once, until this node no longer leads."""
        while self._log.is_leader():
            await self.round()
            await asyncio.sleep(self._interval_s)

    async def round(self) -> Reconciled:
        """Look at everything once. Each part is tried also when another could not be done; what
        could not be done waits for the next round."""
        done = Reconciled()
        parts: tuple[Callable[[Reconciled], Awaitable[None]], ...] = (
            self._settle_projects,
            self._settle_schemas,
            self._remove_dead_projects,
            self._remove_dead_schemas,
            self._purge_projects,
            self._forget_tokens,
        )
        for part in parts:
            try:
                await part(done)
            except Problem as problem:
                log.warning(
                    "reconciliation is put off",
                    extra={"part": part.__name__.strip("_"), "code": problem.code},
                )
        if done != Reconciled():
            log.info("reconciled", extra={"reconciled": done})
        return done

    # -- rows that the log has to decide about ---------------------------------------------------

    async def _settle_projects(self, done: Reconciled) -> None:
        stale = await self._projects.unsettled(self._grace_s, _PAGE)
        if not stale:
            return
        await self._log.barrier(timeout_s=_CALL_TIMEOUT_S)
        for project_id in stale:
            if self._state.project_exists(project_id):
                await self._projects.activate(project_id)
                done.projects_activated += 1
            else:
                await self._end_creation(project_id)
                done.projects_removed += 1

    async def _end_creation(self, project_id: str) -> None:
        """The tombstone goes into the log before the row goes: afterwards nobody could know."""
        result = await self._execute(DeleteProject(_head(), project_id))
        already_dead = isinstance(result, Refused) and result.code == Refusals.NOT_FOUND
        if not isinstance(result, Done) and not already_dead:
            raise Problem("unavailable", "a creation could not be ended")
        if isinstance(result, Done) and result.count:
            log.error(
                "a project that appeared after the grace period was deleted",
                extra={"project_id": project_id},
            )
        await self._projects.remove(project_id)

    async def _settle_schemas(self, done: Reconciled) -> None:
        for attempt in await self._schemas.unsettled(self._grace_s, _PAGE):
            if await self._attempt_won(attempt):
                await self._activate(attempt)
                done.schemas_activated += 1
            else:
                await self._schemas.drop_attempt(attempt.schema_id, attempt.attempt_id)
                done.schemas_dropped += 1

    async def _attempt_won(self, attempt: PendingAttempt) -> bool:
        """Asks the log by forbidding the attempt, which leaves no time for it to win in between:
        ``count`` 0 says that it had won before."""
        result = await self._execute(
            AbortSchemaAttempt(_head(), attempt.schema_id, attempt.attempt_id)
        )
        if not isinstance(result, Done):
            raise Problem("unavailable", "a schema attempt could not be ended")
        return result.count == 0

    async def _activate(self, attempt: PendingAttempt) -> None:
        try:
            await self._schemas.activate(attempt.schema_id, attempt.version, attempt.attempt_id)
        except Problem as problem:
            # its schema was deleted since, and the row with it
            if problem.code != "not_found":
                raise

    # -- rows that the log has decided about -----------------------------------------------------

    async def _remove_dead_projects(self, done: Reconciled) -> None:
        """One page per round of all that ever died in the log: a PostgreSQL restored from an older
        backup brings rows of the dead back."""
        page = self._state.projects(self._project_cursor, _PAGE)
        self._project_cursor = page[-1].project_id if len(page) == _PAGE else ""
        dead = [item.project_id for item in page if not item.alive]
        if dead:
            done.projects_removed += await self._projects.remove_all(dead)

    async def _remove_dead_schemas(self, done: Reconciled) -> None:
        page = self._state.schemas(self._schema_cursor, _PAGE)
        self._schema_cursor = page[-1].schema_id if len(page) == _PAGE else ""
        dead = [item.schema_id for item in page if item.deleted]
        if dead:
            done.schemas_dropped += await self._schemas.remove_all(dead)

    async def _purge_projects(self, done: Reconciled) -> None:
        """Small steps, so that nothing else in the log waits for long."""
        steps = 0
        for project_id in self._state.deleted_projects_needing_purge(_PAGE):
            finished = False
            while not finished:
                if steps == _PURGE_STEPS:
                    return
                steps += 1
                result = await self._execute(PurgeProject(_head(), project_id, _PURGE_STEP))
                finished = not isinstance(result, Done) or result.count < _PURGE_STEP
            done.projects_purged += 1

    async def _forget_tokens(self, done: Reconciled) -> None:
        done.tokens_forgotten += await self._refresh_tokens.purge_expired(
            self._now_ms(), _EXPIRED_LIMIT
        )

    async def _execute(self, command: AnyCommand) -> AnyResult:
        return await self._log.execute(command, timeout_s=_CALL_TIMEOUT_S)


def _head() -> Envelope:
    return Envelope(command_id=os.urandom(16), actor="system:reconciler")
