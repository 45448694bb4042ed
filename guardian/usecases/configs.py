"""Configs: create, change, delete, look back, roll back.

Existence and version are decided by the state machine alone; what is checked here is rights and
whether the document fits its schema.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

from guardian.domain.entities import Config, Principal, Revision, Role
from guardian.domain.keys import check_config_key, is_config_key
from guardian.domain.problems import Problem
from guardian.fsm.commands import (
    ConfigWritten,
    CreateConfig,
    DeleteConfig,
    Done,
    Envelope,
    RollbackConfig,
    UpdateConfig,
)
from guardian.usecases.access import Access
from guardian.usecases.executing import (
    Call,
    Consistency,
    Executor,
    Expected,
    Seen,
    Written,
    absent,
    fingerprint,
)
from guardian.usecases.fitting import Fitting
from guardian.usecases.paging import MAX_PAGE_BYTES, Page, PageRequest, page_of
from guardian.usecases.ports import Log, State

T = TypeVar("T")

#: configs read from local state without giving the loop back
_SLICE: Final = 16


class Configs:
    """The verbs on configs of a project. Viewers read, editors write."""

    def __init__(
        self, log: Log, state: State, access: Access, executor: Executor, fitting: Fitting
    ) -> None:
        self._log = log
        self._state = state
        self._access = access
        self._executor = executor
        self._fitting = fitting

    # reading

    async def list(
        self, principal: Principal, project_id: str, page: PageRequest, consistency: Consistency
    ) -> Seen[Page[Config]]:
        """Configs in key order; a page may end early when contents are large."""
        scope = f"configs:{project_id}"
        after = page.after(scope)
        await self._access.reading(principal, project_id, Role.VIEWER, consistency)
        rows: list[Config] = []
        size_bytes = 0
        while len(rows) <= page.limit and size_bytes <= MAX_PAGE_BYTES:
            want = min(_SLICE, page.limit + 1 - len(rows))
            some = self._state.configs(project_id, after, want)
            rows += some
            if len(some) < want:
                return self._seen(page_of(rows, page.limit, scope, _key))
            after = rows[-1].key
            size_bytes += sum(len(config.content) for config in some)
            await asyncio.sleep(0)
        return self._seen(page_of(rows, min(page.limit, len(rows) - 1), scope, _key))

    async def get(
        self, principal: Principal, project_id: str, key: str, consistency: Consistency
    ) -> Seen[Config]:
        """Raises ``Problem("not_found")`` among others."""
        await self._access.reading(principal, project_id, Role.VIEWER, consistency)
        config = self._state.config(project_id, key) if is_config_key(key) else None
        if config is None:
            raise absent(self._state)
        return self._seen(config)

    async def revisions(
        self,
        principal: Principal,
        project_id: str,
        key: str,
        page: PageRequest,
        consistency: Consistency,
    ) -> Seen[Page[Revision]]:
        """Newest first, without content; also of a config that was deleted."""
        scope = f"revisions:{project_id}:{key}"
        before = page.before(scope)
        await self._access.reading(principal, project_id, Role.VIEWER, consistency)
        if not is_config_key(key):
            raise absent(self._state)
        rows = self._state.revisions(project_id, key, before, page.limit + 1)
        if not rows and before is None:
            raise absent(self._state)
        return self._seen(page_of(rows, page.limit, scope, _version))

    async def revision(
        self,
        principal: Principal,
        project_id: str,
        key: str,
        version: int,
        consistency: Consistency,
    ) -> Seen[Revision]:
        """One version with its content (None for a delete)."""
        await self._access.reading(principal, project_id, Role.VIEWER, consistency)
        found: Revision | None = None
        if is_config_key(key) and version >= 1:
            found = self._state.revision_of(project_id, key, version)
        if found is None:
            raise absent(self._state)
        return self._seen(found)

    # writing

    async def create(
        self,
        principal: Principal,
        project_id: str,
        key: str,
        schema_id: str,
        content: bytes,
        call: Call,
    ) -> Written[Config]:
        """Store a new config.

        Args:
            content: compact JSON (:func:`guardian.domain.documents.content_bytes`).

        Raises:
            Problem: ``validation_failed`` for a key or schema that is none, ``document_invalid``,
                ``already_exists``, ``not_found``, ``forbidden``.
        """
        check_config_key(key)

        async def prepare(head: Envelope) -> CreateConfig:
            await self._access.writing(principal, project_id, Role.EDITOR, call)
            fit = await self._fitting.fit(schema_id, content, call)
            return CreateConfig(head, project_id, key, fit.schema_id, fit.version, content)

        asked = fingerprint("config.create", project_id, key, schema_id, content)
        result = await self._executor.run(principal, call, asked, prepare)
        return _written(result, content)

    async def update(
        self,
        principal: Principal,
        project_id: str,
        key: str,
        content: bytes,
        expected: Expected,
        call: Call,
        *,
        schema_id: str | None = None,
    ) -> Written[Config]:
        """Replace the content under the lock; with ``schema_id`` the config changes its schema.

        Raises:
            Problem: ``version_conflict`` or ``precondition_failed`` with the current version,
                ``document_invalid``, ``validation_failed``, ``not_found``, ``forbidden``.
        """
        _known_key(key)

        async def prepare(head: Envelope) -> UpdateConfig:
            await self._access.writing(principal, project_id, Role.EDITOR, call)
            chosen = schema_id
            if chosen is None:
                chosen = (await self._current(project_id, key, expected, call)).schema_id
            fit = await self._fitting.fit(chosen, content, call)
            return UpdateConfig(
                head, project_id, key, fit.schema_id, fit.version, content, expected.version
            )

        asked = fingerprint(
            "config.update", project_id, key, schema_id or "", content, expected.version
        )
        result = await self._executor.run(
            principal, call, asked, prepare, if_match=expected.if_match
        )
        return _written(result, content)

    async def delete(
        self, principal: Principal, project_id: str, key: str, expected: Expected, call: Call
    ) -> Written[None]:
        """Delete under the lock. The deletion is a revision of its own.

        Raises:
            Problem: ``version_conflict`` or ``precondition_failed``, ``not_found``, ``forbidden``.
        """
        _known_key(key)

        async def prepare(head: Envelope) -> DeleteConfig:
            await self._access.writing(principal, project_id, Role.EDITOR, call)
            return DeleteConfig(head, project_id, key, expected.version)

        asked = fingerprint("config.delete", project_id, key, expected.version)
        result = await self._executor.run(
            principal, call, asked, prepare, if_match=expected.if_match
        )
        return Written(None, result.revision, result.replayed)

    async def rollback(
        self,
        principal: Principal,
        project_id: str,
        key: str,
        to_version: int,
        expected: Expected,
        call: Call,
    ) -> Written[Config]:
        """A new version with the content of an older one, under the same lock and the config's
        present schema.

        Raises:
            Problem: ``not_found`` for a version that never was (or was a delete), ``no_change``,
                ``document_invalid``, ``version_conflict`` or ``precondition_failed``,
                ``forbidden``.
        """
        _known_key(key)
        content = b""

        async def prepare(head: Envelope) -> RollbackConfig:
            nonlocal content
            await self._access.writing(principal, project_id, Role.EDITOR, call)
            current = await self._current(project_id, key, expected, call)
            content = await self._content_of(project_id, key, to_version, call)
            fit = await self._fitting.fit(current.schema_id, content, call)
            return RollbackConfig(
                head, project_id, key, to_version, expected.version, fit.schema_id, fit.version
            )

        asked = fingerprint("config.rollback", project_id, key, to_version, expected.version)
        result = await self._executor.run(
            principal, call, asked, prepare, if_match=expected.if_match
        )
        if result.replayed:
            # the checks may have refused before the content was read
            content = await self._content_of(project_id, key, to_version, call)
        return _written(result, content)

    # local state, as fresh as a decision needs

    async def _current(self, project_id: str, key: str, expected: Expected, call: Call) -> Config:
        """The config whose schema a new document must fit.

        A version names one content and one schema for ever, so a local view that shows the
        expected version is fresh enough; any other is looked at again after a barrier.
        """
        config = self._state.config(project_id, key)
        if config is None or config.version != expected.version:
            await self._log.barrier(timeout_s=call.remaining_s())
            config = self._state.config(project_id, key)
        if config is None:
            raise absent(self._state)
        return config

    async def _content_of(self, project_id: str, key: str, version: int, call: Call) -> bytes:
        found = self._state.revision_of(project_id, key, version)
        if found is None:
            await self._log.barrier(timeout_s=call.remaining_s())
            found = self._state.revision_of(project_id, key, version)
        if found is None or found.content is None:
            raise absent(self._state)
        return found.content

    def _seen(self, value: T) -> Seen[T]:
        return Seen(value, self._state.revision(), self._log.staleness_ms())


def _known_key(key: str) -> None:
    """In a path an ill-formed key is a key that nothing has."""
    if not is_config_key(key):
        raise Problem("not_found")


def _key(config: Config) -> str:
    return config.key


def _version(revision: Revision) -> int:
    return revision.version


def _written(result: Done | ConfigWritten, content: bytes) -> Written[Config]:
    assert isinstance(result, ConfigWritten), "config commands are answered with the config"
    config = Config(
        project_id=result.project_id,
        key=result.key,
        schema_id=result.schema_id,
        schema_version=result.schema_version,
        version=result.version,
        revision=result.revision,
        content=content,
        updated_by=result.updated_by,
        updated_at_ms=result.updated_at_ms,
    )
    return Written(config, result.revision, result.replayed)
