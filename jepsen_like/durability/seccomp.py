"""A seccomp filter that stops a traced process only at system calls worth looking at.

Stopping at every call would slow an event loop several times; with ``SECCOMP_RET_TRACE`` the kernel
stops at the listed ones and lets the rest run at full speed (seccomp(2)). The filter is inherited
by children and cannot be taken off again, so a tracer must stay with them: without one, a filtered
call fails with ENOSYS.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass

#: Numbers by name, (x86_64, aarch64); None where the architecture has no such call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "write": (1, 64),
    "pwrite64": (18, 68),
    "writev": (20, 66),
    "pwritev": (296, 70),
    "pwritev2": (328, 287),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "sendfile": (40, 71),
    "splice": (275, 76),
    "copy_file_range": (326, 285),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "open": (2, None),
    "creat": (85, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "mmap": (9, 222),
    "read": (0, 63),
    "readv": (19, 65),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
}

#: Looked at only when what arrives matters too.
RECEIVING = ("read", "readv", "recvfrom", "recvmsg")

#: Ways to write that pass by the calls above. They are refused as "not implemented", which every
#: user of them must cope with, so nothing can be written unseen.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "io_setup": (206, 0),
    "io_uring_setup": (425, 425),
}

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32_BIT = 0x40000000

# <linux/filter.h>, <linux/seccomp.h>, <linux/prctl.h>
_LOAD = 0x20
_JUMP_EQUAL = 0x15
_JUMP_AT_LEAST = 0x35
_JUMP_ANY_BIT = 0x45
_RETURN = 0x06
_TRACE = 0x7FF00000
_ALLOW = 0x7FFF0000
_FAIL = 0x00050000
_OFFSET_NUMBER = 0
_OFFSET_ARCHITECTURE = 4
_OFFSET_ARGUMENTS = 16
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2

_PROT_WRITE = 2
_MAP_SHARED_BIT = 1  # set in MAP_SHARED and MAP_SHARED_VALIDATE, clear in MAP_PRIVATE
_MAP_ANONYMOUS = 0x20

_Instruction = tuple[int, int, int, int]


class UnsupportedMachineError(RuntimeError):
    """Tracing is written for Linux on x86_64 and aarch64."""


@dataclass(frozen=True, slots=True)
class SyscallTable:
    """The system calls that are looked at, for one architecture."""

    audit_architecture: int
    numbers: dict[str, int]
    refused: frozenset[int]

    @property
    def names(self) -> dict[int, str]:
        return {number: name for name, number in self.numbers.items()}


def syscall_table(machine: str | None = None, *, receiving: bool = False) -> SyscallTable:
    """The table of ``machine`` (as uname gives it), by default of this one.

    With ``receiving`` the calls that read are in it, which makes tracing slower.

    Raises:
        UnsupportedMachineError: another architecture.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise UnsupportedMachineError(
            f"system calls can be traced on {', '.join(sorted(_ARCHITECTURES))}, not on {machine}"
        )
    column, audit_architecture = _ARCHITECTURES[machine]
    numbers = {name: row[column] for name, row in _NUMBERS.items()}
    refused = (row[column] for row in _REFUSED.values())
    return SyscallTable(
        audit_architecture,
        {
            name: number
            for name, number in numbers.items()
            if number is not None and (receiving or name not in RECEIVING)
        },
        frozenset(number for number in refused if number is not None),
    )


def _argument(position: int) -> _Instruction:
    """Load the low half of an argument (both architectures are little-endian here)."""
    return (_LOAD, 0, 0, _OFFSET_ARGUMENTS + 8 * position)


def _body(name: str) -> list[_Instruction]:
    """What decides about a call once its number has matched."""
    trace, allow = (_RETURN, 0, 0, _TRACE), (_RETURN, 0, 0, _ALLOW)
    opening = os.O_CREAT | os.O_TRUNC
    if name in ("open", "openat"):
        flags = _argument(1 if name == "open" else 2)
        return [flags, (_JUMP_ANY_BIT, 0, 1, opening), trace, allow]
    if name == "mmap":
        return [
            _argument(2),
            (_JUMP_ANY_BIT, 0, 4, _PROT_WRITE),
            _argument(3),
            (_JUMP_ANY_BIT, 2, 0, _MAP_ANONYMOUS),
            (_JUMP_ANY_BIT, 0, 1, _MAP_SHARED_BIT),
            trace,
            allow,
        ]
    return [trace]


def filter_program(table: SyscallTable) -> bytes:
    """The BPF program: trace the table's calls, refuse the refused, allow the rest."""
    refuse = (_RETURN, 0, 0, _FAIL | errno.ENOSYS)
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _OFFSET_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, table.audit_architecture),
        refuse,  # a 32-bit call would have other numbers
        (_LOAD, 0, 0, _OFFSET_NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32_BIT),
        refuse,
    ]
    for name, number in table.numbers.items():
        body = _body(name)
        program.append((_JUMP_EQUAL, 0, len(body), number))
        program.extend(body)
    for number in sorted(table.refused):
        program += [(_JUMP_EQUAL, 0, 1, number), refuse]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(program: bytes) -> None:
    """Put the filter on the calling thread and whatever it becomes.

    Sets "no new privileges", which an ordinary user needs for it: set-uid programs started from
    here on do not gain rights.

    Raises:
        OSError: the kernel refused it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))
    description = _Program(len(program) // 8, ctypes.addressof(buffer))
    calls: Iterable[tuple[int, ...]] = (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(description), 0, 0),
    )
    for call in calls:
        if libc.prctl(*(ctypes.c_ulong(value) for value in call)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"prctl({call[0]}): {os.strerror(code)}")
