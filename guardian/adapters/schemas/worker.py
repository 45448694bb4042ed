"""The worker process: ``python -m guardian.adapters.schemas.worker <parent's pid>``.

It answers one job at a time, read from standard input, on standard output. CPU time of a job is
limited by an interval timer whose signal ends the process (its default action), so neither a
regular expression nor a compiler that never returns to Python can hold out against it, and a busy
machine does not make a good schema look bad. It ends with its parent: at the end of its input when
idle, by the kernel's parent-death signal when busy.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from guardian.adapters.schemas.guard import DEFAULT_LIMITS, SchemaLimits
from guardian.adapters.schemas.protocol import (
    MAX_REPLY_BYTES,
    REQUEST,
    Operation,
    Reply,
    Request,
    Verdict,
)
from guardian.domain.problems import Problem

if TYPE_CHECKING:
    from guardian.adapters.schemas.engines import Compiled

#: compiled schemas kept
CACHE_SIZE: Final = 64
#: address space, so that no schema can take the machine's memory with it
MEMORY_BYTES: Final = 2 << 30
_PR_SET_PDEATHSIG: Final = 1
_IN: Final = 0
_OUT: Final = 1


class Worker:
    """Does jobs, keeping the schemas it compiled last."""

    def __init__(self, limits: SchemaLimits = DEFAULT_LIMITS, cache_size: int = CACHE_SIZE) -> None:
        self._limits = limits
        self._cache_size = cache_size
        self._compiled: OrderedDict[bytes, Compiled] = OrderedDict()

    def do(self, request: Request) -> Reply:
        """The answer to one job; never raises for what a schema or document may hold."""
        try:
            if request.operation is Operation.CHECK:
                self._compile(request)
                return Reply(Verdict.FITS)
            return self._validate(request)
        except Problem as problem:
            found = tuple((fault.pointer, fault.message) for fault in problem.errors)
            return Reply(Verdict.PROBLEM, found, problem.code, problem.detail)

    def _validate(self, request: Request) -> Reply:
        compiled = self._compiled.get(request.digest)
        if compiled is None:
            if not request.body:
                return Reply(Verdict.UNKNOWN)
            compiled = self._compile(request)
        self._compiled.move_to_end(request.digest)
        limit_cpu_time(request.validate_ms)
        try:
            faults = compiled.validate(request.document)
        finally:
            limit_cpu_time(0)
        return Reply(Verdict.FAULTY, faults) if faults else Reply(Verdict.FITS)

    def _compile(self, request: Request) -> Compiled:
        # imported with the first job, so that a worker is ready at once
        from guardian.adapters.schemas.engines import Compiled

        limit_cpu_time(request.compile_ms)
        try:
            compiled = Compiled(request.body, self._limits)
        finally:
            limit_cpu_time(0)
        self._compiled[request.digest] = compiled
        while len(self._compiled) > self._cache_size:
            self._compiled.popitem(last=False)
        return compiled


def limit_cpu_time(limit_ms: int) -> None:
    """From now on this process may use that much CPU time before it is killed; 0 for no limit."""
    signal.setitimer(signal.ITIMER_PROF, limit_ms / 1000)


def end_with_parent(parent_pid: int) -> None:
    """Die when the parent does, however it does (Linux; elsewhere the end of input must do)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(0)  # it died before the kernel was told


def _read_exactly(size_bytes: int) -> bytes:
    """That many bytes of input; the process ends with the input."""
    parts: list[bytes] = []
    while size_bytes:
        part = os.read(_IN, min(size_bytes, 1 << 20))
        if not part:
            sys.exit(0)
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)


def _read_request() -> Request:
    head = REQUEST.unpack(_read_exactly(REQUEST.size))
    operation, compile_ms, validate_ms, digest, body_bytes, document_bytes = head
    body = _read_exactly(body_bytes)
    document = _read_exactly(document_bytes)
    return Request(Operation(operation), compile_ms, validate_ms, digest, body, document)


def _write(reply: Reply) -> None:
    raw = reply.encode()
    assert len(raw) <= MAX_REPLY_BYTES
    view = memoryview(raw)
    while view:
        view = view[os.write(_OUT, view) :]


def main() -> None:
    """Serve jobs until the input ends."""
    # Ctrl-C reaches the whole process group; the parent decides when workers end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    end_with_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    worker = Worker(SchemaLimits(*map(int, sys.argv[2:5])))
    _write(Reply(Verdict.READY))
    while True:
        _write(worker.do(_read_request()))


if __name__ == "__main__":
    main()
