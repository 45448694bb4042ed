"""Projects: they live in the log; names and owners are rows in Postgres."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from guardian.domain.entities import Principal, Project, Role
from guardian.domain.keys import check_name, is_id
from guardian.domain.problems import Problem
from guardian.fsm.commands import (
    CreateProject,
    DeleteProject,
    Done,
    Envelope,
    PurgeProject,
)
from guardian.usecases.access import Access
from guardian.usecases.executing import (
    Call,
    Consistency,
    Executor,
    Seen,
    Written,
    absent,
    fingerprint,
    new_id,
    system_envelope,
)
from guardian.usecases.paging import Page, PageRequest, page_of
from guardian.usecases.ports import ApiKeyCodec, Clock, Log, State
from guardian.usecases.ports import Projects as ProjectRows

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: configs removed per PurgeProject, and how many of those a delete request pays for itself
PURGE_LIMIT: Final = 200
PURGE_ROUNDS: Final = 4
#: name of the key that comes with a project
FIRST_KEY_NAME: Final = "default"


@dataclass(frozen=True, slots=True)
class NewProject:
    """A project just created. ``api_key`` is its text, shown this once; None when the answer is
    a replay, because only the digest was ever stored."""

    project: Project
    api_key: str | None


class Projects:
    """The verbs on projects."""

    def __init__(
        self,
        log: Log,
        state: State,
        access: Access,
        executor: Executor,
        rows: ProjectRows,
        api_keys: ApiKeyCodec,
        clock: Clock,
    ) -> None:
        self._log = log
        self._state = state
        self._access = access
        self._executor = executor
        self._rows = rows
        self._api_keys = api_keys
        self._clock = clock

    async def create(self, principal: Principal, name: str, call: Call) -> Written[NewProject]:
        """Create a project with its first API key; the caller becomes its admin.

        The row is written first, as ``creating``; the log decides; then the row becomes active.
        Whatever stops that half-way is finished or undone by the reconciler.

        Raises:
            Problem: ``validation_failed`` or ``invalid_string`` for the name.
        """
        check_name(name, "/name")
        project = Project(new_id(), name, principal.user_id, self._clock.now_ms())
        key_id = new_id()
        text, digest = self._api_keys.generate()

        async def prepare(head: Envelope) -> CreateProject:
            await self._rows.add_pending(project)
            return CreateProject(head, project.id, key_id, digest, FIRST_KEY_NAME)

        asked = fingerprint("project.create", name)
        try:
            result = await self._executor.run(principal, call, asked, prepare)
        except Problem as problem:
            if problem.code != "outcome_unknown":
                await self._best_effort(self._rows.remove(project.id), "remove", project.id)
            raise
        assert isinstance(result, Done), "project commands are answered with Done"
        if result.replayed:
            return await self._replayed(result, project)
        await self._best_effort(self._rows.activate(project.id), "activate", project.id)
        return Written(NewProject(project, text), result.revision)

    async def _replayed(self, result: Done, in_vain: Project) -> Written[NewProject]:
        """The first request's project; the row that this one added goes.

        When the project was deleted since, its row is gone; the answer is then what the log and the
        request say of it, which is all but when it was created.
        """
        await self._best_effort(self._rows.remove(in_vain.id), "remove", in_vain.id)
        await self._best_effort(self._rows.activate(result.subject), "activate", result.subject)
        first = await self._rows.get(result.subject)
        if first is None:
            first = replace(in_vain, id=result.subject, created_at_ms=0)
        return Written(NewProject(first, None), result.revision, replayed=True)

    async def list(
        self,
        principal: Principal,
        owner_id: str | None,
        page: PageRequest,
        consistency: Consistency,
    ) -> Seen[Page[Project]]:
        """Projects in which the caller has a role (all for ``is_admin``), in id order."""
        scope = f"projects:{owner_id or ''}"
        after = page.after(scope)
        await consistency.ensure(self._log)
        if owner_id is not None and not is_id(owner_id):
            return self._seen(Page(()))
        user_id = None if principal.is_admin else principal.user_id
        rows = await self._rows.list_visible(user_id, owner_id, after, page.limit + 1)
        found = page_of(rows, page.limit, scope, _id)
        living = tuple(p for p in found.items if self._state.project_exists(p.id))
        return self._seen(Page(living, found.next_cursor))

    async def get(
        self, principal: Principal, project_id: str, consistency: Consistency
    ) -> Seen[Project]:
        """Raises ``Problem("not_found")`` also when the caller has no role in it."""
        await self._access.reading(principal, project_id, Role.VIEWER, consistency)
        project = await self._rows.get(project_id)
        if project is None:
            raise absent(self._state)
        return self._seen(project)

    async def delete(self, principal: Principal, project_id: str, call: Call) -> Written[None]:
        """Delete a project: first in the log, which kills its keys, then the rows.

        What is left to clean when this returns is the reconciler's.

        Raises:
            Problem: ``not_found``, ``forbidden``.
        """

        async def prepare(head: Envelope) -> DeleteProject:
            await self._access.writing(principal, project_id, Role.ADMIN, call)
            return DeleteProject(head, project_id)

        asked = fingerprint("project.delete", project_id)
        result = await self._executor.run(principal, call, asked, prepare)
        await self._best_effort(self._rows.remove(project_id), "remove", project_id)
        await self._best_effort(self._purge(project_id, call), "purge", project_id)
        return Written(None, result.revision, result.replayed)

    async def _purge(self, project_id: str, call: Call) -> None:
        for _ in range(PURGE_ROUNDS):
            command = PurgeProject(system_envelope("purge"), project_id, PURGE_LIMIT)
            result = await self._log.execute(command, timeout_s=call.remaining_s())
            if not isinstance(result, Done) or result.count < PURGE_LIMIT:
                return

    async def _best_effort(self, work: Awaitable[None], what: str, project_id: str) -> None:
        """After the log has decided, trouble elsewhere no longer changes the answer."""
        try:
            await work
        except Problem as problem:
            _log.warning("project %s: %s left to the reconciler: %s", project_id, what, problem)

    def _seen(self, value: T) -> Seen[T]:
        return Seen(value, self._state.revision(), self._log.staleness_ms())


def _id(project: Project) -> str:
    return project.id
