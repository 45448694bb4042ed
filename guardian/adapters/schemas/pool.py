"""The pool of worker processes: the service's side."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import guardian
from guardian.adapters.schemas.guard import DEFAULT_LIMITS, SchemaLimits, check_size
from guardian.adapters.schemas.protocol import (
    MAX_REPLY_BYTES,
    REPLY,
    Operation,
    Reply,
    Request,
    Verdict,
)
from guardian.domain.problems import CODES, Fault, Problem

_log = logging.getLogger(__name__)

#: digests that the pool believes a worker to have compiled
_KNOWN_LIMIT: Final = 256
_RETRY_AFTER_S: Final = 1.0
#: where workers find the package, installed or not
_ROOT: Final = str(Path(guardian.__file__).resolve().parent.parent)


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of the pool.

    Args:
        schema: how large a schema may be.
        workers: processes at most; each is started when it is first needed.
        queue: jobs waiting for a worker at most.
        compile_ms: CPU time for guarding and compiling a schema, milliseconds.
        validate_ms: CPU time for validating a document, milliseconds.
        start_s: time for a worker to start, seconds.
        stall_factor: how much longer than its CPU time a job may take by the wall clock.
        wait_s: time a job may wait for a worker, seconds.
    """

    schema: SchemaLimits = DEFAULT_LIMITS
    workers: int = 2
    queue: int = 64
    compile_ms: int = 2000
    validate_ms: int = 1000
    start_s: float = 10.0
    stall_factor: float = 3.0
    wait_s: float = 5.0


#: what a job can do to its worker: use up its CPU time, overflow its stack, or exhaust its memory,
#: which ends in an abort or in an exception that nobody catches (status 1)
_OF_THE_JOB: Final = frozenset(
    {
        1,
        -signal.SIGPROF,
        -signal.SIGXCPU,
        -signal.SIGSEGV,
        -signal.SIGBUS,
        -signal.SIGABRT,
        -signal.SIGILL,
    }
)
#: how long a worker whose pipe has ended may take to be gone
_REAP_S: Final = 5.0


class WorkerDiedError(Exception):
    """The worker ended in the middle of a job."""


class _Process:
    """One worker process and its pipes. Used by one job at a time."""

    def __init__(self, limits: SchemaLimits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._process: asyncio.subprocess.Process | None = None
        #: insertion-ordered set of digests, oldest first
        self._known: dict[bytes, None] = {}

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def knows(self, digest: bytes) -> bool:
        return digest in self._known

    async def start(self, timeout_s: float) -> None:
        """Start the process if it does not run. Raises ``TimeoutError``, ``WorkerDiedError``."""
        if self._process is not None:
            return
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "guardian.adapters.schemas.worker",
            str(os.getpid()),
            *map(str, (self._limits.size_bytes, self._limits.nodes, self._limits.depth)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_REPLY_BYTES,
            # nothing of the service's environment, which holds its secrets, is for a worker
            env={"PYTHONPATH": _ROOT, "LANG": "C.UTF-8", "PATH": os.defpath},
        )
        reply = await self._receive(timeout_s)
        assert reply.verdict is Verdict.READY

    async def ask(self, request: Request, timeout_s: float) -> Reply:
        """Do one job. Raises ``TimeoutError`` or ``WorkerDiedError``; kill it then."""
        assert self._process is not None
        assert self._process.stdin is not None
        stdin = self._process.stdin
        try:
            stdin.write(request.encode())
            reply = await self._receive(timeout_s)
        except ConnectionError as error:
            raise WorkerDiedError from error
        if reply.verdict in (Verdict.FITS, Verdict.FAULTY):
            self._known.pop(request.digest, None)
            self._known[request.digest] = None
            if len(self._known) > _KNOWN_LIMIT:
                del self._known[next(iter(self._known))]
        elif reply.verdict is Verdict.UNKNOWN:
            self._known.pop(request.digest, None)
        return reply

    async def reap(self) -> int | None:
        """The return code of a process that has died; None when it has not (it is killed then).

        No signal is sent to a process that died: before it sends one, ``subprocess`` looks whether
        the process still runs, takes the return code away from asyncio by that, and asyncio then
        makes up 255.
        """
        process = self._forget()
        if process is None:
            return None
        try:
            async with asyncio.timeout(_REAP_S):
                return await process.wait()
        except TimeoutError:
            await _end(process)
            return None

    async def kill(self) -> None:
        """End the process, whatever it does, and wait until it is gone."""
        process = self._forget()
        if process is not None:
            await _end(process)

    def _forget(self) -> asyncio.subprocess.Process | None:
        """The process, which is this worker's no longer: the next job gets another."""
        process, self._process = self._process, None
        self._known.clear()
        if process is not None and process.stdin is not None:
            process.stdin.close()
        return process

    async def _receive(self, timeout_s: float) -> Reply:
        assert self._process is not None
        assert self._process.stdout is not None
        stdout = self._process.stdout
        async with asyncio.timeout(timeout_s):
            try:
                (size_bytes,) = REPLY.unpack(await stdout.readexactly(REPLY.size))
                assert size_bytes <= MAX_REPLY_BYTES
                return Reply.decode(await stdout.readexactly(size_bytes))
            except asyncio.IncompleteReadError as error:
                raise WorkerDiedError from error


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


class WorkerPool:
    """Checks schemas and validates documents (the port ``SchemaValidator``).

    Use it as an async context manager, or :meth:`close` it. A worker that exceeds its limits or
    dies is replaced when the next job needs one.
    """

    def __init__(self, limits: PoolLimits | None = None) -> None:
        self._limits = limits or PoolLimits()
        self._idle = [_Process(self._limits.schema) for _ in range(self._limits.workers)]
        self._all = tuple(self._idle)
        self._free = asyncio.Semaphore(self._limits.workers)
        self._waiting = 0
        self._closed = False
        #: how many workers had to be replaced, for metrics
        self.replaced = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all workers. Jobs under way are refused."""
        self._closed = True
        for process in self._all:
            await process.kill()

    async def check_schema(self, body: bytes) -> None:
        """Whether the schema can be used.

        Raises:
            Problem: ``invalid_schema``, ``unsupported_draft``, ``remote_ref_forbidden``,
                ``schema_too_complex``; ``overloaded``.
        """
        check_size(body, self._limits.schema)
        digest = hashlib.sha256(body).digest()
        await self._run(self._request(Operation.CHECK, digest, body, b""))

    async def validate(self, body: bytes, digest: bytes, document: bytes) -> tuple[Fault, ...]:
        """Faults of the document under the schema; empty when it fits.

        Args:
            body: the schema.
            digest: SHA-256 of ``body``.
            document: JSON text.

        Raises:
            Problem: ``schema_too_complex`` when it can not be decided within the limits;
                ``overloaded``.
        """
        reply = await self._run(self._request(Operation.VALIDATE, digest, body, document))
        return tuple(Fault(pointer, message) for pointer, message in reply.faults)

    def _request(self, what: Operation, digest: bytes, body: bytes, document: bytes) -> Request:
        limits = self._limits
        return Request(what, limits.compile_ms, limits.validate_ms, digest, body, document)

    async def _run(self, request: Request) -> Reply:
        limits = self._limits
        timeout_s = (request.compile_ms + request.validate_ms) / 1000 * limits.stall_factor
        async with self._worker(request.digest) as process:
            try:
                await self._start(process)
                reply = await self._ask(process, request, timeout_s)
            except WorkerDiedError:
                raise await self._blame(process) from None
            except TimeoutError:
                await self._replace(process, "stalled")
                raise _overloaded("A schema worker is stalled") from None
            except BaseException:  # cancelled: the job's answer would be taken for the next one's
                await self._replace(process, "abandoned")
                raise
        if reply.verdict is Verdict.PROBLEM:
            assert reply.code in CODES
            errors = tuple(Fault(pointer, message) for pointer, message in reply.faults)
            raise Problem(reply.code, reply.detail, errors=errors)
        return reply

    async def _start(self, process: _Process) -> None:
        """A worker that does not even start says nothing about the job that it was to do."""
        try:
            await process.start(self._limits.start_s)
        except WorkerDiedError:
            await self._replace(process, "did not start")
            raise _overloaded("A schema worker did not start") from None

    async def _ask(self, process: _Process, request: Request, timeout_s: float) -> Reply:
        """Leave the body out when the worker should have it; send it when it has not."""
        if request.operation is Operation.VALIDATE and process.knows(request.digest):
            without_body = Request(
                request.operation,
                request.compile_ms,
                request.validate_ms,
                request.digest,
                b"",
                request.document,
            )
            reply = await process.ask(without_body, timeout_s)
            if reply.verdict is not Verdict.UNKNOWN:
                return reply
        return await process.ask(request, timeout_s)

    @contextlib.asynccontextmanager
    async def _worker(self, digest: bytes) -> AsyncIterator[_Process]:
        """An idle worker, preferably one that has the schema, else the one used last."""
        if self._closed:
            raise _overloaded("Shutting down")
        if self._free.locked() and self._waiting >= self._limits.queue:
            raise _overloaded("Too many documents wait for validation")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._limits.wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise _overloaded("No schema worker became free") from None
        finally:
            self._waiting -= 1
        knowing = (index for index, process in enumerate(self._idle) if process.knows(digest))
        process = self._idle.pop(next(knowing, -1))
        try:
            yield process
        finally:
            self._idle.append(process)
            self._free.release()

    async def _replace(self, process: _Process, why: str) -> None:
        pid = process.pid
        await asyncio.shield(process.kill())
        self.replaced += 1
        _log.warning("schema worker %s %s", pid, why)

    async def _blame(self, process: _Process) -> Problem:
        """What a worker's death says about its job: nothing, unless the job can cause it."""
        pid = process.pid
        returncode = await asyncio.shield(process.reap())
        if self._closed:
            return _overloaded("Shutting down")
        self.replaced += 1
        _log.warning("schema worker %s died (return code %s)", pid, returncode)
        if returncode in _OF_THE_JOB:
            return Problem("schema_too_complex", "The limits of time or memory were exceeded")
        return _overloaded("A schema worker was killed")


def _overloaded(detail: str) -> Problem:
    return Problem("overloaded", detail, retry_after_s=_RETRY_AFTER_S)
