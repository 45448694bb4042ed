"""A pool of real worker processes, and the public schemas to feed it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources

import pytest

from guardian.adapters.schemas.engines import Compiled
from guardian.adapters.schemas.pool import PoolLimits, WorkerPool
from guardian.domain.problems import Fault, Problem

#: CPU limits as in production; one worker, so that tests decide what it knows
LIMITS = PoolLimits(workers=1)


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    async with WorkerPool(LIMITS) as pool:
        yield pool


Validate = Callable[[object, object], Awaitable[tuple[Fault, ...]]]


@pytest.fixture
def validate_in_pool(pool: WorkerPool) -> Validate:
    """Through a worker process, for what might hang or end it."""

    async def validate(schema: object, document: object) -> tuple[Fault, ...]:
        body = json.dumps(schema).encode()
        digest = hashlib.sha256(body).digest()
        return await pool.validate(body, digest, json.dumps(document).encode())

    return validate


@pytest.fixture
def validate() -> Validate:
    """In this process: what a worker runs, without the process around it."""

    async def validate(schema: object, document: object) -> tuple[Fault, ...]:
        compiled = Compiled(json.dumps(schema).encode())
        found = compiled.validate(json.dumps(document).encode())
        return tuple(Fault(pointer, message) for pointer, message in found)

    return validate


@pytest.fixture
def refusal() -> Callable[[object], Awaitable[Problem]]:
    """Why a schema is refused, in this process."""

    async def refusal(schema: object) -> Problem:
        body = schema if isinstance(schema, bytes) else json.dumps(schema).encode()
        with pytest.raises(Problem) as caught:
            Compiled(body)
        return caught.value

    return refusal


@pytest.fixture
def vendored() -> Callable[[str], bytes]:
    """A public schema as it is stored: compact."""

    def vendored(name: str) -> bytes:
        package = resources.files("check_jsonschema.builtin_schemas.vendor")
        schema = json.loads((package / f"{name}.json").read_bytes())
        return json.dumps(schema, separators=(",", ":"), ensure_ascii=False).encode()

    return vendored
