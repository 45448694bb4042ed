"""JSON Schemas: bodies in Postgres, versions and users in the log."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from guardian.domain.entities import Principal, Schema
from guardian.domain.keys import check_name, is_id
from guardian.domain.problems import Fault, Problem
from guardian.fsm.commands import DeleteSchema, Done, Envelope, PutSchema
from guardian.usecases.executing import (
    Call,
    Consistency,
    Executor,
    Expected,
    Seen,
    Written,
    absent,
    fingerprint,
    new_id,
)
from guardian.usecases.fitting import Fitting, SchemaBodies
from guardian.usecases.paging import MAX_PAGE_BYTES, Page, PageRequest, page_of
from guardian.usecases.ports import Clock, Log, Roles, SchemaState, SchemaValidator, State
from guardian.usecases.ports import Schemas as SchemaRows

_logger = logging.getLogger(__name__)

#: configs checked at a time when a schema changes
_SCAN_SLICE: Final = 32
#: misfits that a refusal names at most, and faults per misfit
_NAMED_LIMIT: Final = 100
_FAULTS_PER_CONFIG: Final = 10
#: rows fetched at a time for a list, as bodies may be large
_LIST_SLICE: Final = 20


@dataclass(frozen=True, slots=True)
class SchemaView:
    """A schema's current version, and how many configs use it."""

    schema: Schema
    usage_count: int


@dataclass(frozen=True, slots=True)
class _Misfit:
    project_id: str
    key: str
    faults: tuple[Fault, ...]


_Misfits: TypeAlias = list[_Misfit]  # inside the class ``list`` is a verb


class Schemas:
    """The verbs on schemas. Any signed-in user creates and reads; the creator or an admin changes
    and deletes."""

    def __init__(
        self,
        log: Log,
        state: State,
        executor: Executor,
        rows: SchemaRows,
        roles: Roles,
        bodies: SchemaBodies,
        fitting: Fitting,
        validator: SchemaValidator,
        clock: Clock,
    ) -> None:
        self._log = log
        self._state = state
        self._executor = executor
        self._rows = rows
        self._roles = roles
        self._bodies = bodies
        self._fitting = fitting
        self._validator = validator
        self._clock = clock

    # reading

    async def list(
        self, principal: Principal, page: PageRequest, consistency: Consistency
    ) -> Seen[Page[SchemaView]]:
        """Schemas in id order; a page may end early when bodies are large."""
        assert principal.user_id, "only authenticated callers get here"
        after = page.after("schemas")
        await consistency.ensure(self._log)
        views: list[SchemaView] = []
        size_bytes = 0
        while len(views) <= page.limit and size_bytes <= MAX_PAGE_BYTES:
            rows = await self._rows.list(after, _LIST_SLICE)
            for row in rows:
                state = self._live(row.id)
                if state is None:
                    continue
                schema = row if row.version == state.version else await self._bodies.get(state)
                views.append(SchemaView(schema, state.usage_count))
                size_bytes += len(schema.body)
            if len(rows) < _LIST_SLICE:
                return self._seen_page(views, page.limit)
            after = rows[-1].id
        return self._seen_page(views, min(page.limit, len(views) - 1))

    async def get(
        self, principal: Principal, schema_id: str, consistency: Consistency
    ) -> Seen[SchemaView]:
        """The current version. Raises ``Problem("not_found")``."""
        assert principal.user_id, "only authenticated callers get here"
        await consistency.ensure(self._log)
        state = self._live(schema_id)
        if state is None:
            raise absent(self._state)
        view = SchemaView(await self._bodies.get(state), state.usage_count)
        return Seen(view, self._state.revision(), self._log.staleness_ms())

    # writing

    async def create(
        self, principal: Principal, name: str, body: bytes, call: Call
    ) -> Written[Schema]:
        """A new schema at version 1.

        Args:
            body: compact JSON text of the schema.

        Raises:
            Problem: ``validation_failed`` or ``invalid_string`` for the name, ``invalid_schema``,
                ``unsupported_draft``, ``remote_ref_forbidden``, ``schema_too_complex``.
        """
        check_name(name, "/name")
        schema = Schema(
            id=new_id(),
            name=name,
            version=1,
            body=body,
            digest=hashlib.sha256(body).digest(),
            created_by=principal.user_id,
            created_at_ms=self._clock.now_ms(),
        )

        async def check() -> tuple[Schema, int]:
            await self._validator.check_schema(body)
            return schema, 0

        asked = fingerprint("schema.create", name, body)
        asked_for = replace(schema, created_at_ms=0)
        return await self._put(principal, asked_for, asked, call, check)

    async def update(
        self, principal: Principal, schema_id: str, body: bytes, expected: Expected, call: Call
    ) -> Written[Schema]:
        """A new version, which every config that uses the schema must fit.

        Raises:
            Problem: ``schema_breaks_configs`` naming the configs that the caller may see and how
                many there are; ``version_conflict`` or ``precondition_failed``; ``overloaded``
                when configs keep changing; ``not_found``, ``forbidden``, and what :meth:`create`
                raises for a bad body.
        """
        version, digest = expected.version + 1, hashlib.sha256(body).digest()
        asked_for = Schema(schema_id, "", version, body, digest, created_by="", created_at_ms=0)

        async def check() -> tuple[Schema, int]:
            current = await self._owned(principal, schema_id, call)
            await self._validator.check_schema(body)
            candidate = replace(current, version=version, body=body, digest=digest)
            return candidate, await self._check_users(principal, candidate, expected, call)

        asked = fingerprint("schema.update", schema_id, body, expected.version)
        return await self._put(principal, asked_for, asked, call, check, if_match=expected.if_match)

    async def delete(self, principal: Principal, schema_id: str, call: Call) -> Written[None]:
        """Delete a schema that no config uses.

        Raises:
            Problem: ``schema_in_use``, ``not_found``, ``forbidden``.
        """

        async def prepare(head: Envelope) -> DeleteSchema:
            await self._owned(principal, schema_id, call)
            return DeleteSchema(head, schema_id)

        asked = fingerprint("schema.delete", schema_id)
        result = await self._executor.run(principal, call, asked, prepare)
        await self._best_effort(self._rows.remove(schema_id), "remove", schema_id)
        return Written(None, result.revision, result.replayed)

    # how a version comes to be

    async def _put(
        self,
        principal: Principal,
        asked_for: Schema,
        asked: bytes,
        call: Call,
        check: Callable[[], Awaitable[tuple[Schema, int]]],
        *,
        if_match: bool = False,
    ) -> Written[Schema]:
        """Body first, as a pending attempt; then the log; then the attempt becomes the version.

        ``check`` gives the schema as it will be and the usage counter it was checked at;
        ``asked_for`` is as much of it as the request says, the rest empty. When the
        outcome is unknown the attempt stays, and the reconciler asks the log.
        """
        attempt_id = new_id()
        stored: Schema | None = None

        async def prepare(head: Envelope) -> PutSchema:
            nonlocal stored
            schema, usage_seen = await check()
            if stored is None:
                await self._rows.add_pending(schema, attempt_id)
                stored = schema
            return PutSchema(
                head, schema.id, schema.version - 1, schema.digest, attempt_id, usage_seen
            )

        try:
            result = await self._executor.run(principal, call, asked, prepare, if_match=if_match)
        except Problem as problem:
            if stored is not None and problem.code != "outcome_unknown":
                drop = self._rows.drop_attempt(stored.id, attempt_id)
                await self._best_effort(drop, "drop", stored.id)
            raise
        assert isinstance(result, Done), "schema commands are answered with Done"
        if result.replayed:
            return await self._replayed(result, stored, asked_for, attempt_id)
        assert stored is not None, "what was decided now was prepared now"
        activate = self._rows.activate(stored.id, stored.version, attempt_id)
        await self._best_effort(activate, "activate", stored.id)
        return Written(stored, result.revision)

    async def _replayed(
        self, result: Done, stored: Schema | None, asked_for: Schema, attempt_id: str
    ) -> Written[Schema]:
        """The first request's schema; what this one stored in vain goes.

        When the schema was deleted since, its rows are gone; the answer is then what the log and
        the request say of it. The fingerprint tells that the first request said the same.
        """
        if stored is not None:
            drop = self._rows.drop_attempt(stored.id, attempt_id)
            await self._best_effort(drop, "drop", stored.id)
        version, digest = asked_for.version, asked_for.digest
        schema = await self._rows.by_digest(result.subject, version, digest)
        if schema is None:
            schema = replace(asked_for, id=result.subject)
        return Written(schema, result.revision, replayed=True)

    async def _owned(self, principal: Principal, schema_id: str, call: Call) -> Schema:
        """The schema as it stands after a barrier, for one who may change it."""
        await self._log.barrier(timeout_s=call.remaining_s())
        state = self._live(schema_id)
        if state is None:
            raise absent(self._state)
        schema = await self._bodies.get(state)
        if not principal.is_admin and schema.created_by != principal.user_id:
            raise Problem("forbidden")
        return schema

    async def _check_users(
        self, principal: Principal, candidate: Schema, expected: Expected, call: Call
    ) -> int:
        """Check all configs that use the schema against ``candidate``; the usage counter before.

        Everything is read from local state after the barrier of :meth:`_owned`. A config that
        changes meanwhile moves the counter, and the state machine refuses the command.
        """
        state = self._live(candidate.id)
        if state is None:
            raise absent(self._state)
        if state.version != expected.version:
            code = "precondition_failed" if expected.if_match else "version_conflict"
            raise Problem(code, current_version=state.version)
        named: _Misfits = []
        count = 0
        after = ("", "")
        while users := self._state.schema_users(candidate.id, after, _SCAN_SLICE):
            call.remaining_s()
            misfits = [m for user in users if (m := await self._misfit(candidate, *user))]
            count += len(misfits)
            if misfits and len(named) < _NAMED_LIMIT:
                named += await self._visible(principal, misfits)
            after = users[-1]
        if count:
            raise _breaks_configs(named[:_NAMED_LIMIT], count)
        return state.usage_counter

    async def _misfit(self, candidate: Schema, project_id: str, key: str) -> _Misfit | None:
        config = self._state.config(project_id, key)
        if config is None or config.schema_id != candidate.id:
            return None  # gone since the slice was read; the usage counter tells
        faults = await self._fitting.faults(candidate, config.content)
        return _Misfit(project_id, key, faults[:_FAULTS_PER_CONFIG]) if faults else None

    async def _visible(self, principal: Principal, misfits: _Misfits) -> _Misfits:
        if principal.is_admin:
            return misfits
        project_ids = sorted({misfit.project_id for misfit in misfits})
        roles = await self._roles.roles(project_ids, principal.user_id)
        return [misfit for misfit in misfits if misfit.project_id in roles]

    def _live(self, schema_id: str) -> SchemaState | None:
        state = self._state.schema(schema_id) if is_id(schema_id) else None
        return None if state is None or state.deleted else state

    def _seen_page(self, views: Sequence[SchemaView], limit: int) -> Seen[Page[SchemaView]]:
        page = page_of(views, limit, "schemas", _id)
        return Seen(page, self._state.revision(), self._log.staleness_ms())

    async def _best_effort(self, work: Awaitable[None], what: str, schema_id: str) -> None:
        """After the log has decided, trouble elsewhere no longer changes the answer."""
        try:
            await work
        except Problem as problem:
            _logger.warning("schema %s: %s left to the reconciler: %s", schema_id, what, problem)


def _id(view: SchemaView) -> str:
    return view.schema.id


def _breaks_configs(named: list[_Misfit], count: int) -> Problem:
    configs = [
        {
            "project_id": misfit.project_id,
            "key": misfit.key,
            "errors": [{"pointer": f.pointer, "message": f.message} for f in misfit.faults],
        }
        for misfit in named
    ]
    detail = f"{count} config(s) would not fit"
    return Problem(
        "schema_breaks_configs", detail, extra={"configs": configs, "configs_count": count}
    )
