"""A small ptrace(2) tracer in pure Python: start a program, stop at chosen system calls.

It needs neither a compiler nor strace, only Linux 5.3 (``PTRACE_GET_SYSCALL_INFO``, which gives
numbers, arguments and results without knowing the machine's registers). ptrace belongs to one
thread, so a tracer is a process of its own with a single thread in it.

The tracer *seizes* (``PTRACE_SEIZE``): unlike ``PTRACE_TRACEME`` that leaves job control alone, so
a SIGSTOP sent by a fault injector really stops the program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from jepsen_like.durability import seccomp

#: Called with the system call's result when it has returned: a count or descriptor, or -errno.
Completion = Callable[[int], None]

# <linux/ptrace.h>
_CONT = 7
_SYSCALL = 24
_GETEVENTMSG = 0x4201
_SEIZE = 0x4206
_LISTEN = 0x4208
_GET_SYSCALL_INFO = 0x420E
_OPTIONS = (
    0x1  # TRACESYSGOOD
    | 0x2  # TRACEFORK
    | 0x4  # TRACEVFORK
    | 0x8  # TRACECLONE
    | 0x10  # TRACEEXEC
    | 0x80  # TRACESECCOMP
    | 0x100000  # EXITKILL: a program never outlives its tracer half-traced
)
_EVENT_EXEC = 4
_EVENT_SECCOMP = 7
_EVENT_STOP = 128
_INFO_EXIT = 2
_INFO_SECCOMP = 3
_WALL = 0x40000000
_MAX_VECTOR = 1024  # UIO_MAXIOV
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_GROUP_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_INFO = struct.Struct("=B3xIQQ7Q")
_INFO_EXIT_VALUE = struct.Struct("=B3xIQQq")


class PtraceUnavailableError(RuntimeError):
    """This machine does not let us trace. Durability can then not be proved here: a failure."""


@dataclass(frozen=True, slots=True)
class Syscall:
    """A system call that is about to run."""

    name: str
    args: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exit:
    """How the program ended: exactly one of the two is set."""

    code: int | None
    signal: int | None


class SyscallHandler(Protocol):
    """What looks at the calls of the traced program. The calling thread stands still meanwhile."""

    def entering(self, tracee: Tracee, tid: int, call: Syscall) -> Completion | None:
        """``call`` has not run yet. Returns what to do when it has, or None for nothing."""
        ...


class Tracee:
    """Memory of the traced program, as of its last exec."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def replaced(self) -> None:
        """The program has exec'ed: its memory is another one."""
        os.close(self._memory)
        self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._memory)

    def read(self, address: int, size_bytes: int) -> bytes:
        """Bytes at ``address``; fewer, or none, where nothing is mapped or the program is gone."""
        try:
            return os.pread(self._memory, size_bytes, address)
        except (OSError, OverflowError):
            # An address that is not mapped: the call itself will fail with EFAULT.
            return b""

    def read_path(self, address: int) -> str:
        """A path argument (at most PATH_MAX bytes)."""
        return os.fsdecode(self.read(address, 4096).split(b"\0", 1)[0])

    def read_vector(self, address: int, count: int, limit: int | None = None) -> bytes:
        """The bytes that an ``iovec`` array names, joined; at most ``limit``."""
        parts: list[bytes] = []
        for base, size in self._vector(address, count):
            wanted = size if limit is None else min(size, limit)
            parts.append(self.read(base, wanted))
            if limit is not None:
                limit -= wanted
        return b"".join(parts)

    def vector_size(self, address: int, count: int) -> int:
        """How many bytes an ``iovec`` array names."""
        return sum(size for _, size in self._vector(address, count))

    def _vector(self, address: int, count: int) -> Iterator[tuple[int, int]]:
        vector = self.read(address, 16 * min(count, _MAX_VECTOR))
        return struct.iter_unpack("=QQ", vector[: len(vector) // 16 * 16])


class Tracer:
    """Runs one program and reports the system calls of its threads.

    Threads of the program are looked at; its child processes run on untouched (they stay attached
    only because they inherit the filter). With ``receiving`` reads are reported too. All methods
    are for one thread; :meth:`kill_everything` may also run in a signal handler of it.
    """

    def __init__(self, handler: SyscallHandler, *, receiving: bool = False) -> None:
        self._handler = handler
        self._table = seccomp.syscall_table(receiving=receiving)
        self._names = self._table.names
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.restype = ctypes.c_long
        self._libc.ptrace.argtypes = [
            ctypes.c_long,
            ctypes.c_long,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._info = ctypes.create_string_buffer(128)
        self._groups: dict[int, int] = {}
        self._waiting: dict[int, Completion] = {}
        self._tracee: Tracee | None = None
        self.pid = 0

    # -- starting -----------------------------------------------------------------------------

    def spawn(self, argv: Sequence[str], env: dict[str, str], cwd: str | None = None) -> int:
        """Start ``argv`` under the tracer; returns its pid.

        Raises:
            PtraceUnavailableError: the kernel or a container policy forbids tracing or filtering.
        """
        program = seccomp.filter_program(self._table)
        gate_read, gate_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(gate_write)
            _become(argv, env, cwd, program, gate_read)
        os.close(gate_read)
        try:
            if self._ptrace(_SEIZE, pid, 0, _OPTIONS) != 0:
                code = ctypes.get_errno()
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise PtraceUnavailableError(
                    f"ptrace is not permitted here ({os.strerror(code)}): durability on real "
                    "processes cannot be checked. In a container allow it with "
                    "--cap-add=SYS_PTRACE; on a host set kernel.yama.ptrace_scope below 2."
                )
            self._groups[pid] = pid
            self._tracee = Tracee(pid)
            os.write(gate_write, b"\1")
        finally:
            os.close(gate_write)
        self.pid = pid
        return pid

    # -- running ------------------------------------------------------------------------------

    def run(self) -> Exit:
        """Trace until the program (all its threads) has ended; returns how it ended."""
        while True:
            tid, status = os.waitpid(-1, _WALL)
            ended = self._handle(tid, status)
            if ended is not None and tid == self.pid:
                if self._tracee is not None:
                    self._tracee.close()
                    self._tracee = None
                return ended

    def run_orphans(self) -> None:
        """Keep the child processes running that outlived the program, until the last one ends."""
        while True:
            try:
                tid, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return
            self._handle(tid, status)

    def kill_everything(self) -> None:
        """SIGKILL to the program and every process it started, as when the machine dies."""
        for pid in {self.pid, *self._groups.values()} - {0}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it died by itself

    def _handle(self, tid: int, status: int) -> Exit | None:
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            self._groups.pop(tid, None)
            self._waiting.pop(tid, None)
            if os.WIFEXITED(status):
                return Exit(os.WEXITSTATUS(status), None)
            return Exit(None, os.WTERMSIG(status))
        stop, event = os.WSTOPSIG(status), status >> 16
        if event == _EVENT_SECCOMP:
            self._enter(tid)
        elif stop == _SYSCALL_STOP:
            self._leave(tid)
        elif event == _EVENT_STOP:
            if stop in _GROUP_STOPS:
                # Stay stopped until SIGCONT, as the program would without a tracer.
                self._ptrace(_LISTEN, tid, 0, 0)
                return None
        elif event == _EVENT_EXEC:
            self._replaced(tid)
        elif event == 0:
            self._resume(tid, stop)  # a signal on its way: deliver it
            return None
        self._resume(tid, 0)
        return None

    def _enter(self, tid: int) -> None:
        if self._group(tid) != self.pid or self._tracee is None:
            return
        if not self._get_info(tid):
            return
        op, _, _, _, number, *args = _INFO.unpack_from(self._info)
        if op != _INFO_SECCOMP:
            return
        call = Syscall(self._names[number], tuple(args))
        completion = self._handler.entering(self._tracee, tid, call)
        if completion is not None:
            self._waiting[tid] = completion

    def _leave(self, tid: int) -> None:
        completion = self._waiting.pop(tid, None)
        if completion is None or not self._get_info(tid):
            return
        op, _, _, _, result = _INFO_EXIT_VALUE.unpack_from(self._info)
        if op == _INFO_EXIT:
            completion(result)

    def _replaced(self, tid: int) -> None:
        """exec(2): all other threads are gone, and the caller now has the leader's id."""
        former = ctypes.c_ulong(0)
        self._ptrace(_GETEVENTMSG, tid, 0, ctypes.addressof(former))
        self._waiting.pop(int(former.value), None)
        self._waiting.pop(tid, None)
        if tid == self.pid and self._tracee is not None:
            self._tracee.replaced()

    # -- helpers ------------------------------------------------------------------------------

    def _group(self, tid: int) -> int:
        """The process that thread ``tid`` belongs to."""
        group = self._groups.get(tid)
        if group is None:
            group = _thread_group(tid)
            self._groups[tid] = group
        return group

    def _get_info(self, tid: int) -> bool:
        size = len(self._info)
        got = self._ptrace(_GET_SYSCALL_INFO, tid, size, ctypes.addressof(self._info))
        return got > 0

    def _resume(self, tid: int, stop_signal: int) -> None:
        # A thread inside a call that is looked at has to stop again when the call returns.
        request = _SYSCALL if tid in self._waiting else _CONT
        self._ptrace(request, tid, 0, stop_signal)

    def _ptrace(self, request: int, tid: int, address: int, data: int) -> int:
        result = int(self._libc.ptrace(request, tid, address, data))
        if result == -1 and request not in (_SEIZE,):
            code = ctypes.get_errno()
            if code != errno.ESRCH:  # ESRCH: killed meanwhile; its end is reported by waitpid
                raise OSError(code, f"ptrace request {request:#x}: {os.strerror(code)}")
        return result


def _thread_group(tid: int) -> int:
    try:
        with open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
    except FileNotFoundError:
        return 0  # gone again
    return 0


def _become(
    argv: Sequence[str], env: dict[str, str], cwd: str | None, program: bytes, gate: int
) -> None:
    """In the forked child: wait for the tracer, put the filter on, run the program."""
    try:
        if os.read(gate, 1) != b"\1":
            os._exit(126)  # the tracer could not attach and says why itself
        os.close(gate)
        for name in ("SIGPIPE", "SIGXFSZ", "SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        if cwd is not None:
            os.chdir(cwd)
        seccomp.install(program)
        os.execvpe(argv[0], list(argv), env)  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot start {argv[0]} under the tracer: {error}\n".encode())
    finally:
        os._exit(127)
