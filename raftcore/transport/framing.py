"""Frames: how messages are told apart on a byte stream.

A frame is ``u32 length | u32 crc32 | payload``, big-endian; the payload begins with one byte that
says what kind of frame it is. The length is checked against a hard cap as soon as its four bytes
are there, before anything is kept for it. No I/O happens here.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

from raftcore.transport.checks import WireError

_HEADER = struct.Struct(">II")
#: What a frame costs besides its body: length, checksum and kind.
FRAME_OVERHEAD_BYTES = _HEADER.size + 1
DEFAULT_MAX_FRAME_BYTES = 64 << 20


class FrameKind(IntEnum):
    HELLO = 1  #: the dialler introduces itself
    WELCOME = 2  #: the acceptor introduces itself
    REFUSE = 3  #: the acceptor says why not
    MESSAGE = 4  #: a protocol message
    REQUEST = 5  #: an application's question
    RESPONSE = 6  #: its answer


class Frame(NamedTuple):
    kind: FrameKind
    body: bytes


_KINDS = {int(kind): kind for kind in FrameKind}


def encode_frame(kind: FrameKind, body: bytes) -> bytes:
    """The bytes of one frame."""
    kind_byte = b"%c" % kind
    checksum = zlib.crc32(body, zlib.crc32(kind_byte))
    return b"%b%b%b" % (_HEADER.pack(len(body) + 1, checksum), kind_byte, body)


class FrameDecoder:
    """Cuts a byte stream into frames.

    Args:
        max_frame_bytes: cap on one payload (kind byte and body). It may be raised later, which is
            what happens when a connection has introduced itself.
    """

    def __init__(self, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that ``data`` completes, in order.

        Raises:
            WireError: see :meth:`next_frame`; frames before the bad one are lost too.
        """
        self.push(data)
        frames: list[Frame] = []
        while (frame := self.next_frame()) is not None:
            frames.append(frame)
        return frames

    def push(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes in; :meth:`next_frame` then gives what they complete, one at a time."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more bytes came.

        Raises:
            WireError: an empty, oversize or unknown frame or a wrong checksum. The stream cannot be
                followed any further.
        """
        buffer = self._buffer
        if len(buffer) < _HEADER.size:
            return None
        length, checksum = _HEADER.unpack_from(buffer)
        if not 0 < length <= self.max_frame_bytes:
            raise WireError(f"a frame of {length} bytes; at most {self.max_frame_bytes} are taken")
        end = _HEADER.size + length
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view, view[_HEADER.size : end] as payload:
            if zlib.crc32(payload) != checksum:
                raise WireError("a frame's checksum is wrong")
            kind = _KINDS.get(payload[0])
            if kind is None:
                raise WireError(f"frame kind {payload[0]} is not known here")
            frame = Frame(kind, bytes(payload[1:]))
        del buffer[:end]  # cheap: a bytearray gives up its front without moving the rest
        return frame
