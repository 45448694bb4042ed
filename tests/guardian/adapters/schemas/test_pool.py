"""The pool: processes that start late, are killed, replaced and never outlive their parent."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from guardian.adapters.schemas.pool import PoolLimits, WorkerPool
from guardian.domain.problems import Problem

INTEGER = b'{"type":"integer"}'
SLOW_BODY = json.dumps({"items": {"enum": [[number] for number in range(4000)]}}).encode()
SLOW_DOCUMENT = json.dumps([[number] for number in range(20_000, 60_000)]).encode()


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def workers_of(pool: WorkerPool) -> list[int]:
    return [process.pid for process in pool._all if process.pid is not None]


@pytest.mark.parametrize("name", ["github-workflows", "compose-spec", "gitlab-ci", "dependabot"])
async def test_public_schemas_compile_within_the_limits(
    pool: WorkerPool, vendored: Callable[[str], bytes], name: str
) -> None:
    await pool.check_schema(vendored(name))
    assert pool.replaced == 0


async def test_a_public_schema_validates_a_real_document(
    pool: WorkerPool, vendored: Callable[[str], bytes]
) -> None:
    body = vendored("github-workflows")
    steps = [{"uses": "actions/checkout@v4"}, {"run": "make test"}]
    workflow = {"on": "push", "jobs": {"test": {"runs-on": "ubuntu-latest", "steps": steps}}}
    assert await pool.validate(body, digest(body), json.dumps(workflow).encode()) == ()
    del workflow["on"]
    faults = await pool.validate(body, digest(body), json.dumps(workflow).encode())
    assert [(fault.pointer, fault.message) for fault in faults] == [
        ("", "must have the member 'on'")
    ]


async def test_the_renovate_schema_is_too_large(
    pool: WorkerPool, vendored: Callable[[str], bytes]
) -> None:
    with pytest.raises(Problem) as caught:
        await pool.check_schema(vendored("renovate"))
    assert caught.value.code == "schema_too_complex"
    assert workers_of(pool) == []


async def test_a_worker_starts_with_the_first_job_and_ends_with_the_pool() -> None:
    pool = WorkerPool(PoolLimits(workers=2))
    assert workers_of(pool) == []
    for _ in range(5):
        await pool.check_schema(INTEGER)
    (pid,) = workers_of(pool)
    await pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(Problem) as caught:
        await pool.check_schema(INTEGER)
    assert caught.value.code == "overloaded"


async def test_jobs_at_the_same_time_use_all_workers_and_get_their_own_answers() -> None:
    async with WorkerPool(PoolLimits(workers=2)) as pool:
        bodies = [json.dumps({"const": number}).encode() for number in range(20)]
        jobs = (
            pool.validate(bodies[n % 20], digest(bodies[n % 20]), str(n % 7).encode())
            for n in range(60)
        )
        answers = await asyncio.gather(*jobs)
        assert [answer == () for answer in answers] == [n % 20 == n % 7 for n in range(60)]
        assert len(workers_of(pool)) == 2


async def test_beyond_the_queue_jobs_are_refused_at_once() -> None:
    async with WorkerPool(PoolLimits(workers=1, queue=3)) as pool:
        jobs = (pool.validate(INTEGER, digest(INTEGER), b"1") for _ in range(10))
        answers = await asyncio.gather(*jobs, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, Problem)]
        assert {problem.code for problem in refused} == {"overloaded"}
        assert all(problem.retry_after_s for problem in refused)
        assert answers.count(()) == 4
        assert await pool.validate(INTEGER, digest(INTEGER), b"1") == ()


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (signal.SIGKILL, "overloaded"),
        (signal.SIGTERM, "overloaded"),
        (signal.SIGSEGV, "schema_too_complex"),
        (signal.SIGPROF, "schema_too_complex"),
    ],
)
async def test_a_killed_worker_costs_one_job_and_is_replaced(
    pool: WorkerPool, how: signal.Signals, code: str
) -> None:
    """Whoever kills from outside says nothing about the schema; a crash does."""
    await pool.check_schema(INTEGER)
    (first,) = workers_of(pool)
    os.kill(first, how)
    with pytest.raises(Problem) as caught:
        await pool.check_schema(INTEGER)
    assert caught.value.code == code
    assert await pool.validate(INTEGER, digest(INTEGER), b"1") == ()
    assert workers_of(pool) != [first]
    assert pool.replaced == 1


async def test_a_worker_that_stands_still_is_replaced_and_the_schema_not_blamed() -> None:
    limits = PoolLimits(workers=1, compile_ms=50, validate_ms=50, stall_factor=1.0)
    async with WorkerPool(limits) as pool:
        await pool.check_schema(b"true")
        (pid,) = workers_of(pool)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(Problem) as caught:
            await pool.check_schema(b"true")
        assert caught.value.code == "overloaded"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_an_abandoned_job_does_not_answer_the_next_one(pool: WorkerPool) -> None:
    await pool.check_schema(SLOW_BODY)
    job = asyncio.create_task(pool.validate(SLOW_BODY, digest(SLOW_BODY), SLOW_DOCUMENT))
    while not pool._free.locked():  # noqa: ASYNC110 - it has no event to tell when a job begins
        await asyncio.sleep(0)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    faults = await pool.validate(INTEGER, digest(INTEGER), b'"x"')
    assert [fault.message for fault in faults] == ["must be integer"]


async def test_a_schema_that_fell_out_of_the_workers_cache_is_sent_again(pool: WorkerPool) -> None:
    bodies = [json.dumps({"const": number}).encode() for number in range(70)]
    for number, body in enumerate(bodies * 2):
        assert await pool.validate(body, digest(body), str(number % 70).encode()) == ()
    assert pool.replaced == 0


async def test_workers_get_none_of_the_services_environment(
    monkeypatch: pytest.MonkeyPatch, pool: WorkerPool
) -> None:
    monkeypatch.setenv("GUARDIAN_JWT_SECRET", "do-not-hand-on")
    await pool.check_schema(INTEGER)
    (pid,) = workers_of(pool)
    environment = await asyncio.to_thread(Path(f"/proc/{pid}/environ").read_bytes)
    assert b"PYTHONPATH" in environment
    assert b"do-not-hand-on" not in environment


def test_a_worker_in_the_middle_of_a_job_dies_with_its_killed_parent(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(ORPHAN), str(fifo)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == b"READY\n"
        parent.kill()
        parent.wait()
        # the worker holds our pipe too, as descriptor 1 of its parent's; the end of the pipe is
        # the end of the last process that holds it
        assert parent.stdout.read() == b""
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


ORPHAN = """
    import os, subprocess, sys
    from guardian.adapters.schemas.protocol import REPLY, Operation, Request
    # the worker's input is a pipe that it holds open itself, so that its end can not end it
    pipe = os.open(sys.argv[1], os.O_RDWR)
    out_read, out_write = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, "-m", "guardian.adapters.schemas.worker", str(os.getpid())],
        stdin=pipe, stdout=out_write, stderr=1,
    )
    os.read(out_read, REPLY.size)
    request = Request(Operation.CHECK, 2000, 1000, bytes(32), b"{}", b"").encode()
    os.write(pipe, request[:-1])
    print("READY", flush=True)
    worker.wait()
"""


async def test_a_worker_that_does_not_start_says_nothing_about_the_schema(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Problem) as caught:
        await pool.check_schema(INTEGER)
    assert caught.value.code == "overloaded"
    monkeypatch.undo()
    await pool.check_schema(INTEGER)
