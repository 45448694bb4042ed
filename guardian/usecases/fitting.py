"""Whether a document fits its schema, at the version that the state machine names."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from guardian.domain.entities import Schema
from guardian.domain.keys import is_id
from guardian.domain.problems import Fault, Problem
from guardian.usecases.executing import Call
from guardian.usecases.ports import Log, Schemas, SchemaState, SchemaValidator, State

#: bytes of schema bodies kept in memory
BODY_CACHE_BYTES: Final = 32 << 20


class SchemaBodies:
    """Schemas by (id, version, digest), from Postgres through an LRU bounded in bytes.

    A digest names one body for ever, so nothing here ever goes stale.
    """

    def __init__(self, schemas: Schemas, *, limit_bytes: int = BODY_CACHE_BYTES) -> None:
        self._schemas = schemas
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[tuple[str, int, bytes], Schema] = OrderedDict()
        self._size_bytes = 0

    async def get(self, state: SchemaState) -> Schema:
        """The schema that the state machine names.

        Raises:
            Problem: ``unavailable``; ``data_integrity`` when the body is not to be found.
        """
        name = (state.schema_id, state.version, state.body_digest)
        held = self._held.get(name)
        if held is not None:
            self._held.move_to_end(name)
            return held
        schema = await self._schemas.by_digest(*name)
        if schema is None:
            raise Problem("data_integrity", "The body of a schema is missing")
        if name not in self._held:  # another task may have fetched it meanwhile
            self._held[name] = schema
            self._size_bytes += len(schema.body)
            while self._size_bytes > self._limit_bytes and len(self._held) > 1:
                _, dropped = self._held.popitem(last=False)
                self._size_bytes -= len(dropped.body)
        return schema


@dataclass(frozen=True, slots=True)
class Fit:
    """The schema version a document was found to fit."""

    schema_id: str
    version: int


class Fitting:
    """Validates documents against the current version of a schema."""

    def __init__(
        self, log: Log, state: State, bodies: SchemaBodies, validator: SchemaValidator
    ) -> None:
        self._log = log
        self._state = state
        self._bodies = bodies
        self._validator = validator

    async def fit(self, schema_id: str, document: bytes, call: Call) -> Fit:
        """The current version of the schema, which ``document`` fits.

        A refusal is only given against a schema as it stands after a barrier: this node's view may
        be late, and what it does not know or holds against the document may be history.

        Raises:
            Problem: ``validation_failed`` at ``/schema_id`` for no such schema;
                ``document_invalid`` with the faults.
        """
        found = await self._try(schema_id, document)
        if isinstance(found, Fit):
            return found
        await self._log.barrier(timeout_s=call.remaining_s())
        if self._live(schema_id) != found.state:
            found = await self._try(schema_id, document)
            if isinstance(found, Fit):
                return found
        if found.state is None:
            fault = Fault("/schema_id", "there is no such schema")
            raise Problem("validation_failed", errors=(fault,))
        raise Problem("document_invalid", errors=found.faults)

    async def faults(self, schema: Schema, document: bytes) -> tuple[Fault, ...]:
        """What keeps ``document`` from fitting that body."""
        return await self._validator.validate(schema.body, schema.digest, document)

    async def _try(self, schema_id: str, document: bytes) -> Fit | _Misfit:
        state = self._live(schema_id)
        if state is None:
            return _Misfit(None, ())
        schema = await self._bodies.get(state)
        faults = await self.faults(schema, document)
        return _Misfit(state, faults) if faults else Fit(schema_id, state.version)

    def _live(self, schema_id: str) -> SchemaState | None:
        state = self._state.schema(schema_id) if is_id(schema_id) else None
        return None if state is None or state.deleted else state


@dataclass(frozen=True, slots=True)
class _Misfit:
    state: SchemaState | None
    faults: tuple[Fault, ...]
