"""From system calls of the traced program to changes of files, syncs and sends.

This is the only place that knows what the arguments of each call mean. Descriptors are looked up in
``/proc`` at the moment of the call, so nothing has to be remembered about dup, close or passing.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from jepsen_like.durability.file_image import FileImage
from jepsen_like.durability.images import Images
from jepsen_like.durability.ptrace import Completion, Syscall, Tracee

_AT_FDCWD = -100
_AT_REMOVEDIR = 0x200
_RWF_DSYNC = 0x2
_RWF_APPEND = 0x10
_FALLOC_SUPPORTED = 0x01 | 0x02 | 0x10  # KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
_FALLOC_KEEP_SIZE = 0x01
_RENAME_PLAIN = 0x1  # NOREPLACE; exchanging and whiteouts are not modelled
_MSG_PEEK = 0x2
_MSGHDR_BYTES = 56
_MMSGHDR_BYTES = 64


class SocketMonitor(Protocol):
    """Sees every byte before it leaves through a socket, and what arrived."""

    def sending(self, stream: str, data: bytes) -> Completion:
        """``data`` is about to be sent on ``stream``; the result says how much of it went out."""
        ...

    def received(self, stream: str, data: bytes) -> None:
        """``data`` has arrived on ``stream``; the program has not seen it yet."""
        ...

    def bypassed(self, stream: str, call: str) -> None:
        """Bytes that nobody saw (sendfile, splice) leave on ``stream``."""
        ...


class Watch:
    """The handler of a :class:`~.ptrace.Tracer`: keeps images, and shows sends to a monitor."""

    def __init__(self, images: Images, monitor: SocketMonitor | None = None) -> None:
        self._images = images
        self._monitor = monitor
        self._handlers: dict[str, Callable[[Tracee, int, tuple[int, ...]], Completion | None]] = {
            "write": self._write,
            "pwrite64": self._pwrite,
            "writev": self._writev,
            "pwritev": self._pwritev,
            "pwritev2": self._pwritev2,
            "sendto": self._sendto,
            "sendmsg": self._sendmsg,
            "sendmmsg": self._sendmmsg,
            "sendfile": self._sendfile,
            "splice": self._splice,
            "copy_file_range": self._splice,
            "fsync": self._sync,
            "fdatasync": self._sync,
            "truncate": self._truncate,
            "ftruncate": self._ftruncate,
            "fallocate": self._fallocate,
            "open": lambda t, i, a: self._open(t, i, _AT_FDCWD, a[0], a[1]),
            "creat": lambda t, i, a: self._open(t, i, _AT_FDCWD, a[0], os.O_CREAT | os.O_TRUNC),
            "openat": lambda t, i, a: self._open(t, i, a[0], a[1], a[2]),
            "openat2": lambda t, i, a: self._open(t, i, a[0], a[1], _u64(t, a[2])),
            "rename": lambda t, i, a: self._rename(t, i, (_AT_FDCWD, a[0], _AT_FDCWD, a[1], 0)),
            "renameat": lambda t, i, a: self._rename(t, i, (*a[:4], 0)),
            "renameat2": self._rename,
            "link": lambda t, i, a: self._make(t, i, _AT_FDCWD, a[1]),
            "linkat": lambda t, i, a: self._make(t, i, a[2], a[3]),
            "symlink": lambda t, i, a: self._make(t, i, _AT_FDCWD, a[1]),
            "symlinkat": lambda t, i, a: self._make(t, i, a[1], a[2]),
            "mknod": lambda t, i, a: self._make(t, i, _AT_FDCWD, a[0]),
            "mknodat": lambda t, i, a: self._make(t, i, a[0], a[1]),
            "mkdir": lambda t, i, a: self._make(t, i, _AT_FDCWD, a[0]),
            "mkdirat": lambda t, i, a: self._make(t, i, a[0], a[1]),
            "rmdir": lambda t, i, a: self._unlink(t, i, _AT_FDCWD, a[0]),
            "unlink": lambda t, i, a: self._unlink(t, i, _AT_FDCWD, a[0]),
            "unlinkat": lambda t, i, a: self._unlink(t, i, a[0], a[1]),
            "mmap": self._mmap,
            "read": self._read,
            "recvfrom": self._recvfrom,
            "readv": self._readv,
            "recvmsg": self._recvmsg,
        }

    def entering(self, tracee: Tracee, tid: int, call: Syscall) -> Completion | None:
        try:
            return self._handlers[call.name](tracee, tid, call.args)
        except (FileNotFoundError, ProcessLookupError):
            # Killed, or the descriptor was closed by another thread: the call will not happen.
            return None

    # -- writing to files and sockets ---------------------------------------------------------

    def _write(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        fd, address, size = args[:3]
        return self._out(tid, fd, None, size, lambda: tracee.read(address, size))

    def _pwrite(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        fd, address, size, offset = args[:4]
        return self._out(tid, fd, offset, size, lambda: tracee.read(address, size))

    def _writev(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        return self._vector(tracee, tid, args, None, 0)

    def _pwritev(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        return self._vector(tracee, tid, args, args[3], 0)

    def _pwritev2(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        offset = None if ctypes.c_long(args[3]).value == -1 else args[3]
        return self._vector(tracee, tid, args, offset, args[5])

    def _vector(
        self, tracee: Tracee, tid: int, args: tuple[int, ...], offset: int | None, flags: int
    ) -> Completion | None:
        fd, address, count = args[:3]
        size = tracee.vector_size(address, count)
        return self._out(tid, fd, offset, size, lambda: tracee.read_vector(address, count), flags)

    def _out(
        self,
        tid: int,
        fd: int,
        offset: int | None,
        size: int,
        data: Callable[[], bytes],
        flags: int = 0,
    ) -> Completion | None:
        link = _link(tid, fd)
        target = _target(link)
        if target.startswith("socket:"):
            return None if self._monitor is None else self._monitor.sending(target, data())
        if not target.startswith("/") or not self._images.covers(target):
            return None
        image = self._images.open(target, link)
        return None if image is None else self._change(tid, fd, image, offset, size, flags)

    def _change(
        self, tid: int, fd: int, image: FileImage, offset: int | None, size: int, flags: int = 0
    ) -> Completion:
        position, opened = _descriptor(tid, fd)
        if opened & os.O_APPEND or flags & _RWF_APPEND:
            offset = image.current_size_bytes
        elif offset is None:
            offset = position
        durable = bool(opened & os.O_DSYNC or flags & _RWF_DSYNC)
        change = self._images.begin_change(image, offset, offset + size)
        return lambda result: self._images.end_change(image, change, result, durable)

    # -- sockets only -------------------------------------------------------------------------

    def _sendto(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        fd, address, size = args[:3]
        return self._send(tid, fd, lambda: tracee.read(address, size))

    def _sendmsg(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        return self._send(tid, args[0], lambda: _message(tracee, args[1]))

    def _sendmmsg(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        if self._monitor is None:
            return None
        messages = [
            _message(tracee, args[1] + _MMSGHDR_BYTES * i) for i in range(min(args[2], 1024))
        ]
        sent = self._monitor.sending(_target(_link(tid, args[0])), b"".join(messages))
        return lambda result: sent(sum(map(len, messages[:result])) if result >= 0 else result)

    def _send(self, tid: int, fd: int, data: Callable[[], bytes]) -> Completion | None:
        if self._monitor is None:
            return None
        return self._monitor.sending(_target(_link(tid, fd)), data())

    def _sendfile(self, _: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        return self._transfer(tid, args[0], None, args[3], "sendfile")

    def _splice(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        offset = _u64(tracee, args[3]) if args[3] else None
        return self._transfer(tid, args[2], offset, args[4], "splice")

    def _transfer(
        self, tid: int, fd: int, offset: int | None, size: int, call: str
    ) -> Completion | None:
        """Bytes that the kernel moves from one descriptor to another."""
        link = _link(tid, fd)
        target = _target(link)
        if target.startswith("socket:"):
            if self._monitor is not None:
                self._monitor.bypassed(target, call)
            return None
        if not target.startswith("/") or not self._images.covers(target):
            return None
        image = self._images.open(target, link)
        return None if image is None else self._change(tid, fd, image, offset, size)

    # -- receiving ----------------------------------------------------------------------------

    def _read(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        return self._receive(tid, args[0], lambda result: tracee.read(args[1], result))

    def _recvfrom(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        return None if args[3] & _MSG_PEEK else self._read(tracee, tid, args)

    def _readv(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        return self._receive(
            tid, args[0], lambda result: tracee.read_vector(args[1], args[2], result)
        )

    def _recvmsg(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        if args[2] & _MSG_PEEK:
            return None
        return self._receive(tid, args[0], lambda result: _message(tracee, args[1], result))

    def _receive(self, tid: int, fd: int, data: Callable[[int], bytes]) -> Completion | None:
        target, monitor = _target(_link(tid, fd)), self._monitor
        if monitor is None or not target.startswith("socket:"):
            return None
        return lambda result: monitor.received(target, data(result)) if result > 0 else None

    # -- syncing ------------------------------------------------------------------------------

    def _sync(self, _: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        link = _link(tid, args[0])
        target = _target(link)
        with suppress(OSError):
            found = os.stat(link)
            if stat.S_ISDIR(found.st_mode):
                key, sequence = (found.st_dev, found.st_ino), self._images.names.sequence
                return lambda result: self._directory_synced(key, sequence, result)
        if not target.startswith("/") or not self._images.covers(target):
            return None
        image = self._images.open(target, link)
        if image is None:
            return None
        number = self._images.begin_sync(image)
        return lambda result: self._images.end_sync(image, number, result == 0)

    def _directory_synced(self, key: tuple[int, int], sequence: int, result: int) -> None:
        if result == 0:
            self._images.names.synced(key, sequence)

    # -- sizes --------------------------------------------------------------------------------

    def _truncate(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        path = os.path.realpath(_path(tracee, tid, _AT_FDCWD, args[0]))
        return self._resize(self._images.open(path) if self._images.covers(path) else None, args[1])

    def _ftruncate(self, _: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        link = _link(tid, args[0])
        target = _target(link)
        if not target.startswith("/") or not self._images.covers(target):
            return None
        return self._resize(self._images.open(target, link), args[1])

    def _resize(self, image: FileImage | None, size: int) -> Completion | None:
        if image is None:
            return None
        current = image.current_size_bytes
        if current == size:
            return None
        change = self._images.begin_change(image, min(current, size), max(current, size))
        return lambda result: self._images.end_change(image, change, result, False)

    def _fallocate(self, _: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        fd, mode, offset, size = args[:4]
        link = _link(tid, fd)
        target = _target(link)
        if not target.startswith("/") or not self._images.covers(target):
            return None
        if mode & ~_FALLOC_SUPPORTED:
            self._images.faults.append(f"fallocate mode {mode:#x} on {target} is not modelled")
            return None
        image = self._images.open(target, link)
        if image is None or mode == _FALLOC_KEEP_SIZE:
            return None  # reserves blocks; no byte changes
        change = self._images.begin_change(image, offset, offset + size)
        return lambda result: self._images.end_change(image, change, result, False)

    # -- names --------------------------------------------------------------------------------

    def _open(
        self, tracee: Tracee, tid: int, directory: int, address: int, flags: int
    ) -> Completion | None:
        if not flags & (os.O_CREAT | os.O_TRUNC):
            return None
        path = _path(tracee, tid, directory, address)
        if os.path.islink(path):
            path = os.path.realpath(path)
        if not self._images.covers(path):
            return None
        if os.path.lexists(path):
            image = self._images.open(path) if flags & os.O_TRUNC else None
            return self._resize(image, 0)
        return lambda result: self._images.names.created(path) if result >= 0 else None

    def _make(self, tracee: Tracee, tid: int, directory: int, address: int) -> Completion | None:
        path = _path(tracee, tid, directory, address)
        if not self._images.covers(path):
            return None
        return lambda result: self._images.names.created(path) if result == 0 else None

    def _unlink(self, tracee: Tracee, tid: int, directory: int, address: int) -> Completion | None:
        path = _path(tracee, tid, directory, address)
        if not self._images.covers(path):
            return None
        saved = self._images.names.save(path)
        return lambda result: self._images.names.removed(path, saved, result == 0)

    def _rename(self, tracee: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        images = self._images
        source = _path(tracee, tid, args[0], args[1])
        target = _path(tracee, tid, args[2], args[3])
        if not images.covers(source) and not images.covers(target):
            return None
        if args[4] & ~_RENAME_PLAIN:
            images.faults.append(f"renameat2 flags {args[4]:#x} on {target} are not modelled")
            return None
        if images.covers(target):
            replaced = images.names.save(target)
            return lambda result: images.names.renamed(source, target, replaced, result == 0)
        if os.path.isdir(source):
            images.faults.append(f"{source} was moved out of what is watched")
            return None
        saved = images.names.save(source)
        return lambda result: images.names.removed(source, saved, result == 0)

    # -- mappings -----------------------------------------------------------------------------

    def _mmap(self, _: Tracee, tid: int, args: tuple[int, ...]) -> Completion | None:
        target = _target(_link(tid, args[4]))
        if target.startswith("/") and self._images.covers(target):
            self._images.faults.append(f"{target} is mapped shared and writable")
        return None


def _link(tid: int, fd: int) -> str:
    return f"/proc/{tid}/fd/{ctypes.c_int(fd & 0xFFFFFFFF).value}"


def _target(link: str) -> str:
    """Where a descriptor leads; empty if it is not open (the call will fail)."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _descriptor(tid: int, fd: int) -> tuple[int, int]:
    """Position and open flags of a descriptor."""
    position = flags = 0
    with open(
        f"/proc/{tid}/fdinfo/{ctypes.c_int(fd & 0xFFFFFFFF).value}", encoding="ascii"
    ) as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == "pos":
                position = int(value)
            elif name == "flags":
                flags = int(value, 8)
    return position, flags


def _path(tracee: Tracee, tid: int, directory: int, address: int) -> str:
    """A path argument as an absolute path; its last component is not followed."""
    given = tracee.read_path(address)
    base = ctypes.c_int(directory & 0xFFFFFFFF).value
    root = _target(f"/proc/{tid}/cwd" if base == _AT_FDCWD else f"/proc/{tid}/fd/{base}")
    full = os.path.join(root, given).rstrip("/")
    parent, name = os.path.split(full)
    if name in ("", ".", ".."):
        return os.path.realpath(full)
    return os.path.join(os.path.realpath(parent), name)


def _u64(tracee: Tracee, address: int) -> int:
    raw = tracee.read(address, 8)
    return int(struct.unpack("=Q", raw)[0]) if len(raw) == 8 else 0


def _message(tracee: Tracee, address: int, limit: int | None = None) -> bytes:
    """The bytes that a ``msghdr`` names, at most ``limit``."""
    header = tracee.read(address, _MSGHDR_BYTES)
    if len(header) < _MSGHDR_BYTES:
        return b""
    vector, count = struct.unpack_from("=QQ", header, 16)
    return tracee.read_vector(vector, count, limit)
